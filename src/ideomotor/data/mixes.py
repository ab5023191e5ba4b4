"""The named mixes of the iVideoGPT release: which data sets, in which shares, at which pace, seen by which camera."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ideomotor.data.formats import frame_lists, npz
from ideomotor.data.mixture import Source
from ideomotor.data.segments import SegmentWindow
from ideomotor.data.windows import PacedWindow, WindowConfig
from ideomotor.types import Dataset

_RLDS = "_converted_externally_to_rlds"
SOMETHING = "sthsth"
"""Something-Something V2: folders of pictures and a list, where all others are npz episodes."""


class Share(NamedTuple):
    """A data set's part in a mix: its weight, the frames of a recording from one frame to the next, and its camera."""

    dataset: str
    weight: float
    stride: int
    camera: str


_SMALL = (
    "taco_play",
    "jaco_play",
    "roboturk",
    "viola",
    "toto",
    "columbia_cairlab_pusht_real",
    f"stanford_kuka_multimodal_dataset{_RLDS}",
    f"stanford_hydra_dataset{_RLDS}",
    f"austin_buds_dataset{_RLDS}",
    f"nyu_franka_play_dataset{_RLDS}",
    f"furniture_bench_dataset{_RLDS}",
    f"ucsd_kitchen_dataset{_RLDS}",
    f"ucsd_pick_and_place_dataset{_RLDS}",
    f"austin_sailor_dataset{_RLDS}",
    f"utokyo_pr2_tabletop_manipulation{_RLDS}",
    f"utokyo_xarm_pick_and_place{_RLDS}",
    f"utokyo_xarm_bimanual{_RLDS}",
    f"kaist_nonprehensile{_RLDS}",
    f"dlr_sara_pour{_RLDS}",
    f"dlr_sara_grid_clamp{_RLDS}",
    f"dlr_edan_shared_control{_RLDS}",
    f"asu_table_top{_RLDS}",
    "uiuc_d3field1",
    "uiuc_d3field2",
    "uiuc_d3field3",
    "uiuc_d3field4",
    "utaustin_mutex",
    "berkeley_fanuc_manipulation",
    "cmu_playing_with_food",
    "cmu_play_fusion",
    "cmu_stretch",
)

_SELECT = (
    ("fractal20220817_data", 0.15),
    ("kuka", 0.1),
    ("bridge", 0.15),
    ("bc_z", 0.15),
    ("robo_net", 0.15),
    ("language_table", 0.05),
    (f"stanford_mask_vit{_RLDS}", 0.05),
    *((name, 0.2 / len(_SMALL)) for name in _SMALL),
)

_RTX = (
    ("fractal20220817_data", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 2.0),
    ("berkeley_cable_routing", 3.0),
    ("roboturk", 1.0),
    ("nyu_door_opening_surprising_effectiveness", 5.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 1.0),
    ("toto", 1.0),
)

_RTX_FRANKA = (
    *_RTX,
    ("taco_play", 1.0),
    ("berkeley_cable_routing", 1.0),
    ("viola", 1.0),
    ("toto", 1.0),
    (f"stanford_hydra_dataset{_RLDS}", 1.0),
    (f"austin_buds_dataset{_RLDS}", 3.0),
    (f"nyu_franka_play_dataset{_RLDS}", 3.0),
    (f"maniskill_dataset{_RLDS}", 0.1),
    (f"furniture_bench_dataset{_RLDS}", 0.1),
    (f"cmu_franka_exploration_dataset{_RLDS}", 5.0),
    (f"austin_sailor_dataset{_RLDS}", 1.0),
    (f"austin_sirius_dataset{_RLDS}", 1.0),
    (f"berkeley_rpt{_RLDS}", 1.0),
    (f"kaist_nonprehensile{_RLDS}", 3.0),
    (f"stanford_robocook{_RLDS}", 1.0),
    (f"iamlab_cmu_pickup_insert{_RLDS}", 1.0),
    ("utaustin_mutex", 1.0),
    ("cmu_play_fusion", 1.0),
)

