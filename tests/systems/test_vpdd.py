"""VPDD's objectives and stages on clips with known dynamics, at the size of the tiny preset."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.windows import WindowConfig
from ideomotor.layers.text import HashedWords
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.quickstart import without_foresight
from ideomotor.systems.recorded import recorded_actions
from ideomotor.systems.sources import TrainingClips, tokenized
from ideomotor.systems.vpdd import (
    PRESETS,
    VIEW,
    VPDD,
    ActionDenoising,
    Stage,
    VideoDenoising,
    decode,
    tokens_of,
)
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.systems.vpdd_imagine import imagine
from ideomotor.systems.vpdd_stages import (
    Models,
    finetune,
    fitting_tokenizer,
    load_agent,
    load_models,
    open_run,
    pretrain,
    tokenizer_of,
    train_tokenizer,
)
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.training.optim import OptimConfig
from ideomotor.training.run import Run, Stopped
from ideomotor.types import Clip, Losses, domain_id

STEPS = 4


def small(steps: int = STEPS) -> VPDD:
    """The tiny preset for the 2-d actions of the synthetic clips."""
    config = PRESETS["tiny"]()
    stage = Stage(steps=steps, batch=4, optim=OptimConfig(lr=2e-3, warmup=2, ema=0.9))
    return replace(
        config,
        policy=replace(config.policy, action_width=2),
        tokenizer_stage=stage,
        pretrain_stage=stage,
        finetune_stage=stage,
    )


def sources(config: VPDD, actions: bool = False) -> list[Source]:
    dataset = synthetic_dataset(episodes=3, length=12, size=config.size, actions=actions)
    return [Source(dataset=dataset, window=config.window, cameras={VIEW: "video"})]


def batch(config: VPDD, size: int = 4) -> Clip:
    return ClipLoader(sources(config, actions=True), size, seed=1, prefetch=0).batch(0)


def models(config: VPDD) -> tuple[VQVAE3D, DiscreteDiffusionPredictor, DiscreteDiffusionPolicy]:
    torch.manual_seed(0)
    tokenizer, predictor = VQVAE3D(config.tokenizer).eval(), DiscreteDiffusionPredictor(config.predictor).eval()
    policy = DiscreteDiffusionPolicy(config.policy).eval()
    policy.bins.fit(recorded_actions(sources(config, actions=True)))
    return tokenizer, predictor, policy


# --- objectives -------------------------------------------------------------------------------------------------------


def overfit(objective: nn.Module, clip: Clip, steps: int, lr: float) -> tuple[Losses, Losses]:
    """First and last losses of training on one batch, both measured with the same noise."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=lr)
    torch.manual_seed(1)
    first = objective(clip)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(clip).total.backward()
        optimizer.step()
    torch.manual_seed(1)
    return first, objective(clip)


def test_the_tokenizer_overfits_one_batch() -> None:
    config = small()
    first, last = overfit(models(config)[0].train(), batch(config), 100, 5e-3)
    assert last.total < first.total / 7 and last.terms["psnr"] > 21


def test_pretraining_overfits_one_batch() -> None:
    config = small()
    config = replace(config, predictor=replace(config.predictor, text_dropout=0.0))
    tokenizer, predictor, _ = models(config)
    first, last = overfit(VideoDenoising(predictor, tokenizer, HashedWords()), batch(config), 150, 5e-3)
    assert last.total < first.total / 5 and last.terms["accuracy"] > 0.85


@pytest.mark.parametrize("foresight", [True, False], ids=["foresight", "control"])
def test_finetuning_overfits_one_batch(foresight: bool) -> None:
    config = small() if foresight else without_foresight(small())
    tokenizer, predictor, policy = models(config)
    lent = (predictor, tokenizer) if foresight else (None, None)
    objective = ActionDenoising(policy, *lent, HashedWords(), context=4, shift=0, jitter=0.0)
    clip = batch(config)
    first, last = overfit(objective, clip, 150, 5e-3)
    assert last.total < first.total / 5 and last.terms["accuracy"] > 0.85
    agent = VPDDAgent(config, policy, *lent, HashedWords())
    acted, real = agent.act(replace(clip, frames={VIEW: clip.frames[VIEW][:, :4]})), clip.action_mask[:, :8]
    missed = (acted - clip.actions[:, :8])[real].abs()
    assert missed.mean() < 0.25 * clip.actions.std()


