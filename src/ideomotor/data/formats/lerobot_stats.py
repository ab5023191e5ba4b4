"""Statistics as LeRobotDataset v3.0 publishes them, but exact: over every frame, no sample, no averaged quantiles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Stats = Mapping[str, np.ndarray]


def column_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns min, max, mean, std, count and quantiles of an array ``t`` or ``t width``, each of shape ``width``.

    Minimum and maximum keep the kind of the column (bool and whole numbers stay so); ``count`` is the number of frames.
    """
    rows = values.reshape(len(values), -1)  # t width
    exact = rows.astype(np.float64)
    kept = exact if rows.dtype.kind == "f" else rows
    stats = {"min": kept.min(0), "max": kept.max(0), "mean": exact.mean(0), "std": exact.std(0)}
    stats["count"] = np.array([len(rows)])
    return stats | dict(zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0), strict=True))


def histogram(frames: np.ndarray) -> np.ndarray:
    """Returns how often each level 0..255 occurs per channel in uint8 frames ``t c h w``: ``c 256``.

    Histograms of episodes add up, so a dataset's statistics are exact without decoding a video again.
    """
    channels = frames.shape[1]
    return np.stack([np.bincount(frames[:, c].reshape(-1), minlength=256) for c in range(channels)])


def image_stats(counts: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Returns the statistics of a camera from its histogram ``c 256``, in 0..1, each of shape ``c 1 1``."""
    levels = np.arange(256) / 255.0
    total = counts.sum(1, keepdims=True)
    mean = (counts * levels).sum(1) / total[:, 0]
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / total[:, 0]
    seen = counts > 0
    share = counts.cumsum(1) / total  # c 256
    stats = {
        "min": levels[seen.argmax(1)],
        "max": levels[255 - seen[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([frames]),
    }
    stats |= {name: levels[(share >= quantile).argmax(1)] for name, quantile in QUANTILES.items()}
    return {name: value if name == "count" else value.reshape(-1, 1, 1) for name, value in stats.items()}
