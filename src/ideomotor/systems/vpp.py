"""VPP: foretell video by latent diffusion, and act on what the network sees of the future in a single pass.

Source: "Video Prediction Policy: A Generalist Robot Policy with Predictive Visual Representations" (2412.14803). The
way of the data can be read from top to bottom: autoencoder, video model (stage 1), features, Video Former and action
head (stage 2); acting is in ``vpp_agent``. A control reads the newest frame with a network of its own, in place of the
features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ideomotor.data.transforms import random_shift
from ideomotor.data.windows import WindowConfig
from ideomotor.layers.conv import PixelStem, PixelStemConfig
from ideomotor.layers.resampler import SpatialReadout
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.policies.own_robots import Robot, loss_groups, own_robot, robot_name
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig
from ideomotor.predictors.svd_unet import Tap, tap_name
from ideomotor.systems.autoencoders import Autoencoder, AutoencoderConfig
from ideomotor.systems.vpdd import Stage, TextEncoder, seen_frames, view_names
from ideomotor.tokenizers.image_encoder import ImageEncoder
from ideomotor.tokenizers.svd_vae import SVDVAEConfig
from ideomotor.training.optim import OptimConfig
from ideomotor.types import Borrowed, Clip, Losses

Part = Autoencoder | LatentDiffusion | ImageEncoder
TokenEncoder = Callable[[Sequence[str]], Float[Tensor, "b n d"]]
Eyes = Literal["foresight", "latents", "encoder", "pixels"]
"""What the policy looks with: features of the foretold future; of the newest frame, latents or the tokens of a frozen
image encoder; a CNN of its own."""


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """What is read of the video model; a policy acts with what it was trained with.

    Attributes:
        sigma: noise level that the network is told. 700 is published; training reaches about 28 in 5 of 100 films.
        layers: whose maps are joined: up-blocks, or (block, layer) for what a layer within one gives; as an option 1,
            or 1.2. The network of SVD has 4 blocks of 3 layers: the 6th of its 12 is (1, 2).
        steps: denoising pass that is read.
        seed: of the noise, which is then the same for every frame that is looked at. None draws it anew each time, as
            published: what is seen then differs from call to call.
    """

    sigma: float = 700.0
    layers: tuple[Tap, ...] = (0, 1)
    steps: int = 1
    seed: int | None = 0

    def __post_init__(self) -> None:
        places = [place for tap in self.layers for place in (tap if isinstance(tap, tuple) else (tap,))]
        if not 0 < self.sigma < math.inf or self.steps < 1 or min(places, default=-1) < 0:
            raise ValueError(
                f"foresight of sigma {self.sigma}, layers {' '.join(map(tap_name, self.layers))}, steps {self.steps}; "
                "wanted sigma above 0, up-blocks and layers from 0 on, and at least 1 step"
            )


@dataclass(frozen=True, kw_only=True)
class VPP:
    """Everything about one VPP: what it looks at, its networks, and its stages.

    Attributes:
        size: frames of a camera are squares of that many pixels.
        views: cameras. Stage 1 learns from each by itself, stage 2 reads all of them.
        window: the frame seen, those foretold after it and how far apart, and the chunk of actions.
        execute: actions of a chunk that are carried out before looking again.
        ensemble: decay with which overlapping chunks are averaged (``TemporalEnsemble``); None for the newest alone.
        shift: pixels by which frames are moved at random while a policy with eyes of its own learns.
        text: "sentence" (the packaged MiniLM, one vector a sentence), "hashed" (no weights; for tests), or a folder
            with CLIP in the transformers layout (20 tokens for the video model, the pooled vector for the policy). Of
            an import "own": the towers in its folder.
        eyes: what the policy looks with; see ``Eyes``.
        foresight: what is read of the video model.
        vae: sizes of the autoencoder, or of a map of patches that needs no training.
        video: sizes of the video model; its ``latent_scale`` is the autoencoder's.
        former: sizes of the Video Former; with an encoder's eyes it reads one frame of the encoder's width
            (``vpp_encoder.looking_through``).
        stem: of the control that looks with a CNN of its own.
        policy: sizes of the action head.
        robot: of whose commands actions are made (``policies.own_robots``): the name of a preset, or your own (as an
            option a JSON file). It sets the head's widths and loss groups; "" learns actions as they are recorded.
        action_stride: frames from one action of a chunk to the next; above 1 for recordings faster than the robot.
        remain: frames of a demonstration that there must be from where a chunk begins on; 21 is published for CALVIN.
        save_every: training steps after which a stage's state is saved.
        cache_features: stage 2 makes what the policy looks with once a window, on disk, and not at every step.
    """

    size: int = 64
    views: int = 1
    window: WindowConfig = field(default_factory=lambda: WindowConfig(context=1, horizon=7, stride=4, chunk=8))
    execute: int = 4
    ensemble: float | None = None
    shift: int = 3
    text: str = "sentence"
    eyes: Eyes = "foresight"
    foresight: Foresight = field(default_factory=Foresight)
    vae: AutoencoderConfig = field(default_factory=SVDVAEConfig)
    video: LatentDiffusionConfig = field(default_factory=LatentDiffusionConfig)
    former: VideoFormerConfig = field(default_factory=VideoFormerConfig)
    stem: PixelStemConfig = field(default_factory=PixelStemConfig)
    policy: EDMTransformerConfig = field(default_factory=EDMTransformerConfig)
    robot: Robot = ""
    action_stride: int = 1
    remain: int = 1
    save_every: int = 200
    cache_features: bool = False
    vae_stage: Stage = field(default_factory=lambda: Stage(steps=600, batch=4, optim=OptimConfig(lr=1e-3, warmup=50)))
    video_stage: Stage = field(default_factory=lambda: Stage(steps=1000, batch=16))
    policy_stage: Stage = field(default_factory=lambda: Stage(steps=2000, batch=32))

    def __post_init__(self) -> None:
        window = self.window
        if self.robot:
            own_robot(self.robot)  # refuses an unknown one
            if self.policy.proprio_standard:
                raise ValueError(
                    f"the states of the robot {robot_name(self.robot)} are scaled already: leave out "
                    "--policy.proprio-standard or --robot"
                )
        if min(self.action_stride, self.remain) < 1:
            raise ValueError(f"action_stride {self.action_stride} and remain {self.remain} must be at least 1")
        if min(self.views, self.save_every, self.size) < 1 or self.shift < 0 or self.size % self.vae.factor:
            raise ValueError(
                f"views {self.views} and save_every {self.save_every} must be at least 1, shift {self.shift} at least "
                f"0, and size {self.size} a multiple of {self.vae.factor}, by which the autoencoder shrinks frames"
            )
        if window.context != 1 or self.video.frames != window.frames:
            raise ValueError(
                f"the window has {window.context} frames seen and {window.horizon} foretold, the video model "
                f"{self.video.frames} in all: it is told one frame, so set --window.context 1 and --video.frames "
                f"{1 + window.horizon}"
            )
        if self.video.unet.latent_channels != self.vae.channels:
            raise ValueError(
                f"latents have {self.vae.channels} channels and the video model foretells "
                f"{self.video.unet.latent_channels}: set --video.unet.latent-channels {self.vae.channels}"
            )
        if not 1 <= self.execute <= window.chunk or self.policy.chunk != window.chunk:
            raise ValueError(
                f"chunk is {window.chunk} in the window and {self.policy.chunk} in the policy (they must agree), and "
                f"execute {self.execute} must lie in 1..chunk"
            )
        if self.ensemble is not None and self.execute == window.chunk:
            raise ValueError(
                f"all {self.execute} actions of a chunk are executed, so no chunks overlap: take a smaller execute, or "
                "set ensemble to none"
            )
        if self.eyes in ("foresight", "latents") and (self.former.feature_width, self.former.frames) != self.seen_shape:
            width, frames = self.seen_shape
            raise ValueError(
                f"the policy is shown {frames} frames of features of width {width}; the former reads "
                f"{self.former.frames} of width {self.former.feature_width}: set --former.frames {frames} "
                f"--former.feature-width {width}"
            )
        if self.former.places and self.eyes in ("foresight", "latents") and self.former.places != self.seen_places:
            raise ValueError(
                f"frames of {self.seen_places} tokens are shown, and the former knows {self.former.places} places: set "
                f"--former.places {self.seen_places}, or 0 to tell none"
            )
        if self.cache_features and self.eyes == "foresight" and self.foresight.seed is None:
            raise ValueError(
                "features of fresh noise differ at every look and cannot be made once: set --foresight.seed 0, or "
                "--no-cache-features"
            )
        if self.policy.feature_width != self.former.width:
            raise ValueError(
                f"the former hands on width {self.former.width}, the policy reads {self.policy.feature_width}: set "
                "both alike"
            )

    @property
    def head(self) -> EDMTransformerConfig:
        """Sizes of the action head: ``policy``, which an own robot gives its widths and loss groups."""
        if not self.robot:
            return self.policy
        robot = own_robot(self.robot)
        return replace(
            self.policy,
            action_width=robot.action_width,
            proprio_width=robot.state_width,
            groups=loss_groups(robot),
        )

    @property
    def command_width(self) -> int:
        """Numbers of a recorded action, and of one that is carried out."""
        return own_robot(self.robot).command_width if self.robot else self.policy.action_width

    @property
    def seen_shape(self) -> tuple[int, int]:
        """Width and frames of the features that the former reads."""
        if self.eyes == "latents":
            return self.vae.channels, 1
        if self.eyes == "encoder":
            return self.former.feature_width, 1
        side = self.size // self.vae.factor
        return sum(self.video.unet.shape(tap, side, side)[0] for tap in self.foresight.layers), self.video.frames

    @property
    def seen_places(self) -> int:
        """Tokens of a frame, of all views, that the former reads of foresight or latents."""
        side, taps = self.size // self.vae.factor, self.foresight.layers
        shapes = [(1, side, side)] if self.eyes == "latents" else [self.video.unet.shape(t, side, side) for t in taps]
        return self.views * max(rows * columns for _, rows, columns in shapes)


class Looking(nn.Module):
    """Frames to the few tokens that the action head reads: a Video Former over borrowed features, or a CNN."""

    def __init__(self, config: VPP) -> None:
        super().__init__()
        self.config = config
        if config.eyes == "pixels":
            self.stem = PixelStem(config.stem)
            places, width = config.views * self.stem.grid(config.size) ** 2, config.former.width
            self.read = SpatialReadout(places, config.stem.widths[-1], 32, config.former.queries, width)
        else:
            self.former = VideoFormer(config.former)

    def forward(
        self, frames: UInt8[Tensor, "b 1 c h w"] | None, features: Float[Tensor, "b t n d"] | None
    ) -> Float[Tensor, "b m d"]:
        """Returns the tokens; ``frames`` are those of all views, one above the other, ``features`` of the former."""
        if features is not None:
            return self.former(features)
        assert frames is not None
        one = rearrange(frames, "b t c (view h) w -> (b view) t c h w", view=self.config.views)
        return self.read(rearrange(self.stem(one), "(b view) n d -> b (view n) d", view=self.config.views))


class Seeing(Protocol):
    """Frames and sentences to the features that a policy reads, by networks that are not its own."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The networks, each with its ``config``."""
        ...

    def __call__(
        self,
        frames: UInt8[Tensor, "b 1 c h w"],
        sentences: Sequence[str],
        generators: Sequence[torch.Generator] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        """Returns the features; see ``Foreseeing``."""
        ...


class Foreseeing:
    """Frames and sentences to the features of their future; owns nothing, computes no gradient, remembers sentences."""

    def __init__(self, config: VPP, vae: Autoencoder, predictor: LatentDiffusion | None, text: TokenEncoder) -> None:
        self.config, self.vae, self.predictor, self.text = config, vae, predictor, text

    @property
    def parts(self) -> tuple[Part, ...]:
        """The networks, each with its ``config``."""
        return (self.vae,) if self.predictor is None else (self.vae, self.predictor)

    @torch.no_grad()
    def __call__(
        self,
        frames: UInt8[Tensor, "b 1 c h w"],
        sentences: Sequence[str],
        generators: Sequence[torch.Generator] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        """Returns the features that the policy's eyes see; ``frames`` of all views, one above the other.

        Noise that is drawn anew each time is drawn from each sample's own generator, where they are given.
        """
        views = self.config.views
        each = rearrange(frames, "b t c (view h) w -> (b view) t c h w", view=views)
        first = rearrange(self.vae.moments(each)[0], "(b view) 1 z h w -> b view z h w", view=views)
        return self.of_latents(first, sentences, generators)

    @torch.no_grad()
    def of_latents(
        self,
        first: Float[Tensor, "b view z h w"],
        sentences: Sequence[str],
        generators: Sequence[torch.Generator] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        """Returns the same of frames that are latents already, not scaled: ``vae``'s means, or what stands for them."""
        views, foresight = self.config.views, self.config.foresight
        if self.predictor is None:
            return rearrange(first * self.vae.scale, "b view z h w -> b 1 (view h w) z")
        noise = None
        if foresight.seed is not None:  # the same for every sample, so that none depends on its neighbours
            generator = torch.Generator().manual_seed(foresight.seed)
            noise = torch.randn(1, 1, self.config.video.frames, *first.shape[2:], generator=generator).to(first)
        elif generators is not None:
            shape = (views, self.config.video.frames, *first.shape[2:])
            noise = torch.stack([torch.randn(shape, generator=own) for own in generators]).to(first)
        text = self.text(sentences).to(first)
        seen = self.predictor.features(
            first, text, foresight.sigma, foresight.layers, noise=noise, steps=foresight.steps
        )
        # A video model in bf16 gives bf16; without autocast the policy's weights want their own precision.
        return seen if torch.is_autocast_enabled(seen.device.type) else seen.float()

    def alone(self) -> Foreseeing:
        """Returns the same for one view by itself: noise is that of each, so features of one depend on no other."""
        return Foreseeing(replace(self.config, views=1), self.vae, self.predictor, self.text)


class ActionDenoising(nn.Module):
    """Clip with actions -> foretold features -> Video Former -> noised actions -> the actions themselves."""

    def __init__(
        self,
        config: VPP,
        looking: Looking,
        policy: EDMTransformer,
        foreseeing: Seeing | None,
        goal: TextEncoder,
        robot: RobotActions | None = None,
    ) -> None:
        super().__init__()
        self.config, self.looking, self.policy, self.goal = config, looking, policy, goal
        self.foreseeing = None if foreseeing is None else Borrowed(_Held(foreseeing))
        self.robot = None if robot is None else Borrowed(robot)

    def forward(self, clip: Clip) -> Losses:
        """Returns the denoising loss of the recorded actions."""
        if clip.actions is None:
            raise ValueError("a clip without actions came to stage 2: give demonstrations, not actionless video")
        robot = None if self.robot is None else self.robot.module
        actions = clip.actions if robot is None else robot.encode(clip.actions, clip.proprio)
        state = read_state(robot, self.policy.config, clip.proprio)
        goal = self.goal(clip.text).to(actions.device)
        return self.policy.loss(actions, self._looked(clip), goal, state, clip.action_mask)

    def _looked(self, clip: Clip) -> Float[Tensor, "b m d"]:
        """What the policy reads of the clip: features from the cache, or of its latents, where the clip has them."""
        if clip.features is not None:
            return self.looking(None, torch.cat([clip.features[name] for name in view_names(self.config.views)], 2))
        if self.foreseeing is not None and clip.latents is not None:
            foreseeing = self.foreseeing.module.foreseeing
            assert isinstance(foreseeing, Foreseeing)  # the stage refused latents to other eyes
            first = torch.stack([clip.latents[name][:, 0] for name in view_names(self.config.views)], 1)
            return self.looking(None, foreseeing.of_latents(first, clip.text))
        newest = seen_frames(clip, self.config.views)[:, :1]
        if self.foreseeing is not None:
            return self.looking(newest, self.foreseeing.module.foreseeing(newest, clip.text))
        moved = [random_shift(part, self.config.shift, torch.default_generator)
                 for part in newest.chunk(self.config.views, -2)]  # fmt: skip
        return self.looking(torch.cat(moved, -2), None)


def read_state(
    robot: RobotActions | None, policy: EDMTransformerConfig, state: Float[Tensor, "b state"] | None
) -> Float[Tensor, "b state"] | None:
    """Returns what the policy reads of the robot's state: nothing, or what was recorded, by an own robot's scale."""
    if not policy.proprio_width or state is None or robot is None:
        return state if policy.proprio_width else None
    return robot.proprio(state)


class _Held(nn.Module):
    """Networks that are used and not owned, in one module."""

    def __init__(self, foreseeing: Seeing) -> None:
        super().__init__()
        self.foreseeing, self.parts = foreseeing, nn.ModuleList(foreseeing.parts)


def cameras_of(config: VPP) -> tuple[str, ...]:
    """Returns what clips call the cameras of this system."""
    return view_names(config.views)
