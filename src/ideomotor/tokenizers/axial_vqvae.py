"""The published VPDD tokenizer: a 3-D convolutional VQ-VAE with attention along each axis.

It is here so that published weights run, and to compare with; VQVAE3D is the lighter one to begin with.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ideomotor.layers.quantize import EMACodebook, perplexity
from ideomotor.types import Clip, Losses


@dataclass(frozen=True, kw_only=True)
class AxialVQVAEConfig:
    """Sizes of the tokenizer; the defaults are the published ones (30,861,827 parameters).

    Attributes:
        strides: by how much time, height and width shrink; powers of two. A latent frame stands for ``strides[0]``
            frames.
        width: channels everywhere inside.
        blocks: attention-residual blocks at the coarse grid, on each side.
        heads: of every attention.
        codes, code_width: size of the codebook.
        together: latent frames that ``encode`` and ``decode`` code in one piece; within a piece all of them see each
            other. 1 lets no token know what follows, and is how VPDD uses it; training codes whole clips.
        variance: the squared error is divided by it; a constant that VideoGPT passed on.
        restart_sums: see EMACodebook; False is the published behaviour.
    """

    strides: tuple[int, int, int] = (4, 4, 4)
    width: int = 256
    blocks: int = 6
    heads: int = 2
    codes: int = 2048
    code_width: int = 256
    together: int = 1
    commitment: float = 0.25
    variance: float = 0.06
    restart_sums: bool = False

    def __post_init__(self) -> None:
        if any(stride < 1 or stride & (stride - 1) for stride in self.strides) or max(self.strides) < 2:
            raise ValueError(f"strides {self.strides} must be powers of two, at least one of them above 1")
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be even and divide into {self.heads} heads: choose a multiple")
        if min(self.blocks, self.together) < 1:
            raise ValueError(f"blocks={self.blocks} and together={self.together} must be at least 1")

    @property
    def halvings(self) -> list[tuple[int, int, int]]:
        """Strides of the convolutions, in order: each axis is halved first, and left alone once it is small enough."""
        logs = [stride.bit_length() - 1 for stride in self.strides]
        return [(1 + (logs[0] > i), 1 + (logs[1] > i), 1 + (logs[2] > i)) for i in range(max(logs))]


class AxialVQVAE(nn.Module):
    """Clips to tokens and back; attention is free of positions, so that any number of frames fits.

    Pixels are scaled to [-0.5, 0.5] inside. Differs from the release on purpose: that the codebook has begun is part
    of the saved state, so that a resumed run keeps its codes.

    Source: Yan et al. 2021 (VideoGPT, arXiv 2104.10157) as the release of He et al. 2024 (VPDD, arXiv 2402.14407)
    sets it.
    """

    def __init__(self, config: AxialVQVAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.codebook = EMACodebook(
            config.codes, config.code_width, commitment=config.commitment, restart_sums=config.restart_sums
        )
        shrink: list[nn.Module] = []
        grow: list[nn.Module] = []
        for step, stride in enumerate(config.halvings):
            shrink += [_SamePad(nn.Conv3d(width if step else 3, width, 4, stride)), nn.ReLU()]
            last = step == len(config.halvings) - 1
            grow += [_SamePad(nn.ConvTranspose3d(width, 3 if last else width, 4, stride, padding=3)), nn.ReLU()]
        shrink.append(_SamePad(nn.Conv3d(width, width, 3)))
        self.encoder = nn.Sequential(
            OrderedDict(
                shrink=nn.Sequential(*shrink),
                blocks=_blocks(config),
                project=_SamePad(nn.Conv3d(width, config.code_width, 1)),
            )
        )
        self.decoder = nn.Sequential(
            OrderedDict(
                project=_SamePad(nn.Conv3d(config.code_width, width, 1)),
                blocks=_blocks(config),
                grow=nn.Sequential(*grow[:-1]),  # pixels are not rectified
            )
        )

    @property
    def vocab(self) -> int:
        """Number of codes."""
        return self.codebook.size

    @property
    def frames_per_latent(self) -> int:
        """How many frames one latent frame stands for."""
        return self.config.strides[0]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a latent frame's tokens."""
        _, rows, columns = self.config.strides
        if height % rows or width % columns:
            raise ValueError(
                f"frames of {height}x{width} do not divide into cells of {rows}x{columns}: resize them to multiples "
                "of the strides"
            )
        return height // rows, width // columns

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b latent n"]:
        """Returns the tokens, row-major within a latent frame."""
        pieces = self._pieces(frames, self.config.together * self.frames_per_latent)
        _, ids, _ = self.codebook(self._embed(_scaled(pieces)))  # pieces latent h w
        return rearrange(ids, "(b piece) latent h w -> b (piece latent) (h w)", b=len(frames))

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "b latent n"], grid: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "b t c h w"]:
        """Returns the video those tokens stand for; ``grid`` is needed where it is not square."""
        rows, columns = grid or (round(tokens.shape[-1] ** 0.5),) * 2
        if rows * columns != tokens.shape[-1]:
            raise ValueError(
                f"{tokens.shape[-1]} tokens a latent frame do not fill a grid of {rows}x{columns}: give the grid"
            )
        pieces = self._pieces(tokens, self.config.together)
        pixels = self._paint(self.codebook.lookup(rearrange(pieces, "b latent (h w) -> b latent h w", h=rows)))
        video = ((pixels + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
        return rearrange(video, "(b piece) t c h w -> b (piece t) c h w", b=len(tokens))

    def vectors(self, ids: Int[Tensor, " *shape"]) -> Float[Tensor, "*shape d"]:
        """Returns the code vectors of these ids; ids from ``vocab`` on (actions, the mask) give zero vectors."""
        known = ids < self.vocab
        return self.codebook.lookup(torch.where(known, ids, 0)) * known[..., None]

    def forward(self, clip: Clip) -> Losses:
        """Returns the reconstruction loss over every camera of the clip, and the codebook's health."""
        return self.loss(torch.cat(list(clip.frames.values())))

    def loss(self, frames: UInt8[Tensor, "b t c h w"]) -> Losses:
        """Returns the squared error (pixels in [-0.5, 0.5]) over ``variance``, plus the codebook's commitment."""
        self._pieces(frames, self.frames_per_latent)  # refuses a length that does not divide
        return self._losses(_scaled(frames))

    def _losses(self, pixels: Float[Tensor, "b t c h w"]) -> Losses:
        quantized, ids, commitment = self.codebook(self._embed(pixels))
        error = F.mse_loss(self._paint(quantized).float(), pixels)
        reconstruction = error / self.config.variance
        usage = torch.bincount(ids.flatten(), minlength=self.vocab).count_nonzero() / self.vocab
        return Losses(
            total=reconstruction + commitment.float(),
            terms={
                "reconstruction": reconstruction.detach(),
                "commitment": commitment.detach().float(),
                "psnr": -10 * error.detach().log10(),
                "codes_in_batch": usage,
                "perplexity": perplexity(ids, self.vocab),
            },
        )

    def _pieces(self, sequence: Tensor, length: int) -> Tensor:
        if sequence.shape[1] % length:
            what = "frames" if sequence.ndim == 5 else "latent frames"
            raise ValueError(
                f"{sequence.shape[1]} {what} do not divide into pieces of {length} (strides {self.config.strides}, "
                f"together={self.config.together}): take a window whose length is a multiple"
            )
        return rearrange(sequence, "b (piece part) ... -> (b piece) part ...", part=length)

    def _embed(self, pixels: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b latent rows columns d"]:
        self.grid(*pixels.shape[-2:])
        return rearrange(self.encoder(rearrange(pixels, "b t c h w -> b c t h w")), "b d t h w -> b t h w d")

    def _paint(self, codes: Float[Tensor, "b latent rows columns d"]) -> Float[Tensor, "b t c h w"]:
        return rearrange(self.decoder(rearrange(codes, "b t h w d -> b d t h w")), "b c t h w -> b t c h w")


class _SamePad(nn.Module):
    """Zeros around the input of a convolution, so that its size is divided (or multiplied) by the stride exactly.

    They are kernel minus stride on each axis, the odd one before the first place: a convolution of 4 without stride
    looks two places back and one ahead.
    """

    def __init__(self, conv: nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.conv = conv
        self.pads: list[int] = []  # last axis first, as torch wants it
        for kernel, stride in zip(conv.kernel_size[::-1], conv.stride[::-1], strict=True):
            self.pads += [(kernel - stride + 1) // 2, (kernel - stride) // 2]

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d time rows columns"]:
        return self.conv(F.pad(x, self.pads) if any(self.pads) else x)


class _AxisAttention(nn.Module):
    """Multi-head attention of every place to those in its row, the second axis from the last."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.qkv.weight, std=1 / math.sqrt(width))
        nn.init.normal_(self.out.weight, std=1 / math.sqrt(width))

    def forward(self, x: Float[Tensor, "*rows n d"]) -> Float[Tensor, "*rows n d"]:
        query, key, value = rearrange(
            self.qkv(x), "... n (three heads d) -> three ... heads n d", three=3, heads=self.heads
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(attended, "... heads n d -> ... n (heads d)"))


class _AxialAttention(nn.Module):
    """The sum of attentions along width, height and time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.columns, self.rows, self.time = (_AxisAttention(width, heads) for _ in range(3))

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        x = x.movedim(1, -1)  # b t h w d
        rows = self.rows(x.transpose(2, 3)).transpose(2, 3)
        time = self.time(x.transpose(1, 3)).transpose(1, 3)
        return (self.columns(x) + rows + time).movedim(-1, 1)


class _AttentionResidual(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm3d(width), nn.ReLU(), _SamePad(nn.Conv3d(width, width // 2, 3, bias=False)),
            nn.BatchNorm3d(width // 2), nn.ReLU(), _SamePad(nn.Conv3d(width // 2, width, 1, bias=False)),
            nn.BatchNorm3d(width), nn.ReLU(), _AxialAttention(width, heads),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        return x + self.body(x)


def _blocks(config: AxialVQVAEConfig) -> nn.Sequential:
    blocks = [_AttentionResidual(config.width, config.heads) for _ in range(config.blocks)]
    return nn.Sequential(*blocks, nn.BatchNorm3d(config.width), nn.ReLU())


def _scaled(frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
    return frames.float() / 255 - 0.5
