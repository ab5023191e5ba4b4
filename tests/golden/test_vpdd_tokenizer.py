"""Numbers of the published VPDD tokenizer: whole clips, one training step, unequal strides, the full size."""

import json

import pytest
import recipe
import torch
from safetensors.torch import load_file

from ideomotor.interop.vpdd_tokenizer import tokenizer_config, tokenizer_from_published
from ideomotor.layers.quantize import EMACodebook
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig

pytestmark = pytest.mark.golden


def close(got, wanted, atol=1e-5):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0.0)


def frames(clip):  # theirs is b c t h w, or b d t h w
    return clip.transpose(1, 2)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpdd"


def published_by_recipe(folder, name):
    """Returns the published state (weights by rule, natural counters) and the recorded numbers."""
    data = load_file(folder / f"{name}.safetensors")
    entries = json.loads((folder / f"{name}.json").read_text())["weights"]
    state = recipe.weights(entries)
    counters = {key.replace("running_var", "num_batches_tracked") for key in state if key.endswith("running_var")}
    codes = data["codebook"].float()
    book = {"codebook.embeddings": codes, "codebook.z_avg": codes, "codebook.N": torch.ones(len(codes))}
    return state | book | {key: torch.tensor(0) for key in counters}, data


def tokenizer_of(state, strides=None):
    tokenizer = AxialVQVAE(AxialVQVAEConfig(**tokenizer_config(state, strides)))
    tokenizer.load_state_dict(tokenizer_from_published(state))
    return tokenizer.eval()


@pytest.fixture
def tiny(folder):
    data = load_file(folder / "vqvae_tiny.safetensors")
    state = {name.removeprefix("state."): value for name, value in data.items() if name.startswith("state.")}
    return tokenizer_of(state), data


@pytest.mark.parametrize("clip", ["clip8", "clip4"])
def test_tiny_clips(tiny, clip):
    tokenizer, data = tiny
    assert (tokenizer.vocab, tokenizer.codebook.width, tokenizer.config.width) == (64, 24, 32)
    pixels = frames(data[clip])
    with torch.no_grad():
        z = tokenizer._embed(pixels)
        close(z, data[f"{clip}.z"].movedim(1, -1))
        quantized, ids, _ = tokenizer.codebook(z)
        assert ids.equal(data[f"{clip}.indices"])
        close(tokenizer._paint(quantized), frames(data[f"{clip}.recon"]))
        losses = tokenizer._losses(pixels)
    for ours, theirs in (("reconstruction", "recon_loss"), ("commitment", "commitment_loss"), ("perplexity",) * 2):
        close(losses.terms[ours][None], data[f"{clip}.{theirs}"])
    assert losses.total == losses.terms["reconstruction"] + losses.terms["commitment"]


def test_tiny_parts(tiny):
    tokenizer, data = tiny
    with torch.no_grad():
        close(tokenizer.encoder[:-1](data["clip8"]), data["clip8.encoder_out"])
        decoded = tokenizer._paint(tokenizer.codebook.lookup(data["clip8.indices"]))
    close(decoded, frames(data["clip8.decoded_from_indices"]))
    assert tokenizer.vectors(data["lookup_ids"]).equal(data["lookup_vectors"])


