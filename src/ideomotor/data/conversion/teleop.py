"""Teleoperation recordings: one HDF5 file an episode, as VPP's own robot and the family of ALOHA and ACT write them.

Every file has ``observations/images/CAMERA`` (``t h w 3`` bytes, or a row of JPEG or PNG bytes a picture, filled up
with zeros), ``action (t, a)``, and as the robot's state either of:

- VPP's two arms with hands: ``observations/arm_end_pose`` (14: xyz and quaternion of the right arm, then of the left)
  and ``observations/hand_qpos`` (24: right, then left). They are put in the order of the commands: right arm 7, right
  hand 12, left arm 7, left hand 12, the layout of the robot ``bimanual``;
- ALOHA's: ``observations/qpos``, as it is.

The sentence is ``text`` or ``language_raw``, of several the first. Every ``every``th row is kept, pictures, states and
commands alike: recordings of 50 rows a second become episodes of 10. What else a file holds is passed over: waist,
neck, joints of the arms, velocities, the base of a mobile robot.

Source:
    ``step1_prepare_latent.py`` of VPP's release, for its fields and their order; ``record_sim_episodes.py`` of ACT.
    The release replaces every sentence by one of its own and keeps one phase of five.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from ideomotor.data.conversion.writing import ODD, Recording
from ideomotor.data.pictures import decode_picture
from ideomotor.data.transforms import resize
from ideomotor.extras import require
from ideomotor.files import write_text

NOTE = "teleop.json"
"""Holds, in the folder of the episodes, what they were made with."""

_SUFFIXES = (".hdf5", ".h5")
_IMAGES, _ACTION, _QPOS = "observations/images", "action", "observations/qpos"
_POSE, _HANDS = "observations/arm_end_pose", "observations/hand_qpos"
_WIDTHS = {_POSE: 14, _HANDS: 24, _ACTION: 38}  # of VPP's robot
_STATES = ((_POSE, _HANDS), (_QPOS,))
_TEXTS = ("text", "language_raw")
_CHUNKS = 64 << 20  # bytes of unpacked chunks that HDF5 keeps: pictures are read one by one


@dataclass(frozen=True, kw_only=True)
class Teleop:
    """How teleoperation recordings become episodes."""

    every: int = 5
    """teleop: each how many rows one is kept; 5 makes 10 a second of 50."""
    phases: int = 1
    """teleop: episodes made of one recording, from its first row on, from its second, and so on (VPP's release speaks
    of 5, and makes one). They are held out together."""
    size: int = 256
    """teleop: larger pictures are shrunk until their shorter side has so many pixels; 0 keeps them as recorded."""
    colors: Literal["rgb", "bgr"] = "rgb"
    """teleop: order of colours in the recorder's arrays; where these are packed as JPEG, in what OpenCV unpacks. Give
    bgr where red and blue come out swapped."""
    text: str | None = None
    """teleop: the sentence of recordings that hold none; a recorded one is kept."""

    def __post_init__(self) -> None:
        if not 1 <= self.phases <= self.every or self.size < 0:
            raise ValueError(
                f"every {self.every}, phases {self.phases} and size {self.size} came; wanted 1 or more for the first, "
                "as many phases or fewer, and a size of 0 or more"
            )
        if self.text is not None and not self.text.strip():
            raise ValueError("--text is blank: give the sentence of recordings that hold none, or leave it out")

    def given(self) -> list[str]:
        """Returns the names of what differs from the defaults."""
        plain = asdict(Teleop())
        return [name for name, value in asdict(self).items() if value != plain[name]]


class Cameras(NamedTuple):
    """Which cameras are kept, and a line that says where that is from, and what is passed over there."""

    names: tuple[str, ...]
    told: str


def first_cameras(source: Path) -> Cameras:
    """Returns the colour cameras of the first recording in a folder and below that can be opened and has any.

    Raises:
        ValueError: there is no recording.
        ModuleNotFoundError: h5py is not installed.
    """
    for file in _files(source):
        colour, others = _cameras_of(file)
        if colour:
            told = f"cameras as in {file.relative_to(source)}: {', '.join(colour)}"
            return Cameras(colour, f"{told}; passed over there: {', '.join(others)}" if others else told)
    return Cameras((), "no recording has a colour camera that can be read")


def recordings(source: Path, options: Teleop, cameras: Collection[str] = ()) -> list[Recording]:
    """Returns the episodes that the recordings in a folder and below give, named by their files.

    Args:
        source: the folder.
        options: how they are made.
        cameras: those to keep; by default ``first_cameras``.

    Raises:
        ValueError: there is no such file, or two would be written under one name.
        ModuleNotFoundError: h5py is not installed.
    """
    wanted = tuple(cameras) or first_cameras(source).names
    found: dict[str, Recording] = {}
    for file in _files(source):
        name = file.relative_to(source).with_suffix("").as_posix()
        for phase in range(options.phases):
            ended = f"{name}_phase{phase}" if options.phases > 1 else name
            if ended in found:
                raise ValueError(
                    f"two recordings in {source} would be written as {ended}.npz, {file.name} among them: rename one, "
                    "or convert their folders one by one"
                )
            found[ended] = Recording(ended, partial(_arrays, file, name, wanted, phase, options))
    return list(found.values())


def _files(source: Path) -> list[Path]:
    require("h5py", "convert")
    below = (file for file in source.rglob("*") if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."))
    files = sorted(file for file in below if file.is_file())
    if not files:
        raise ValueError(f"{source} holds no {' or '.join(_SUFFIXES)} file: give the folder of the recordings")
    return files


def note(out: Path, options: Teleop, cameras: Collection[str] = ()) -> None:
    """Notes in the folder of the episodes what they are made with, all but the text, which each has for itself. What
    is noted where there is no episode binds nothing.

    Raises:
        ValueError: those that are there were made with something else.
    """
    path, now = out / NOTE, {**asdict(options), "cameras": list(cameras)}
    del now["text"]
    if not path.exists() or not any(out.rglob("*.npz")):
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now, indent=2) + "\n")
        return
    try:
        there = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not say what the episodes were made with ({error}): give another OUT") from error
    changed = [f"{name} {there.get(name)} -> {value}" for name, value in now.items() if there.get(name) != value]
    if changed:
        raise ValueError(
            f"the episodes in {out} were made with other options (there -> now): {'; '.join(changed)}. Give the same, "
            "or another OUT"
        )


def _cameras_of(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The colour cameras of a recording, and what is beside them; none where it cannot be read, which is said when it
    is its turn.
    """
    colour, others = list[str](), list[str]()
    try:
        with _opened(path) as file:
            for name, rows in file[_IMAGES].items():
                if _packed(rows) is not None:
                    colour.append(name)
                else:
                    others.append(f"{name} ({_form(rows)})")
    except (*ODD, ValueError):
        return (), ()
    return tuple(colour), tuple(others)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = require("h5py", "convert")
    with h5py.File(path, "r", rdcc_nbytes=_CHUNKS) as file:
        yield file


