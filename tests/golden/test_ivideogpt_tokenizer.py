"""Numbers of the published iVideoGPT tokenizer: ids, pictures, losses, the critic, updates, the full-size layouts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.interop import ivideogpt_tokenizer as names
from ideomotor.layers.perceptual import perceptual_from_state
from ideomotor.tokenizers.context_config import ContextVQGANConfig, published_64, published_256
from ideomotor.tokenizers.context_vqgan import ContextVQGAN, resize_context, to_uint8
from ideomotor.tokenizers.critic import Judging, Painting, PatchCritic, PatchCriticConfig
from ideomotor.tokenizers.losses import ReconstructionConfig, hinge
from ideomotor.types import Clip

pytestmark = pytest.mark.golden

FIXTURES = {"tokenizer_64_c2": 1e-4, "tokenizer_64_c1": 1e-4, "tokenizer_256_c2": 2e-4}  # tolerance of pixels


def close(got, wanted, atol=1e-4, rtol=0.0):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "ivideogpt"


def published(folder, checkpoint):
    state = load_file(folder / "checkpoints" / checkpoint / "tokenizer" / "diffusion_pytorch_model.safetensors")
    return state, json.loads((folder / "checkpoints" / checkpoint / "tokenizer" / "config.json").read_text())


def tokenizer_of(folder, checkpoint, **settings):
    state, config = published(folder, checkpoint)
    tokenizer = ContextVQGAN(ContextVQGANConfig(**names.tokenizer_settings(config, state) | settings))
    tokenizer.load_state_dict(names.tokenizer_from_published(state))
    return tokenizer.eval()


def critic_of(folder):
    critic = PatchCritic(PatchCriticConfig(width=32))
    state = load_file(folder / "checkpoints" / "narrow-losses" / "discriminator.safetensors")
    critic.load_state_dict(names.critic_from_published(state))
    return critic.eval()


def perceptual_of(folder):
    return perceptual_from_state(load_file(folder / "checkpoints" / "narrow-losses" / "perceptual.safetensors"))


def clip_of(frames):
    return Clip(frames={"main": frames}, text=("",) * len(frames))


def ids_of(sequence, tokenizer):
    """Context and dynamics ids of a published sequence; what stands at a slot is left out."""
    c, n, m = (
        tokenizer.context_length,
        *(grid[0] * grid[1] for grid in (tokenizer.context_grid, tokenizer.dynamics_grid)),
    )
    context = torch.stack([sequence[:, i * (n + 1) : i * (n + 1) + n] for i in range(c)], 1)
    future = sequence[:, c * (n + 1) - 1 :].unflatten(1, (-1, m + 1))[:, :, 1:]
    return context, future - tokenizer.context_codes


@pytest.fixture(params=FIXTURES)
def case(request, folder):
    facts = json.loads((folder / "fixtures" / f"{request.param}.json").read_text())
    data = load_file(folder / "fixtures" / f"{request.param}.safetensors")
    return tokenizer_of(folder, facts["checkpoint"]), data, FIXTURES[request.param]


def test_ids(case):
    tokenizer, data, _ = case
    tokens = tokenizer.tokenize(data["in.pixels_u8"])
    assert tokens.context.equal(data["out.context_ids"]) and tokens.dynamics.equal(data["out.dynamics_ids"])
    context, dynamics = ids_of(data["out.tokens"], tokenizer)
    assert tokens.context.equal(context) and tokens.dynamics.equal(dynamics)


def test_latents_and_commitment(case):
    tokenizer, data, _ = case
    frames, c = data["in.pixels_u8"], tokenizer.context_length
    with torch.no_grad():
        latents, maps = tokenizer._look(frames[:, :c])
        close(latents.movedim(-1, 1), data["out.context_latents"])
        close(tokenizer._compress(frames[:, c:], maps, frames[:, c - 1]), data["out.dynamics_latents"])
        reconstruction = tokenizer.reconstruct(frames)
    for index, tap in ((2, 0), (3, 1)):
        if f"out.encoder_feature_{index}" in data:
            close(maps[tap][:c], data[f"out.encoder_feature_{index}"])
    close(reconstruction.context.commitment, data["out.commit_loss_context"], 0, 1e-4)
    close(reconstruction.future.commitment, data["out.commit_loss_dynamics"], 0, 1e-4)


def test_pictures(case):
    tokenizer, data, atol = case
    tokens = tokenizer.tokenize(data["in.pixels_u8"])
    features = tokenizer.observe(tokens.context)
    pixels = torch.cat([features.pixels, tokenizer.paint_pixels(tokens.dynamics, features)], 1)
    if "out.decoded" in data:
        close(pixels[0], data["out.decoded"], atol)
        close(pixels.mean((-1, -2)), data["out.decoded_mean_per_frame_and_channel"], atol)
        painted = torch.cat([features.frames, tokenizer.paint(tokens.dynamics, features)], 1)[0]
        off = (painted.movedim(1, -1).int() - data["out.frames_u8"].int()).abs()
        assert off.max() <= 1 and off.count_nonzero() < 60  # recorded noise: 30 values at the edge of a level
        assert painted.equal(to_uint8(pixels[0]))
    else:
        close(pixels[..., ::4, ::4], data["out.decoded_stride4"], atol)
        close(pixels[..., 96:160, 96:160], data["out.decoded_crop"], atol)
    for frame in range(tokens.dynamics.shape[1]):  # frame by frame, from the features kept
        one = tokenizer.paint_pixels(tokens.dynamics[:, frame : frame + 1], features)
        close(one[:, 0], pixels[:, tokenizer.context_length + frame], 1e-5)
    trained = tokenizer.reconstruct(data["in.pixels_u8"]).future.painted
    close(trained.detach(), pixels[:, tokenizer.context_length :].flatten(0, 1), 1e-4)


@pytest.mark.parametrize("name", ["tokenizer_64_c2", "tokenizer_64_c1"])
def test_illegal_ids(folder, name):
    """The release clamps them; ours refuses them, and clamped by hand they give the same pictures."""
    facts = json.loads((folder / "fixtures" / f"{name}.json").read_text())
    data, tokenizer = load_file(folder / "fixtures" / f"{name}.safetensors"), tokenizer_of(folder, facts["checkpoint"])
    context, dynamics = ids_of(data["in.illegal_tokens"], tokenizer)
    features = tokenizer.observe(context)
    with pytest.raises(ValueError, match=r"dynamics ids are no codes.*wanted 0\.\.63"):
        tokenizer.paint(dynamics, features)
    pixels = tokenizer.paint_pixels(dynamics.clamp(0, tokenizer.dynamics_codes - 1), features)
    close(torch.cat([features.pixels, pixels], 1), data["out.decoded_illegal"])


def test_shrunk_context(folder):
    tokenizer, data = (
        tokenizer_of(folder, "tiny64-c2-act-free"),
        load_file(folder / "fixtures/tokenizer_64_c2.safetensors"),
    )
    state, config = resize_context(tokenizer.state_dict(), tokenizer.config, 1)
    shrunk = ContextVQGAN(config).eval()
    shrunk.load_state_dict(state)
    tokens = shrunk.tokenize(data["in.pixels_u8"][:, 1:])
    context, dynamics = ids_of(data["out.shrunk_tokens"], shrunk)
    assert tokens.context.equal(context) and tokens.dynamics.equal(dynamics)
    features = shrunk.observe(tokens.context)
    pixels = torch.cat([features.pixels, shrunk.paint_pixels(tokens.dynamics, features)], 1)
    close(pixels[0, :3], data["out.shrunk_decoded"])


def test_rollout_pictures(folder):
    """The prompt of the recorded interactive rollout, and each of its steps painted from the features kept."""
    tokenizer = tokenizer_of(folder, "tiny64-c2-act-free")
    data = load_file(folder / "fixtures" / "rollout_interactive_c2.safetensors")
    frames = data["in.observation_u8"].unflatten(1, (3, 3))[:, -2:]
    tokens = tokenizer.tokenize(frames)
    slot = tokenizer.context_codes + tokenizer.dynamics_codes
    prompt = torch.cat([tokens.context[:, 0], torch.full((2, 1), slot), tokens.context[:, 1]], 1)
    assert prompt.equal(data["out.context_tokens"][:, : prompt.shape[1]])
    assert tokens.dynamics.shape[1] == 0
    features = tokenizer.observe(tokens.context)
    dynamics = data["out.tokens"] - tokenizer.context_codes
    close(tokenizer.paint_pixels(dynamics, features)[0].clamp(0, 1), data["out.frames"])


def test_export_gives_the_published_files_again(folder):
    for checkpoint in ("tiny64-c2-act-free", "tiny64-c1-act-cond", "tiny256-c2"):
        state, config = published(folder, checkpoint)
        tokenizer = tokenizer_of(folder, checkpoint)
        exported = names.tokenizer_to_published(tokenizer.state_dict())
        assert exported.keys() == state.keys() and all(exported[name].equal(state[name]) for name in state)
        assert names.settings_to_published(vars(tokenizer.config)) == config


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("tokenizer-64, context 2", published_64()),
        ("tokenizer-64, context 1", published_64(1)),
        ("tokenizer-256, context 2", published_256()),
    ],
)
def test_published_layouts(folder, model, config):
    layouts = json.loads((folder / "checkpoint_layouts.json").read_text())
    layout = layouts["models"][model]
    shapes = layouts["models"][layout.get("same_as", model)]["shapes"] | layout.get("differing_shapes", {})
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert len(state) == layouts["models"][layout.get("same_as", model)]["tensors"]
    settings = layouts["configs"][model.split(",")[0]]
    assert ContextVQGANConfig(**names.tokenizer_settings(settings, state)) == config
    with torch.device("meta"):
        tokenizer = ContextVQGAN(config)
    ours, wanted = names.tokenizer_from_published(state), tokenizer.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in wanted.items()}
    assert {k: v.shape for k, v in names.tokenizer_to_published(wanted).items()} == {
        k: v.shape for k, v in state.items()
    }
    assert sum(weight.numel() for weight in tokenizer.parameters()) == layout["parameters"]


def test_published_critic_layout(folder):
    layouts = json.loads((folder / "checkpoint_layouts.json").read_text())
    layout = layouts["models"]["discriminator (hidden 512, depth 4)"]
    critic = PatchCritic(PatchCriticConfig())
    exported = names.critic_to_published(critic.state_dict())
    assert {name: list(value.shape) for name, value in exported.items()} == layout["shapes"]
    assert sum(weight.numel() for weight in critic.parameters()) == layout["parameters"]


def test_adversarial(folder):
    data, critic = load_file(folder / "fixtures" / "adversarial.safetensors"), critic_of(folder)
    perceptual, real, fake = perceptual_of(folder), data["in.real_u8"].float() / 255, data["in.fake"]
    with torch.no_grad():
        close(critic(real), data["out.eval_logits_real"])
        close(critic(fake), data["out.eval_logits_fake"])
        close(perceptual(real, fake), data["out.perceptual_per_image"], 0, 1e-4)
        critic.train()
        first, second = critic(real), critic(fake)
    close(first, data["out.train_logits_real_first_call"])
    close(second, data["out.train_logits_fake_second_call"])
    close(hinge(first, second), data["out.hinge_discriminator_loss"], 0, 1e-4)
    close(-second.mean(), data["out.generator_loss"], 0, 1e-4)
    state = names.critic_to_published(critic.state_dict())
    vectors = {name.removeprefix("out.after_two_calls."): v for name, v in data.items() if "after_two_calls" in name}
    assert len(vectors) == 8
    for name, vector in vectors.items():
        close(state[name], vector, 1e-5)


def test_adaptive_weight(folder):
    data, critic = load_file(folder / "fixtures" / "adversarial.safetensors"), critic_of(folder)
    painting = Painting(
        tokenizer_of(folder, "tiny64-c2-act-free"), ReconstructionConfig(), perceptual_of(folder), critic
    ).eval()
    terms = painting(clip_of(data["in.real_u8"][None])).terms
    close(terms["perceptual_future"], data["out.tok_perceptual_future"], 0, 1e-4)
    close(terms["critic"], data["out.tok_generator_loss"], 0, 1e-4)
    close(terms["adaptive_weight"], data["out.adaptive_weight"], 0, 1e-3)
    close(terms["adaptive_weight"], data["out.grad_norm_perceptual"] / data["out.grad_norm_generator"], 0, 1e-3)


def test_perceptual_metric(folder):
    """The recorded metric on a narrow random network, by frame, and of the best candidate."""
    data, perceptual = load_file(folder / "fixtures" / "metrics.safetensors"), perceptual_of(folder)
    truth, futures = data["in.truth_u8"], data["in.candidates_u8"].unflatten(0, (-1, len(data["in.truth_u8"])))
    with torch.no_grad():
        scores = torch.stack(
            [
                perceptual(truth.flatten(0, 1).float() / 255, future.flatten(0, 1).float() / 255).view(truth.shape[:2])
                for future in futures
            ]
        )
    close(scores, data["out.frame_lpips"], 0, 1e-4)
    close(scores.mean(2).amin(0).mean(), data["out.best_of_n"][3], 0, 1e-4)


def update(objective, optimizer, frames, lr):
    """One published update: everything in train mode (a published critic iterates in the painter's step too)."""
    for module in (objective, *(b.module for b in vars(objective).values() if hasattr(b, "module"))):
        module.train()
    optimizer.param_groups[0]["lr"] = lr
    losses = objective(clip_of(frames))
    optimizer.zero_grad()
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step()
    return {"total": losses.total.detach(), **losses.terms}, norm


PAINTED = {"total": "total", "l1_future": "future", "l1_context": "context",
           "perceptual_future": "perceptual_future", "perceptual_context": "perceptual_context",
           "commit_context": "commitment_context", "commit_dynamics": "commitment_dynamics",
           "generator": "critic", "adaptive_weight": "adaptive_weight"}  # fmt: skip
JUDGED = {"discriminator": "total", "mean_logit_real": "true", "mean_logit_fake": "painted"}


@pytest.mark.parametrize("balanced", [False, True])
def test_training(folder, balanced):
    facts = json.loads((folder / "fixtures" / "tokenizer_training.json").read_text())["facts"]
    data = load_file(folder / "fixtures" / "tokenizer_training.safetensors")
    tokenizer, critic = tokenizer_of(folder, "tiny64-c2-act-free", dropout=0.0), critic_of(folder)
    critic.updates.zero_()  # it is not heard yet
    painting = Painting(tokenizer, ReconstructionConfig(balanced=balanced), perceptual_of(folder), critic)
    judging = Judging(critic, tokenizer)
    painter, judge = (
        torch.optim.AdamW(part.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0)
        for part in (painting, judging)
    )
    batches = data["in.batches_u8"][:, :, : 3 if balanced else 4]
    rates = iter(facts["lr_at_call"])
    rows = [update(painting, painter, batches[0], next(rates))[0]]
    if not balanced:
        theirs = names._names(tokenizer.state_dict(), published=False)
        recorded = facts["grad_norm_first_generator_step_after_clip"]
        ours = {theirs[name]: float(weight.grad.norm()) for name, weight in tokenizer.named_parameters()}
        assert ours.keys() == recorded.keys()
        for name, norm in recorded.items():
            assert ours[name] == pytest.approx(norm, rel=2e-2, abs=1e-5), name
    critic.updates.fill_(1)
    for paint, judged in ((2, 3), (0, 1)):
        row = update(painting, painter, batches[paint], next(rates))[0]
        told = update(judging, judge, batches[judged], next(rates))[0]
        rows.append(row | {f"judged_{name}": value for name, value in told.items()})
    part = "balanced_three_frames.logged_matrix" if balanced else "logged_matrix"
    columns = PAINTED | {name: f"judged_{ours}" for name, ours in JUDGED.items()}
    for row, wanted, rtol in zip(rows, data[f"out.{part}"], (1e-3, 1e-3, 2e-2), strict=True):
        for column, value in zip(facts["logged_matrix_columns"], wanted.tolist(), strict=True):
            if columns[column] in row:
                assert float(row[columns[column]]) == pytest.approx(value, rel=rtol), column
    assert "critic" not in rows[0] and all(name in rows[1] for name in columns.values())
    if not balanced:
        state = names.tokenizer_to_published(tokenizer.state_dict())
        after = {name.removeprefix("out.after."): v for name, v in data.items() if name.startswith("out.after.")}
        assert len(after) == 4
        for name, value in after.items():
            close(state[name], value, 2e-6)


def test_update_beside_a_world_model(folder):
    facts = json.loads((folder / "fixtures" / "world_model_updates.json").read_text())["facts"]
    data = load_file(folder / "fixtures" / "world_model_updates.safetensors")
    tokenizer = tokenizer_of(folder, "tiny64-c2-act-free", dropout=0.0)
    painting = Painting(tokenizer, ReconstructionConfig(train_codebooks=False), perceptual_of(folder))
    theirs = names._names(tokenizer.state_dict(), published=False)
    frozen = {theirs[name] for name, weight in tokenizer.named_parameters() if not weight.requires_grad}
    assert frozen == set(facts["tokenizer_frozen"])
    before = {name: weight.detach().clone() for name, weight in tokenizer.named_parameters()}
    optimizer = torch.optim.AdamW(
        [w for w in painting.parameters() if w.requires_grad], betas=(0.9, 0.999), weight_decay=0.0
    )
    terms, _ = update(painting, optimizer, data["in.obs_u8"], facts["arguments"]["tok_lr"])
    metrics = {"recon_loss": "future", "ref_recon_loss": "context", "perceptual_loss": "perceptual_future",
               "ref_perceptual_loss": "perceptual_context", "commit_loss": "commitment_context",
               "dyna_commit_loss": "commitment_dynamics", "tokenizer_loss": "total"}  # fmt: skip
    for metric, ours in metrics.items():
        assert float(terms[ours]) == pytest.approx(float(data[f"out.metric_{metric}"]), rel=1e-4), metric
    for name, weight in tokenizer.named_parameters():
        if weight.requires_grad:
            norm = facts["tokenizer_grad_norm_after_clip"][theirs[name]]
            assert float(weight.grad.norm()) == pytest.approx(norm, rel=2e-2, abs=1e-5), name
            change = facts["tokenizer_mean_abs_change"][theirs[name]]
            if norm > 1e-4:  # Adam's first step has its full length even where a gradient is noise
                assert float((weight.detach() - before[name]).abs().mean()) == pytest.approx(change, rel=2e-2), name
    assert not [name for name, weight in tokenizer.named_parameters() if weight.requires_grad and weight.grad is None]
