"""iVideoGPT from data to a world that is acted in: stages, the world's rules, its video, its figures, refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ideomotor import cli
from ideomotor.layers.sampling import Sampling
from ideomotor.predictors.autoregressive import AutoregressivePredictor
from ideomotor.systems import ivideogpt_scores
from ideomotor.systems.held_out import held_out_clips
from ideomotor.systems.ivideogpt import PRESETS, WorldModeling, packed, tiny, tokens_of, unpacked
from ideomotor.systems.ivideogpt_scores import evaluate, score_table
from ideomotor.systems.ivideogpt_stages import load_world, run_tokenizer, run_world
from ideomotor.systems.sources import DataOptions, read_facts
from ideomotor.systems.world import World
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.training.checkpoint import load_state
from ideomotor.training.run import Stopped
from ideomotor.types import Clip, WorldModel

GREEDY = Sampling(temperature=0)


def record(folder: Path, episodes: int = 4, length: int = 20) -> Path:
    """Writes episodes of a square that moves as it is told, in the replay layout; going right is rewarded."""
    rng = np.random.default_rng(0)
    (folder / "push").mkdir(parents=True)
    for number in range(episodes):
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        actions[0] = 0
        place = np.clip(14 + np.cumsum(4 * actions, 0), 0, 24).astype(int)
        frames = np.full((length, 3, 32, 32), 60, np.uint8)
        for row, (x, y) in enumerate(place):
            frames[row, :, y : y + 8, x : x + 8] = 220
        ones = np.ones((length, 1), np.float32)
        path = folder / f"push/{number:06d}.npz"
        np.savez_compressed(path, observation=frames, action=actions, reward=actions[:, :1], discount=ones)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with episodes, a tokenizer and a world trained on them."""
    home = tmp_path_factory.mktemp("worlds")
    options = data(record(home / "data"), home)
    run_tokenizer(options, tiny(), home / "tokenizer", 0, False)
    run_world(options, tiny(), home / "tokenizer", None, 0, home / "world", 0, False)
    return home


def data(folder: Path, home: Path) -> DataOptions:
    return DataOptions(data=(folder,), cache=home / "cache", validation=0.5)