def test_the_domain_reaches_all_that_foretells() -> None:
    config = small()
    tokenizer, predictor, policy = models(config)
    assert predictor.domain is not None
    torch.nn.init.normal_(predictor.domain.weight)
    torch.nn.init.normal_(predictor.future.head.weight, std=0.3)  # these begin at zero, where nothing would matter
    torch.nn.init.normal_(policy.actions.head.weight, std=0.3)
    clip = batch(config)
    human, robot = (torch.full((4,), domain_id(name)) for name in ("human", "robot"))
    for objective in (
        VideoDenoising(predictor, tokenizer, HashedWords()),
        ActionDenoising(policy, predictor, tokenizer, HashedWords(), 4, shift=0, jitter=0.0),
        ActionDenoising(policy, predictor, tokenizer, HashedWords(), 4, shift=0, jitter=0.0, reveal=0.5),
    ):
        losses = []
        for domain in (None, clip.domain, human, robot):
            torch.manual_seed(0)
            losses.append(float(objective(replace(clip, domain=domain)).total.detach()))
        assert losses[0] == losses[1] and len(set(losses)) == 3
    context = replace(clip, frames={VIEW: clip.frames[VIEW][:, :4]}, domain=None)
    agent = VPDDAgent(config, policy, predictor, tokenizer, HashedWords(), "robot")
    handed: list[Tensor] = []
    sample = policy.sample
    policy.sample = lambda frames, features, *rest, **more: (
        handed.append(features) or sample(frames, features, *rest, **more)
    )
    for agent.dial in ("features", "full"):
        handed.clear()
        for domain in (None, robot, human):  # in the domain that it was made for, unless the context names one
            agent.act(replace(context, domain=domain))
        assert torch.equal(handed[0], handed[1]) and not torch.equal(handed[0], handed[2])
    frames, text = context.frames[VIEW], HashedWords()(context.text)
    videos = [imagine(config, tokenizer, predictor, frames, text, domain=domain) for domain in (None, human, robot)]
    assert not torch.equal(videos[0], videos[1]) and not torch.equal(videos[1], videos[2])
    with pytest.raises(ValueError, match="no domain 'toy'"):
        VPDDAgent(config, policy, predictor, tokenizer, HashedWords(), "toy")


@pytest.mark.parametrize("foresight", [True, False], ids=["foresight", "control"])
def test_finetuning_never_sees_the_future(foresight: bool) -> None:
    """Fails if the policy's pixels are the window's last frame instead of the context's: then it acts late."""
    config = small() if foresight else without_foresight(small())
    tokenizer, predictor, policy = models(config)
    lent = (predictor, tokenizer) if foresight else (None, None)
    objective = ActionDenoising(policy, *lent, HashedWords(), context=4, shift=0, jitter=0.0)
    torch.nn.init.normal_(policy.actions.head.weight, std=0.1)  # it begins at zero, where nothing would matter
    clip = batch(config)
    future, seen = clip.frames[VIEW].clone(), clip.frames[VIEW].clone()
    future[:, 4:] = 255 - future[:, 4:]
    seen[:, 3] = 255 - seen[:, 3]

    def loss(frames: Tensor) -> Tensor:
        torch.manual_seed(0)
        return objective(replace(clip, frames={VIEW: frames})).total

    assert torch.equal(loss(clip.frames[VIEW]), loss(future))
    assert not torch.equal(loss(clip.frames[VIEW]), loss(seen))


def test_what_is_borrowed_gets_no_gradient_and_is_not_saved() -> None:
    config = small()
    tokenizer, predictor, policy = models(config)
    clip = batch(config)
    for objective, own in (
        (VideoDenoising(predictor, tokenizer, HashedWords()), predictor),
        (ActionDenoising(policy, predictor, tokenizer, HashedWords(), 4, 2, 0.1), policy),
    ):
        objective(clip).total.backward()
        owned = {id(weight) for weight in own.parameters()}
        assert {id(weight) for weight in objective.parameters()} == owned
        for module in (tokenizer, predictor, policy):
            for weight in module.parameters():
                assert id(weight) in owned or weight.grad is None
        prefixes = {name.split(".")[0] for name in objective.state_dict()}
        assert prefixes == {"predictor" if own is predictor else "policy"}
        for weight in own.parameters():
            weight.grad = None


