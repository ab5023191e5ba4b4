"""Tokens on disk: what a tokenizer makes of every window of a dataset, so that it need not run while others train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ideomotor.data.cache import Progress
from ideomotor.data.draft import Draft, description, digest, fill_rows, locked, open_array, read_index
from ideomotor.data.windows import WindowIndex

VERSION = 1
Encode = Callable[[UInt8[Tensor, "b t c h w"]], Int[Tensor, "b latent n"]]


def windows_key(index: WindowIndex, camera: str, size: tuple[int, int] | None = None) -> str:
    """Returns a name for the frames of all windows of one camera: it changes when any of them could.

    Raises:
        ValueError: the dataset has no fingerprint.
    """
    size_key = list(size) if size else None
    return digest(["windows", description(index.dataset), camera, size_key, index.config.key])


class TokenCache:
    """The tokens of every window of one camera, in a finished folder; read only and shared between processes.

    Attributes:
        tokens: latent frames of the context, then of the horizon, for each window of the index.
        windows: the ``windows_key`` they belong to.
        tokenizer: the fingerprint of the tokenizer that made them.
        vocab: tokens lie in ``0..vocab-1``.
        context_latents: how many of the latent frames stand for the context.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a finished cache.

        Raises:
            FileNotFoundError: there is none in ``folder``.
            ValueError: it is damaged, or of another version.
        """
        index = read_index(folder, "tokens", VERSION)
        self.folder, self.windows, self.tokenizer = folder, str(index["windows"]), str(index["tokenizer"])
        self.vocab, self.context_latents = int(index["vocab"]), int(index["context_latents"])
        self.tokens: Int[np.ndarray, "window latent n"] = open_array(folder / "tokens.npy", tuple(index["shape"]))

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, windows: Sequence[int]) -> Int[Tensor, "b latent n"]:
        """Returns a copy of the tokens of these windows, as int64."""
        return torch.from_numpy(self.tokens[np.asarray(windows, dtype=np.int64)].astype(np.int64))

    @classmethod
    def build(
        cls,
        index: WindowIndex,
        root: Path,
        encode: Encode,
        *,
        tokenizer: str,
        vocab: int,
        camera: str,
        size: tuple[int, int] | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
        whole: bool = False,
    ) -> TokenCache:
        """Returns the tokens of every window of ``index``, encoding what is not on disk yet.

        Context and horizon are encoded by two calls and joined, so that no token of the context has seen the future,
        as none can when a policy acts; ``whole`` is for tokenizers that see to that themselves. A build that was killed
        goes on after the last batch that reached the disk.

        Args:
            index: best of a dataset from ``cached``: each frame is read once for every window it is in.
            root: the folder of caches; one is made in it.
            encode: frames to tokens, without gradients; called with at most ``batch_size`` windows.
            tokenizer: a fingerprint that changes with the tokenizer's weights.
            vocab: number of codes; up to 32,768 of them take two bytes a token, more take four.
            camera: the dataset's name of it.
            size: height and width, for a dataset that is not cached at the right size.
            batch_size: windows a call.
            progress: called with windows done and to be done.
            whole: a window is encoded by one call, for a tokenizer whose future tokens are conditioned on the context.

        Raises:
            OSError: the disk has no room; what was encoded so far is kept for the next try.
            ValueError: the tokenizer has no fingerprint, or ``encode`` returned what are not tokens.
        """
        if not tokenizer:
            raise ValueError("the tokenizer has no fingerprint, so a cache could not tell when it changes: pass one")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} windows a call; it must be at least 1")
        windows = windows_key(index, camera, size)
        final = Path(root) / f"tokens-{digest(['tokens', VERSION, windows, tokenizer, vocab])}"
        if not final.exists():
            with locked(final):
                if not final.exists():
                    filler = _Filler(index, encode, vocab, camera, size, whole)
                    filler.fill(Draft(final), batch_size, {"windows": windows, "tokenizer": tokenizer}, progress)
        return cls(final)


class _Filler:
    def __init__(
        self,
        index: WindowIndex,
        encode: Encode,
        vocab: int,
        camera: str,
        size: tuple[int, int] | None,
        whole: bool,
    ) -> None:
        self.index, self.encode, self.vocab, self.camera, self.size = index, encode, vocab, camera, size
        self.whole, self.context_latents = whole, 0
        self.dtype = np.dtype(np.int16 if vocab <= 1 << 15 else np.int32)

    def fill(self, draft: Draft, batch_size: int, names: dict[str, Any], progress: Progress | None) -> None:
        what = f"the token cache of {self.index.dataset.name!r}"
        shape = fill_rows(draft, "tokens.npy", len(self.index), batch_size, self._encoded, what, progress)
        facts = {"vocab": self.vocab, "context_latents": self.context_latents, "shape": shape}
        draft.finish({"kind": "tokens", "version": VERSION, **names, **facts})

    @torch.inference_mode()
    def _encoded(self, windows: range) -> Int[np.ndarray, "b latent n"]:
        frames = self.index.read(windows, self.camera, self.size)
        context = self.index.config.context
        apart = self.index.config.horizon and not self.whole
        parts = [frames[:, :context], frames[:, context:]] if apart else [frames]
        tokens = [self._checked(self.encode(part), part) for part in parts]
        self.context_latents = tokens[0].shape[1]
        return torch.cat(tokens, dim=1).numpy().astype(self.dtype)

    def _checked(self, tokens: Tensor, frames: Tensor) -> Tensor:
        if tokens.ndim != 3 or len(tokens) != len(frames) or tokens.is_floating_point():
            raise ValueError(
                f"encode made {tokens.dtype} {tuple(tokens.shape)} of frames {tuple(frames.shape)}; wanted whole "
                f"numbers ({len(frames)}, latent, n)"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab:
            raise ValueError(
                f"encode made tokens {low}..{high}; with a vocab of {self.vocab} they lie in 0..{self.vocab - 1}"
            )
        return tokens.cpu()
