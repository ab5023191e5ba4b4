"""Dream (MBRL): an agent learns a task of Meta-World from real steps and from those it imagines in iVideoGPT.

The way of the data: real episodes and demonstrations -> segments -> tokenizer and transformer -> rollouts of the agent
inside them -> the agent. The same settings without a world are its model-free twin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import UInt8
from rich.console import Console
from torch import Tensor

from ideomotor.data.replay import ReplayConfig, Segments, read_trajectory
from ideomotor.data.video_writing import write_video
from ideomotor.evaluation.episodes import EpisodeSpec
from ideomotor.layers.perceptual import load_perceptual
from ideomotor.policies.actor_critic import ActorCriticConfig
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.rl import mbpo, model_free
from ideomotor.rl.collect import PixelEnv
from ideomotor.rl.drqv2 import PUBLISHED, DrQv2, DrQv2Config
from ideomotor.rl.mbpo import MBPOConfig, WorldPart
from ideomotor.rl.model_free import ModelFreeConfig, Told
from ideomotor.systems.agent_worlds import HORIZON, pixel_world
from ideomotor.systems.collection_worlds import tasks_of
from ideomotor.systems.ivideogpt import IVideoGPT, WorldModeling, cpu, published_large, published_small, tiny
from ideomotor.systems.ivideogpt_stages import load_config, load_world, refuse_unlike, take_over
from ideomotor.systems.panels import comparison
from ideomotor.systems.stages import WORLD_FILE, learned_with
from ideomotor.systems.vpdd import VIEW
from ideomotor.systems.world import World
from ideomotor.systems.world_pace import other_hold
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.tokenizers.critic import Painting
from ideomotor.training.checkpoint import fingerprint, write_json
from ideomotor.training.config import config_to_json
from ideomotor.training.optim import OptimConfig
from ideomotor.training.run import Run
from ideomotor.types import Clip

Arm = Literal["mbpo", "drqv2"]
_OPTIM = OptimConfig(lr=1e-4, schedule="constant", warmup=0, weight_decay=0.0, bf16=True)
FPS = 5.0  # of written videos: slow enough to compare
console = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Dream:
    """Everything about one run; ``arm`` "drqv2" leaves the world out and reads nothing but ``learning.real``.

    Attributes:
        learning: the agent, and when what learns.
        repeat: steps of Meta-World that an action is held. The learned world's frames are as far apart.
        world: sizes of tokenizer and transformer; the sizes of an earlier world go before.
        transformer_every: agent steps between the transformer's updates.
        tokenizer_every: agent steps between the tokenizer's.
        painted: frames behind the context that an update of the tokenizer paints, drawn from the segment.
        transformer_optim: of the transformer; with a constant schedule, as the tokenizer's.
        tokenizer_optim: of the tokenizer.
        videos: writes a video of each look at the world.
    """

    arm: Arm = "mbpo"
    repeat: int = 2
    learning: MBPOConfig = field(default_factory=lambda: MBPOConfig(real=ModelFreeConfig(task="")))
    world: IVideoGPT = field(default_factory=IVideoGPT)
    transformer_every: int = 5
    tokenizer_every: int = 20
    painted: int = 5
    transformer_optim: OptimConfig = field(default_factory=lambda: replace(_OPTIM, weight_decay=0.01))
    tokenizer_optim: OptimConfig = field(default_factory=lambda: _OPTIM)
    videos: bool = True

    def __post_init__(self) -> None:
        if self.repeat < 1 or HORIZON % self.repeat:
            raise ValueError(f"repeat is {self.repeat}; episodes have {HORIZON} steps of the world: take a divisor")


@dataclass(frozen=True, kw_only=True)
class DreamSettings:
    """All that decides what a run leaves; a resumed one must have the same."""

    dream: Dream
    read: Mapping[str, str]
    """Fingerprints of the demonstrations and of the earlier world."""


class Networks(NamedTuple):
    """Of a world."""

    tokenizer: ContextVQGAN
    predictor: AutoregressivePredictor


def dream(
    config: Dream,
    run: Run,
    world: PixelEnv,
    trial_world: PixelEnv,
    trials: Sequence[EpisodeSpec],
    earlier: Networks | None = None,
    told: Told = lambda step, result: None,
) -> DrQv2:
    """Trains the agent, and for "mbpo" the world, which is left beside it as a stage of iVideoGPT leaves one."""
    real = config.learning.real
    if config.arm == "drqv2":
        return model_free.train(run, real, world, trial_world, trials, console.print, told)
    tokenizer, predictor = networks(config, earlier)
    perceptual, notice = load_perceptual(*config.world.perceptual)
    console.print(notice, markup=False)
    if perceptual is not None:
        perceptual.to(run.device)
    # Codes that an earlier world speaks of keep their meaning.
    reconstruction = replace(config.world.reconstruction, train_codebooks=earlier is None)
    painting, foretelling = Painting(tokenizer, reconstruction, perceptual), WorldModeling(predictor, tokenizer)
    parts = (
        WorldPart(
            learner=run.learner(painting, config.tokenizer_optim, 1),
            every=config.tokenizer_every,
            batch=lambda segments, seed: some_frames(clip_of(segments), tokenizer.context_length, config.painted, seed),
        ),
        WorldPart(
            learner=run.learner(foretelling, config.transformer_optim, 1),
            every=config.transformer_every,
            batch=lambda segments, seed: clip_of(segments),
        ),
    )
    inside = World(tokenizer, predictor, horizon=config.learning.horizon)
    agent = mbpo.train(
        run, config.learning, world, trial_world, inside, parts, trials, console.print, told,
        film if config.videos else None,
    )  # fmt: skip
    run.save(tokenizer, tokenizer.config, "tokenizer")
    run.save(predictor, predictor.config, "world", meta=learned_with(run.dir, "tokenizer"))
    # It has learned from this agent's own steps, each of which is in the replay.
    window = replace(config.world.window, stride=1, pooled=False)
    left = replace(config.world, window=window, tokenizer=tokenizer.config, world=predictor.config)
    write_json(run.dir / WORLD_FILE, config_to_json(left))
    return agent


def networks(config: Dream, earlier: Networks | None) -> Networks:
    """Returns the world's networks with a reward head, with the weights of an earlier world where there is one."""
    if earlier is None:
        tokenizer, sizes = ContextVQGAN(config.world.tokenizer), config.world.world
    else:
        tokenizer, sizes = earlier.tokenizer, earlier.predictor.config
    predictor = AutoregressivePredictor(heard(config, sizes))
    if earlier is not None:
        take_over(predictor, earlier.predictor)
    return Networks(tokenizer, predictor)


