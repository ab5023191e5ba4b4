"""Features to actions: a chunk of continuous actions, denoised over sigma by a transformer.

The encoder reads [goal | features | proprioception]; the decoder's positions are the actions of the chunk, and the
noise level modulates its blocks. What was seen is encoded once, in acting for all denoising steps.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ideomotor.diffusion import edm
from ideomotor.diffusion.discrete import uniform
from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.layers.encoder_decoder import Context, Decoder, Encoder, EncoderDecoderConfig
from ideomotor.layers.linear import Linear
from ideomotor.layers.step_text import sinusoid, two_layers
from ideomotor.types import LATER, Losses, Prefix

Density = Literal["log_logistic", "log_uniform", "uniform", "v_diffusion"]


@dataclass(frozen=True, kw_only=True)
class ActionGroup:
    """Dimensions of an action that belong together, such as a hand's, and what their error weighs.

    Attributes:
        name: in the log.
        first: of ``width`` dimensions.
        weight: of each of its dimensions, where 1 is that of a plain mean over all.
    """

    name: str
    first: int
    width: int
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EDMTransformerConfig:
    """Sizes of the action denoiser; the defaults are VPP's for CALVIN, but for positions and the context, read whole.

    Attributes:
        action_width: dimensions of one action; actions are wanted in about -1..1.
        chunk: actions foretold together.
        feature_width, goal_width: of a feature token and of the sentence's vector.
        proprio_width: dimensions of proprioception, wanted in about -1..1; 0 for none.
        proprio_standard: proprioception of any range: each dimension is brought to mean 0 and deviation 1 by the
            states of the demonstrations (``measure_proprio``). One in metres is else hardly heard in a short training.
        proprio_dropout: share of training samples whose proprioception is withheld, so that the policy can also act
            without and does not lean on it alone.
        action_positions: actions are told their place. The published ones are not, and have to tell it from how many
            others they see; that is learned slowly: one batch of 4 chunks is off by 0.36 (squared) after 300 steps, and
            by 0.008 with positions.
        sigma_data: standard deviation of actions.
        density: of the noise levels that are trained, between ``sigma_min`` and ``sigma_max``.
        sampling: how ``act`` denoises, unless told otherwise.
        groups: of the loss; together they cover every dimension once. () is a plain mean.
        published_places: above 0, the network holds what the published one has and never uses or trains, so that its
            checkpoints fit one to one: a table of so many positions and a second map of the goal. Proprioception is
            then a frozen random map, as published, and is left out where none is given.
    """

    action_width: int = 7
    chunk: int = 10
    feature_width: int = 384
    goal_width: int = 512
    proprio_width: int = 0
    proprio_standard: bool = field(default=False, metadata=LATER)
    proprio_dropout: float = 0.0
    action_positions: bool = True
    sigma_data: float = 0.5
    sigma_min: float = 0.001
    sigma_max: float = 80.0
    density: Density = "log_logistic"
    sampling: Sampling = field(default_factory=Sampling)
    groups: tuple[ActionGroup, ...] = ()
    trunk: EncoderDecoderConfig = field(default_factory=EncoderDecoderConfig)
    published_places: int = 0

    def __post_init__(self) -> None:
        if min(self.action_width, self.chunk, self.feature_width, self.goal_width) < 1 or self.proprio_width < 0:
            raise ValueError(
                f"action_width {self.action_width}, chunk {self.chunk}, feature_width {self.feature_width} and "
                f"goal_width {self.goal_width} must be at least 1, proprio_width {self.proprio_width} at least 0"
            )
        if not 0 <= self.proprio_dropout < 1 or not 0 < self.sigma_min < self.sigma_max or self.sigma_data <= 0:
            raise ValueError(
                f"proprio_dropout is {self.proprio_dropout}, wanted in [0, 1); sigma_data {self.sigma_data}, wanted "
                f"above 0; sigma_min {self.sigma_min} and sigma_max {self.sigma_max}, wanted 0 < sigma_min < sigma_max"
            )
        if self.proprio_standard and not self.proprio_width:
            raise ValueError(
                "proprio_standard needs proprioception to measure, and its width is 0: set --policy.proprio-width"
            )
        if self.published_places and (self.proprio_dropout or self.action_positions or self.proprio_standard):
            raise ValueError(
                "the published network has no proprio_dropout, proprio_standard and action_positions: leave these out"
            )
        covered = [place for group in self.groups for place in range(group.first, group.first + group.width)]
        if self.groups and sorted(covered) != list(range(self.action_width)):
            raise ValueError(
                f"groups cover the dimensions {covered}; wanted each of 0..{self.action_width - 1} once: "
                "give their first and width anew"
            )


class EDMTransformer(nn.Module):
    """Source: VPP (2412.14803), section 3.3, by its published code, after MDT (2407.05996); EDM (2206.00364).

    Unlike the published network, actions read the whole context (``trunk.causal_context`` False) and know their places,
    proprioception is trained, and nothing is held that is not used; a field of the configuration brings each back.
    """

    proprio_mean: Tensor
    proprio_deviation: Tensor

    def __init__(self, config: EDMTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.trunk.width
        self.features = Linear(config.feature_width, width)
        self.goal = _goal(config.goal_width, width)
        if config.proprio_width:
            self.proprio = two_layers(config.proprio_width, 2 * width, width)
        if config.proprio_standard:
            self.register_buffer("proprio_mean", torch.zeros(config.proprio_width))
            self.register_buffer("proprio_deviation", torch.ones(config.proprio_width))
        self.sigma = two_layers(width, 2 * width, width)
        self.action = Linear(config.action_width, width)
        self.encoder, self.decoder = Encoder(config.trunk), Decoder(config.trunk)
        self.out = Linear(width, config.action_width)
        if config.published_places:
            self.unused_goal = _goal(config.goal_width, width)
            self.unused_positions = nn.Parameter(torch.empty(1, config.published_places, width))
        self.apply(_init)
        if config.proprio_dropout:
            self.no_proprio = nn.Parameter(0.02 * torch.randn(1, width))
        if config.action_positions:
            self.positions = nn.Parameter(0.02 * torch.randn(config.chunk, width))
        if config.published_places:
            nn.init.normal_(self.unused_positions, std=0.02)
            for name, weight in self.named_parameters():
                weight.requires_grad_(not name.startswith(("unused_", "proprio.")))

    @torch.no_grad()
    def measure_proprio(self, states: Float[Tensor, "n s"]) -> None:
        """Notes mean and deviation of recorded states; with ``proprio_standard``, before training."""
        deviation = states.std(0, unbiased=False)
        self.proprio_mean.copy_(states.mean(0))
        self.proprio_deviation.copy_(torch.where(deviation > 1e-4, deviation, 1.0))  # what stands still has none

    def context(
        self,
        features: Float[Tensor, "b n d"],
        goal: Float[Tensor, "b e"],
        proprio: Float[Tensor, "b s"] | None = None,
    ) -> Context:
        """Returns what the decoder reads, with which any number of denoising steps can be taken."""
        return self.decoder.context(self.encode(features, goal, proprio))

    def encode(
        self,
        features: Float[Tensor, "b n d"],
        goal: Float[Tensor, "b e"],
        proprio: Float[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Returns the encoded tokens: the goal's, the features' and, with proprioception, its own."""
        config = self.config
        if features.shape[2] != config.feature_width or goal.shape[1] != config.goal_width:
            raise ValueError(
                f"features of width {features.shape[2]} and a goal of width {goal.shape[1]} came; this policy wants "
                f"{config.feature_width} and {config.goal_width}: use the predictor and text encoder it was trained "
                "with"
            )
        parts = [self.goal(goal)[:, None], self.features(features), *self._proprio(proprio, len(goal))]
        return self.encoder(torch.cat([part.to(parts[1].dtype) for part in parts], 1))

    def _proprio(self, proprio: Float[Tensor, "b s"] | None, batch: int) -> list[Float[Tensor, "b 1 d"]]:
        """The token of proprioception, if the policy has one; where it is withheld, a learned one stands for it."""
        config = self.config
        if not config.proprio_width or (proprio is None and config.published_places):
            if proprio is not None:
                raise ValueError(f"proprioception of width {proprio.shape[1]} came; this policy was trained without")
            return []
        if proprio is None and config.proprio_dropout:
            return [repeat(self.no_proprio, "one d -> b one d", b=batch)]
        if proprio is None or proprio.shape[1] != config.proprio_width:
            raise ValueError(
                f"this policy wants proprioception of width {config.proprio_width} and got "
                f"{None if proprio is None else proprio.shape[1]}"
            )
        if config.proprio_standard:
            proprio = (proprio - self.proprio_mean) / self.proprio_deviation
        read = self.proprio(proprio)[:, None]
        if not self.training or not config.proprio_dropout:
            return [read]
        without = torch.rand(batch, 1, 1, device=read.device) < config.proprio_dropout
        return [torch.where(without, self.no_proprio.to(read), read)]

    def denoise(
        self, actions: Float[Tensor, "b chunk action"], sigma: Float[Tensor, " b"], context: Context
    ) -> Float[Tensor, "b chunk action"]:
        """Returns the clean actions that are foretold for noised ones."""
        return edm.denoised(
            lambda x, c_noise: self._network(x, c_noise, context), actions, sigma, self.config.sigma_data
        )

    def _network(
        self, x: Float[Tensor, "b chunk action"], c_noise: Float[Tensor, " b"], context: Context
    ) -> Float[Tensor, "b chunk action"]:
        level = self.sigma(sinusoid(c_noise, self.config.trunk.width))[:, None]  # b 1 d
        tokens = self.action(x)
        if self.config.action_positions:
            tokens = tokens + self.positions[: x.shape[1]]
        return self.out(self.decoder(tokens, level, context))

    def errors(
        self,
        actions: Float[Tensor, "b chunk action"],
        noise: Float[Tensor, "b chunk action"],
        sigma: Float[Tensor, " b"],
        context: Context,
    ) -> Float[Tensor, "b chunk action"]:
        """Returns the squared errors of the network's output, which has unit variance at any noise level."""
        config = self.config
        if tuple(actions.shape[1:]) != (config.chunk, config.action_width):
            raise ValueError(
                f"chunks of {actions.shape[1]} actions of width {actions.shape[2]} came; this policy foretells "
                f"{config.chunk} of width {config.action_width}: set the window's chunk, or train a policy "
                "for this robot"
            )
        x = actions + sigma[:, None, None] * noise
        factors = edm.scaling(sigma, config.sigma_data)
        foretold = self._network(factors.over(x).c_in * x, factors.c_noise, context)
        return (foretold.float() - edm.target(actions, x, sigma, config.sigma_data)).square()

    def loss(
        self,
        actions: Float[Tensor, "b chunk action"],
        features: Float[Tensor, "b n d"],
        goal: Float[Tensor, "b e"],
        proprio: Float[Tensor, "b s"] | None = None,
        mask: Bool[Tensor, "b chunk"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Returns the mean squared error, weighted by group; actions beyond an episode's end (``mask`` False) do not
        count.
        """
        context = self.context(features, goal, proprio)
        sigma = self._sigma(uniform((len(actions),), generator, actions.device))
        errors = self.errors(actions, edm.noise_like(actions, generator), sigma, context)
        real = torch.ones_like(errors[..., 0]) if mask is None else mask.to(errors)
        error = (errors * real[..., None]).sum((0, 1)) / real.sum().clamp(min=1)  # action
        groups = self.config.groups or (ActionGroup(name="", first=0, width=len(error)),)
        parts = {group: error[group.first : group.first + group.width] for group in groups}
        total = torch.stack([group.weight * part.sum() for group, part in parts.items()]).sum() / len(error)
        terms = {f"denoising_{group.name}": part.detach().mean() for group, part in parts.items() if group.name}
        return Losses(total=total, terms={"denoising": total.detach()} | terms)

    def _sigma(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        config = self.config
        ends = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
        if config.density == "log_logistic":
            return edm.log_logistic(u, math.log(config.sigma_data), 0.5, **ends)
        if config.density == "log_uniform":
            return edm.log_uniform(u, **ends)
        if config.density == "uniform":
            return edm.uniform(u, **ends)
        return edm.v_diffusion(u, config.sigma_data, **ends)

    @torch.no_grad()
    def act(
        self,
        features: Float[Tensor, "b n d"],
        goal: Float[Tensor, "b e"],
        proprio: Float[Tensor, "b s"] | None = None,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        noise: Float[Tensor, "b chunk action"] | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "b chunk action"]:
        """Returns a chunk of actions, not clipped.

        Args:
            features: the foretold future's tokens.
            goal: the sentence's vector.
            proprio: the robot's state.
            sampling: other than the configuration's, such as the published evaluation's ``Sampling(sigma_min=1.0)``.
            generator: of the noise.
            noise: to start from, in place of a draw.
            prefix: what the chunk begins with. Before each call of the network these actions are put back, with as
                much of the first noise as the level says.
        """
        sampling = self.config.sampling if sampling is None else sampling
        context = self.context(features, goal, proprio)
        if noise is None:
            shape = (len(goal), self.config.chunk, self.config.action_width)
            noise = edm.noise_like(torch.empty(shape, device=goal.device), generator)
        if prefix is None:
            return sampling.run(lambda x, sigma: self.denoise(x, sigma, context), noise, generator)

        def denoise(x: Float[Tensor, "b chunk action"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b chunk action"]:
            known = prefix.actions + sigma[:, None, None] * noise
            return prefix.put(self.denoise(torch.where(prefix.mask, known.to(x), x), sigma, context))

        return prefix.put(sampling.run(denoise, noise, generator))


def _goal(goal_width: int, width: int) -> nn.Sequential:
    return nn.Sequential(Linear(goal_width, 2 * width), nn.GELU(), Linear(2 * width, width))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
