"""What a finished stage's folder holds, served: a policy or a world of any system, as the server takes it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.policies.actor_critic import ActorCritic, ActorCriticConfig
from ideomotor.policies.own_robots import Kind, places
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.serving.backend import Backend
from ideomotor.serving.contract import Actions, Contract, State
from ideomotor.serving.policy_backend import PolicyBackend, Served
from ideomotor.serving.world_backend import ServedWorld, WorldBackend
from ideomotor.systems import vpdd_published_stages, vpdd_stages, vpp_stages
from ideomotor.systems.acting import SamplingChange
from ideomotor.systems.agent_worlds import repeat_of
from ideomotor.systems.devices import device_named
from ideomotor.systems.ivideogpt_stages import load_config
from ideomotor.systems.sources import read_facts
from ideomotor.systems.stages import FAST_FILE, IMPORT_FILE, PUBLISHED_FILE, VPP_FILE, WORLD_FILE
from ideomotor.systems.vpdd import VIEW, Dial, view_names
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.systems.vpdd_imagine import imagine
from ideomotor.systems.vpdd_published_agent import PublishedAgent
from ideomotor.systems.vpp import Foreseeing, cameras_of
from ideomotor.systems.vpp_agent import VPPAgent, acting_by, in_bf16
from ideomotor.systems.vpp_videos import VideoModel
from ideomotor.systems.world import Weights, World
from ideomotor.training.checkpoint import load_model
from ideomotor.types import Clip, Prefix

Part = Literal["policy", "world"]
_MALLOPT = {-8: 1, -3: 2**25, -1: 2**28}  # glibc's M_ARENA_MAX, M_MMAP_THRESHOLD (its greatest), M_TRIM_THRESHOLD


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a folder is served.

    Attributes:
        part: of a folder that holds both an agent and a world (``ideomotor ivideogpt dream``); a policy by default.
        device: where it computes.
        dial: how far VPDD imagines before it acts; as trained by default.
        execute: actions of a chunk that a client is told to carry out before it looks again; as trained by default.
        temperature: scale of the noise that VPP's actions are denoised from; see ``VPPAgent``.
        sampling: how VPP's actions are denoised, where otherwise than as trained.
        weights: precision of a world's weights, or, float32 or bf16, of the video model that a policy of VPP reads.
        max_batch: clients whose requests are computed together at most.
        rate_hz: control steps a second, told to clients; no folder knows it.
        seed: of whatever is drawn.
    """

    part: Part | None = None
    device: str = "cpu"
    dial: Dial | None = None
    execute: int | None = None
    temperature: float = 1.0
    sampling: SamplingChange = field(default_factory=SamplingChange)
    weights: Weights = "float32"
    max_batch: int = 16
    rate_hz: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_batch < 1 or (self.rate_hz is not None and not 0 < self.rate_hz < 1e6):
            raise ValueError(
                f"max_batch is {self.max_batch}, rate_hz {self.rate_hz}; wanted at least 1, and a rate above 0 or none"
            )


