"""Features on disk: what a frozen predictor sees in the newest frame of every window, so that it need not run again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Shaped
from torch import Tensor

from ideomotor.data.cache import Progress
from ideomotor.data.draft import Draft, digest, fill_rows, locked, open_array, read_index
from ideomotor.data.latent_windows import read_latents
from ideomotor.data.token_cache import windows_key
from ideomotor.data.windows import WindowIndex
from ideomotor.files import synced

VERSION = 1
See = Callable[[Shaped[Tensor, "b 1 c h w"], Sequence[str]], Float[Tensor, "b t n d"]]
"""Frames, or means of latents, and their sentences to features."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHECKS = "checks.npy"
_WAY_OUT = "choose another cache folder, take fewer windows, or train without a cache of features"


class FeatureCache:
    """The features of every window of one camera, in a finished folder; read only and shared between processes.

    They are stored as float16, whose error is 1/2048 of a value at most, and 3e-8 where values are below 6e-5: that of
    float32 that lost 13 bits, and next to none of what was bfloat16. A row is compared with its checksum when it is
    first read; caches of earlier versions have none.

    Attributes:
        features: a row a window of the index.
        windows: the ``windows_key`` they belong to.
        model: the fingerprint of all that made them.
        dtype: what they were made in, and are given back in.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a finished cache.

        Raises:
            FileNotFoundError: there is none in ``folder``.
            ValueError: it is damaged, or of another version.
        """
        index = read_index(folder, "features", VERSION)
        self.folder, self.windows, self.model = folder, str(index["windows"]), str(index["model"])
        self.dtype = _DTYPES[str(index["dtype"])]
        self.features: Float16[np.ndarray, "window t n d"] = open_array(folder / "features.npy", tuple(index["shape"]))
        there = (folder / _CHECKS).is_file()
        self._checks = open_array(folder / _CHECKS, self.features.shape[:1]) if there else None
        self._unread = np.full(len(self.features), there)

    def __len__(self) -> int:
        return len(self.features)

    def read(self, windows: Sequence[int]) -> Float[Tensor, "b t n d"]:
        """Returns a copy of the features of these windows.

        Raises:
            ValueError: they are not what was written; the message names the folder.
        """
        wanted = np.asarray(windows, dtype=np.int64)
        rows = self.features[wanted]
        for place in np.flatnonzero(self._unread[wanted]).tolist():
            if self._checks is not None and zlib.crc32(rows[place].tobytes()) != self._checks[wanted[place]]:
                raise ValueError(
                    f"the features of window {wanted[place]} in {self.folder} are not what was written, as after a "
                    "fault of the disk: delete the folder, and they are made again"
                )
        self._unread[wanted] = False
        return torch.from_numpy(rows).to(self.dtype)

    @staticmethod
    def place(index: WindowIndex, root: Path, model: str, camera: str, size: tuple[int, int] | None = None) -> Path:
        """Returns the folder of these features, whether they are there or not; see ``build``."""
        return Path(root) / f"features-{digest(['features', VERSION, windows_key(index, camera, size), model])}"

    @classmethod
    def build(
        cls,
        index: WindowIndex,
        root: Path,
        see: See,
        *,
        model: str,
        camera: str,
        size: tuple[int, int] | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
        latents: bool = False,
    ) -> FeatureCache:
        """Returns the features of every window of ``index``, making what is not on disk yet.

        A build that was killed goes on after the last batch that reached the disk.

        Args:
            index: its windows' last context frames are looked at, with their episodes' sentences.
            root: the folder of caches; one is made in it.
            see: frames and sentences to features, a pure function of each sample; called with at most ``batch_size``.
            model: a fingerprint that changes with the weights and settings of all that ``see`` consults.
            camera: the dataset's name of it.
            size: height and width, for a dataset that is not cached at the right size.
            batch_size: windows a call.
            progress: called with windows done and to be done.
            latents: ``see`` is given the latents of those frames in place of the frames.

        Raises:
            OSError: the disk has no room; what was made so far is kept for the next try.
            ValueError: the model has no fingerprint, or ``see`` returned what are no features, or too large ones.
        """
        if not model or batch_size < 1:
            raise ValueError(
                f"model {model!r}, batch_size {batch_size}: wanted a fingerprint, without which a cache could not tell "
                "when the model changes, and at least 1 window a call"
            )
        final = cls.place(index, root, model, camera, size)
        if not final.exists():
            with locked(final):
                if not final.exists():
                    names = {"windows": windows_key(index, camera, size), "model": model}
                    _Filler(index, see, camera, size, latents).fill(Draft(final), batch_size, names, progress)
        return cls(final)


class _Filler:
    def __init__(self, index: WindowIndex, see: See, camera: str, size: tuple[int, int] | None, latents: bool) -> None:
        self.index, self.see, self.camera, self.size, self.latents = index, see, camera, size, latents
        self.dtype = ""

    def fill(self, draft: Draft, batch_size: int, names: dict[str, Any], progress: Progress | None) -> None:
        what = f"the feature cache of {self.index.dataset.name!r}"
        total = len(self.index)
        shape = fill_rows(draft, "features.npy", total, batch_size, self._seen, what, progress, _WAY_OUT)
        rows = open_array(draft.folder / "features.npy", shape)
        np.save(draft.folder / _CHECKS, np.array([zlib.crc32(row.tobytes()) for row in rows], dtype=np.uint32))
        synced(draft.folder / _CHECKS)
        draft.finish({"kind": "features", "version": VERSION, **names, "shape": shape, "dtype": self.dtype})

    @torch.inference_mode()
    def _seen(self, windows: range) -> Float16[np.ndarray, "b t n d"]:
        context, episodes = self.index.config.context, self.index.dataset.episodes
        if self.latents:
            shown = read_latents(self.index, windows, self.camera, [0] * len(windows), "mean")
        else:
            shown = self.index.read(windows, self.camera, self.size)
        shown = shown[:, context - 1 : context]
        features = self.see(shown, [episodes[self.index.locate(window)[0]].text for window in windows])
        self.dtype = str(features.dtype).removeprefix("torch.")
        if features.ndim != 4 or len(features) != len(shown) or self.dtype not in _DTYPES:
            raise ValueError(
                f"see made {features.dtype} {tuple(features.shape)} of {tuple(shown.shape)}; wanted features "
                f"({len(shown)}, t, n, d) in {', '.join(_DTYPES)}"
            )
        half = features.to("cpu", torch.float16)
        if not half.isfinite().all():
            raise ValueError(
                f"features of windows {windows.start} to {windows.stop - 1} reach {float(features.abs().max()):.3g}, "
                "and float16 holds 65504: train without a cache of features"
            )
        return half.numpy()