def test_finetuning_wants_actions() -> None:
    config = small()
    tokenizer, predictor, policy = models(config)
    objective = ActionDenoising(policy, predictor, tokenizer, HashedWords(), 4, 2, 0.1)
    with pytest.raises(ValueError, match="without actions came to fine-tuning: give demonstrations"):
        objective(replace(batch(config), actions=None))


# --- acting and imagining ---------------------------------------------------------------------------------------------


def test_an_agent_acts_alike_with_and_without_cached_tokens(tmp_path: Path) -> None:
    config = small()
    tokenizer, predictor, policy = models(config)
    clips = tokenized(sources(config, actions=True), tokenizer, config, tmp_path, actions=True)
    cached = ClipLoader(clips.sources, 4, seed=1, prefetch=0, token_cache=clips.tokens).batch(0)
    assert cached.tokens is not None and cached.tokens[VIEW].shape == (4, 2, 16)
    agent = VPDDAgent(config, policy, predictor, tokenizer, HashedWords())
    seen = Clip(frames={VIEW: cached.frames[VIEW][:, : config.window.context]}, text=cached.text)
    actions = agent.act(seen)
    assert actions.shape == (4, config.window.chunk, 2) and actions.dtype == torch.float32
    assert torch.equal(actions, agent.act(replace(seen, tokens=cached.tokens)))
    one = agent.act(Clip(frames={VIEW: seen.frames[VIEW][:1]}, text=seen.text[:1]))
    assert torch.allclose(one, actions[:1], atol=1e-5)  # a robot's actions do not hang on who is asked beside it


def test_cached_tokens_are_those_of_the_frames(tmp_path: Path) -> None:
    config = small()
    tokenizer, *_ = models(config)
    clips = tokenized(sources(config), tokenizer, config, tmp_path)
    cached = ClipLoader(clips.sources, 4, seed=1, prefetch=0, token_cache=clips.tokens, actions=False).batch(0)
    assert torch.equal(tokens_of(cached, tokenizer), tokens_of(replace(cached, tokens=None), tokenizer))


def test_the_context_tokens_know_nothing_of_the_future() -> None:
    config = small()
    tokenizer, *_ = models(config)
    clip = batch(config)
    other = clip.frames[VIEW].clone()
    other[:, config.window.context :] = 255 - other[:, config.window.context :]
    one, two = (tokens_of(replace(clip, frames={VIEW: frames}), tokenizer) for frames in (clip.frames[VIEW], other))
    assert torch.equal(one[:, :1], two[:, :1]) and not torch.equal(one[:, 1:], two[:, 1:])


def test_imagination_is_video_and_repeatable() -> None:
    config = small()
    tokenizer, predictor, _ = models(config)
    frames, text = batch(config).frames[VIEW][:2, :4], HashedWords()(["the red disc moves", ""])
    one = imagine(config, tokenizer, predictor, frames, text)
    assert one.shape == (2, 4, 3, 32, 32) and one.dtype == torch.uint8
    assert torch.equal(one, imagine(config, tokenizer, predictor, frames, text))
    far = imagine(config, tokenizer, predictor, frames, text, rounds=3)
    assert far.shape == (2, 12, 3, 32, 32)

    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return imagine(config, tokenizer, predictor, frames, text, temperature=1.0, generator=generator)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_a_further_round_leaves_the_first_as_it_is() -> None:
    config = small()
    tokenizer, predictor, _ = models(config)
    frames, text = batch(config).frames[VIEW][:2, :4], HashedWords()(["", ""])
    once = imagine(config, tokenizer, predictor, frames, text)
    assert torch.equal(imagine(config, tokenizer, predictor, frames, text, rounds=2)[:, :4], once)


def test_longer_contexts_and_horizons() -> None:
    config = small()
    config = replace(
        config,
        window=replace(config.window, context=8, horizon=8),
        predictor=replace(config.predictor, context_latents=2, latents=2),
        policy=replace(config.policy, features=(8, 32)),
    )
    tokenizer, predictor, policy = models(config)
    clip = batch(config)
    assert VideoDenoising(predictor, tokenizer, HashedWords())(clip).total.isfinite()
    agent = VPDDAgent(config, policy, predictor, tokenizer, HashedWords())
    assert agent.act(replace(clip, frames={VIEW: clip.frames[VIEW][:, :8]})).shape == (4, 8, 2)
    imagined = imagine(config, tokenizer, predictor, clip.frames[VIEW][:, :8], HashedWords()(clip.text), rounds=2)
    assert imagined.shape == (4, 16, 3, 32, 32)