def heard(config: Dream, sizes: AutoregressiveConfig) -> AutoregressiveConfig:
    """Returns the sizes with heads for the agent's actions and for rewards."""
    return replace(sizes, action_width=config.learning.real.agent.network.actions, reward=True)


def clip_of(segments: Segments) -> Clip:
    """Returns the segments as the world's objectives read them: row ``k`` of actions and rewards leads to the frame
    after frame ``k``.
    """
    return Clip(
        frames={VIEW: segments.frames},
        text=("",) * len(segments.frames),
        actions=segments.actions,
        rewards=segments.rewards,
    )


def some_frames(clip: Clip, context: int, count: int, seed: int) -> Clip:
    """Returns the clip's context and ``count`` of the frames behind it (all, where there are no more), in order."""
    frames = clip.frames[VIEW]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(frames.shape[1] - context, generator=generator)[:count].sort().values + context
    return Clip(frames={VIEW: frames[:, torch.cat([torch.arange(context), drawn])]}, text=clip.text)


def film(
    path: Path, seen: UInt8[Tensor, "t c h w"], truth: UInt8[Tensor, "u c h w"], imagined: UInt8[Tensor, "u c h w"]
) -> None:
    """Writes truth, imagination and its error side by side."""
    write_video(path.with_suffix(".mp4"), comparison(seen, truth, imagined[None]), FPS)


