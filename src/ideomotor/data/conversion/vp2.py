"""VP2: many demonstrations an HDF5 file, as robomimic keeps them, of RoboDesk and Robosuite.

A file holds ``mask/train`` and ``mask/valid``, lists of names, and for each name ``data/NAME/actions`` and
``data/NAME/obs/CAMERA``. A demonstration becomes ``image`` and ``action`` in ``FOLDER/{train,validation}/
{train,validation}_eps_demo_NNNNN.npz``; RoboDesk's two files a task, told apart by the noise in their names, go to
``train_noise1``, ``train_noise2`` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ideomotor.data.conversion.writing import ODD, Recording
from ideomotor.extras import require

CAMERAS = ("camera_image", "agentview_shift_2_image")
"""RoboDesk's and Robosuite's."""

_SIDES = {"train": "train", "valid": "validation"}
_NOISES = {"noise_0.1": "_noise1", "noise_0.2": "_noise2"}


def recordings(source: Path, camera: str | None = None) -> Iterator[Recording]:
    """Yields the demonstrations below a folder.

    Args:
        source: the folder of HDF5 files.
        camera: its name among the observations; by default whichever of ``CAMERAS`` there is.

    Raises:
        ValueError: there is no such file, or one lacks its lists.
        ModuleNotFoundError: h5py is not installed.
    """
    h5py = require("h5py", "convert")
    files = sorted(source.rglob("*.hdf5"))
    if not files:
        raise ValueError(f"{source} holds no .hdf5 file: give the folder of VP2's demonstrations")
    for path in files:
        noise = next((end for name, end in _NOISES.items() if name in path.name or name in path.parent.name), "")
        for mask, side in _SIDES.items():
            try:
                with h5py.File(path, "r") as file:
                    names = [name.decode() for name in file[f"mask/{mask}"][()]]
            except ODD as error:
                raise ValueError(f"{path} is no file of demonstrations, or damaged ({error})") from error
            folder = path.parent.relative_to(source) / f"{side}{noise}"
            for name in names:
                ended = f"{name[:5]}{name[5:].zfill(5)}"
                yield Recording((folder / f"{side}_eps_{ended}").as_posix(), partial(_arrays, path, name, camera))


def _arrays(path: Path, name: str, camera: str | None) -> dict[str, np.ndarray]:
    h5py = require("h5py", "convert")
    try:
        with h5py.File(path, "r") as file:
            seen = file[f"data/{name}/obs"]
            wanted = camera or next((known for known in CAMERAS if known in seen), None)
            if wanted is None or wanted not in seen:
                raise ValueError(f"has no camera {wanted or ' or '.join(CAMERAS)}; it has {', '.join(seen)}")
            return {"image": seen[wanted][()], "action": np.asarray(file[f"data/{name}/actions"][()], np.float32)}
    except ODD as error:
        raise ValueError(f"is damaged ({error})") from error
