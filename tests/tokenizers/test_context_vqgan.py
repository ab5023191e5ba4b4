"""The compressive tokenizer: counts, what is kept of a context, growing it, codebooks, refusals."""

from dataclasses import replace

import pytest
import torch

from ideomotor.tokenizers.context_config import ContextVQGANConfig, published_64, published_256, small_64
from ideomotor.tokenizers.context_vqgan import ContextVQGAN, in_bf16, resize_context
from ideomotor.types import Clip

TINY = ContextVQGANConfig(
    size=16, widths=(8, 16), blocks=1, latent=4, patch=4, context_codes=12, dynamics_codes=20, norm_groups=4,
    attention_limit=8, levels=(4, 3),
)  # fmt: skip


def video(b=2, t=5, size=16):
    coarse = torch.randint(0, 256, (b, t, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return coarse.repeat_interleave(size // 4, 3).repeat_interleave(size // 4, 4)


def tiny(**settings):
    torch.manual_seed(0)
    tokenizer = ContextVQGAN(replace(TINY, **settings))
    for name, weight in tokenizer.named_parameters():
        if name.endswith("positions") or "codebook" in name:
            torch.nn.init.normal_(weight, std=0.3)  # as trained ones are; they begin at or near zero
    return tokenizer.eval()


@pytest.fixture(params=["learned", "ema", "fsq", "three", "symmetric", "residual", "folded"])
def tokenizer(request):
    settings = {"three": {"context_length": 3}, "symmetric": {"symmetric": True}, "residual": {"residual": True}}
    settings["folded"] = {"fold": 2, "widths": (16,)}
    return tiny(**settings.get(request.param, {"codebook": request.param}))


def test_contract(tokenizer):
    frames, c = video(), tokenizer.context_length
    tokens = tokenizer.tokenize(frames)
    assert (tokenizer.context_grid, tokenizer.dynamics_grid) == ((8, 8), (2, 2))
    assert tokens.context.shape == (2, c, 64) and tokens.dynamics.shape == (2, 5 - c, 4)
    for ids, codes in ((tokens.context, tokenizer.context_codes), (tokens.dynamics, tokenizer.dynamics_codes)):
        assert ids.min() >= 0 and ids.max() < codes
    features = tokenizer.observe(tokens.context)
    assert features.frames.shape == frames[:, :c].shape and features.frames.dtype == torch.uint8
    painted = tokenizer.paint(tokens.dynamics, features)
    assert painted.shape == frames[:, c:].shape and painted.dtype == torch.uint8
    assert tokenizer.tokenize(frames[:, :c]).context.equal(tokens.context)  # knows nothing of what follows
    assert tokenizer.tokenize(frames[:, :c]).dynamics.shape == (2, 0, 4)
    assert tokenizer.paint(tokens.dynamics[:, :0], features).shape == (2, 0, 3, 16, 16)


def test_features_serve_any_batch_and_number_of_frames(tokenizer):
    tokens = tokenizer.tokenize(video())
    features = tokenizer.observe(tokens.context)
    pixels = tokenizer.paint_pixels(tokens.dynamics, features)
    torch.testing.assert_close(tokenizer.paint_pixels(tokens.dynamics[:, 1:2], features)[:, 0], pixels[:, 1])
    rows = torch.tensor([1, 0, 1])
    chosen = tokenizer.paint_pixels(tokens.dynamics[rows], features.select(rows))
    torch.testing.assert_close(chosen, pixels[rows])
    twice = tokenizer.paint_pixels(tokens.dynamics.repeat_interleave(2, 0), features.repeat(2))
    torch.testing.assert_close(twice, pixels.repeat_interleave(2, 0))


def test_future_frames_lean_on_the_context():
    """Other context, same dynamics tokens: another picture; and so do tokens of the same future frames."""
    tokenizer, frames = tiny(), video()
    tokens = tokenizer.tokenize(frames)
    other = tokenizer.observe(tokens.context.flip(0))
    assert not tokenizer.paint(tokens.dynamics, other).equal(
        tokenizer.paint(tokens.dynamics, tokenizer.observe(tokens.context))
    )
    mixed = torch.cat([frames[:, :2].flip(0), frames[:, 2:]], 1)
    latents = [
        tokenizer._compress(clip[:, 2:], tokenizer._look(clip[:, :2])[1], clip[:, 1]) for clip in (frames, mixed)
    ]
    assert not latents[0].equal(latents[1])


@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        (published_64(), (2, 1)),
        (replace(published_64(), symmetric=True), (2, 2)),
        (published_256(), (3, 2)),
        (replace(published_256(), symmetric=True), (3, 3)),
    ],
)
def test_where_the_context_is_looked_at(config, blocks):
    """The published decoder has a block less than its encoder; the symmetric form has as many."""
    with torch.device("meta"):
        tokenizer = ContextVQGAN(config)
    assert (len(tokenizer.future_encoder.cross), len(tokenizer.future_decoder.cross)) == blocks
    assert tokenizer.context_grid == (16, 16) and tokenizer.dynamics_grid == (4, 4)


@pytest.mark.parametrize("codebook", ["learned", "ema", "fsq"])
def test_it_overfits_one_batch(codebook):
    torch.manual_seed(0)
    tokenizer = ContextVQGAN(replace(TINY, codebook=codebook, dropout=0.0, context_codes=64, dynamics_codes=64))
    clip = Clip(frames={"main": video(1, 3)}, text=("",))
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
    for _ in range(60):
        losses = tokenizer(clip)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    terms = losses.terms
    assert terms["context"] < 0.21 and terms["future"] < 0.08  # a grey picture has 0.25
    assert terms["psnr"] > 20 and terms["context_perplexity"] > 2
    assert 1 / 64 <= terms["dynamics_codes_in_batch"] <= 1 and 1 <= terms["dynamics_perplexity"] <= 16


def test_the_small_form_has_the_published_grids():
    tokenizer = ContextVQGAN(small_64(context_length=1))
    assert (tokenizer.context_grid, tokenizer.dynamics_grid, tokenizer.context_length) == ((16, 16), (4, 4), 1)
    assert sum(weight.numel() for weight in tokenizer.parameters()) < 5e6


def test_a_grown_context_keeps_the_newest_rows_and_shrinks_back():
    tokenizer = tiny()
    state, config = resize_context(tokenizer.state_dict(), tokenizer.config, 4)
    grown = ContextVQGAN(config).eval()
    grown.load_state_dict(state)
    assert grown.tokenize(video()).context.shape == (2, 4, 64)
    table, old = grown.future_decoder.cross[0].context_positions, tokenizer.future_decoder.cross[0].context_positions
    assert table[-128:].equal(old) and table[:64].equal(old[:64]) and table[64:128].equal(old[:64])
    back, small = resize_context(state, config, 2)
    assert small == tokenizer.config and all(back[k].equal(v) for k, v in tokenizer.state_dict().items())
    with pytest.raises(ValueError, match="at least 1"):
        resize_context(state, config, 0)


def test_bf16_is_close_and_chooses_among_the_same_codes():
    tokenizer = tiny(size=32, widths=(16, 32), latent=8)
    fast, frames = in_bf16(tokenizer), video(size=32)
    assert fast.context_codebook.codes.weight.equal(tokenizer.context_codebook.codes.weight)
    tokens, quick = tokenizer.tokenize(frames), fast.tokenize(frames)
    assert (tokens.context == quick.context).float().mean() > 0.9
    pixels = tokenizer.paint_pixels(tokens.dynamics, tokenizer.observe(tokens.context))
    painted = fast.paint_pixels(tokens.dynamics, fast.observe(tokens.context))
    assert painted.dtype == torch.float32 and (painted - pixels).abs().mean() < 0.02
    assert tokenizer.to_dynamics.weight.dtype == torch.float32


def test_wrong_input_is_refused():
    tokenizer, frames = tiny(), video()
    tokens = tokenizer.tokenize(frames)
    features = tokenizer.observe(tokens.context)
    with pytest.raises(ValueError, match=r"1 frames; a context of 2 and 0 future frames need 2: lengthen"):
        tokenizer.tokenize(frames[:, :1])
    with pytest.raises(ValueError, match="a context of 2 and 1 future frames need 3"):
        tokenizer.reconstruct(frames[:, :2])
    with pytest.raises(ValueError, match=r"wanted \(batch, frames, 3, 16, 16\): resize"):
        tokenizer.tokenize(video(size=32))
    with pytest.raises(TypeError, match="wanted uint8"):
        tokenizer.tokenize(frames.float())
    with pytest.raises(ValueError, match=r"\(2, 3, 64\); wanted \(batch, 2, 64\).*ivideogpt resize"):
        tokenizer.observe(torch.zeros(2, 3, 64, dtype=torch.long))
    for wrong in (-1, 12):
        with pytest.raises(ValueError, match=rf"1 context ids are no codes, the first is {wrong}; wanted 0..11"):
            tokenizer.observe(
                tokens.context.index_fill(2, torch.tensor(3), 0).index_put((torch.tensor(0),) * 3, torch.tensor(wrong))
            )
    with pytest.raises(ValueError, match=r"24 dynamics ids are no codes, the first is 20; wanted 0..19"):
        tokenizer.paint(torch.full((2, 3, 4), 20), features)
    with pytest.raises(ValueError, match=r"wanted \(2, frames, 4\)"):
        tokenizer.paint(tokens.dynamics[:1], features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 20}, "cells of 8"),
        ({"widths": (8, 18)}, r"widths \[18\] must be multiples"),
        ({"context_length": 0}, "at least 1"),
        ({"heads": 0}, "at least 1"),
        ({"norm_groups": 0}, "at least 1"),
        ({"widths": ()}, "at least 1"),
        ({"codebook": "vq"}, "wanted 'learned', 'ema' or 'fsq'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **settings)


def test_a_residual_tokenizer_begins_at_the_last_frame_seen():
    tokenizer, frames = tiny(residual=True), video()
    tokens = tokenizer.tokenize(frames)
    painted = tokenizer.paint(tokens.dynamics, tokenizer.observe(tokens.context, frames[:, 1]))
    assert torch.equal(painted, frames[:, 1:2].expand(-1, 3, -1, -1, -1))
    still = tokenizer.tokenize(frames[:, [0, 1, 1]])  # nothing differs, so nothing is told
    assert torch.equal(still.dynamics, tokenizer.tokenize(frames[:, [0, 1, 1, 1]]).dynamics[:, :1])
    features = tokenizer.observe(tokens.context, frames[:, 1]).select(torch.tensor([1]))
    assert torch.equal(tokenizer.paint(tokens.dynamics[1:], features), painted[1:])
