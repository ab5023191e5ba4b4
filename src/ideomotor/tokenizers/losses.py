"""What a reconstruction costs: pixels, perception, commitment, and a critic's opinion. Mathematics only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ideomotor.layers.quantize import perplexity
from ideomotor.types import Losses

Distance = Callable[[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]], Float[Tensor, " n"]]


class Painted(NamedTuple):
    """True frames, and what a tokenizer makes of them. Pixels in [0, 1]; painted ones may leave that range."""

    true: Float[Tensor, "n c h w"]
    painted: Float[Tensor, "n c h w"]
    commitment: Float[Tensor, ""]
    ids: Int[Tensor, "n tokens"]


class Reconstruction(NamedTuple):
    """The context frames and the future frames of a batch, each flattened over samples and time."""

    context: Painted
    future: Painted
    moved: Float[Tensor, "n 1 h w"] | None = None
    """How far each of the future's true pixels lies from the last context frame's, the furthest colour, in [0, 1]."""
    effort: Float[Tensor, ""] | None = None
    """Mean square of the future's codes: 0 where each is the one in the middle."""

    @property
    def true(self) -> Float[Tensor, "n c h w"]:
        """All true frames."""
        return torch.cat([self.context.true, self.future.true])

    @property
    def painted(self) -> Float[Tensor, "n c h w"]:
        """All painted frames, in the same order."""
        return torch.cat([self.context.painted, self.future.painted])


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Weights of the terms; the defaults are the published ones.

    Attributes:
        pixels: "l1", the absolute error, or "l2", the squared one.
        pixel_weight, perceptual_weight: of the future's terms; those of the context have weight 1.
        critic_weight: times the adaptive weight.
        balanced: pixel and perceptual terms are means over all frames; otherwise context and future count the same,
            whatever their numbers.
        motion_weight: an error of the future counts 1 + motion_weight * m, with m in [0, 1] the pixel's distance from
            the last context frame. What moves is small, and what an action leads to.
        economy: of the mean square of the future's codes. What did not change then has one code, the middle one, and
            not whichever: a world model need not guess what means nothing. Wants codes with a middle (FSQ, odd levels).
        train_codebooks: False leaves the codes as they are (to fine-tune what a world model already speaks).
    """

    pixels: Literal["l1", "l2"] = "l1"
    pixel_weight: float = 1.0
    perceptual_weight: float = 1.0
    critic_weight: float = 0.8
    balanced: bool = False
    motion_weight: float = 0.0
    economy: float = 0.0
    train_codebooks: bool = True

    def __post_init__(self) -> None:
        if self.pixels not in ("l1", "l2"):
            raise ValueError(f"pixels is {self.pixels!r}; wanted 'l1' or 'l2'")
        weights = (self.pixel_weight, self.perceptual_weight, self.critic_weight, self.motion_weight, self.economy)
        if min(weights) < 0:
            raise ValueError(
                f"pixel_weight {self.pixel_weight}, perceptual_weight {self.perceptual_weight}, critic_weight "
                f"{self.critic_weight}, motion_weight {self.motion_weight}, economy {self.economy}: none may be below 0"
            )


class Priced(NamedTuple):
    """Losses, and the term by which the critic's gradient is measured (the future's, before its weight)."""

    losses: Losses
    reference: Float[Tensor, ""]


def price(
    reconstruction: Reconstruction, sizes: tuple[int, int], config: ReconstructionConfig, perceptual: Distance | None
) -> Priced:
    """Returns the losses of a reconstruction, and the codebooks' health; ``sizes`` are those of the codebooks."""
    context, future, moved, effort = reconstruction
    shares = _shares(len(context.true), len(future.true), config.balanced)
    pixel = F.l1_loss if config.pixels == "l1" else F.mse_loss
    terms = {"context": pixel(context.painted.float(), context.true)}
    if config.motion_weight and moved is not None:
        errors = pixel(future.painted.float(), future.true, reduction="none")
        terms["future"] = ((1 + config.motion_weight * moved) * errors).mean()
    else:
        terms["future"] = pixel(future.painted.float(), future.true)
    total = shares[0] * terms["context"] + shares[1] * config.pixel_weight * terms["future"]
    reference = terms["future"]
    if perceptual is not None:
        terms["perceptual_context"] = perceptual(context.painted.float(), context.true).mean()
        reference = terms["perceptual_future"] = perceptual(future.painted.float(), future.true).mean()
        total = total + shares[0] * terms["perceptual_context"]
        total = total + shares[1] * config.perceptual_weight * terms["perceptual_future"]
    terms |= {"commitment_context": context.commitment.float(), "commitment_dynamics": future.commitment.float()}
    total = total + terms["commitment_context"] + terms["commitment_dynamics"]
    if config.economy and effort is not None:
        terms["effort"] = effort.float()
        total = total + config.economy * terms["effort"]
    with torch.no_grad():
        terms["psnr"] = -10 * F.mse_loss(future.painted.float().clamp(0, 1), future.true).clamp_min(1e-10).log10()
        for name, part, size in zip(("context", "dynamics"), (context, future), sizes, strict=True):
            terms[f"{name}_codes_in_batch"] = torch.bincount(part.ids.flatten(), minlength=size).count_nonzero() / size
            terms[f"{name}_perplexity"] = perplexity(part.ids, size)
    return Priced(Losses(total=total, terms={name: term.detach() for name, term in terms.items()}), reference)


def hinge(true: Float[Tensor, " *shape"], painted: Float[Tensor, " *shape"]) -> Float[Tensor, ""]:
    """Returns what a critic pays for its logits: it wants 1 or more on true frames and -1 or less on painted ones."""
    return F.relu(1 - true).mean() + F.relu(1 + painted).mean()


def adaptive_weight(
    reference: Float[Tensor, ""], judged: Float[Tensor, ""], weight: Float[Tensor, " *shape"]
) -> Float[Tensor, ""]:
    """Returns the factor that makes the critic's gradient at ``weight`` (the last layer) as long as the reference's.

    At most 1e4. Source: Esser et al. 2021 (arXiv 2012.09841), equation 7.
    """
    (wanted,) = torch.autograd.grad(reference, weight, retain_graph=True)
    (given,) = torch.autograd.grad(judged, weight, retain_graph=True)
    return (wanted.norm() / given.norm().clamp_min(1e-8)).clamp(max=1e4).detach()


def _shares(context: int, future: int, balanced: bool) -> tuple[float, float]:
    return (context / (context + future), future / (context + future)) if balanced else (1.0, 1.0)
