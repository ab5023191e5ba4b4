"""The critic of painted frames, and the two objectives of adversarial training: the painter's and the critic's."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.perceptual import MobileNetDistance, PerceptualDistance
from ideomotor.layers.quantize import EMACodebook
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.tokenizers.losses import ReconstructionConfig, adaptive_weight, hinge, price
from ideomotor.types import Borrowed, Clip, Losses


@dataclass(frozen=True, kw_only=True)
class PatchCriticConfig:
    """Sizes of the critic; the defaults are the published ones (1,551,489 parameters).

    Attributes:
        width: channels of the last convolution; each one before has half of it, but not less than an eighth.
        depth: number of convolutions, each of which halves the resolution.
    """

    width: int = 512
    depth: int = 4

    def __post_init__(self) -> None:
        if self.depth < 2 or self.width < 8 or self.width % 8:
            raise ValueError(f"depth {self.depth} must be at least 2, width {self.width} a multiple of 8")


class SpectralConv2d(nn.Conv2d):
    """A strided 3x3 convolution whose weight, as a matrix, is divided by its largest singular value.

    The value is estimated by power iteration, one step a call in train mode.

    Source: Miyato et al. 2018 (arXiv 1802.05957), algorithm 1.
    """

    left: Tensor
    right: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, stride=2, padding=1)
        self.register_buffer("left", F.normalize(torch.randn(after), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(before * 9), dim=0))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows columns"]:
        """Returns the coarser map."""
        matrix = self.weight.flatten(1)
        if self.training:
            with torch.no_grad():
                self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))
                self.left.copy_(F.normalize(matrix @ self.right, dim=0))
        largest = self.left.clone() @ (matrix @ self.right.clone())  # clones: a second call moves them before backward
        return self._conv_forward(x, self.weight / largest, self.bias)


class PatchCritic(nn.Module):
    """Frames to a map of logits: above 0 where a patch looks like a true one.

    Source: Rampas et al. 2022 (Paella, arXiv 2211.07292), as the release of iVideoGPT sets it.
    """

    updates: Tensor

    def __init__(self, config: PatchCriticConfig) -> None:
        super().__init__()
        self.config = config
        widths = [max(config.width // 2**i, config.width // 8) for i in reversed(range(config.depth))]
        parts: list[nn.Module] = [SpectralConv2d(3, widths[0]), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            parts += [SpectralConv2d(before, after), nn.InstanceNorm2d(after), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*parts)
        self.out = nn.Conv2d(config.width, 1, 1)
        self.register_buffer("updates", torch.tensor(0))  # that its objective has made

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 rows columns"]:
        """Returns logits; pixels in [0, 1], which painted frames may leave."""
        return self.out(self.body(frames))


class Painting(nn.Module):
    """The painter's objective: a clip comes back from its codes, and a critic that has learned may have its say.

    Args:
        tokenizer: owned.
        perceptual: borrowed; None leaves the perceptual terms out.
        critic: borrowed; it counts from the first update of its own objective on, so its learner's ``start`` decides.
    """

    def __init__(
        self,
        tokenizer: ContextVQGAN,
        config: ReconstructionConfig,
        perceptual: PerceptualDistance | MobileNetDistance | None = None,
        critic: PatchCritic | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.config = tokenizer, config
        self.perceptual = None if perceptual is None else Borrowed(perceptual)
        self.critic = None if critic is None else Borrowed(critic)
        if not config.train_codebooks:
            if isinstance(tokenizer.context_codebook, EMACodebook):
                raise ValueError("train_codebooks=False came with codebooks that follow averages: these cannot be held")
            for book in (tokenizer.context_codebook, tokenizer.dynamics_codebook):
                book.requires_grad_(False)

    def forward(self, clip: Clip) -> Losses:
        """Returns the reconstruction's losses over every camera."""
        reconstruction = self.tokenizer.reconstruct(torch.cat(list(clip.frames.values())))
        sizes = (self.tokenizer.context_codes, self.tokenizer.dynamics_codes)
        losses, reference = price(reconstruction, sizes, self.config, self.perceptual)
        if self.critic is None or not self.critic.module.updates or not torch.is_grad_enabled():
            return losses
        judged = -self.critic(reconstruction.painted).float().mean()
        weight = adaptive_weight(reference, judged, self.tokenizer.future_decoder.conv_out.weight)
        return Losses(
            total=losses.total + self.config.critic_weight * weight * judged,
            terms={**losses.terms, "critic": judged.detach(), "adaptive_weight": weight},
        )


class Judging(nn.Module):
    """The critic's objective: to tell true frames from painted ones."""

    def __init__(self, critic: PatchCritic, tokenizer: ContextVQGAN) -> None:
        super().__init__()
        self.critic, self.tokenizer = critic, Borrowed(tokenizer)

    def forward(self, clip: Clip) -> Losses:
        """Returns the hinge loss over every camera, context and future frames alike."""
        with torch.no_grad():
            reconstruction = self.tokenizer.module.reconstruct(torch.cat(list(clip.frames.values())))
        true, painted = self.critic(reconstruction.true).float(), self.critic(reconstruction.painted).float()
        if self.training:
            self.critic.updates.add_(1)
        total = hinge(true, painted)
        return Losses(total=total, terms={"true": true.detach().mean(), "painted": painted.detach().mean()})