def run_dream(
    config: Dream,
    out: Path,
    *,
    episodes: int = 20,
    world_from: Path | None = None,
    seed: int = 0,
    fresh: bool = False,
    told: Told = lambda step, result: None,
) -> None:
    """``ideomotor ivideogpt dream``: opens what is read, and trains. Killed, the same call goes on.

    Args:
        config: of the run; ``learning.real`` names task and demonstrations.
        out: the run's folder.
        episodes: of each trial, one a test goal.
        world_from: folder of an earlier world, or of an import; None begins from nothing.
        seed: of everything random.
        fresh: throws away what ``out`` holds.
        told: called with the step and the row of each episode of a trial.

    Raises:
        ValueError: settings, worlds or files that do not fit together.
        Stopped: see ``Run``.
    """
    from ideomotor.envs.world import GOALS

    real, goals = config.learning.real, GOALS["test"]
    if not 1 <= episodes <= len(goals):
        raise ValueError(f"episodes is {episodes}; there are {len(goals)} goals to be tried with: take 1 to that many")
    for source in (world_from, real.demonstrations):
        if source is not None and source.resolve() in (out.resolve(), out.resolve() / "replay"):
            raise ValueError(f"--out is {out}, and {source} in it is only read: choose another --out")
    earlier, read = None, dict[str, str]()
    if config.arm == "mbpo":
        if world_from is not None:
            earlier = Networks(*load_world(world_from))
            config = replace(config, world=load_config(world_from))
            read["world"] = fingerprint(earlier.predictor, earlier.predictor.config)
        refuse_unfit(config, earlier)
        load_perceptual(*config.world.perceptual)  # before anything is thrown away
        if world_from is not None and (said := other_hold(world_from, config.world.window, real.task, config.repeat)):
            console.print(said, markup=False)
    if real.demonstrations is not None:
        read["demonstrations"] = digest(real.demonstrations)
        refuse_other_demonstrations(config, real.demonstrations)
    trials = [EpisodeSpec(task=real.task, seed=seed, goal=goal) for goal in goals[:episodes]]
    world, trial_world = (
        pixel_world(real.task, split, real.replay.stack, config.repeat) for split in ("train", "test")
    )
    try:
        # Where the demonstrations lie decides nothing; what they are does.
        settings = DreamSettings(dream=for_task(config, real.task, config.arm, None), read=read)
        with Run(out, seed=seed, config=settings, fresh=fresh) as run:
            dream(config, run, world, trial_world, trials, earlier, told)
    finally:
        world.close()
        trial_world.close()


def for_task(config: Dream, task: str, arm: Arm, demonstrations: Path | None) -> Dream:
    """Returns the settings for that task."""
    real = replace(config.learning.real, task=task, demonstrations=demonstrations)
    return replace(config, arm=arm, learning=replace(config.learning, real=real))


def refuse_unfit(config: Dream, earlier: Networks | None) -> None:
    """Refuses a world that the agent cannot act in.

    Raises:
        ValueError: naming what differs.
    """
    seen = (config.world.tokenizer if earlier is None else earlier.tokenizer.config).size
    if seen != config.learning.real.agent.network.size:
        raise ValueError(
            f"the learned world has pictures of {seen} px and the agent of {config.learning.real.agent.network.size}: "
            "give both the same (--preset published-64 or cpu)"
        )
    longest = (config.world.world if earlier is None else earlier.predictor.config).longest
    if config.learning.horizon > longest:
        raise ValueError(
            f"horizon is {config.learning.horizon}, and the transformer learns at most {longest} frames behind its "
            "context: shorten --learning.horizon"
        )
    context = (config.world.world if earlier is None else earlier.predictor.config).context
    if context > config.learning.real.replay.stack:
        raise ValueError(
            f"the learned world begins with {context} frames and the agent sees {config.learning.real.replay.stack}: "
            f"set --learning.real.replay.stack {context}, and as many frames for the agent's network"
        )
    if earlier is not None:
        with torch.device("meta"):  # its sizes are all that counts
            predictor = AutoregressivePredictor(heard(config, earlier.predictor.config))
        refuse_unlike(predictor, earlier.predictor)