# --- stages -----------------------------------------------------------------------------------------------------------

StageOf = Callable[[Run], None]


def stages(config: VPDD, cache: Path) -> dict[str, StageOf]:
    """The four trainings, each on its own from untrained models of the stages before."""
    tokenizer, predictor, _ = models(config)
    video, demonstrations = sources(config), sources(config, actions=True)
    plain = without_foresight(config)
    return {
        "tokenizer": lambda run: train_tokenizer(config, TrainingClips(video), run),
        "pretrain": lambda run: pretrain(
            config, tokenized(video, tokenizer, config, cache, with_frames=False), tokenizer, run
        ),
        "finetune": lambda run: finetune(
            config, tokenized(demonstrations, tokenizer, config, cache, actions=True), tokenizer, predictor, run
        ),
        "control": lambda run: finetune(plain, TrainingClips(demonstrations, actions=True), None, None, run),
    }


def train(name: str, config: VPDD, out: Path, pause_at: int | None = None) -> dict[str, Tensor]:
    """Runs one stage, and returns every tensor that it saved."""
    wanted = without_foresight(config) if name == "control" else config
    with Run(out, seed=1, config=wanted, pause_at=pause_at) as run:
        stages(config, out.parent / "cache")[name](run)
    saved = sorted(out.glob("*/model.safetensors"))
    return {f"{path.parent.name}/{key}": value for path in saved for key, value in load_file(path).items()}


