"""The words that stations share: Clip, Episode, Losses, Borrowed, and the protocols they meet through.

Axis letters, everywhere: ``b`` batch, ``t`` frames (always time), ``c`` colour, ``h w`` height and width, ``n`` tokens,
``d`` width of a feature; every other axis is a word. Video is ``b t c h w``, uint8 in 0..255, at every public border.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

DOMAINS = ("unknown", "human", "robot", "simulated")
"""What video is of; an id is a position here, so a new name goes to the end."""
LATER: Mapping[str, bool] = {"later": True}
"""``metadata`` of a config's field that is younger than files without it. Its default means what was done before: that
is left out of what is written (``training.config``) and filled in where it is read, so older runs go on."""


def domain_id(name: str) -> int:
    """Returns the id of a domain.

    Raises:
        ValueError: there is no such domain.
    """
    if name not in DOMAINS:
        raise ValueError(f"there is no domain {name!r}: take one of {', '.join(DOMAINS)}")
    return DOMAINS.index(name)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A batch of windows of video, with what is known of each.

    Attributes:
        frames: by camera name; context frames first, then the horizon.
        text: one instruction or caption a sample; "" where none is known.
        actions: the chunk that follows the last context frame, in the units of the data; None for actionless video.
            Of a segment (``data.segments``) instead the action at each of its frames.
        action_mask: True where an action was really recorded, False where the chunk runs past the episode's end.
        rewards: what each of the actions brought, it came with the frame after; None where it is unknown.
        proprio: the robot's own state at the last context frame.
        tokens: the tokenizer's latent frames of this window, by camera, where a cache holds them.
        latents: a VAE's latents of this window's frames, by camera, where the data have them: not scaled, the mean or
            a sample, as the loader was told.
        features: what a predictor sees of the future in the last context frame, by camera, where a cache holds it.
        domain: one id a sample, see ``DOMAINS``; None where all are unknown.
    """

    frames: Mapping[str, UInt8[Tensor, "b t c h w"]] = field(default_factory=dict)
    text: tuple[str, ...]
    actions: Float[Tensor, "b chunk action"] | None = None
    action_mask: Bool[Tensor, "b chunk"] | None = None
    rewards: Float[Tensor, "b chunk"] | None = None
    proprio: Float[Tensor, "b state"] | None = None
    tokens: Mapping[str, Int[Tensor, "b latent n"]] | None = None
    latents: Mapping[str, Float[Tensor, "b t z h w"]] | None = None
    features: Mapping[str, Float[Tensor, "b t n d"]] | None = None
    domain: Int[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.text)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Clip:
        """Returns the clip with every tensor on ``device``.

        accelerate moves only what has this very signature; without it a clip would silently stay on the CPU.
        """
        return _changed(self, lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Clip:
        """Returns the clip in page-locked memory, from which ``to(non_blocking=True)`` copies while a GPU computes."""
        return _changed(self, lambda value: value.pin_memory())

    def split(self, context: int) -> tuple[Clip, Clip]:
        """Returns what is seen (the first ``context`` frames, and the state) and what is to be foretold (the rest,
        actions and rewards); text and domain are those of both.
        """
        for camera, video in self.frames.items():
            if video.shape[1] <= context:
                raise ValueError(
                    f"camera {camera!r} of the clip has {video.shape[1]} frames; a context of {context} leaves nothing "
                    "to foretell: shorten the context or lengthen the window"
                )
        seen = {camera: video[:, :context] for camera, video in self.frames.items()}
        rest = {camera: video[:, context:] for camera, video in self.frames.items()}
        return (
            Clip(frames=seen, text=self.text, proprio=self.proprio, domain=self.domain),
            Clip(
                frames=rest,
                text=self.text,
                actions=self.actions,
                action_mask=self.action_mask,
                rewards=self.rewards,
                domain=self.domain,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """A batch of what an agent saw, what it did, what that brought over the next few steps, and what it saw then.

    Attributes:
        frames: the last few frames, the newest at the end.
        actions: in -1..1, taken after them.
        rewards: the discounted sum of what the next steps brought.
        discounts: what the value of ``next_frames`` counts in ``frames``' own; 0 where the episode ended in between.
        next_frames: what was seen after those steps.
    """

    frames: UInt8[Tensor, "b t c h w"]
    actions: Float[Tensor, "b action"]
    rewards: Float[Tensor, " b"]
    discounts: Float[Tensor, " b"]
    next_frames: UInt8[Tensor, "b t c h w"]

    def __len__(self) -> int:
        return len(self.actions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Transitions:
        """Returns the batch with every tensor on ``device``."""
        return _changed(self, lambda value: value.to(device, non_blocking=non_blocking))


class Batch(Protocol):
    """What a learner learns from: a frozen dataclass whose tensors all have one row a sample, such as ``Clip``."""

    def __len__(self) -> int:
        """Number of samples."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Returns the batch with every tensor on ``device``."""


@runtime_checkable
class Frames(Protocol):
    """One camera's frames of one episode, read when asked for."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(t, c, h, w)`` of what ``read`` can return without ``size``."""

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "t c h w"]:
        """Returns those frames, in the order asked for, resized to ``size`` (height, width).

        Raises:
            IndexError: an index is outside ``0..t-1``.
            ValueError: the file cannot give that frame (damage found only now).
        """


class Moments(NamedTuple):
    """What a VAE says of frames: mean and deviation of their latents, not scaled.

    Where only a sample was kept, the sample is the mean, and there is no deviation.
    """

    mean: Float[Tensor, "t z h w"]
    std: Float[Tensor, "t z h w"] | None


@runtime_checkable
class Latents(Protocol):
    """One camera's latents of one episode, a latent a frame, read when asked for."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(t, z, h, w)`` of all of them."""

    @property
    def vae(self) -> str:
        """Fingerprint of the VAE that made them; "" for published latents, which do not say."""

    def read(self, indices: Sequence[int]) -> Moments:
        """Returns those frames' latents, in the order asked for, as float32.

        Raises:
            IndexError: an index is outside ``0..t-1``.
            ValueError: the file is damaged.
        """


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recording; nothing is decoded before it is asked for.

    Attributes:
        id: unique within its dataset, and stable.
        text: instruction or caption; "" where none is known.
        fps: frames per second.
        frames: by camera name; every camera has ``length`` frames. Empty where only latents were passed on.
        latents: by camera name, for the cameras that have them.
        read_actions: the action taken at each frame; None for actionless video.
        read_proprio: the robot's own state at each frame; None where not recorded.
        read_rewards: what the action taken at each frame brought; None where not recorded.
        outcome: "success", "failure", or "" where unknown.
        recording: what it is a part of, where several episodes are views of one recording, e.g. its every fifth frame
            from the first on and from the second on; "" where it stands alone. They are held out together.
    """

    id: str
    text: str
    fps: float
    length: int
    frames: Mapping[str, Frames]
    latents: Mapping[str, Latents] = field(default_factory=dict)
    read_actions: Callable[[], Float[np.ndarray, "t action"]] | None = None
    read_proprio: Callable[[], Float[np.ndarray, "t state"]] | None = None
    read_rewards: Callable[[], Float[np.ndarray, " t"]] | None = None
    outcome: str = ""
    recording: str = ""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A file or episode that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Episodes of one source, what was left out, and a fingerprint of the bytes they come from.

    Attributes:
        name: short, for tables and cameras' legends.
        format: the name of the reader in ``data.formats``.
        fingerprint: hexadecimal; changes with the files' names, sizes and contents, and with a reader's version.
    """

    name: str
    path: Path
    format: str
    episodes: tuple[Episode, ...]
    quarantined: tuple[Quarantined, ...] = ()
    fingerprint: str = ""


Moved = TypeVar("Moved", Clip, Transitions)


def _changed(batch: Moved, change: Callable[[Tensor], Tensor]) -> Moved:
    """The batch with ``change`` made to each of its tensors, those in mappings too."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, Mapping):
            return {name: changed(item) for name, item in value.items()}
        return value

    return replace(batch, **{f.name: changed(getattr(batch, f.name)) for f in fields(batch)})


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What an objective returns: ``total`` is differentiated, ``terms`` are detached and only logged."""

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


Module = TypeVar("Module", bound=nn.Module)


class Borrowed(Generic[Module]):
    """A module that is used but not owned.

    Gradients pass through to its inputs and never to its weights; it is neither saved, nor counted, nor moved with its
    holder, because it is not an ``nn.Module`` and so is no sub-module of the holder.
    """

    def __init__(self, module: Module) -> None:
        self.module = module

    def __call__(self, *args: Any, method: str = "forward", **kwargs: Any) -> Any:
        """Calls ``method`` of the module with its weights detached.

        Outside autograd (and for calls under ``torch.no_grad``) call ``self.module`` directly; it is the same result.
        """
        detached = {name: weight.detach() for name, weight in self.module.named_parameters()}
        return torch.func.functional_call(
            _Method(self.module, method), {f"module.{k}": v for k, v in detached.items()}, args, kwargs
        )


class _Method(nn.Module):
    """Lets ``functional_call`` reach a method other than ``forward``."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)


@runtime_checkable
class Tokenizer(Protocol):
    """Clip to tokens and back. Every count is asked from it; none is typed elsewhere."""

    @property
    def vocab(self) -> int:
        """Number of codes; tokens lie in ``0..vocab-1``."""

    @property
    def frames_per_latent(self) -> int:
        """How many frames one latent frame stands for."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a latent frame's tokens, for frames of that size."""

    def encode(self, frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b latent n"]:
        """Returns the tokens, row-major within a latent frame."""

    def decode(
        self, tokens: Int[Tensor, "b latent n"], grid: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "b t c h w"]:
        """Returns the video those tokens stand for; ``grid`` where it is not square."""


class Imagined(NamedTuple):
    """What a learned world answers to one action a row; ``state`` is where it stands now."""

    frames: UInt8[Tensor, "b c h w"]
    reward: Float[Tensor, " b"] | None
    state: Any


@runtime_checkable
class WorldModel(Protocol):
    """A learned world: a batch of independent imaginations, stepped frame by frame.

    A state is opaque, and used up by ``step``: what shall be stepped from twice is forked first.
    """

    @property
    def context(self) -> int:
        """Frames that it must have seen before it can imagine."""

    @property
    def action_width(self) -> int:
        """Dimensions of one action; 0 for a world that nobody acts in."""

    def seed(self, seed: int) -> None:
        """Begins the draws anew: what follows is a function of ``seed``."""

    def reset(self, frames: UInt8[Tensor, "b t c h w"]) -> Any:
        """Returns the state after those frames; of more than ``context`` the newest count."""

    def step(self, state: Any, action: Float[Tensor, "b a"] | None = None) -> Imagined:
        """Imagines the next frame of every row."""

    def fork(self, state: Any, times: int) -> Any:
        """Returns a state of ``times`` copies of each row, side by side; ``state`` stays as it is."""


class Prefix(NamedTuple):
    """The actions that a chunk has to begin with, because they are under way already while it is thought of.

    Of row ``i`` the first ``known[i]`` of ``actions`` count, in the units of the environment; the rest is without
    meaning, but finite.
    """

    actions: Float[Tensor, "b chunk action"]
    known: Int[Tensor, " b"]

    @property
    def mask(self) -> Bool[Tensor, "b chunk 1"]:
        """True where an action is known."""
        places = torch.arange(self.actions.shape[1], device=self.known.device)
        return (places < self.known[:, None])[..., None]

    def to(self, device: torch.device | str) -> Prefix:
        """Returns it on ``device``."""
        return Prefix(self.actions.to(device), self.known.to(device))

    def put(self, actions: Float[Tensor, "b chunk action"]) -> Float[Tensor, "b chunk action"]:
        """Returns the chunks with the known actions in their places, as they came."""
        return torch.where(self.mask, self.actions.to(actions), actions)


@runtime_checkable
class Agent(Protocol):
    """What acts: a batch of observations in, a batch of action chunks out."""

    def act(self, context: Clip) -> Float[Tensor, "b chunk action"]:
        """Returns actions in the units of the environment. ``context`` holds context frames only."""