def test_train_step(tiny, folder, monkeypatch):
    (tokenizer, weights), data = tiny, load_file(folder / "vqvae_train_step.safetensors")
    monkeypatch.setattr(
        EMACodebook, "_candidates", lambda self, flat, purpose: flat[data["step.permutation"]][: self.size]
    )
    losses = tokenizer.train()._losses(frames(weights["clip8"]))
    losses.total.backward()
    close(losses.total.detach()[None], data["step.total_loss"])
    for ours, theirs in (("reconstruction", "recon_loss"), ("commitment", "commitment_loss"), ("perplexity",) * 2):
        close(losses.terms[ours][None], data[f"step.{theirs}"])
    ours = dict(tokenizer.named_parameters())
    norm = torch.stack([p.grad.double().norm() for p in ours.values()]).norm()[None]
    # 86.7, whose neighbour in fp32 is 7.6e-6 away: as a ratio, since sums in another order (threads) move it by six.
    close((norm / data["step.grad_l2_all"]).float(), torch.ones(1))
    same = {
        "decoder.convts.1.convt.weight": "decoder.grow.2.conv.weight",
        "encoder.conv_last.conv.bias": "encoder.shrink.4.conv.bias",
        "encoder.convs.0.conv.weight": "encoder.shrink.0.conv.weight",
        "encoder.res_stack.0.block.8.attn_t.w_qs.weight": "encoder.blocks.0.body.8.time.qkv.weight",
        "encoder.res_stack.1.block.0.weight": "encoder.blocks.1.body.0.weight",
        "post_vq_conv.conv.bias": "decoder.project.conv.bias",
        "pre_vq_conv.conv.weight": "encoder.project.conv.weight",
    }
    recorded = {key.removeprefix("step.grad."): g for key, g in data.items() if key.startswith("step.grad.")}
    assert recorded.keys() == same.keys()
    for name, gradient in recorded.items():
        close(ours[same[name]].grad[: len(gradient)], gradient)
    after = {key.removeprefix("step.buffer_after."): v for key, v in data.items() if "buffer_after" in key}
    parameters = {k.removeprefix("state."): v for k, v in weights.items() if k.startswith("state.")}
    wanted, got = tokenizer_from_published(parameters | after), tokenizer.state_dict()
    for name, _ in tokenizer.named_buffers():
        if name != "codebook.step":
            close(got[name], wanted[name])


def test_train_step_activations(tiny, folder):
    (tokenizer, weights), data = tiny, load_file(folder / "vqvae_train_step.safetensors")
    with torch.no_grad():
        z = tokenizer.train()._embed(frames(weights["clip8"]))
        close(z, data["step.z"].movedim(1, -1))
        quantized, ids, _ = tokenizer.codebook(z)
        assert ids.equal(data["step.indices"])
        close(tokenizer._paint(quantized), frames(data["step.recon"]))


def test_unequal_strides(folder):
    state, data = published_by_recipe(folder, "vqvae_asymmetric")
    tokenizer = tokenizer_of(state, strides=(2, 4, 4))
    with torch.no_grad():
        close(tokenizer.encoder[:-1](data["clip"]), data["encoder_out"])
        z = tokenizer._embed(frames(data["clip"]))
        close(z, data["z"].movedim(1, -1))
        quantized, ids, _ = tokenizer.codebook(z)
        assert ids.equal(data["indices"])
        close(tokenizer._paint(quantized), frames(data["recon"]))
        close(tokenizer._paint(tokenizer.codebook.lookup(ids)), frames(data["decoded_from_indices"]))
        terms = tokenizer._losses(frames(data["clip"])).terms
    for ours, theirs in (("reconstruction", "recon_loss"), ("commitment", "commitment_loss"), ("perplexity",) * 2):
        close(terms[ours][None], data[theirs])


def test_full_size(folder):
    state, data = published_by_recipe(folder, "vqvae_full")
    tokenizer = tokenizer_of(state)
    assert tokenizer.config == AxialVQVAEConfig()
    video = frames(data["clip_uint8"])
    assert tokenizer.encode(video).equal(data["indices"].flatten(2))
    places = data["selected_positions"]
    with torch.no_grad():
        features = tokenizer.encoder[:-1](frames(video.float() / 255 - 0.5))
        close(features.flatten(2)[..., places], data["encoder_out_selected"], atol=1e-4)
        z = tokenizer.encoder.project(features)
        close(z.flatten(2)[..., places], data["z_selected"], atol=1e-4)
        recon = tokenizer._paint(tokenizer.codebook.lookup(data["indices"]))
        close(frames(recon)[..., ::4, ::4], data["recon_stride4"], atol=1e-4)
        terms = tokenizer.loss(video).terms
    for ours, theirs in (("reconstruction", "recon_loss"), ("commitment", "commitment_loss"), ("perplexity",) * 2):
        close(terms[ours][None], data[theirs], atol=1e-4)
    painted = tokenizer.decode(data["indices"].flatten(2))
    close(painted.float(), ((recon + 0.5) * 255).round().clamp(0, 255))


def test_published_layout(folder):
    layout = json.loads((folder / "checkpoint_layouts.json").read_text())["vqvae"]["tensors"]
    state = {name: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for name, shape, kind in layout}
    assert AxialVQVAEConfig(**tokenizer_config(state)) == AxialVQVAEConfig()
    ours, wanted = tokenizer_from_published(state), AxialVQVAE(AxialVQVAEConfig()).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