def _arrays(path: Path, name: str, cameras: Collection[str], phase: int, options: Teleop) -> dict[str, np.ndarray]:
    try:
        with _opened(path) as file:
            pictures, tables = _cameras(file, cameras), _tables(file)
            length = _length({**pictures, **tables})
            kept = range(phase, length, options.every)
            if len(kept) < 2:
                raise ValueError(
                    f"has {length} rows, of which every {options.every}th from row {phase} on leaves {len(kept)}; "
                    "wanted at least 2: take a smaller --every, or fewer --phases"
                )
            text = _text(file, options.text)
            numbers = {key: _numbers(key, rows)[phase :: options.every] for key, rows in tables.items()}
            arrays = {camera: _pictures(rows, camera, kept, options) for camera, rows in pictures.items()}
    except (*ODD, RuntimeError) as error:
        raise ValueError(
            f"is no recording in HDF5, cut short or damaged ({error}): copy it again from where it was recorded"
        ) from error
    parts = {"recording": np.array(name)} if options.phases > 1 else {}
    return arrays | _in_order(numbers) | {"text": np.array(text)} | parts


def _cameras(file: Any, wanted: Collection[str]) -> dict[str, Any]:
    there = file.get(_IMAGES, {})
    missing = [camera for camera in wanted if camera not in there]
    if missing or not wanted:
        what = f"no camera {', '.join(map(repr, missing))}" if missing else "no colour camera"
        raise ValueError(
            f"has {what} among {_IMAGES}; it has {', '.join(there) or 'none'}: name with --cameras what every "
            "recording has"
        )
    for camera in wanted:
        if _packed(there[camera]) is None:
            raise ValueError(
                f"has pictures of {camera} as {_form(there[camera])}; wanted uint8 (t, h, w, 3), or a row of JPEG or "
                "PNG bytes a picture: leave the camera out with --cameras"
            )
    return {camera: there[camera] for camera in wanted}


def _packed(rows: Any) -> bool | None:
    """Whether a camera's pictures are JPEG or PNG bytes; None where they are neither these nor colour pictures."""
    if not hasattr(rows, "dtype"):  # a group
        return None
    if len(rows.shape) == 4:
        return False if rows.dtype == np.uint8 and rows.shape[3] == 3 and 0 not in rows.shape[1:] else None
    in_rows = len(rows.shape) == 2 and rows.dtype == np.uint8
    return True if in_rows or (len(rows.shape) == 1 and rows.dtype.kind in "OSV") else None