def keep_memory() -> None:
    """Lets glibc keep the memory of one forward pass for the next, up to 256 MB; without glibc it does nothing.

    Else every batch of pictures is written into pages that the kernel has just cleared, a seventh of a batch's time.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in _MALLOPT.items():
            libc.mallopt(option, value)


def open_backend(folder: Path, how: Serving | None = None) -> Backend:
    """Returns what the folder of a finished stage, or of an import, has to serve.

    Raises:
        ValueError: the folder holds neither policy nor world, the stage has not finished, or an option means nothing to
            what it holds, or there is no such device.
    """
    how = how or Serving()
    device_named(how.device)
    found = [file for file in _OPENERS if (folder / file).exists()]
    if how.part is not None:
        found = [file for file in found if _PARTS[file] == how.part]
    if not found:
        raise ValueError(_nothing(folder, how))
    # Of a folder with an agent and the world that it dreamt in, the agent is what acts: it comes first in the dict.
    part = _PARTS[found[0]]
    _refuse_idle_options(folder, how, found[0], part)
    return _OPENERS[found[0]](folder, how)


def vpdd_backend(agent: VPDDAgent, how: Serving, recorded_as: str | None = None) -> PolicyBackend:
    """Returns VPDD's fast form, served."""
    if how.dial is not None:
        vpdd_stages.turn(agent, how.dial)
    config, state = agent.config, agent.policy.config.state_width
    foresees = agent.predictor is not None and agent.tokenizer is not None
    contract = Contract(
        cameras=view_names(config.views),
        size=config.size,
        context=config.window.context,
        stride=config.window.stride,
        chunk=config.window.chunk,
        width=agent.policy.config.action_width,
        execute=_executed(how, config.execute, config.window.chunk),
        state=state,
        prefix=config.window.chunk > 1,
        recorded_as=_recorded(view_names(config.views), recorded_as),
    )

    def act(context: Clip, prefix: Prefix | None, seeds: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        return agent.act(context, prefix)  # it takes the likeliest tokens: nothing is drawn

    served = Served(
        system="vpdd",
        contract=contract,
        act=act,
        imagine=(lambda context, seed: _foretold(agent, context)) if foresees else None,
        max_batch=how.max_batch,
        rate_hz=how.rate_hz,
        notes=f"imagine dial: {agent.dial}",
    )
    return PolicyBackend(served, how.seed)


def published_backend(agent: PublishedAgent, how: Serving, recorded_as: str | None = None) -> PolicyBackend:
    """Returns VPDD's published form, served: one request at a time, because its draws are those of a whole batch."""
    config = agent.config
    contract = Contract(
        cameras=(VIEW,),
        size=config.size,
        context=config.window.context,
        stride=config.window.stride,
        chunk=config.window.chunk,
        width=config.policy.action_width,
        execute=_executed(how, config.execute, config.window.chunk),
        recorded_as=_recorded((VIEW,), recorded_as),
    )

    def act(context: Clip, prefix: Prefix | None, seeds: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        device = next(agent.policy.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seeds[0])  # its dropout, too, draws from the global state
            return agent.act(context)

    served = Served(system="vpdd-published", contract=contract, act=act, max_batch=1, rate_hz=how.rate_hz)
    return PolicyBackend(served, how.seed)


def vpp_backend(agent: VPPAgent, how: Serving, recorded_as: str | None = None) -> PolicyBackend:
    """Returns VPP, served; with eyes that foresee it shows films of the future, which it never decodes to act."""
    config, head, robot = agent.config, agent.policy.config, agent.robot
    state = head.proprio_width if robot is None else robot.config.state_width
    withheld = head.proprio_dropout > 0 or head.published_places > 0
    relative = robot is not None and any(part.form != "absolute" for part in robot.config.parts)

    def check(state: State | None, prefix: Actions | None) -> None:
        assert robot is not None
        here = None if state is None else torch.from_numpy(state)[None]
        if here is not None:  # whatever the policy will do with it is tried here, where it is the client's fault
            robot.sided(here)
            robot.decode(torch.zeros(1, 1, robot.config.action_width), here)
        if prefix is not None:
            robot.encode(torch.from_numpy(prefix)[None], here)

    contract = Contract(
        cameras=cameras_of(config),
        size=config.size,
        context=1,
        stride=config.window.stride,
        chunk=config.window.chunk,
        width=config.command_width,
        execute=_executed(how, config.execute, config.window.chunk),
        state=state,
        state_needed=relative or not withheld,
        prefix=config.window.chunk > 1,
        check=None if robot is None else check,
        recorded_as=_recorded(cameras_of(config), recorded_as),
        quaternions=_columns(robot, "quaternion")[::4],
        angles=_columns(robot, "euler"),
    )

    def act(context: Clip, prefix: Prefix | None, seeds: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        return agent.act(context, [torch.Generator().manual_seed(seed) for seed in seeds], prefix)

    served = Served(
        system="vpp",
        contract=contract,
        act=act,
        imagine=_filming(agent),
        max_batch=how.max_batch,
        rate_hz=how.rate_hz,
        notes=f"actions are {config.action_stride} control steps apart" if config.action_stride > 1 else "",
    )
    return PolicyBackend(served, how.seed)


def pixel_backend(network: ActorCritic, how: Serving, repeat: int | None = None) -> PolicyBackend:
    """Returns the agent of a dream, served: one action at a time, of the last few frames; ``repeat`` are the steps of
    Meta-World that it held its actions, where that is known.
    """
    config = network.eval().config
    contract = Contract(
        cameras=(VIEW,),
        size=config.size,
        context=config.stack,
        stride=1,
        chunk=1,
        width=config.actions,
        execute=_executed(how, 1, 1),
        prompt=False,
    )
    device = next(network.parameters()).device
    served = Served(
        system="ivideogpt-agent",
        contract=contract,
        act=lambda context, prefix, seeds: network.act(context.to(device)),
        max_batch=how.max_batch,
        rate_hz=how.rate_hz,
        notes=("" if repeat is None else f"in Meta-World an action is held for {repeat} steps of the simulator; ")
        + "pictures of Meta-World are mirrored left to right",
    )
    return PolicyBackend(served, how.seed)


def world_backend(world: World, how: Serving, stride: int | None = None, notes: str = "") -> WorldBackend:
    """Returns a world of iVideoGPT, served."""
    served = ServedWorld(
        system="ivideogpt",
        world=world,
        camera=VIEW,
        size=world.tokenizer.config.size,
        reward=world.predictor.config.reward,
        stride=stride,
        notes=notes,
    )
    return WorldBackend(served, how.seed)


def _open_vpdd(folder: Path, how: Serving) -> Backend:
    return vpdd_backend(vpdd_stages.load_agent(folder, how.device), how, _camera(folder))


def _open_published(folder: Path, how: Serving) -> Backend:
    return published_backend(vpdd_published_stages.load_agent(folder, how.device), how, _camera(folder))


def _open_vpp(folder: Path, how: Serving) -> Backend:
    if how.weights == "int8":
        raise ValueError(f"weights int8 are of worlds, and {folder} holds a policy of VPP: take bf16, or leave it out")
    agent = vpp_stages.load_agent(folder, how.device)
    agent = acting_by(agent, None, None, how.temperature, how.sampling)
    return vpp_backend(agent if how.weights == "float32" else in_bf16(agent), how, _camera(folder))


def _open_pixels(folder: Path, how: Serving) -> Backend:
    agent = load_model(folder / "agent", ActorCritic, ActorCriticConfig, how.device)
    return pixel_backend(agent, how, repeat_of(folder))


def _open_world(folder: Path, how: Serving) -> Backend:
    world = World.load(folder, device=how.device, weights=how.weights, seed=how.seed)
    window, repeat = load_config(folder).window, repeat_of(folder)
    notes = f"an action is the mean of the {window.held} recorded ones that lead to a frame" if window.held > 1 else ""
    if repeat is not None:
        notes = (
            f"in Meta-World a frame is {repeat} steps of the simulator behind the one before, an action held so long"
        )
    return world_backend(world, how, window.stride, notes)


_OPENERS: Mapping[str, Callable[[Path, Serving], Backend]] = {
    FAST_FILE: _open_vpdd,
    PUBLISHED_FILE: _open_published,
    VPP_FILE: _open_vpp,
    "agent": _open_pixels,
    WORLD_FILE: _open_world,
}
"""By a file, or the folder of a model, that only such a folder holds."""
_PARTS: Mapping[str, Part] = {
    FAST_FILE: "policy", PUBLISHED_FILE: "policy", VPP_FILE: "policy", "agent": "policy", WORLD_FILE: "world"
}  # fmt: skip


def _nothing(folder: Path, how: Serving) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}: give the --out folder of a stage"
    if (folder / IMPORT_FILE).is_file() and (folder / "former").is_dir():
        return (
            f"{folder} holds the action head of a published VPP, which reads a video model that no checkpoint of it "
            "holds: serve a policy of `ideomotor vpp policy`, or import it again with --video"
        )
    wanted = "policy or world" if how.part is None else how.part
    stages = {"policy": "`vpdd finetune`, `vpp policy`, `ivideogpt dream`, `import vpdd`, `import vpp --video`"}
    stages["world"] = "`ivideogpt world`, `ivideogpt dream`, `import ivideogpt`"
    given = ", ".join(stages.values()) if how.part is None else stages[how.part]
    return f"{folder} holds no {wanted} to serve: give the --out folder of one of `ideomotor`'s {given}"


def _refuse_idle_options(folder: Path, how: Serving, found: str, part: Part) -> None:
    """Refuses options that would do nothing for what is served."""
    plain = Serving(part=how.part, device=how.device, seed=how.seed)
    names = ("dial", "execute", "temperature", "sampling", "weights", "rate_hz", "max_batch")
    given = {name for name in names if vars(how)[name] != vars(plain)[name]}
    known = {"weights"} if part == "world" else {"execute", "rate_hz"}
    known |= {"dial"} if found == FAST_FILE else set()
    known |= {"temperature", "sampling", "weights"} if found == VPP_FILE else set()
    known |= {"max_batch"} if part == "policy" and found != PUBLISHED_FILE else set()
    if given - known:
        raise ValueError(f"{', '.join(sorted(given - known))} means nothing to the {part} in {folder}: leave it out")


def _executed(how: Serving, trained: int, chunk: int) -> int:
    execute = trained if how.execute is None else how.execute
    if not 1 <= execute <= chunk:
        raise ValueError(f"execute is {execute}; the policy gives chunks of {chunk} actions: take 1 to that many")
    return execute


def _camera(folder: Path) -> str | None:
    """The cameras that a stage learned through, joined by commas; None where it noted none, or several kinds."""
    cameras = {facts.camera for facts in read_facts(folder)}
    return cameras.pop() if len(cameras) == 1 else None


def _columns(robot: RobotActions | None, kind: Kind) -> tuple[int, ...]:
    """The numbers of a command that belong to parts of a kind; none where commands are steps and no poses."""
    parts = places(robot.config) if robot is not None and robot.config.state else []
    return tuple(column for at in parts if at.part.kind == kind for column in range(at.command.start, at.command.stop))


def _recorded(names: Sequence[str], cameras: str | None) -> dict[str, str]:
    theirs = [] if cameras is None else cameras.split(",")
    return dict(zip(names, theirs, strict=True)) if len(theirs) == len(names) else {}


def _views(names: Sequence[str], video: UInt8[Tensor, "t c h w"]) -> dict[str, UInt8[Tensor, "t c h w"]]:
    """Views that stand one above the other, by name."""
    return dict(zip(names, video.chunk(len(names), -2), strict=True))


def _foretold(agent: VPDDAgent, context: Clip) -> Iterator[Mapping[str, UInt8[Tensor, "t c h w"]]]:
    """The future that the agent foresees where its dial is at "full", whatever it acts on: its likeliest tokens."""
    assert agent.tokenizer is not None and agent.predictor is not None
    names = view_names(agent.config.views)
    seen = torch.cat([context.frames[name] for name in names], -2)
    video = imagine(
        agent.config, agent.tokenizer, agent.predictor, seen, agent.text(context.text), domain=agent.domain_ids(context)
    )
    yield _views(names, video[0])


def _filming(agent: VPPAgent) -> Callable[[Clip, int], Iterator[Mapping[str, UInt8[Tensor, "t c h w"]]]] | None:
    """Films of each camera's future; None for a policy without a video model."""
    foreseeing = agent.foreseeing
    if not isinstance(foreseeing, Foreseeing) or foreseeing.predictor is None:
        return None
    model = VideoModel(agent.config, foreseeing.vae, foreseeing.predictor, foreseeing.text)

    def films(context: Clip, seed: int) -> Iterator[Mapping[str, UInt8[Tensor, "t c h w"]]]:
        names = cameras_of(agent.config)
        seen = torch.cat([context.frames[name][:, -1] for name in names])
        noise = torch.stack([model.noise(seed, name) for name in names])
        told = [context.text[0] or None] * len(names)
        yield dict(zip(names, model.foretell(seen, told, noise), strict=True))

    return films
