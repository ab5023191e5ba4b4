"""The data of a stage as a named mix of the iVideoGPT release: opened, shared out and split as there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ideomotor.data.mixes import mix_shares, open_part, released_split, whole_segments
from ideomotor.data.windows import PacedWindow
from ideomotor.systems.sources import DataOptions
from ideomotor.types import Dataset


@dataclass(frozen=True, kw_only=True)
class MixOptions(DataOptions):
    """Data sets one by one, or a named mix of them."""

    data: tuple[Path, ...] = ()
    """One or more data sets: LeRobot v3, annotated JSON, npz, or a folder of videos (see `ideomotor data inspect`). Or
    else --mix."""
    mix: str | None = None
    """A mix of the iVideoGPT release in place of --data: select (Open X-Embodiment), select_sthsth (with
    Something-Something), rtx, rtx_franka, oxe_magic_soup, frac, robonet, tfds_robonet, bair, vp2_robodesk,
    vp2_robosuite, sthsth, debug. It sets weights, strides, cameras and, whatever --validation says above 0, which
    episodes are held out: by their folders, else each hundredth."""
    root: Path | None = None
    """Folder of the mix's data sets, each called as in the mix (see `ideomotor data convert`)."""

    def __post_init__(self) -> None:
        if self.mix is None:
            super().__post_init__()
        elif self.weights or self.strides or self.cameras or self.domains:
            raise ValueError(
                "a mix sets weights, strides and cameras, and names no domains: leave --weights, --strides, --cameras "
                "and --domains out"
            )

    def chosen(self) -> DataOptions:
        """Returns the data sets that are named, or those of the mix.

        Raises:
            ValueError: both or neither, a mix without its folder, or data sets of it that are missing (all are named).
        """
        if (self.mix is None) == (not self.data):
            raise ValueError("wanted data sets (--data A B) or a mix of them (--mix NAME --root FOLDER): give one")
        if (self.mix is None) != (self.root is None):
            raise ValueError("--mix NAME and --root FOLDER, which holds its data sets, go together: give both or none")
        if self.mix is None or self.root is None:
            return self
        shares = mix_shares(self.mix, self.root)
        return MixedData(
            data=tuple(self.root / share.dataset for share in shares),
            weights=tuple(share.weight for share in shares),
            strides=tuple(share.stride for share in shares),
            cameras=tuple(share.camera for share in shares),
            validation=self.validation,
            cache=self.cache,
        )


@dataclass(frozen=True, kw_only=True)
class MixedData(DataOptions):
    """The data sets of a mix."""

    def opened(self, path: Path) -> Dataset:
        """Returns the data set, with what the release learns from alone."""
        return open_part(path)

    def sides(self, dataset: Dataset, window: PacedWindow) -> tuple[Dataset, Dataset | None]:
        """Returns what is learned from, and what the release holds out."""
        learned, held = (whole_segments(side, window) for side in released_split(dataset))
        for side, what in ((learned, "training"), (held, "validation")):
            if not side.episodes and (what == "training" or self.validation):
                raise ValueError(f"no episode of {dataset.path} is left for {what}")
        return learned, held if self.validation else None
