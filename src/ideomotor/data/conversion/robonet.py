"""RoboNet: one HDF5 file a trajectory (version 3), its first camera as mp4 or JPEG.

It becomes ``image (t, h, w, 3)`` and ``action (t - 1, 5)`` in ``{train,test}/NAME.npz``. Actions are brought to width 5
as in RoboNet's own loader: shorter ones are filled with zeros, longer ones cut, and for the "autograsp" robots, which
close the gripper by themselves, the fifth is what the gripper did: its upper or lower bound.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ideomotor.data.conversion.writing import ODD, Recording
from ideomotor.data.pictures import decode_movie, decode_picture
from ideomotor.extras import require

WIDTH = 5


def recordings(source: Path, test: Collection[str] = ()) -> Iterator[Recording]:
    """Yields the trajectories below a folder.

    Args:
        source: the folder of HDF5 files.
        test: names of the files held out for testing, with suffix or without; all others are for training.

    Raises:
        ValueError: there is no such file.
        ModuleNotFoundError: h5py is not installed.
    """
    require("h5py", "convert")
    files = sorted(source.rglob("*.hdf5"))
    if not files:
        raise ValueError(f"{source} holds no .hdf5 file: give the folder of RoboNet's trajectories")
    held_out = {name.removesuffix(".hdf5") for name in test}
    for file in files:
        side = "test" if file.stem in held_out else "train"
        yield Recording(f"{side}/{file.stem}", partial(_arrays, file))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    h5py = require("h5py", "convert")
    try:
        with h5py.File(io.BytesIO(path.read_bytes()), "r") as file:
            pictures, actions = _pictures(file), _actions(file)
            count = min(len(pictures), len(actions) + 1, len(file["env/state"]))
    except ODD as error:
        raise ValueError(f"is no trajectory of RoboNet, or damaged ({error})") from error
    if count < 2:
        raise ValueError(f"has {count} frames with a state and an action between; wanted at least 2")
    return {"image": pictures[:count], "action": actions[: count - 1]}


def _pictures(file: Any) -> np.ndarray:
    camera, encoding = file["env/cam0_video"], _word(file["env"].attrs["cam_encoding"])
    if encoding == "mp4":
        frames = decode_movie(camera["frames"][()].tobytes(), "cam0_video")
        order = _word(camera["frames"].attrs["image_format"])
    elif encoding == "jpg":
        names = [f"frame{number}" for number in range(len(camera))]
        frames = np.stack([decode_picture(camera[name][()].tobytes(), name) for name in names])
        order = _word(camera["frame0"].attrs["image_format"])
    else:
        raise ValueError(f"has pictures in {encoding!r}; wanted mp4 or jpg")
    if order not in ("RGB", "BGR"):
        raise ValueError(f"has colours in the order {order!r}; wanted RGB or BGR")
    return np.ascontiguousarray(frames[..., ::-1]) if order == "BGR" else frames


def _actions(file: Any) -> np.ndarray:
    actions = np.asarray(file["policy/actions"][()], np.float32)
    if actions.ndim != 2 or not actions.size:
        raise ValueError(f"has actions of shape {actions.shape}; wanted a row of numbers a step")
    count, width = actions.shape
    if width == WIDTH - 1 and _word(file["metadata"].attrs.get("primitives", "")) == "autograsp":
        low, high = (_bound(file, name) for name in ("low_bound", "high_bound"))
        gripper = np.asarray(file["env/state"][1 : count + 1, -1], np.float32)
        did = np.full((count, 1), low, np.float32)
        did[: len(gripper), 0] = np.where(gripper > (low + high) / 2, high, low)
        return np.concatenate([actions, did], axis=1)
    return np.pad(actions, ((0, 0), (0, max(WIDTH - width, 0))))[:, :WIDTH]


def _bound(file: Any, name: str) -> float:
    """A bound of the gripper: the last of its numbers."""
    for group in ("metadata", "misc", "env"):
        if group in file and name in file[group].attrs:
            return float(np.ravel(file[group].attrs[name])[-1])
        if group in file and name in file[group]:
            return float(np.ravel(file[group][name][()])[-1])
    raise ValueError(f"closes its gripper by itself, and does not say its {name}")


def _word(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
