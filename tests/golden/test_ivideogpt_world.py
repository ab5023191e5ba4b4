"""Recorded iVideoGPT checkpoints imported, stepped as a world, exported; and which test reads which recorded file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ideomotor import World, cli
from ideomotor.layers.sampling import Sampling
from ideomotor.systems.world import WorldState
from ideomotor.tokenizers.context_vqgan import to_uint8

pytestmark = pytest.mark.golden

TOKENIZERS = {
    "tiny64-c2-act-free": "tiny64-c2-act-free",
    "tiny64-c1-act-cond": "tiny64-c1-act-cond",
    "tiny64-c2-act-cond-reward": "tiny64-c2-act-free",
    "tiny64-c2-illegal-ids": "tiny64-c2-act-free",
}
FILES = ("tokenizer/diffusion_pytorch_model.safetensors", "transformer/model.safetensors")
# Every file of the folder, and the module here that reads it.
COVERED = {
    "adversarial": "tokenizer",
    "checkpoint_layouts": "tokenizer",
    "checkpoints/narrow-losses/discriminator": "tokenizer",
    "checkpoints/narrow-losses/perceptual": "tokenizer",
    "checkpoints/tiny256-c2": "tokenizer",
    "checkpoints/tiny64-c1-act-cond": "world",
    "checkpoints/tiny64-c2-act-cond-reward": "world",
    "checkpoints/tiny64-c2-act-free": "world",
    "checkpoints/tiny64-c2-illegal-ids": "world",
    "data_windows": "data",
    "drqv2": "rl",
    "generate_act_cond_c1": "world",
    "generate_act_free_c2": "world",
    "generate_illegal_ids_c2": "world",
    "metrics": "metrics",
    "named_mixes": "data",
    "replay": "rl",
    "rollout_interactive_c2": "world",
    "sequence_layout": "transformer",
    "tokenizer_256_c2": "tokenizer",
    "tokenizer_64_c1": "tokenizer",
    "tokenizer_64_c2": "tokenizer",
    "tokenizer_training": "tokenizer",
    "transformer_act_cond_c1": "transformer",
    "transformer_act_cond_reward_c2": "transformer",
    "transformer_act_free_c1": "transformer",
    "transformer_act_free_c2": "transformer",
    "world_model_updates": "updates",
}


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "ivideogpt"


@pytest.fixture(scope="module")
def worlds(folder, tmp_path_factory):
    """Every recorded transformer with its tokenizer: the published folder, and what the command makes of it."""
    home = tmp_path_factory.mktemp("worlds")
    for name, tokenizer in TOKENIZERS.items():
        for part, holder in (("tokenizer", tokenizer), ("transformer", name)):
            shutil.copytree(folder / "checkpoints" / holder / part, home / "hub" / name / part)
        cli.main(["import", "ivideogpt", str(home / "hub" / name), "--out", str(home / name)])
    return home


def world_of(worlds, name):
    return World.load(worlds / name, sampling=Sampling(temperature=0))


def recorded(folder, name):
    return load_file(folder / "fixtures" / f"{name}.safetensors")


def codes(world, ids):
    """Context and future codes of a recorded sequence; what stands at slots is left out."""
    config = world.predictor.config
    every, first = config.context_tokens + 1, torch.zeros_like(ids[:, :1])
    seen = torch.cat([first, ids[:, : config.prompt]], 1).unflatten(1, (-1, every))[..., 1:]
    return seen, ids[:, config.prompt :].unflatten(1, (-1, config.dynamics_tokens + 1))[..., 1:] - config.context_codes


def begun(world, context, horizon):
    """The state behind recorded context tokens, whose frames were not recorded."""
    features = world.tokenizer.observe(context)
    return WorldState(world.predictor.observe(context, horizon), features, features.frames)


def alike(frames, wanted):
    """Truncated to whole levels, a float at the edge of one may fall on either side: the recorded noise."""
    off = (frames.int() - to_uint8(wanted).int()).abs()
    assert off.max() <= 1 and off.count_nonzero() < 60


def stepped(world, context, actions):
    state, frames = begun(world, context, len(actions)), []
    for action in actions:
        imagined = world.step(state, action)
        state = imagined.state
        frames.append(imagined.frames)
    return torch.stack(frames, 1)


@pytest.mark.parametrize("fixture, row, horizon", [("generate_act_free_c2", 0, 4), ("generate_act_cond_c1", 1, 5)])
def test_greedy_frames(folder, worlds, fixture, row, horizon):
    data = recorded(folder, fixture)
    world = world_of(worlds, json.loads((folder / "fixtures" / f"{fixture}.json").read_text())["checkpoint"])
    context, future = codes(world, data["out.generated"])
    first = world.context - 1
    told = data["in.actions"][:, first : first + horizon].unbind(1) if world.action_width else [None] * horizon
    features = world.tokenizer.observe(context)
    pixels = world.tokenizer.paint_pixels(future, features)[row]
    torch.testing.assert_close(pixels, data["out.decoded_future"], atol=1e-4, rtol=0)
    frames = stepped(world, context, told)
    assert frames.equal(world.tokenizer.paint(future, features))  # the same ids, frame by frame
    alike(frames[row], data["out.decoded_future"])


def test_frames_of_illegal_ids(folder, worlds):
    """The published generation draws ids that are no codes and paints them clamped; ours never draws them."""
    data, world = recorded(folder, "generate_illegal_ids_c2"), world_of(worlds, "tiny64-c2-illegal-ids")
    context, future = codes(world, data["out.generated"])
    features = world.tokenizer.observe(context)
    with pytest.raises(ValueError, match="dynamics ids are no codes"):
        world.tokenizer.paint(future, features)
    clamped = future.clamp(0, world.tokenizer.dynamics_codes - 1)
    pixels = world.tokenizer.paint_pixels(clamped, features)[0]
    torch.testing.assert_close(pixels, data["out.decoded_future"], atol=1e-4, rtol=0)


def test_the_interactive_rollout(folder, worlds):
    data, world = recorded(folder, "rollout_interactive_c2"), world_of(worlds, "tiny64-c2-act-cond-reward")
    frames = data["in.observation_u8"][:, -3 * world.context :].unflatten(1, (world.context, 3))
    context, _ = codes(world, torch.cat([data["out.context_tokens"], torch.zeros(2, 16).long()], 1))
    assert world.tokenizer.tokenize(frames).context.equal(context)
    imagined = world.imagine(frames, 4, data["in.actions"])
    assert (imagined.tokens + world.tokenizer.context_codes).equal(data["out.tokens"])
    torch.testing.assert_close(imagined.rewards, data["out.rewards"][:, 1:, 0], atol=1e-4, rtol=1e-4)
    assert data["out.actions"][:, 1:].equal(data["in.actions"]) and not data["out.actions"][:, 0].any()
    alike(imagined.frames[0], data["out.frames"])
    alike(imagined.frames[1, -3:].flatten(0, 1), data["out.observation_last"])
    pixels = world.tokenizer.paint_pixels(imagined.tokens, world.tokenizer.observe(context))[0].clamp(0, 1)
    torch.testing.assert_close(pixels, data["out.frames"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_there_and_back_is_the_same_bits(worlds, name, tmp_path):
    cli.main(["export", "ivideogpt", str(worlds / name), "--out", str(tmp_path / "hub")])
    for file in FILES:
        ours, theirs = load_file(tmp_path / "hub" / file), load_file(worlds / "hub" / name / file)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].dtype == value.dtype and ours[key].equal(value) for key, value in theirs.items())
        settings, published = (
            json.loads((place / file).with_name("config.json").read_text())
            for place in (tmp_path / "hub", worlds / "hub" / name)
        )
        said = {key: value for key, value in published.items() if key != "_name_or_path"}
        assert {key: settings[key] for key in said} == said
    cli.main(["import", "ivideogpt", str(tmp_path / "hub"), "--out", str(tmp_path / "again")])
    for part in ("tokenizer", "world"):
        notes = [
            json.loads((place / part / "config.json").read_text()) for place in (tmp_path / "again", worlds / name)
        ]
        assert notes[0]["fingerprint"] == notes[1]["fingerprint"]


def test_every_recorded_file_is_read(folder):
    found = {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("README.md", "index.json")
    }
    missing = []
    for path in found:
        parts = path.with_suffix("").parts
        name = parts[1] if parts[0] == "fixtures" else "/".join(parts if "narrow-losses" in parts else parts[:2])
        module = Path(__file__).with_name(f"test_ivideogpt_{COVERED.get(name, 'nothing')}.py")
        if not module.is_file() or name.rpartition("/")[2] not in module.read_text():
            missing.append(str(path))
    assert not missing and len(found) > 50