_OXE_MAGIC_SOUP = (
    ("fractal20220817_data", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 1.0),
    ("berkeley_cable_routing", 1.0),
    ("roboturk", 2.0),
    ("nyu_door_opening_surprising_effectiveness", 1.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 2.0),
    ("toto", 1.0),
    ("language_table", 0.1),
    (f"stanford_hydra_dataset{_RLDS}", 2.0),
    (f"austin_buds_dataset{_RLDS}", 1.0),
    (f"nyu_franka_play_dataset{_RLDS}", 3.0),
    (f"furniture_bench_dataset{_RLDS}", 0.1),
    (f"ucsd_kitchen_dataset{_RLDS}", 2.0),
    (f"austin_sailor_dataset{_RLDS}", 1.0),
    (f"austin_sirius_dataset{_RLDS}", 1.0),
    ("bc_z", 0.2),
    (f"dlr_edan_shared_control{_RLDS}", 1.0),
    (f"iamlab_cmu_pickup_insert{_RLDS}", 1.0),
    ("utaustin_mutex", 1.0),
    ("berkeley_fanuc_manipulation", 2.0),
    ("cmu_stretch", 1.0),
)

STRIDES = {
    f"asu_table_top{_RLDS}": 4,
    f"austin_buds_dataset{_RLDS}": 7,
    f"austin_sailor_dataset{_RLDS}": 7,
    "bc_z": 3,
    "berkeley_cable_routing": 3,
    "berkeley_fanuc_manipulation": 3,
    "bridge": 2,
    "cmu_play_fusion": 2,
    "cmu_playing_with_food": 3,
    "cmu_stretch": 3,
    "columbia_cairlab_pusht_real": 3,
    f"dlr_edan_shared_control{_RLDS}": 2,
    f"dlr_sara_grid_clamp{_RLDS}": 3,
    f"dlr_sara_pour{_RLDS}": 3,
    f"furniture_bench_dataset{_RLDS}": 3,
    f"iamlab_cmu_pickup_insert{_RLDS}": 7,
    "jaco_play": 3,
    f"kaist_nonprehensile{_RLDS}": 3,
    "kuka": 3,
    "language_table": 3,
    f"maniskill_dataset{_RLDS}": 7,
    "roboturk": 3,
    f"stanford_hydra_dataset{_RLDS}": 3,
    f"stanford_kuka_multimodal_dataset{_RLDS}": 7,
    "taco_play": 5,
    "toto": 10,
    "utaustin_mutex": 7,
    f"utokyo_pr2_tabletop_manipulation{_RLDS}": 3,
    f"utokyo_xarm_bimanual{_RLDS}": 3,
    f"utokyo_xarm_pick_and_place{_RLDS}": 3,
    "viola": 7,
}
"""Frames of a recording from one frame to the next: it brings all sets near the 3 Hz of fractal. 1 where not named."""

CAMERAS = {
    "bair_robot_pushing": "aux1_image",
    "berkeley_autolab_ur5": "hand_image",
    f"berkeley_rpt{_RLDS}": "hand_image",
    "language_table": "rgb",
    "roboturk": "front_rgb",
    SOMETHING: frame_lists.CAMERA,
    "taco_play": "rgb_static",
    "uiuc_d3field1": "image_1",
    "uiuc_d3field2": "image_2",
    "uiuc_d3field3": "image_3",
    "uiuc_d3field4": "image_4",
    "viola": "agentview_rgb",
}
"""The camera, which is the key of an npz file; "image" where not named."""
_MIXES: dict[str, tuple[tuple[str, float], ...]] = {
    "frac": (("fractal20220817_data", 1.0),),
    "robonet": (("robo_net", 1.0),),
    "tfds_robonet": (("tfds_robonet", 1.0),),
    "bair": (("bair_robot_pushing", 1.0),),
    "vp2_robodesk": (("vp2_robodesk", 1.0),),
    "vp2_robosuite": (("vp2_robosuite", 1.0),),
    "select": _SELECT,
    "select_sthsth": (*((name, 0.85 * weight) for name, weight in _SELECT), (SOMETHING, 0.15)),
    "sthsth": ((SOMETHING, 1.0),),
    "rtx": _RTX,
    "rtx_franka": _RTX_FRANKA,
    "oxe_magic_soup": _OXE_MAGIC_SOUP,
    "debug": (("cmu_stretch", 1.0),),
}
MIXES = {
    name: tuple(Share(part, weight, STRIDES.get(part, 1), CAMERAS.get(part, "image")) for part, weight in parts)
    for name, parts in _MIXES.items()
}
"""Every mix by name. ``rtx_franka`` lists four sets twice, as the release does; their weights add up."""