def refuse_other_demonstrations(config: Dream, demonstrations: Path) -> None:
    """Refuses demonstrations of another robot or picture size, and of Meta-World those whose actions were held for
    another time than the agent holds its own.

    Raises:
        ValueError: naming both.
    """
    network, toy = config.learning.real.agent.network, config.learning.real.task in tasks_of("toy")
    shown, wanted = ((3, network.size, network.size), (network.actions,)), HORIZON // config.repeat
    for path in sorted(demonstrations.glob("*.npz")):
        try:
            episode = read_trajectory(path)
        except ValueError:  # it is left out, and told of, when the run begins
            continue
        found, steps = (episode.frames.shape[1:], episode.actions.shape[1:]), len(episode)
        if steps != wanted and not toy:
            way = f"set --repeat {HORIZON // steps}" if HORIZON % steps == 0 else "record whole episodes"
            raise ValueError(
                f"{path} has {steps} steps; an episode of this agent has {wanted} ({HORIZON} steps of the world, each "
                f"action held for {config.repeat}): {way}"
            )
        if found != shown:
            raise ValueError(
                f"{path} has frames and actions of shapes {found}, the agent's are of {shown}: give demonstrations of "
                "its robot and picture size"
            )


def digest(folder: Path) -> str:
    """Returns what identifies the demonstrations in a folder: the SHA-256 of their names and bytes.

    Raises:
        ValueError: there are none.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise ValueError(
            f"{folder} holds no .npz file: give the folder of one task's demonstrations in the replay layout, or none"
        )
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def published() -> Dream:
    """Returns the published settings, 100,000 frames of the world, which are 50,000 agent steps."""
    return Dream(world=published_small())


def large() -> Dream:
    """Returns the published settings with the world of 256 px, which no agent here looks at."""
    return Dream(world=published_large())


def small() -> Dream:
    """Returns a form for a CPU: an agent of a quarter of the width, four times fewer and longer steps, which an actor
    near the demonstrations learns from within minutes (docs/log.md), and a world of the preset "cpu".
    """
    network = ActorCriticConfig(filters=16, hidden=256)
    agent = DrQv2Config(
        network=network, optim=replace(PUBLISHED, lr=3e-4, bf16=True), noise=((0, 0.4), (500, 0.2)), follow=0.02,
        reward_scale=1e-3, outward=0.01, cloning=0.3,
    )  # fmt: skip
    real = ModelFreeConfig(
        task="", steps=750, random_steps=50, updates=3, batch=64, evaluate_every=125, agent=agent,
        replay=ReplayConfig(discount=0.96),
    )  # fmt: skip
    optim = OptimConfig(lr=5e-4, schedule="constant", warmup=20, weight_decay=0.01, bf16=True)
    return Dream(
        repeat=8,
        learning=MBPOConfig(
            real=real, world_start=50, world_initial=200, world_batch=8, imagine_initial=4, imagine_every=25,
            imagine_batch=16, bounded=True,
        ),
        world=cpu(),
        transformer_every=10,
        tokenizer_every=40,
        transformer_optim=optim,
        tokenizer_optim=optim,
    )  # fmt: skip


def smallest() -> Dream:
    """Returns a form that learns nothing in seconds, at 32 px; for tests and for trying a pipeline out."""
    network = ActorCriticConfig(stack=2, size=32, actions=2, filters=4, features=8, hidden=16)
    real = ModelFreeConfig(
        task="", steps=24, random_steps=12, batch=8, evaluate_every=12, agent=DrQv2Config(network=network, shift=2),
        replay=ReplayConfig(stack=2),
    )  # fmt: skip
    optim = OptimConfig(lr=2e-3, schedule="constant", warmup=0)
    return Dream(
        learning=MBPOConfig(
            real=real, world_start=12, world_initial=2, world_batch=2, horizon=4, imagine_initial=1, imagine_every=6,
            imagine_batch=2, keep=2, validate_every=1,
        ),
        world=tiny(),
        transformer_every=4,
        tokenizer_every=6,
        transformer_optim=optim,
        tokenizer_optim=optim,
        videos=False,
    )  # fmt: skip


DREAMS: dict[str, Callable[[], Dream]] = {
    "cpu": small,
    "published-64": published,
    "published-256": large,
    "tiny": smallest,
}
"""By the name of the world's preset."""
