"""BAIR robot pushing: TFRecord files ``{train,test}/traj_A_to_B.tfrecords`` of 30 raw pictures of two cameras a record.

Record features: ``I/image_main/encoded`` and ``I/image_aux1/encoded`` (64 x 64 x 3 bytes), ``I/action`` (4 numbers),
``I/endeffector_pos`` (3). They become ``image``, ``aux1_image``, ``action`` and ``state`` in
``{train,test}/traj_NNNNN.npz``. Pictures are uint8; the release of iVideoGPT writes int64, eight times as much.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from math import isqrt
from pathlib import Path

import numpy as np

from ideomotor.data.conversion.tfrecord import Feature, Record, parse_example, records
from ideomotor.data.conversion.writing import Recording

_CAMERAS = {"image": "image_main", "aux1_image": "image_aux1"}
_TABLES = {"action": "action", "state": "endeffector_pos"}


def recordings(source: Path) -> Iterator[Recording]:
    """Yields the trajectories below a folder, numbered as its files are named.

    Raises:
        ValueError: there is no such file, one is not named so, or one is damaged in its frame.
    """
    files = list(source.rglob("*.tfrecords"))
    if not files:
        raise ValueError(f"{source} holds no .tfrecords file: give the folder that holds train/ and test/")
    for file in sorted(files, key=lambda file: (file.parent, _first(file))):
        for number, record in enumerate(records(file), start=_first(file)):
            yield Recording(f"{file.parent.name}/traj_{number:05d}", partial(_arrays, record))


def _first(file: Path) -> int:
    found = re.fullmatch(r"traj_(\d+)_to_\d+", file.stem)
    if not found:
        raise ValueError(f"{file} is not named traj_FIRST_to_LAST.tfrecords, as the files of BAIR are")
    return int(found[1])


def _arrays(record: Record) -> dict[str, np.ndarray]:
    features = parse_example(record.read())
    steps = sum(f"{step}/image_main/encoded" in features for step in range(len(features)))
    arrays = {
        key: np.stack([_picture(features, f"{step}/{camera}/encoded") for step in range(steps)])
        for key, camera in _CAMERAS.items()
        if steps
    }
    for key, name in _TABLES.items():
        rows = [features.get(f"{step}/{name}") for step in range(steps)]
        if all(isinstance(row, np.ndarray) for row in rows) and rows:
            arrays[key] = np.stack([np.asarray(row, np.float32) for row in rows])
    return arrays


def _picture(features: dict[str, Feature], name: str) -> np.ndarray:
    found = features.get(name)
    data = found[0] if isinstance(found, list) and found else b""
    edge = isqrt(len(data) // 3)
    if not data or 3 * edge * edge != len(data):
        raise ValueError(f"has {len(data)} bytes of {name}; wanted a square picture of 3 bytes a pixel")
    return np.frombuffer(data, np.uint8).reshape(edge, edge, 3)