def _form(rows: Any) -> str:
    return f"{rows.dtype} {rows.shape}" if hasattr(rows, "dtype") else "a group"


def _tables(file: Any) -> dict[str, Any]:
    """Commands and state, not read yet."""
    state = next((names for names in _STATES if all(name in file for name in names)), ())
    if not state or _ACTION not in file:
        there = ", ".join(name for group in (file, file.get("observations", {})) for name in group)
        raise ValueError(
            f"holds {there or 'nothing'}; wanted {_ACTION}, and {_POSE} with {_HANDS} (VPP's robot) or {_QPOS} "
            "(ALOHA's): rename what is called otherwise, or bring it to npz by a script (docs/formats/npz.md)"
        )
    tables = {name: file[name] for name in (*state, _ACTION)}
    for name, rows in tables.items():
        wanted = 0 if _QPOS in state else _WIDTHS[name]
        if not hasattr(rows, "dtype") or rows.dtype.kind not in "fiu":
            raise ValueError(f"has {name} as {_form(rows)}; wanted a row of numbers each")
        if len(rows.shape) != 2 or not rows.shape[1] or wanted not in (0, rows.shape[1]):
            whose = f"(t, {wanted}), right before left, as VPP's robot has it" if wanted else "a row of numbers each"
            raise ValueError(f"has {name} of shape {rows.shape}; wanted {whose}")
    return tables


def _length(rows: dict[str, Any]) -> int:
    lengths = {name: table.shape[0] for name, table in rows.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise ValueError(f"has rows that do not belong together: {shown}; wanted as many of each: cut it to the same")
    return next(iter(lengths.values()))


def _numbers(name: str, rows: Any) -> Float32[np.ndarray, "t width"]:
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused as such
        return np.asarray(rows[()], np.float32)


def _in_order(tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    action = tables[_ACTION]
    if _QPOS in tables:
        return {"action": action, "state": tables[_QPOS]}
    pose, hands = tables[_POSE], tables[_HANDS]
    state = np.concatenate([pose[:, :7], hands[:, :12], pose[:, 7:], hands[:, 12:]], axis=1)
    return {"action": action, "state": state}


def _text(file: Any, other: str | None) -> str:
    """The recorded sentence, else the one that was given."""
    for name in _TEXTS:
        if name in file:
            words = np.ravel(file[name][()])
            first = words[0] if len(words) else ""
            said = first.decode(errors="replace") if isinstance(first, bytes) else str(first)
            if said.strip("\0 \n\t"):
                return said.strip("\0 \n\t")
    if other is None:
        raise ValueError(f"has no sentence ({' or '.join(_TEXTS)}): give one with --text")
    return other


def _pictures(rows: Any, camera: str, kept: range, options: Teleop) -> UInt8[np.ndarray, "t h w 3"]:
    """Those pictures, shrunk one by one: what is held is what is written."""
    read: Callable[[int], np.ndarray] = partial(_picture, rows, camera, options.colors)
    first = read(kept[0])
    whole = first.shape
    shown = np.empty((len(kept), *_shrunk(first, options.size).shape), np.uint8)
    for place, row in enumerate(kept):
        picture = first if place == 0 else read(row)
        if picture.shape != whole:
            raise ValueError(
                f"has a picture {picture.shape} of {camera} in row {row}, the first is {whole}: wanted one size; "
                "leave the camera out with --cameras"
            )
        shown[place] = _shrunk(picture, options.size)
    return shown


def _picture(rows: Any, camera: str, colors: str, row: int) -> UInt8[np.ndarray, "h w 3"]:
    picture = rows[row]
    if not _packed(rows):
        return picture if colors == "rgb" else picture[..., ::-1]
    data = picture if isinstance(picture, bytes) else np.asarray(picture).tobytes()
    try:
        decoded = decode_picture(data.rstrip(b"\0"), f"row {row} of {camera}")
    except ValueError as error:
        raise ValueError(f"{error}: cut the recording there, or leave the camera out with --cameras") from error
    # OpenCV packs and unpacks arrays as if they were BGR: what it returns as RGB stands swapped in the JPEG.
    return decoded[..., ::-1] if colors == "rgb" else decoded


def _shrunk(picture: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "height width 3"]:
    height, width, _ = picture.shape
    shorter = min(height, width)
    if not size or shorter <= size:
        return picture
    frame = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    smaller = resize(frame, (round(height * size / shorter), round(width * size / shorter)))
    return smaller.permute(1, 2, 0).numpy()