def frames(b: int = 2, t: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (b, t, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ideomotor(*words: object) -> int:
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# --- presets and objectives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together(name: str) -> None:
    config = PRESETS[name]()
    with torch.device("meta"):
        tokenizer, predictor = ContextVQGAN(config.tokenizer), AutoregressivePredictor(config.world)
    numbers = sum(weight.numel() for weight in predictor.parameters())
    if name == "published-64":
        assert numbers == 138_434_304
    assert tokenizer.context_length == config.window.context and config.world.longest >= config.window.horizon


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {"world": replace(c.world, context_tokens=16)}, "--world.context-tokens 64"),
        (lambda c: {"world": replace(c.world, dynamics_codes=9)}, "--world.dynamics-codes 125"),
        (lambda c: {"window": replace(c.window, context=3)}, "set all four"),
        (
            lambda c: {"shared_codes": True, "tokenizer": replace(c.tokenizer, codebook="ema")},
            "wants codes with coordinates",
        ),
        (lambda c: {"window": replace(c.window, frames=99)}, "fit behind the context"),
        (lambda c: {"window": replace(c.window, mode="goal")}, "set world.action_width 0"),
        (
            lambda c: {
                "window": replace(c.window, mode="goal"),
                "world": replace(c.world, action_width=0, reward=True),
            },
            "world.reward False",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(change: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(tiny(), **change(tiny()))


def test_the_world_overfits_one_batch_and_hears_actions() -> None:
    torch.manual_seed(0)
    config = tiny()
    tokenizer, predictor = ContextVQGAN(config.tokenizer).eval(), AutoregressivePredictor(config.world)
    # Two futures of one past, told apart by the action alone.
    seen, future = frames(1, 2).expand(2, -1, -1, -1, -1), frames(2, 4)
    actions = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 6, 2)
    clip = Clip(frames={"main": torch.cat([seen, future], 1)}, text=("", ""), actions=actions)
    objective = WorldModeling(predictor, tokenizer)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-3)
    for _ in range(150):
        losses = objective(clip)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert losses.terms["cross_entropy"] < 0.1
    world = World(tokenizer, predictor, sampling=GREEDY)
    tokens = tokens_of(clip, tokenizer).dynamics
    assert torch.equal(world.imagine(seen, 4, actions[:, 1:5]).tokens, tokens)
    assert torch.equal(world.imagine(seen, 4, actions.flip(0)[:, 1:5]).tokens, tokens.flip(0))


def test_actions_lead_to_the_frame_after_them() -> None:
    """Fails if a future frame is told the action that is taken in it, or after it."""
    config = tiny()
    tokenizer, predictor = ContextVQGAN(config.tokenizer).eval(), AutoregressivePredictor(config.world)
    torch.nn.init.normal_(predictor.action.weight, std=1.0)
    clip = Clip(frames={"main": frames(1, 6)}, text=("",), actions=torch.zeros(1, 6, 2))
    plain = WorldModeling(predictor, tokenizer)(clip).total
    for row, matters in enumerate((False, True, True, True, True, False)):
        actions = torch.zeros(1, 6, 2)
        actions[:, row] = 1.0
        changed = WorldModeling(predictor, tokenizer)(replace(clip, actions=actions)).total
        assert bool(changed != plain) == matters, row


def test_a_cached_row_is_the_clips_tokens() -> None:
    tokenizer = ContextVQGAN(tiny().tokenizer).eval()
    tokens = tokenizer.tokenize(frames(2, 5))
    again = unpacked(packed(tokens), tokenizer)
    assert torch.equal(again.context, tokens.context) and torch.equal(again.dynamics, tokens.dynamics)


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_stopped_stage_ends_at_the_same_bits(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ideomotor.systems.stages as stages

    options, plain = data(home / "data", home), stages.Run
    monkeypatch.setattr(stages, "Run", lambda *given, **named: plain(*given, **named, pause_at=2))
    with pytest.raises(Stopped):
        run_world(options, tiny(), home / "tokenizer", None, 0, tmp_path / "world", 0, False)
    monkeypatch.setattr(stages, "Run", plain)
    run_world(options, tiny(), home / "tokenizer", None, 0, tmp_path / "world", 0, False)
    ours, theirs = (load_file(folder / "world/world/model.safetensors") for folder in (tmp_path, home))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_shared_codes_leave_a_world_of_the_published_form(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ideomotor.systems.stages as stages

    config, options, plain = replace(tiny(), shared_codes=True), data(home / "data", home), stages.Run
    run_world(options, config, home / "tokenizer", None, 0, tmp_path / "whole", 0, False)
    monkeypatch.setattr(stages, "Run", lambda *given, **named: plain(*given, **named, pause_at=2))
    with pytest.raises(Stopped):
        run_world(options, config, home / "tokenizer", None, 0, tmp_path / "stopped", 0, False)
    monkeypatch.setattr(stages, "Run", plain)
    run_world(options, config, home / "tokenizer", None, 0, tmp_path / "stopped", 0, False)
    published, whole, stopped = (
        World.load(folder).predictor.state_dict()
        for folder in (home / "world", tmp_path / "whole", tmp_path / "stopped")
    )
    assert {name: row.shape for name, row in whole.items()} == {name: row.shape for name, row in published.items()}
    assert whole["embedding.weight"].std() > 5 * published["embedding.weight"].std()  # it began otherwise
    assert all(row.equal(stopped[name]) for name, row in whole.items())


def test_what_is_merged_and_saved_is_the_average(home: Path, tmp_path: Path) -> None:
    options, stage = data(home / "data", home), tiny().world_stage
    config = replace(tiny(), world_stage=replace(stage, steps=2, optim=replace(stage.optim, ema=0.9)))
    run_world(options, config, home / "tokenizer", home / "world", 2, tmp_path / "lora", 0, False)
    shared = replace(config, shared_codes=True)
    run_world(options, shared, home / "tokenizer", None, 0, tmp_path / "shared", 0, False)

    def told(name: str, part: str) -> dict[str, torch.Tensor]:
        tensors, prefix = load_state(tmp_path / name / "state")[1]["WorldModeling"].tensors, f"{part}.predictor."
        return {row.removeprefix(prefix): value for row, value in tensors.items() if row.startswith(prefix)}

    ours = {name: load_world(tmp_path / name)[1].state_dict() for name in ("lora", "shared")}
    for part in ("average", "weights"):
        pairs = told("lora", part)
        (place, *_) = [name.removesuffix(".up") for name in pairs if name.endswith(".up")]
        maps = pairs[f"{place}.base.weight"] + 32 / 2 * pairs[f"{place}.up"] @ pairs[f"{place}.down"]
        assert ours["lora"][f"{place}.weight"].allclose(maps, rtol=0, atol=1e-7) == (part == "average")
        rows = AutoregressivePredictor(shared.world)
        tokenizer = load_world(tmp_path / "shared")[0]
        rows.share_codes(tokenizer.context_codebook.features, tokenizer.dynamics_codebook.features)
        rows.load_state_dict(told("shared", part))
        rows.merge_codes()
        assert ours["shared"]["embedding.weight"].equal(rows.embedding.weight) == (part == "average")
    saved = (tmp_path / "lora/world/model.safetensors").read_bytes()
    (tmp_path / "lora/done.json").unlink()  # as if it had crashed while it saved
    shutil.rmtree(tmp_path / "lora/world")
    run_world(options, config, home / "tokenizer", home / "world", 2, tmp_path / "lora", 0, False)
    assert (tmp_path / "lora/world/model.safetensors").read_bytes() == saved


@pytest.mark.parametrize("lora", [0, 2])
def test_a_world_without_actions_learns_to_hear_them(home: Path, tmp_path: Path, lora: int) -> None:
    deaf = replace(tiny(), world=replace(tiny().world, action_width=0))
    options = data(home / "data", home)
    run_world(options, deaf, home / "tokenizer", None, 0, tmp_path / "deaf", 0, False)
    run_world(options, tiny(), tmp_path / "deaf", tmp_path / "deaf", lora, tmp_path / "hearing", 0, False)
    before, after = (load_world(tmp_path / name)[1] for name in ("deaf", "hearing"))
    assert after.config.action_width == 2 and after.action.weight.abs().sum() > 0
    assert before.state_dict().keys() < after.state_dict().keys(), "merged, the pairs leave no names behind"
    assert any(not torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())


def test_a_world_learns_the_rewards_of_the_data(home: Path, tmp_path: Path) -> None:
    """Fails if a reward is that of another action: they are independent of one another."""
    config = tiny()
    stage = replace(config.world_stage, steps=60, optim=replace(config.world_stage.optim, lr=1e-2))
    config = replace(config, world=replace(config.world, reward=True), world_stage=stage)
    run_world(data(home / "data", home), config, home / "tokenizer", None, 0, tmp_path / "world", 0, False)
    scores = evaluate(tmp_path / "world", (), tmp_path / "scores.json", clips=16)
    assert scores.reward_error is not None
    assert scores.reward_error["world"] < 0.9 * scores.reward_error["their mean"]
    assert "rewards: world" in str(score_table(scores).caption)


def test_data_without_rewards_are_refused_by_name(home: Path, tmp_path: Path) -> None:
    record(tmp_path / "bare", episodes=3)
    for number in (0, 2):
        path = tmp_path / f"bare/push/{number:06d}.npz"
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays if name != "reward"}
        np.savez_compressed(path, **kept)
    config = replace(tiny(), world=replace(tiny().world, reward=True))
    with pytest.raises(ValueError, match=r"bare holds 2 of 3 episodes without rewards, first 'push/000000'"):
        run_world(
            replace(data(home / "data", home), data=(home / "data", tmp_path / "bare")),
            config, home / "tokenizer", None, 0, tmp_path / "out", 0, False,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    clip = Clip(frames={"main": frames(1, 6)}, text=("",), actions=torch.zeros(1, 6, 2))
    with pytest.raises(ValueError, match="a clip without rewards"):
        WorldModeling(AutoregressivePredictor(config.world), ContextVQGAN(config.tokenizer).eval())(clip)


def test_what_does_not_fit_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    options, out = data(home / "data", home), tmp_path / "out"
    wide = replace(tiny(), world=replace(tiny().world, action_width=3))
    with pytest.raises(ValueError, match=r"set --world.action-width 2"):
        run_world(options, wide, home / "tokenizer", None, 0, out, 0, False)
    other = replace(tiny(), tokenizer=replace(tiny().tokenizer, heads=2))
    with pytest.raises(ValueError, match="heads: 4 -> 2"):
        run_world(options, other, home / "tokenizer", None, 0, out, 0, False)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        run_world(options, tiny(), tmp_path, None, 0, out, 0, False)
    with pytest.raises(ValueError, match="--world-from"):
        run_world(options, tiny(), home / "tokenizer", None, 4, out, 0, False)
    deeper = replace(tiny(), world=replace(tiny().world, trunk=replace(tiny().world.trunk, layers=3)))
    with pytest.raises(ValueError, match=r"layers: 2 -> 3"):
        run_world(options, deeper, home / "tokenizer", home / "world", 0, out, 0, False)
    with pytest.raises(ValueError, match="choose another --out"):
        run_world(options, tiny(), home / "tokenizer", None, 0, home / "tokenizer", 0, True)
    assert not out.exists() and (home / "tokenizer/tokenizer").is_dir()


# --- the world --------------------------------------------------------------------------------------------------------


def test_a_world_steps_forks_and_slides(home: Path) -> None:
    world = World.load(home / "world", sampling=GREEDY)
    assert isinstance(world, WorldModel) and (world.context, world.action_width) == (2, 2)
    seen, actions = frames(3, 4), torch.randn(3, 9, 2, generator=torch.Generator().manual_seed(1))
    whole = world.imagine(seen, 9, actions)
    assert whole.frames.shape == (3, 9, 3, 32, 32) and whole.rewards is None
    assert torch.equal(whole.frames, world.imagine(seen[:, 2:], 9, actions).frames), "the newest frames count"
    state = world.reset(seen)
    forked = world.fork(state, 2)
    one = world.step(state, actions[:, 0])
    assert torch.equal(one.frames, whole.frames[:, 0])
    twice = world.step(forked, actions[:, 0].repeat_interleave(2, 0)).frames
    assert torch.equal(twice, one.frames.repeat_interleave(2, 0))
    with pytest.raises(ValueError, match="fork it"):
        world.step(state, actions[:, 0])
    row = world.select(one.state, [2])
    assert torch.equal(world.step(row, actions[2:, 1]).frames, whole.frames[2:, 1])
    # A short window slides: what follows is imagined from its own newest frames.
    short = World.load(home / "world", sampling=GREEDY, horizon=2).imagine(seen, 4, actions[:, :4]).frames
    assert torch.equal(short[:, :2], whole.frames[:, :2])
    assert torch.equal(short[:, 2:], world.imagine(short[:, :2], 2, actions[:, 2:4]).frames)


def test_a_full_state_is_forked_and_slides_too(home: Path) -> None:
    world = World.load(home / "world", sampling=GREEDY, horizon=1)
    seen, actions = frames(2, 2), torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1))
    whole = world.imagine(seen, 2, actions).frames
    full = world.step(world.reset(seen), actions[:, 0]).state
    many = world.step(world.fork(full, 2), actions[:, 1].repeat_interleave(2, 0)).frames
    assert torch.equal(many, whole[:, 1].repeat_interleave(2, 0))
    assert torch.equal(world.step(world.select(full, [1]), actions[1:, 1]).frames, whole[1:, 1])


def test_an_agent_may_learn_from_what_is_imagined(home: Path) -> None:
    imagined = World.load(home / "world").imagine(frames(1, 2), 1, torch.zeros(1, 1, 2))
    weight = torch.ones((), requires_grad=True)
    (imagined.frames[0].float() * weight).mean().backward()
    imagined.frames.zero_()  # inference tensors would allow neither
    assert not imagined.frames.is_inference()


def test_draws_are_repeated_by_their_seed(home: Path) -> None:
    world = World.load(home / "world", sampling=Sampling(temperature=2.0))
    seen, actions = frames(2, 2), torch.zeros(2, 3, 2)

    def drawn(seed: int) -> torch.Tensor:
        world.seed(seed)
        return world.imagine(seen, 3, actions).tokens

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_a_world_refuses_what_it_cannot_act_on(home: Path, tmp_path: Path) -> None:
    world = World.load(home / "world")
    with pytest.raises(ValueError, match="begins with 2"):
        world.reset(frames(1, 1))
    with pytest.raises(ValueError, match=r"wanted .*32, 32"):
        world.reset(frames(1, 2)[..., :16, :16])
    with pytest.raises(ValueError, match="no action came"):
        world.step(world.reset(frames(1, 2)))
    with pytest.raises(ValueError, match="action_width is 2"):
        world.step(world.reset(frames(1, 2)), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="give one a frame"):
        world.imagine(frames(1, 2), 3, torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="horizon of 0"):
        world.imagine(frames(1, 2), 0, torch.zeros(1, 0, 2))
    with pytest.raises(ValueError, match="not finite"):
        world.step(world.reset(frames(1, 2)), torch.full((1, 2), torch.nan))
    with pytest.raises(ValueError, match="0 copies"):
        world.fork(world.reset(frames(1, 2)), 0)
    with pytest.raises(ValueError, match="begins with 2"):
        world.reset(frames(1, 2)[:0])
    with pytest.raises(ValueError, match="holds no world"):
        World.load(tmp_path)
    with pytest.raises(ValueError, match="horizon of 99"):
        World.load(home / "world", horizon=99)
    other = ContextVQGAN(replace(tiny().tokenizer, levels=(5, 5, 4)))
    with pytest.raises(ValueError, match=r"do not belong together.*context_codes: 100, not 125"):
        World(other, world.predictor)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_imagine_writes_tokens_and_frames_or_a_video(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = home / "data/push/000001.npz", tmp_path / "out.npz"
    words = ("--input", source, "--context", 2, "--horizon", 6)
    assert ideomotor("imagine", home / "world", *words, "--greedy", "--out", out) == 0
    with np.load(out, allow_pickle=False) as made:
        assert made["frames"].shape == (1, 8, 32, 32, 3) and made["frames"].dtype == np.uint8
        assert made["context_tokens"].shape == (2, 64) and made["tokens"].shape == (1, 6, 4)
    assert ideomotor("imagine", home / "world", *words, "--samples", 2, "--out", tmp_path / "out.mp4") == 0
    assert (tmp_path / "out.mp4").stat().st_size > 1000 and "repeating the last frame" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--context", 3), "was built for 2"),
        (("--horizon", 30), "shorten --horizon to 18"),
        (("--horizon", 0), "horizon 0"),
        (("--temperature", "nan"), "must be finite"),
        (("--rounds", 2), "--rounds mean nothing to a world"),
        (("--start", 19), "take an earlier one"),
        (("--episode", "nobody"), "has no episode 'nobody'"),
        (("--device", "cuda:99"), "this machine has cpu"),
        (("--greedy", "--samples", 2), "leave one out"),
    ],
)
def test_imagine_names_what_is_wrong(
    home: Path, tmp_path: Path, words: tuple, said: str, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.npz"
    assert ideomotor("imagine", home / "world", "--input", home / "data/push/000001.npz", *words, "--out", out) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not out.exists()


def test_a_pooled_world_is_told_what_is_done_between_its_frames(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = replace(tiny(), window=replace(tiny().window, stride=3, pooled=True))
    run_world(data(home / "data", home), config, home / "tokenizer", None, 0, tmp_path / "world", 0, False)
    told = []
    plain = World.imagine
    monkeypatch.setattr(World, "imagine", lambda *given: (told.append(given[-1]), plain(*given))[1])
    source, out = home / "data/push/000001.npz", tmp_path / "out.npz"
    words = ("--input", source, "--greedy", "--start", 1, "--out", out)
    assert ideomotor("imagine", tmp_path / "world", *words, "--horizon", 4) == 0
    with np.load(source) as made:  # row k + 1 was done at frame k
        done = made["action"][1:][1 + 3 : 1 + 3 + 4 * 3].reshape(4, 3, 2).mean(1)
    np.testing.assert_allclose(told[0][0].numpy(), done, rtol=1e-6)
    assert ideomotor("imagine", tmp_path / "world", *words, "--horizon", 6) == 2
    assert "shorten --horizon to 5" in " ".join(capsys.readouterr().err.split())


def test_imagine_says_that_a_folder_holds_no_world(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--input", home / "data/push/000001.npz", "--horizon", 4, "--out", tmp_path / "out.npz")
    for folder, said in ((home / "tokenizer", "holds no world"), (tmp_path / "nowhere", "there is no folder")):
        assert ideomotor("imagine", folder, *words) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_imagine_takes_an_episode_that_was_held_out(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--input", home / "data", "--horizon", 2, "--greedy", "--out", tmp_path / "new/out.npz")
    assert ideomotor("imagine", home / "world", *words) == 0
    (facts,) = read_facts(home / "world")
    assert f"of {facts.held_out[0]}" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "new/out.npz").is_file()


def test_evaluation_scores_held_out_clips(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "scores.json"
    words = ("--clips", 8, "--samples", 2, "--protocol", "ivideogpt", "--out", out)
    assert ideomotor("ivideogpt", "evaluate", home / "world", *words) == 0
    scores = json.loads(out.read_text())
    assert "mse (best)" in scores["ivideogpt"] and "by protocol, 8 clips, 2 futures" in capsys.readouterr().out
    assert set(scores["moving_psnr"]) == {"world", "last frame repeated"}
    assert all(len(values) == scores["horizon"] == 4 for values in scores["moving_psnr"].values())
    assert ideomotor("ivideogpt", "evaluate", home / "world", "--samples", 0, "--out", out) == 2
    assert (
        ideomotor("ivideogpt", "evaluate", home / "world", "--clips", 8, "--futures", 3, "--out", tmp_path / "mean")
        == 0
    )
    mean = json.loads((tmp_path / "mean").read_text())
    assert (mean["futures"], scores["futures"]) == (3, 1)
    assert sum(mean["moving_psnr"]["world"]) > sum(scores["moving_psnr"]["world"]), "a mean pays less for its draws"
    # One clip more than is imagined at once, and another world whose folder has the same name.
    shutil.copytree(home / "world", tmp_path / "world")
    words = ("--clips", 17, "--against", tmp_path / "world", "--out", out)
    assert ideomotor("ivideogpt", "evaluate", home / "world", *words) == 0
    more = json.loads(out.read_text())
    assert more["clips"] == 17 and more["moving_psnr"][str(tmp_path / "world")] == more["moving_psnr"]["world"]
    gap = scores["sensitivity"]["shuffled"]
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert scores["strict"]["psnr (best)"]["value"] >= scores["strict"]["psnr (mean)"]["value"]


def test_protocols_score_single_futures_and_never_their_mean(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = [], ivideogpt_scores.compare_videos
    monkeypatch.setattr(
        ivideogpt_scores, "compare_videos", lambda truth, whole, *more, **named: (
            seen.append(whole), plain(truth, whole, *more, **named)
        )[1],
    )  # fmt: skip
    monkeypatch.setattr(
        ivideogpt_scores, "_expected", lambda world, seen, horizon, *_: (
            torch.full((len(seen), horizon, 3, 32, 32), 77, dtype=torch.uint8), None
        ),
    )  # fmt: skip
    world = World.load(home / "world")
    clips = held_out_clips(home / "world", (), tiny().window, 32, 2)
    ivideogpt_scores.score(world, clips, futures=3)
    ivideogpt_scores.score(world, clips, futures=1)
    mean, single = seen[0][0, :, 2:], seen[1][0, :, 2:]
    assert single.eq(77).all() and not mean.eq(77).all(), "of one future the mean is that future"
