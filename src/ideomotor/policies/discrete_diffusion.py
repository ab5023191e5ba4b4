"""Features to actions: a chunk of binned actions, foretold by masked discrete diffusion.

The sequence is [text | pixels | foresight | state] as a fixed prefix, then one position an action of the chunk, whose
unknown tokens are [MASK]. The prefix is computed once, in training shared by several noisings of the same chunk, in
acting by all steps.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from ideomotor.diffusion.discrete import cosine_ratio, mask_tokens, masked_cross_entropy, uniform
from ideomotor.diffusion.samplers import parallel_decode
from ideomotor.layers.conv import PixelStem, PixelStemConfig
from ideomotor.layers.resampler import SpatialReadout
from ideomotor.layers.token_groups import TokenGroups
from ideomotor.layers.transformer import Cache, Transformer, TransformerConfig, repeat_cache
from ideomotor.policies.actions import QuantileBins, Standardized
from ideomotor.types import Losses, Prefix


@dataclass(frozen=True, kw_only=True)
class DiscreteDiffusionPolicyConfig:
    """Sizes of the action model.

    Attributes:
        action_width: dimensions of one action.
        chunk: actions foretold together.
        bins: quantile bins a dimension.
        features: number and width of the foresight features; (0, 0) for a policy that looks at pixels only.
        state_width: dimensions of proprioception (standardized inside, by the demonstrations'); 0 (the default) for
            images only.
        pixels: height and width of the frames of one camera.
        views: cameras; their frames come one above the other, as one picture.
        squeeze, read_tokens: each grid (pixels, foresight) is read into that many tokens of the trunk.
        noisings: how many maskings of a chunk are trained on each computed prefix.
        foresight_dropout: share of training samples whose foresight is withheld, so that the policy can also act
            without any (and is then as cheap as one that looks at pixels only).
        outlook: weight of a second loss: pixels and text alone must foretell the sum of all the actions of a sample,
            which are more than a chunk. Once a hand is on its way its place tells the next actions, and a policy need
            not look for what it goes to; where it will have gone, only that tells. 0 for none.
    """

    action_width: int = 4
    chunk: int = 8
    bins: int = 48
    features: tuple[int, int] = (36, 192)
    text_width: int = 384
    state_width: int = 0
    pixels: int = 96
    views: int = 1
    squeeze: int = 32
    read_tokens: int = 4
    noisings: int = 2
    foresight_dropout: float = 0.0
    outlook: float = 0.0
    stem: PixelStemConfig = field(default_factory=PixelStemConfig)
    trunk: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(width=192, layers=3, heads=4, dropout=0.1)
    )

    def __post_init__(self) -> None:
        counts = (
            self.views,
            self.action_width,
            self.chunk,
            self.bins - 1,
            self.squeeze,
            self.read_tokens,
            self.noisings,
        )
        if min(counts) < 1 or min(self.state_width, self.outlook) < 0 or not 0 <= self.foresight_dropout < 1:
            raise ValueError(
                f"views {self.views}, action_width {self.action_width}, chunk {self.chunk}, squeeze {self.squeeze}, "
                f"read_tokens {self.read_tokens} and noisings {self.noisings} must be at least 1, bins {self.bins} at "
                f"least 2, state_width {self.state_width} and outlook {self.outlook} at least 0, foresight_dropout "
                f"{self.foresight_dropout} in [0, 1)"
            )


class DiscreteDiffusionPolicy(nn.Module):
    """Source: VPDD's p_theta2 (2402.14407) by modern means: bidirectional, a real [MASK], masked cross-entropy,
    pixels of its own.
    """

    def __init__(self, config: DiscreteDiffusionPolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.trunk.width
        self.bins = QuantileBins(config.bins, config.action_width)
        self.stem = PixelStem(config.stem)
        places = config.views * self.stem.grid(config.pixels) ** 2
        self.pixels = SpatialReadout(places, config.stem.widths[-1], config.squeeze, config.read_tokens, width)
        self.text = nn.Linear(config.text_width, width)
        count, feature_width = config.features
        if count:
            self.foresight = SpatialReadout(count, feature_width, config.squeeze, config.read_tokens, width)
            self.no_foresight = nn.Parameter(0.02 * torch.randn(config.read_tokens, width))
        if config.state_width:
            self.state_scale = Standardized(config.state_width)
            self.state = nn.Sequential(nn.Linear(config.state_width, width), nn.SiLU(), nn.Linear(width, width))
        if config.outlook:
            looks = (1 + config.read_tokens) * width
            self.action_scale = Standardized(config.action_width)
            self.way = nn.Sequential(
                nn.LayerNorm(looks), nn.Linear(looks, 256), nn.SiLU(), nn.Linear(256, config.action_width)
            )
        self.actions = TokenGroups(config.action_width, config.bins, width)
        self.action_time = nn.Parameter(0.02 * torch.randn(config.chunk, width))
        self.trunk = Transformer(config.trunk)

    def observe(
        self,
        frames: UInt8[Tensor, "b t c h w"],
        features: Float[Tensor, "b m d"] | None,
        text: Float[Tensor, "b e"],
        state: Float[Tensor, "b s"] | None = None,
    ) -> Cache:
        """Returns the prefix's cache, with which any number of denoising steps can be taken."""
        return self._prefix(self._look(frames, features, text, state))

    def _prefix(self, parts: list[Float[Tensor, "b _ d"]]) -> Cache:
        return self.trunk(torch.cat([part.to(parts[1].dtype) for part in parts], 1))[1]

    def _look(
        self,
        frames: UInt8[Tensor, "b t c h w"],
        features: Float[Tensor, "b m d"] | None,
        text: Float[Tensor, "b e"],
        state: Float[Tensor, "b s"] | None,
    ) -> list[Float[Tensor, "b _ d"]]:
        """Returns the tokens of the text, those of the pixels, and of whatever else is seen."""
        config = self.config
        if frames.shape[-2:] != (config.views * config.pixels, config.pixels):
            raise ValueError(
                f"frames of {frames.shape[-2]}x{frames.shape[-1]} came; this policy was trained on "
                f"{config.views * config.pixels}x{config.pixels}"
            )
        seen = self.stem(rearrange(frames, "b t c (view h) w -> (b view) t c h w", view=config.views))
        looked = rearrange(seen, "(b view) n d -> b (view n) d", view=config.views)
        parts = [self.text(text)[:, None], self.pixels(looked)]
        if config.features[0]:
            parts.append(self._foresight(features, len(text)))
        if config.state_width:
            if state is None or state.shape[1] != config.state_width:
                raise ValueError(
                    f"this policy wants a state of width {config.state_width} and got "
                    f"{None if state is None else state.shape[1]}"
                )
            parts.append(self.state(self.state_scale(state))[:, None])
        return parts

    def _foresight(self, features: Float[Tensor, "b m d"] | None, batch: int) -> Float[Tensor, "b tokens d"]:
        """Reads the foresight into a few tokens; where it is withheld, learned ones stand for it."""
        config = self.config
        withheld = repeat(self.no_foresight, "tokens d -> b tokens d", b=batch)
        if features is None and config.foresight_dropout > 0:
            return withheld
        if features is None or tuple(features.shape[1:]) != config.features:
            came = "none" if features is None else f"{tuple(features.shape[1:])}"
            raise ValueError(
                f"foresight features {came} came; wanted {config.features}: use the predictor it was trained with"
            )
        read = self.foresight(features)
        if not self.training or config.foresight_dropout == 0:
            return read
        without = torch.rand(batch, 1, 1, device=read.device) < config.foresight_dropout
        return torch.where(without, withheld.to(read), read)

    def loss(
        self,
        frames: UInt8[Tensor, "b t c h w"],
        features: Float[Tensor, "b m d"] | None,
        text: Float[Tensor, "b e"],
        actions: Float[Tensor, "b ahead action"],
        mask: Bool[Tensor, "b ahead"] | None = None,
        state: Float[Tensor, "b s"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Returns the cross-entropy of masked action tokens; actions beyond an episode's end (``mask`` False) do not
        count. With an outlook, more actions than a chunk come, and its loss is added.
        """
        config = self.config
        longer = config.outlook > 0 and actions.shape[1] > config.chunk
        tokens = self._tokens(actions[:, : config.chunk] if longer else actions)  # b n
        parts = self._look(frames, features, text, state)
        way = self._way_loss(parts, actions, mask) if longer else None
        mask = mask[:, : config.chunk] if mask is not None else None
        cache = repeat_cache(self._prefix(parts), config.noisings)
        x0 = repeat(tokens, "b n -> (b k) n", k=config.noisings)
        ratio = cosine_ratio(torch.rand(len(x0), generator=generator)).to(x0.device)
        xt, masked = mask_tokens(x0, self.actions.mask_id, ratio, generator)
        if mask is not None:
            # Past the episode's end nothing is known: such tokens are never shown, for they repeat the last action.
            real = repeat(mask, "b chunk -> (b k) (chunk action)", k=config.noisings, action=config.action_width)
            xt, masked = xt.masked_fill(~real, self.actions.mask_id), masked & real
        logits = self.logits(xt, cache)
        total = masked_cross_entropy(logits, x0, masked)
        right = ((logits.detach().argmax(-1) == x0) & masked).sum() / masked.sum().clamp(min=1)
        terms = {"cross_entropy": total.detach(), "accuracy": right}
        if way is not None:
            total, terms["outlook"] = total + config.outlook * way, way.detach()
        return Losses(total=total, terms=terms)

    def _way_loss(
        self,
        parts: list[Float[Tensor, "b _ d"]],
        actions: Float[Tensor, "b ahead action"],
        mask: Bool[Tensor, "b ahead"] | None,
    ) -> Float[Tensor, ""]:
        """The error of where pixels and text say that the actions lead, in deviations of an action, per action."""
        told = self.way(torch.cat([parts[0], parts[1].to(parts[0].dtype)], 1).flatten(1)).float()
        scaled = actions.float() / self.action_scale.deviation
        if mask is not None:
            scaled = scaled * mask[..., None]
        return F.smooth_l1_loss(told, scaled.mean(1), beta=0.1)

    @torch.no_grad()
    def log_likelihood(
        self,
        frames: UInt8[Tensor, "b t c h w"],
        features: Float[Tensor, "b m d"] | None,
        text: Float[Tensor, "b e"],
        actions: Float[Tensor, "b chunk action"],
        state: Float[Tensor, "b s"] | None = None,
        maskings: int = 8,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " b"]:
        """Returns a lower bound on log p(actions | what is seen, features) in nats, all n tokens of a chunk together.

        It is the mean, over orders in which the tokens could be told one by one, of the chain rule's logarithm: n times
        the mean log-likelihood of the masked tokens, over numbers of masks that are spread evenly over 1..n. All
        samples share the maskings, so that those of one batch can be compared. Source: MD4 (2406.04329), as a sum over
        numbers of masks.

        Args:
            frames: as in ``sample``, like the features, text and state.
            features: the foresight.
            text: the sentence.
            actions: a whole chunk, in the units of the demonstrations.
            state: proprioception.
            maskings: passes; with more of them the mean is surer.
            generator: of the places that are masked.
        """
        cache, x0 = self.observe(frames, features, text, state), self._tokens(actions)
        n = x0.shape[1]
        total = torch.zeros(len(x0), device=x0.device)
        for number in range(maskings):
            count = math.ceil(n * (number + 0.5) / maskings)
            masked = uniform((n,), generator, x0.device).argsort().argsort() < count
            log_p = self.logits(x0.masked_fill(masked, self.actions.mask_id), cache).float().log_softmax(-1)
            total += log_p.gather(2, x0[..., None])[:, masked, 0].mean(1)
        return n * total / maskings

    def _tokens(self, actions: Float[Tensor, "b chunk action"]) -> Int[Tensor, "b n"]:
        config = self.config
        if tuple(actions.shape[1:]) != (config.chunk, config.action_width):
            raise ValueError(
                f"chunks of {actions.shape[1]} actions of width {actions.shape[2]} came; this policy foretells "
                f"{config.chunk} of width {config.action_width}: set the window's chunk, or train a policy "
                "for this robot"
            )
        return rearrange(self.bins.encode(actions), "b chunk action -> b (chunk action)")

    def logits(self, xt: Int[Tensor, "b n"], cache: Cache) -> Float[Tensor, "b n bins"]:
        """Returns logits for every action token, given some of them."""
        tokens = rearrange(xt, "b (chunk action) -> b chunk action", chunk=self.config.chunk)
        out, _ = self.trunk(self.actions.embed(tokens) + self.action_time, cache)
        return rearrange(self.actions.logits(out), "b chunk action bins -> b (chunk action) bins")

    @torch.no_grad()
    def sample(
        self,
        frames: UInt8[Tensor, "b t c h w"],
        features: Float[Tensor, "b m d"] | None,
        text: Float[Tensor, "b e"],
        state: Float[Tensor, "b s"] | None = None,
        steps: int = 2,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "b chunk action"]:
        """Returns a chunk of actions in the units of the demonstrations, decoded in ``steps`` passes.

        With a ``prefix`` the chunk begins with just these actions: their tokens are shown from the first pass on.
        """
        cache = self.observe(frames, features, text, state)
        unknown = torch.full(
            (len(text), self.config.chunk * self.config.action_width), self.actions.mask_id, device=text.device
        )
        if prefix is not None:
            known = repeat(prefix.mask, "b chunk 1 -> b (chunk action)", action=self.config.action_width)
            unknown = torch.where(known, self._tokens(prefix.actions), unknown)
        tokens = parallel_decode(
            lambda xt: self.logits(xt, cache),
            unknown,
            self.actions.mask_id,
            steps,
            temperature=temperature,
            generator=generator,
        )
        actions = self.bins.decode(rearrange(tokens, "b (chunk action) -> b chunk action", chunk=self.config.chunk))
        return actions if prefix is None else prefix.put(actions)
