"""Vectors to codes and back: codebooks learned by gradient or by running averages, and a fixed grid of levels (FSQ)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_SCORES_AT_ONCE = 1 << 22  # 16 MB of float32 scores against the codes, however many vectors there are


class EMACodebook(nn.Module):
    """Nearest code by Euclidean distance; codes follow running averages of the vectors that chose them.

    The codebook begins as vectors of the first training batch. After every training batch, codes whose running count
    is below ``restart_below`` are moved onto vectors of that batch. All state, the "already initialised" flag and the
    counter that seeds the random choices included, lies in buffers: a run that is killed and resumed continues to the
    bit. Under ``torch.distributed`` counts and sums are added over the ranks and rank 0 provides the new codes.

    Args:
        size: number of codes.
        width: of a vector.
        decay: of the running averages.
        restart_below: a code chosen less often than this a batch (on the running average) is restarted.
        commitment: weight of the loss that draws the vectors to their codes.
        restart_sums: a restarted code also begins its running count (at 1) and sum anew. False is the published
            behaviour, where the sums stay and the next batch pulls the code back to its stale average.
        seed: of the random choices.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1; restarts as in Jukebox (arXiv 2005.00341).
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    initialised: Tensor
    step: Tensor

    def __init__(
        self,
        size: int,
        width: int,
        decay: float = 0.99,
        *,
        restart_below: float = 1.0,
        commitment: float = 0.25,
        restart_sums: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size < 1 or width < 1 or not 0 < decay < 1:
            raise ValueError(
                f"codebook of size {size}, width {width}, decay {decay}; wanted size, width >= 1, 0 < decay < 1"
            )
        self.size, self.width, self.decay = size, width, decay
        self.restart_below, self.commitment, self.restart_sums, self.seed = (
            restart_below,
            commitment,
            restart_sums,
            seed,
        )
        codes = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))

    def forward(
        self, z: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... d"], Int[Tensor, " ..."], Float[Tensor, ""]]:
        """Returns the codes nearest to ``z`` (gradients pass straight through), their ids, and the commitment loss.

        In training mode the codebook learns from ``z`` afterwards; the returned codes are those before the update.
        """
        _check_width(z, self.width)
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.float()
            flat = vectors.detach().reshape(-1, self.width)
            if self.training and not bool(self.initialised):
                self._initialise(flat)
            ids = _nearest(flat, self.codes)
            quantized = self.codes[ids].view_as(vectors)
            loss = self.commitment * F.mse_loss(vectors, quantized)
            if self.training:
                self._update(flat, ids)
        return _straight_through(quantized, z), ids.view(z.shape[:-1]), loss

    def lookup(self, ids: Int[Tensor, " ..."]) -> Float[Tensor, "... d"]:
        """Returns the codes with those ids."""
        return F.embedding(ids, self.codes)

    @torch.no_grad()
    def _initialise(self, flat: Float[Tensor, "n d"]) -> None:
        self.codes.copy_(self._candidates(flat, purpose=0))
        self.sums.copy_(self.codes)
        self.counts.fill_(1.0)
        self.initialised.fill_(True)

    @torch.no_grad()
    def _update(self, flat: Float[Tensor, "n d"], ids: Int[Tensor, " n"]) -> None:
        counts = torch.bincount(ids, minlength=self.size).float()
        sums = torch.zeros_like(self.sums).index_add_(0, ids, flat)
        if _world_size() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        total = self.counts.sum()
        smooth = (self.counts + 1e-7) / (total + self.size * 1e-7) * total  # a count of 0 must not divide
        unused = (self.counts < self.restart_below)[:, None]
        fresh = self._candidates(flat, purpose=1)
        self.codes.copy_(torch.where(unused, fresh, self.sums / smooth[:, None]))
        if self.restart_sums:
            self.sums.copy_(torch.where(unused, fresh, self.sums))
            self.counts.copy_(torch.where(unused[:, 0], 1.0, self.counts))
        self.step.add_(1)

    def _candidates(self, flat: Float[Tensor, "n d"], purpose: int) -> Float[Tensor, "size d"]:
        """Returns ``size`` vectors of ``flat`` in random order, repeated with a little noise if there are too few."""
        # Drawn on the CPU from (seed, step, purpose) alone: the same on every device, and after a resume.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + int(self.step)) * 2 + purpose)
        repeats = math.ceil(self.size / len(flat))
        if repeats > 1:
            flat = flat.repeat(repeats, 1)
            flat = flat + torch.randn(flat.shape, generator=generator).to(flat) * (0.01 / math.sqrt(self.width))
        fresh = flat[torch.randperm(len(flat), generator=generator)[: self.size].to(flat.device)]
        if _world_size() > 1:
            fresh = fresh.contiguous()
            dist.broadcast(fresh, src=0)
        return fresh


class LearnedCodebook(nn.Module):
    """Nearest code by Euclidean distance; codes are weights, drawn by gradient to the vectors that chose them.

    They begin uniform in +-1/size. Unused codes stay where they are.

    Args:
        size: number of codes.
        width: of a vector.
        commitment: weight of the loss that draws the vectors to their codes; the one that draws the codes has weight 1.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), equation 3.
    """

    def __init__(self, size: int, width: int, *, commitment: float = 1.0) -> None:
        super().__init__()
        if size < 1 or width < 1:
            raise ValueError(f"codebook of size {size}, width {width}; wanted at least 1 of each")
        self.size, self.width, self.commitment = size, width, commitment
        self.codes = nn.Embedding(size, width)
        nn.init.uniform_(self.codes.weight, -1 / size, 1 / size)

    def forward(
        self, z: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... d"], Int[Tensor, " ..."], Float[Tensor, ""]]:
        """Returns the codes nearest to ``z`` (gradients pass straight through), their ids, and both losses' sum."""
        _check_width(z, self.width)
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.float()
            ids = _nearest(vectors.detach().reshape(-1, self.width), self.codes.weight.float())
            quantized = self.codes(ids).float().view_as(vectors)
            loss = F.mse_loss(quantized, vectors.detach())
            loss = loss + self.commitment * F.mse_loss(vectors, quantized.detach())
        return _straight_through(quantized, z), ids.view(z.shape[:-1]), loss

    def lookup(self, ids: Int[Tensor, " ..."]) -> Float[Tensor, "... d"]:
        """Returns the codes with those ids."""
        return self.codes(ids)


class FSQ(nn.Module):
    """Finite scalar quantization: every coordinate is rounded to one of a few levels; there is no codebook to collapse.

    A coordinate is bounded by tanh to (-1, 1), which is cut into bins of equal width; its value is the middle of its
    bin. Differs from the paper's rounding on purpose: outermost levels get as wide a bin as the others, and levels
    are symmetric about 0 for even numbers too. The id has the first coordinate as its least significant digit.

    Args:
        levels: number of levels of each coordinate, e.g. ``(8, 8, 8)`` for 512 codes or ``(8, 5, 5, 5)`` for 1000.

    Source: Mentzer et al. 2023 (arXiv 2309.15505).
    """

    _levels: Tensor
    _strides: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels {levels}: every coordinate needs at least 2 levels, e.g. (8, 5, 5, 5)")
        self.levels, self.size, self.width = tuple(levels), math.prod(levels), len(levels)
        strides = [math.prod(levels[:axis]) for axis in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_strides", torch.tensor(strides), persistent=False)

    def forward(
        self, z: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... d"], Int[Tensor, " ..."], Float[Tensor, ""]]:
        """Returns the quantized vectors in (-1, 1) (gradients skip the rounding), their ids, and a loss of 0."""
        _check_width(z, self.width)
        with torch.autocast(z.device.type, enabled=False):
            bounded = z.float().tanh()  # ... d
            digits = ((bounded.detach() + 1) * 0.5 * self._levels).floor().long()
            digits = digits.clamp(min=0).minimum(self._levels - 1)  # tanh reaches 1 in float32
            ids = (digits * self._strides).sum(-1)
            return _straight_through(self._values(digits), bounded).to(z.dtype), ids, bounded.new_zeros(())

    def lookup(self, ids: Int[Tensor, " ..."]) -> Float[Tensor, "... d"]:
        """Returns the vectors with those ids, to the bit what ``forward`` returned with them in float32."""
        return self._values(ids[..., None] // self._strides % self._levels)

    @property
    def features(self) -> Float[Tensor, "size levels"]:
        """For every code a 1 at the level of each of its coordinates, one after the other, and 0 elsewhere."""
        digits = torch.arange(self.size)[:, None] // self._strides.cpu() % self._levels.cpu()
        return torch.cat([F.one_hot(digits[:, axis], count) for axis, count in enumerate(self.levels)], 1).float()

    def _values(self, digits: Int[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return (2 * digits + 1).float() / self._levels - 1


def perplexity(ids: Int[Tensor, " ..."], size: int) -> Float[Tensor, ""]:
    """Returns the exponential of the entropy of code usage: 1 if one code is used, ``size`` if all are, equally."""
    share = torch.bincount(ids.flatten(), minlength=size).float() / max(ids.numel(), 1)
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def _nearest(flat: Float[Tensor, "n d"], codes: Float[Tensor, "size d"]) -> Int[Tensor, " n"]:
    # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the first term does not matter for the choice.
    offset = -0.5 * codes.square().sum(1)
    rows = max(1, _SCORES_AT_ONCE // len(codes))
    return torch.cat([torch.addmm(offset, part, codes.t()).argmax(1) for part in flat.split(rows)])


def _straight_through(value: Float[Tensor, "... d"], source: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    # The difference is exactly 0, so the result is the value to the bit, with the gradient of the source.
    return value.detach().to(source.dtype) + (source - source.detach())


def _check_width(z: Tensor, width: int) -> None:
    if z.shape[-1] != width:
        raise ValueError(
            f"vectors of width {z.shape[-1]}, shape {tuple(z.shape)}; the codes have width {width}, on the last axis"
        )


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
