"""Open X-Embodiment: RLDS episodes as TensorFlow Datasets keeps them, ``NAME-SPLIT.tfrecord-00000-of-00010``.

Such a record is an ``Example`` with one entry a step under names like ``steps/observation/image`` (JPEG or PNG bytes)
and ``steps/action`` (all rows in one flat list). An episode becomes ``SPLIT_eps_NNNNNNNN.npz`` with:

- each colour camera under its own name, e.g. ``image``; pictures as libav decodes them;
- ``action (t, a)``, where an action has several parts these side by side, the names in order, in ``action_parts``
  each as "name:width"; true and false become 1 and 0;
- ``state (t, s)`` from ``steps/observation/state``, and ``text``, the instruction of the first step.

The release of iVideoGPT keeps the frames of one camera and nothing else. Its numbers follow the order in which
TensorFlow Datasets interleaves files; ours follow the files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ideomotor.data.conversion.tfrecord import Feature, Record, parse_example, records
from ideomotor.data.conversion.writing import Recording
from ideomotor.data.pictures import decode_picture

_NAME = re.compile(r".+-([^-]+)\.tfrecord-(\d+)-of-(\d+)")
_TEXTS = ("language_instruction", "observation/natural_language_instruction", "natural_language_instruction")
_OBSERVATION, _ACTION = "steps/observation/", "steps/action"


def recordings(source: Path, cameras: Collection[str] = ()) -> Iterator[Recording]:
    """Yields the episodes of a data set's version folder (or the one version folder in it), file by file.

    Args:
        source: the folder that holds the TFRecord files, e.g. ``bridge/0.1.0``, or the one above.
        cameras: names of the pictures to keep; every colour camera by default.

    Raises:
        ValueError: there are no such files, files are missing, or one is damaged in its frame.
    """
    files = {file: found for file in source.rglob("*.tfrecord-*") if (found := _NAME.fullmatch(file.name))}
    if not files:
        raise ValueError(f"{source} holds no file named NAME-SPLIT.tfrecord-00000-of-00010: give a version folder")
    folders = {file.parent for file in files}
    if len(folders) > 1:
        raise ValueError(f"{source} holds {len(folders)} data sets ({', '.join(map(str, sorted(folders)))}): give one")
    present = Counter((found[1], int(found[3])) for found in files.values())
    for (split, wanted), count in present.items():
        if count != wanted:
            raise ValueError(f"{source} holds {count} of the {wanted} files of split {split!r}: fetch the others")
    numbers: Counter[str] = Counter()
    for file in sorted(files):
        split = files[file][1]
        for record in records(file):
            yield Recording(f"{split}_eps_{numbers[split]:08d}", partial(_arrays, record, tuple(cameras)))
            numbers[split] += 1


def _arrays(record: Record, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    features = parse_example(record.read())
    pictures = {
        name.removeprefix(_OBSERVATION): values
        for name, values in features.items()
        if name.startswith(_OBSERVATION) and isinstance(values, list) and values and _in_colour(values[0])
    }
    wanted = cameras or tuple(sorted(pictures))
    missing = [camera for camera in wanted if camera not in pictures]
    if missing or not wanted:
        there = ", ".join(sorted(pictures)) or "none"
        raise ValueError(f"has no camera {missing[0]!r}; it has {there}" if missing else "has no colour camera")
    arrays = {camera: np.stack([decode_picture(data, camera) for data in pictures[camera]]) for camera in wanted}
    steps = len(pictures[wanted[0]])
    return arrays | _tables(features, steps) | _text(features)


def _tables(features: dict[str, Feature], steps: int) -> dict[str, np.ndarray]:
    arrays = {}
    parts = {
        name.removeprefix(_ACTION).lstrip("/") or "action": _rows(name, values, steps)
        for name, values in sorted(features.items())
        if (name == _ACTION or name.startswith(f"{_ACTION}/")) and isinstance(values, np.ndarray)
    }
    if parts:
        arrays["action"] = np.concatenate(list(parts.values()), axis=1)
    if len(parts) > 1:
        arrays["action_parts"] = np.array([f"{name}:{rows.shape[1]}" for name, rows in parts.items()])
    state = features.get(f"{_OBSERVATION}state")
    if isinstance(state, np.ndarray):
        arrays["state"] = _rows("state", state, steps)
    return arrays


def _rows(name: str, values: np.ndarray, steps: int) -> np.ndarray:
    if not len(values) or len(values) % steps:
        raise ValueError(f"has {len(values)} numbers of {name} for {steps} steps; wanted as many each step")
    return values.reshape(steps, -1).astype(np.float32)


def _text(features: dict[str, Feature]) -> dict[str, np.ndarray]:
    for name in _TEXTS:
        values = features.get(f"steps/{name}")
        if isinstance(values, list) and values:
            return {"text": np.array(values[0].decode(errors="replace"))}
    codes = features.get(f"{_OBSERVATION}instruction")  # Language Table: 512 character codes a step, zeros at the end
    if isinstance(codes, np.ndarray) and len(codes) >= 512:
        first = codes[:512]
        return {"text": np.array("".join(chr(code) for code in first[first > 0].astype(int)))}
    return {}


def _in_colour(data: bytes) -> bool:
    """Whether these are a JPEG, or a PNG of 8 bits that is not grey (depth is kept as grey PNG)."""
    if data.startswith(b"\x89PNG"):
        return len(data) > 25 and data[24] == 8 and data[25] not in (0, 4)
    return data.startswith(b"\xff\xd8\xff")