def mix_sources(
    name: str,
    root: Path,
    window: PacedWindow | None = None,
    size: tuple[int, int] | None = None,
    held_out: bool = False,
    left_out: Mapping[str, Collection[str]] | None = None,
) -> list[Source]:
    """Returns the sources of a named mix, whose data sets are folders of ``root`` called as in the mix.

    Args:
        name: of the mix.
        root: the folder of data sets.
        window: of every source; its stride is replaced by that of each data set.
        size: height and width of the frames.
        held_out: return the episodes that the release validates on, see ``every_hundredth``, instead of the others.
        left_out: ids of episodes that take no part, by data set.

    Raises:
        ValueError: there is no such mix, or data sets are missing or empty; all of them are named.
    """
    shape, sources = window or WindowConfig(), []
    for share in mix_shares(name, root):
        dataset, lost = released_split(open_part(root / share.dataset))[held_out], (left_out or {})
        kept = tuple(episode for episode in dataset.episodes if episode.id not in lost.get(share.dataset, ()))
        own = replace(shape, stride=share.stride)
        dataset = whole_segments(replace(dataset, episodes=kept), own)
        if not dataset.episodes:
            raise ValueError(f"no episode of {dataset.path} is left for {'validation' if held_out else 'training'}")
        sources.append(Source(dataset, share.weight, own, {"main": share.camera}, size))
    return sources


def mix_shares(name: str, root: Path) -> list[Share]:
    """Returns the parts of a named mix, each once: weights of a set that it lists twice are added up.

    Raises:
        ValueError: there is no such mix, or data sets are missing in ``root``; all of them are named.
    """
    if name not in MIXES:
        raise ValueError(f"there is no mix {name!r} (mixes: {', '.join(MIXES)})")
    weights: dict[str, float] = {}
    for share in MIXES[name]:
        weights[share.dataset] = weights.get(share.dataset, 0.0) + share.weight
    missing = [part for part in weights if not (root / part).is_dir()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(weights)} data sets of the mix {name!r} are not in {root}: {', '.join(missing)}. "
            "Convert them (`ideomotor data convert --help`), or choose a smaller mix"
        )
    named = {share.dataset: share for share in MIXES[name]}
    return [share._replace(weight=weights[part]) for part, share in named.items()]


def open_part(folder: Path) -> Dataset:
    """Returns a data set of a mix; of Something-Something, what the release learns from alone (``KEPT_LABELS``)."""
    return frame_lists.read(folder, labels=frame_lists.KEPT_LABELS) if folder.name == SOMETHING else npz.read(folder)


def whole_segments(dataset: Dataset, window: PacedWindow) -> Dataset:
    """Returns a part of a mix, of Something-Something without what is shorter than a segment, as in the release."""
    if dataset.path.name != SOMETHING or not isinstance(window, SegmentWindow):
        return dataset
    whole = tuple(e for e in dataset.episodes if e.length >= window.stretch * window.stride)
    return replace(dataset, episodes=whole)


def released_split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Returns the episodes to learn from and those held out: as folders say, or ``every_hundredth`` where none do."""
    sides = {episode.id: _side(episode.id) for episode in dataset.episodes}
    if not any(sides.values()):
        return every_hundredth(dataset)
    train, held = (
        tuple(episode for episode in dataset.episodes if sides[episode.id] == side) for side in ("train", "validation")
    )
    return replace(dataset, episodes=train), replace(dataset, episodes=held)


def every_hundredth(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Returns the episodes to learn from and those held out as the release splits: each hundredth, from the first on.

    It counts file names in order. ``windows.split`` depends on the ids alone and shares tasks out evenly: prefer it
    where the release's numbers are not at stake.
    """
    ordered = sorted(dataset.episodes, key=lambda episode: episode.id)
    train = tuple(episode for number, episode in enumerate(ordered) if number % 100)
    return replace(dataset, episodes=train), replace(dataset, episodes=tuple(ordered[::100]))


def _side(name: str) -> str:
    """What the folders or the list in an episode's id say of its split; "" where they say nothing."""
    for folder in name.split("/")[:-1]:
        if folder.startswith("train"):
            return "train"
        if folder.startswith(("val", "test")):
            return "validation"
    return ""