MODELS = {
    "tokenizer": {"tokenizer"},
    "pretrain": {"tokenizer", "predictor"},
    "finetune": {"tokenizer", "predictor", "policy"},
    "control": {"policy"},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_paused_stage_ends_at_the_same_bits(name: str, tmp_path: Path) -> None:
    config = small()
    straight = train(name, config, tmp_path / "straight")
    with pytest.raises(Stopped) as stop:
        train(name, config, tmp_path / "paused", pause_at=2)
    assert stop.value.code == 0
    assert json.loads((tmp_path / "paused/state" / "step-000000002" / "state.json").read_text())["step"] == 2
    assert not list((tmp_path / "paused").glob("*/model.safetensors")) and not (tmp_path / "paused/done.json").exists()
    resumed = train(name, config, tmp_path / "paused")
    assert straight.keys() == resumed.keys() and {key.split("/")[0] for key in straight} == MODELS[name]
    assert [key for key in straight if not same_bits(straight[key], resumed[key])] == []
    # Nothing of the borrowed models is in the training state, and what is saved of them is what they were.
    (state,) = (tmp_path / "straight/state").glob("step-*/learner-0.safetensors")
    owners = {key.split(".")[1] for key in load_file(state) if key.startswith("weights.")}
    assert name == "tokenizer" or owners == {"predictor" if name == "pretrain" else "policy"}
    if name in ("pretrain", "finetune"):
        borrowed = models(config)[0].state_dict()
        assert all(same_bits(value, straight[f"tokenizer/{key}"]) for key, value in borrowed.items())


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def test_a_saved_policy_has_the_bins_of_its_demonstrations(tmp_path: Path) -> None:
    config = small(steps=2)
    saved = train("control", config, tmp_path / "control")
    policy = models(without_foresight(config))[2]
    assert same_bits(saved["policy/bins.centres"], policy.bins.centres)
    assert same_bits(saved["policy/bins.edges"], policy.bins.edges)


def test_a_folder_holds_all_that_an_agent_needs(tmp_path: Path) -> None:
    config = small(steps=1)
    for name, plan in (("finetune", config), ("control", without_foresight(config))):
        with open_run(tmp_path / name, plan, seed=0) as run:
            stages(config, tmp_path / "cache")[name](run)
        agent = load_agent(tmp_path / name)
        assert (agent.predictor is None, agent.tokenizer is None) == (name == "control",) * 2
        assert agent.config == plan
        clip = batch(config, 2)
        assert agent.act(replace(clip, frames={VIEW: clip.frames[VIEW][:, :4]})).shape == (2, 8, 2)


def test_folders_that_hold_no_finished_stage_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no VPDD stage"):
        load_models(tmp_path)
    open_run(tmp_path / "begun", small(), seed=0)._lock.close()
    with pytest.raises(ValueError, match=r"has not finished: run its command again"):
        load_models(tmp_path / "begun")
    with open_run(tmp_path / "tokenizer", small(steps=1), seed=0) as run:
        stages(small(steps=1), tmp_path / "cache")["tokenizer"](run)
    with pytest.raises(ValueError, match=r"holds no policy: give the --out folder of `ideomotor vpdd finetune`"):
        load_agent(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"holds no tokenizer: give the --out folder of `ideomotor vpdd tokenizer`"):
        tokenizer_of(Models(small(), None, None, None), tmp_path)


def test_another_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    config = small()
    found = Models(config, models(config)[0], None, None)
    assert fitting_tokenizer(found, config, tmp_path) is found.tokenizer
    predictor = replace(config.predictor, vocab=175)
    finer = replace(config, tokenizer=replace(config.tokenizer, levels=(7, 5, 5)), predictor=predictor)
    with pytest.raises(
        ValueError, match=r"other settings \(there -> now\): levels: \[5, 5, 5\] -> \[7, 5, 5\].*same --preset"
    ):
        fitting_tokenizer(found, finer, tmp_path)
    with pytest.raises(ValueError, match="size: 64 -> 32"):
        fitting_tokenizer(found._replace(config=replace_size(config, 64)), config, tmp_path)


def replace_size(config: VPDD, size: int) -> VPDD:
    grid = (size // 8, size // 8)
    policy = replace(config.policy, pixels=size, features=((grid[0] // config.predictor.patch) ** 2, 32))
    return replace(config, size=size, predictor=replace(config.predictor, grid=grid), policy=policy)


def test_another_predictor_is_refused_or_kept_as_it_is(tmp_path: Path) -> None:
    """What was pre-trained with other settings must not be saved under the new ones: nothing could load it again."""
    config = small(steps=1)
    trunk = replace(config.predictor.trunk, layers=1)
    other = replace(config, predictor=replace(config.predictor, trunk=trunk))
    tokenizer, predictor, _ = models(other)
    clips = tokenized(sources(config, actions=True), tokenizer, config, tmp_path / "cache", actions=True)
    try:
        with open_run(tmp_path / "out", config, seed=0) as run:
            finetune(config, clips, tokenizer, predictor, run)
    except ValueError as error:
        assert "trunk.layers: 1 -> 2" in str(error)
    else:
        load_agent(tmp_path / "out")


# --- configs ----------------------------------------------------------------------------------------------------------


def test_bins_are_placed_by_all_data_sets_also_those_of_one_name() -> None:
    few, many = (Source(dataset=synthetic_dataset(episodes=n, length=12)) for n in (1, 3))
    assert few.dataset.name == many.dataset.name  # as those of two folders A/demonstrations and B/demonstrations
    assert len(recorded_actions([few, many])) == 4 * 12


def test_saved_weights_may_be_read_as_the_files_beside_them(tmp_path: Path) -> None:
    train("control", small(steps=1), tmp_path / "control")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "control/policy").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together(name: str) -> None:
    config = PRESETS[name]()
    tokenizer, predictor = VQVAE3D(config.tokenizer), DiscreteDiffusionPredictor(config.predictor)
    assert tokenizer.grid(config.size, config.size) == config.predictor.grid
    assert predictor.feature_shape == config.policy.features
    assert tokenizer.vocab == config.predictor.vocab


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": WindowConfig(context=3)}, "context 3 frames is not 1 latent frames of 4"),
        ({"window": WindowConfig(horizon=8)}, "horizon 8 frames is not 1 latent"),
        ({"window": WindowConfig(chunk=6)}, "chunk is 6 in the window and 8 in the policy"),
        ({"window": WindowConfig(outlook=0)}, "the window has 0 actions behind the chunk and the policy an outlook"),
        ({"execute": 9}, r"execute 9 must lie in 1\.\.chunk"),
        ({"execute": 8, "ensemble": 0.01}, "so no chunks overlap"),
        ({"size": 64}, "frames of 64 px give a grid of"),
    ],
)
def test_settings_that_do_not_fit_are_named(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(PRESETS["tiny"](), **change)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: {"tokenizer": replace(c.tokenizer, levels=(7, 5, 5))},  # 175 codes; the predictor knows 125
        lambda c: {"policy": replace(c.policy, features=(4, 48))},  # the predictor's features are 32 wide
    ],
    ids=["vocab", "features"],
)
def test_parts_that_do_not_fit_are_refused_before_training(change: Callable) -> None:
    config = PRESETS["tiny"]()
    with pytest.raises(ValueError):
        replace(config, **change(config))


# --- the imagine dial -------------------------------------------------------------------------------------------------


def test_one_policy_acts_at_every_position_of_the_dial() -> None:
    config = small()
    tokenizer, predictor, policy = models(config)
    torch.nn.init.normal_(policy.actions.head.weight, std=0.5)
    torch.nn.init.normal_(predictor.future.head.weight, std=0.5)
    agent = VPDDAgent(config, policy, predictor, tokenizer, HashedWords())
    frames = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    context = Clip(frames={VIEW: frames}, text=("push it", "pull it", ""))
    chunks = {}
    for dial in ("none", "features", "half", "full"):
        agent.dial = dial
        chunks[dial] = agent.act(context)
        assert chunks[dial].shape == (3, config.window.chunk, 2) and chunks[dial].isfinite().all()
        assert (agent.imagined is not None) == (dial == "full")
    assert agent.imagined.shape == (3, 4, 3, 32, 32) and agent.imagined.dtype == torch.uint8
    text = HashedWords()(context.text)
    assert torch.equal(chunks["none"], policy.sample(frames, None, text, steps=config.action_steps))


def test_training_shows_some_samples_a_part_of_the_future() -> None:
    """Fails if ``reveal`` shows the future to all, to none, or shows it wholly unmasked to the features' reader."""
    config = small()
    tokenizer, predictor, policy = models(config)
    seen: list[Tensor] = []
    features = predictor.features
    predictor.features = lambda context, text, future, domain: (seen.append(future), features(context, text, future))[1]
    objective = ActionDenoising(policy, predictor, tokenizer, HashedWords(), 4, 0, 0.0, reveal=0.5)
    clip = next(iter(ClipLoader(sources(config, actions=True), 32, 0)))
    torch.manual_seed(0)
    objective(clip)
    masked = (seen[0] == predictor.future.mask_id).float().mean((1, 2))
    assert 8 <= int((masked == 1).sum()) <= 24 and (masked > 0).all() and len(masked.unique()) > 4


# --- several cameras --------------------------------------------------------------------------------------------------


def two_views() -> VPDD:
    """``small`` with a second camera."""
    config = small()
    return replace(
        config,
        views=2,
        predictor=replace(config.predictor, grid=(8, 4), views=2),
        policy=replace(config.policy, views=2, features=(8, 32)),
    )


def stereo(config: VPDD, actions: bool = False) -> list[Source]:
    """Synthetic clips whose second camera shows them upside down."""
    dataset = synthetic_dataset(episodes=3, length=30, size=config.size, actions=actions)
    episodes = tuple(
        replace(episode, frames={"left": episode.frames["video"], "right": Flipped(episode.frames["video"])})
        for episode in dataset.episodes
    )
    cameras = {"main": "left", "view1": "right"}
    return [Source(dataset=replace(dataset, episodes=episodes), window=config.window, cameras=cameras)]


class Flipped:
    """Frames upside down."""

    def __init__(self, frames: object) -> None:
        self.frames, self.shape = frames, frames.shape

    def read(self, indices: list[int], size: tuple[int, int] | None = None) -> Tensor:
        return self.frames.read(indices, size).flip(-2)


def test_two_views_are_coded_apart_and_seen_together(tmp_path: Path) -> None:
    config = two_views()
    torch.manual_seed(0)
    tokenizer, predictor = VQVAE3D(config.tokenizer).eval(), DiscreteDiffusionPredictor(config.predictor).eval()
    policy = DiscreteDiffusionPolicy(config.policy).eval()
    shown = stereo(config, actions=True)
    policy.bins.fit(recorded_actions(shown))
    clip = next(iter(ClipLoader(shown, 4, 0)))
    tokens = tokens_of(clip, tokenizer, 2)
    left, right = (tokenizer.encode(clip.frames[name]) for name in ("main", "view1"))
    assert torch.equal(tokens, torch.cat([left, right], -1)) and tokens.shape == (4, 2, 32)
    video = decode(tokenizer, tokens, config.predictor.grid, 2)
    for view, codes in zip(video.split(32, -2), (left, right), strict=True):
        away = (view.int() - tokenizer.decode(codes, (4, 4)).int()).abs()
        assert (
            away.max() <= 1 and (away > 0).float().mean() < 1e-3
        )  # sums of another batch round otherwise, here and there
    # Cached tokens are those very tokens, and both objectives learn from them.
    clips = tokenized(shown, tokenizer, config, tmp_path, actions=True)
    cached = next(iter(ClipLoader(shown, 4, 0, token_cache=clips.tokens)))
    assert torch.equal(tokens_of(cached, tokenizer, 2), tokens)
    assert VideoDenoising(predictor, tokenizer, HashedWords())(cached).total.isfinite()
    assert ActionDenoising(policy, predictor, tokenizer, HashedWords(), 4, 2, 0.1, 0.2)(cached).total.isfinite()
    # What one camera sees changes what is foretold of the other.
    torch.nn.init.normal_(predictor.future.head.weight, std=0.5)
    text = HashedWords()(clip.text)
    other = tokens.clone()
    other[:, :, 16:] = (other[:, :, 16:] + 1) % tokenizer.vocab
    a, b = (predictor.features(seen[:, :1], text)[:, :4] for seen in (tokens, other))
    assert not torch.allclose(a, b, atol=1e-4)


def test_an_agent_of_two_views_acts_and_says_which_is_missing() -> None:
    config = two_views()
    torch.manual_seed(0)
    tokenizer, predictor = VQVAE3D(config.tokenizer), DiscreteDiffusionPredictor(config.predictor)
    policy = DiscreteDiffusionPolicy(config.policy)
    policy.bins.fit(recorded_actions(stereo(config, actions=True)))
    agent = VPDDAgent(config, policy, predictor, tokenizer, HashedWords())
    agent.dial = "full"
    frames = {name: torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8) for name in ("main", "view1")}
    assert agent.act(Clip(frames=frames, text=("", ""))).shape == (2, config.window.chunk, 2)
    assert agent.imagined.shape == (2, 4, 3, 64, 32)
    with pytest.raises(ValueError, match=r"lacks \['view1'\]: call the cameras main, view1"):
        agent.act(Clip(frames={"main": frames["main"]}, text=("", "")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"proprio": torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])},
            r"state of sample 1 is \[nan, 0.0\]; wanted finite",
        ),
        ({"proprio": torch.tensor([[torch.inf, 1.0], [0.0, 0.0]])}, "state of sample 0"),
        ({"proprio": torch.zeros(2, 3)}, "wants a state of width 2 and got 3"),
        ({"proprio": None}, "wants a state of width 2 and got None"),
        ({"domain": torch.tensor([1, 4])}, r"domains are \[1, 4\]; wanted for each of 2 samples .*0 unknown, 1 human"),
        ({"domain": torch.tensor([-1, 0])}, "domains are"),
        ({"domain": torch.tensor([1])}, "domains are"),
        ({"frames": {VIEW: torch.zeros(2, 4, 3, 48, 32, dtype=torch.uint8)}}, "got 1 of 24: .* frame size"),
    ],
)
def test_an_agent_refuses_what_it_cannot_act_on(change: dict, words: str) -> None:
    config = PRESETS["tiny"]()
    config = replace(config, policy=replace(config.policy, action_width=2, state_width=2))
    agent = VPDDAgent(
        config,
        DiscreteDiffusionPolicy(config.policy),
        DiscreteDiffusionPredictor(config.predictor),
        VQVAE3D(config.tokenizer),
        HashedWords(),
    )
    frames = torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8)
    sound = Clip(frames={VIEW: frames}, text=("", ""), proprio=torch.zeros(2, 2), domain=torch.tensor([0, 3]))
    assert agent.act(sound).shape == (2, 8, 2)
    with pytest.raises(ValueError, match=words):
        agent.act(replace(sound, **change))


def test_views_must_agree_in_all_parts() -> None:
    with pytest.raises(ValueError, match="set all of them"):
        replace(two_views(), views=1)
    with pytest.raises(ValueError, match="is not that of 3 views"):
        replace(two_views().predictor, views=3)
