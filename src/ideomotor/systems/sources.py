"""From a user's paths to what a stage learns from: open, decode once, split by episode, tokenize once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Int, UInt8
from rich.console import Console
from torch import Tensor

from ideomotor.data.cache import cached, first_camera
from ideomotor.data.crop_jitter import CropJitterConfig, kept_size
from ideomotor.data.feature_cache import FeatureCache
from ideomotor.data.formats import open_dataset
from ideomotor.data.latent_windows import Draw
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.token_cache import Encode, TokenCache
from ideomotor.data.windows import PacedWindow, WindowIndex, refuse_still, split
from ideomotor.systems.demonstrations import learnable
from ideomotor.systems.progress import bar
from ideomotor.systems.vpdd import VPDD, Stage, view_names
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.training.checkpoint import fingerprint, read_json, write_json
from ideomotor.training.optim import OptimConfig
from ideomotor.training.run import Run
from ideomotor.types import DOMAINS, Clip, Dataset, domain_id

console = Console(stderr=True, soft_wrap=True)
DATA_FILE = "data.json"  # in a stage's folder


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data sets a stage learns from, and how they are mixed."""

    data: tuple[Path, ...]
    """One or more data sets: LeRobot v3, annotated JSON, npz, or a folder of videos (see `ideomotor data inspect`)."""
    weights: tuple[float, ...] = ()
    """How often each data set is drawn from; equal by default."""
    strides: tuple[int, ...] = ()
    """Frames from one frame of a window to the next, one number a data set; video of few frames a second wants small
    ones."""
    cameras: tuple[str, ...] = ()
    """Camera of each data set; its first by default. For a system of several views as many, joined by commas."""
    domains: tuple[str, ...] = ()
    """What each data set's video is of: human, robot, simulated, or unknown (the default)."""
    validation: float = 0.1
    """Share of episodes held out (at least one of each data set); 0 holds out none."""
    cache: Path = Path("runs/cache")
    """Where decoded frames and tokens are kept, named by the fingerprints of data and tokenizer."""

    def __post_init__(self) -> None:
        for name in ("weights", "strides", "cameras", "domains"):
            given = getattr(self, name)
            if given and len(given) != len(self.data):
                raise ValueError(
                    f"--{name} has {len(given)} values for {len(self.data)} data sets: give one each, or none"
                )
        if not all(0 < weight < math.inf for weight in self.weights) or not all(step > 0 for step in self.strides):
            raise ValueError(f"--weights {self.weights} and --strides {self.strides} must be numbers above 0")
        for domain in self.domains:
            domain_id(domain)  # refuses an unknown name
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; wanted a share of the episodes in [0, 1)")

    def opened(self, path: Path) -> Dataset:
        """Returns the data set at ``path``."""
        return open_dataset(path)

    def sides(self, dataset: Dataset, window: PacedWindow) -> tuple[Dataset, Dataset | None]:
        """Returns what is learned from and what is held out, if anything is."""
        return split(dataset, self.validation) if self.validation else (dataset, None)


class Looks(Protocol):
    """A system's config, as far as data are concerned: what it looks at."""

    @property
    def size(self) -> int:
        """Height and width of a frame."""

    @property
    def views(self) -> int:
        """Cameras."""

    @property
    def window(self) -> PacedWindow:
        """Which frames and actions make a sample."""


class Sources(NamedTuple):
    """What is learned from, what is held out (empty where ``validation`` is 0), and the facts of each data set."""

    train: list[Source]
    validation: list[Source]
    facts: list[DataFacts]

    def note(self, folder: Path) -> None:
        """Writes the facts into a stage's folder, as data.json."""
        write_json(folder / DATA_FILE, {"datasets": [asdict(facts) for facts in self.facts]})


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """How a stage read one data set: what was held out or left out, by which camera, frames how far apart, of what.

    Where ``whole``, frames are spread evenly over each episode instead; ``weight`` is the data set's in a mix.
    """

    path: str
    camera: str
    stride: int
    learned: int
    held_out: list[str]
    left_out: list[dict[str, str]]
    domain: str
    whole: bool = False
    weight: float | None = None


def read_facts(folder: Path) -> list[DataFacts]:
    """Returns the facts that a stage noted in its folder; none where it noted none."""
    path = folder / DATA_FILE
    if not path.is_file():
        return []
    try:
        # What was noted before there were domains, or mixes, names none.
        known: dict[str, Any] = {"domain": "unknown", "whole": False, "weight": None}
        entries = [known | entry for entry in read_json(path)["datasets"]]
        facts = [DataFacts(**{f.name: entry[f.name] for f in fields(DataFacts)}) for entry in entries]
        sound = all(isinstance(name, str) for one in facts for name in (one.path, one.camera, *one.held_out))
        sound = sound and all({"path", "reason"} <= set(lost) for one in facts for lost in one.left_out)
        sound = sound and all(one.domain in DOMAINS and isinstance(one.whole, bool) for one in facts)
        sound = sound and all(one.weight is None or 0 < one.weight < math.inf for one in facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is a note of what the stage learned from. "
            "Remove it to go on without"
        ) from error
    if not sound:
        raise ValueError(f"{path} was edited: it is a note of what the stage learned from. Remove it to go on without")
    return facts


class TrainingClips(NamedTuple):
    """Sources, and where a frozen model is at work the tokens, or the features, of all their windows."""

    sources: list[Source]
    validation: Sequence[Source] = ()
    tokens: list[TokenCache] | None = None
    with_frames: bool = True
    actions: bool = False
    rewards: bool = False
    latents: Draw | None = None
    features: list[FeatureCache] | None = None
    augment: CropJitterConfig | None = None

    def held_out(self, stage: Stage, batches: int = 2) -> list[Clip]:
        """Returns batches of held-out clips, always the same ones; none where nothing is held out."""
        if not self.validation:
            return []
        loader = ClipLoader(
            self.validation,
            stage.batch,
            seed=0,
            with_frames=self.latents is None or self.with_frames,
            latents=self.latents,
            actions=self.actions,
            rewards=self.rewards,
            prefetch=0,
        )
        return [loader.batch(step) for step in range(batches)]

    def loader(self, stage: Stage, run: Run) -> Callable[[int], ClipLoader]:
        """Returns what ``Run.fit`` wants: batches from any step on, each a pure function of seed and step."""
        return lambda start: ClipLoader(
            self.sources,
            stage.batch,
            run.seed,
            world_size=run.processes.world_size,
            rank=run.processes.rank,
            start=start,
            with_frames=self.with_frames,
            token_cache=self.tokens,
            latents=self.latents if self.features is None else None,
            actions=self.actions,
            rewards=self.rewards,
            feature_cache=self.features,
            pin=run.device.type == "cuda",
            augment=self.augment,
        )


def open_sources(
    options: DataOptions,
    config: Looks,
    stage: Stage,
    actions: bool = False,
    *,
    rewards: bool = False,
    window: PacedWindow | None = None,
    smooth: bool = True,
    augmented: bool = False,
    encode: Callable[[Dataset, Sequence[str]], Dataset] | None = None,
) -> Sources:
    """Opens, decodes what is not cached yet (with a progress bar), splits by episode, and says what was left out.

    Args:
        options: the data sets.
        config: names the frames' size, and the window.
        stage: names the distance between windows.
        actions: every episode must have them; what ``learnable`` refuses is left out.
        rewards: every episode must have them.
        window: in place of the config's.
        smooth: how frames are scaled; see ``transforms.resize``.
        augmented: frames to learn from are kept larger, for crops of the config's size; those held out are not.
        encode: in place of decoding: returns a data set with latents of these cameras. It need not have video then.

    Raises:
        ValueError: a data set cannot be read, has no episode longer than the stride, or lacks what is wanted of it.
    """
    train, validation, noted = [], [], []
    shape: PacedWindow = replace(window or config.window, every=stage.every)
    for number, path in enumerate(options.data):
        dataset = options.opened(path)
        window = replace(shape, stride=options.strides[number]) if options.strides else shape
        refuse_still(dataset, window)  # before hours of decoding
        if actions and any(episode.read_actions is None for episode in dataset.episodes):
            raise ValueError(f"{path} holds episodes without actions: fine-tune on demonstrations, pre-train on video")
        unrewarded = [episode.id for episode in dataset.episodes if episode.read_rewards is None] if rewards else []
        if unrewarded:
            raise ValueError(
                f"{path} holds {len(unrewarded)} of {len(dataset.episodes)} episodes without rewards, first "
                f"{unrewarded[0]!r}: leave them out, or train a world without rewards (--world.no-reward)"
            )
        cameras = _cameras(
            dataset, options.cameras[number] if options.cameras else "", config.views, encode is not None
        )
        size: int | tuple[int, int] = config.size
        if augmented:
            size = kept_size(*dataset.episodes[0].frames[cameras[0]].shape[2:], config.size)
        if encode is None:
            dataset = decoded(dataset, options.cache, size, cameras, smooth)
        else:
            dataset = encode(dataset, cameras)
        if actions:
            dataset = learnable(dataset, shape.chunk)
        report_quarantine(dataset)
        weight = options.weights[number] if options.weights else 1.0
        learned, held = options.sides(dataset, window)
        train.append(
            Source(
                dataset=learned,
                weight=weight,
                window=window,
                cameras=dict(zip(view_names(config.views), cameras, strict=True)),
                domain=options.domains[number] if options.domains else "unknown",
            )
        )
        if held is not None:
            whole = (config.size, config.size) if augmented else None
            validation.append(replace(train[-1], dataset=held, size=whole))
        facts = DataFacts(
            path=str(path.resolve()),
            camera=",".join(cameras),
            stride=window.stride,
            learned=len(learned.episodes),
            held_out=[episode.id for episode in held.episodes] if held is not None else [],
            left_out=[asdict(entry) for entry in dataset.quarantined],
            domain=train[-1].domain,
        )
        noted.append(facts)
    return Sources(train, validation, noted)


def _cameras(dataset: Dataset, named: str, views: int, latents: bool) -> tuple[str, ...]:
    """The cameras that are looked through: those named, joined by commas, else the data set's first."""
    first_camera(dataset)  # refuses a data set without any
    there = dataset.episodes[0].frames or dataset.episodes[0].latents
    if not (latents or dataset.episodes[0].frames):
        raise ValueError(
            f"{dataset.name!r} was published as latents, without video, and this stage looks at video: of all stages "
            "`ideomotor vpp video` and `vpp policy` alone can do without, the latter with eyes foresight or latents"
        )
    cameras = tuple(named.split(",")) if named else tuple(there)[:views]
    if len(cameras) != views or len(set(cameras)) < views:
        raise ValueError(
            f"{views} views are wanted of {dataset.name!r}, and {', '.join(cameras)} were found: name that many of "
            f"{', '.join(there)} by --cameras, joined by commas"
        )
    for episode, camera in [(episode, name) for episode in dataset.episodes for name in cameras if not latents]:
        if camera not in episode.frames:
            raise ValueError(
                f"episode {episode.id!r} of {dataset.name!r} has no camera {camera!r}; it has "
                f"{', '.join(map(repr, episode.frames))}: name with --cameras what every episode has, or leave it out"
            )
    return cameras


def decoded(
    dataset: Dataset, root: Path, size: int | tuple[int, int], cameras: tuple[str, ...], smooth: bool = True
) -> Dataset:
    """Returns the data set with its frames in the cache, where they are decoded once (a bar)."""
    with bar(f"decode {dataset.name}") as progress:
        workers = min(16, os.cpu_count() or 2)
        return cached(dataset, root, size, cameras, workers, progress, smooth)


def report_quarantine(dataset: Dataset) -> None:
    """Says on screen what was left out of a data set, and why."""
    for entry in dataset.quarantined[:10]:
        console.print(f"left out of {dataset.name}: {entry.path}: {entry.reason}", markup=False)
    if len(dataset.quarantined) > 10:
        console.print(
            f"left out of {dataset.name}: {len(dataset.quarantined) - 10} more (ideomotor data inspect {dataset.path})",
            markup=False,
        )


def tokenized(
    sources: list[Source],
    tokenizer: VQVAE3D | AxialVQVAE,
    config: VPDD | PublishedVPDD,
    root: Path,
    with_frames: bool = True,
    actions: bool = False,
    validation: Sequence[Source] = (),
) -> TrainingClips:
    """Returns the sources with the tokens of all windows to learn from; see ``token_caches``."""
    tokenizer.eval()
    device = next(tokenizer.parameters()).device
    name = fingerprint(tokenizer, tokenizer.config)
    caches = token_caches(sources, tokenizer.encode, root, name, tokenizer.vocab, device, config.tokenizer_stage.optim)
    return TrainingClips(sources, validation, caches, with_frames, actions)


def token_caches(
    sources: list[Source],
    encode: Encode,
    root: Path,
    name: str,
    vocab: int,
    device: torch.device,
    optim: OptimConfig,
    whole: bool = False,
) -> list[TokenCache]:
    """Returns the tokens of all windows of the sources; what is not cached yet is encoded (a bar).

    It is encoded on ``device``, where the tokenizer must lie; ``whole`` as in ``TokenCache.build``.
    """

    def encoded(frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b latent n"]:
        with optim.autocast(device):
            return encode(frames.to(device))

    caches = []
    for source, camera in [(each, camera) for each in sources for camera in each.camera_names().values()]:
        with bar(f"encode {source.dataset.name} {camera}") as progress:
            caches.append(
                TokenCache.build(
                    WindowIndex(source.dataset, source.window),
                    root,
                    encoded,
                    tokenizer=name if optim.precision == "fp32" else f"{name}-{optim.precision}",
                    vocab=vocab,
                    camera=camera,
                    batch_size=64 if device.type == "cpu" else 512,
                    progress=progress,
                    whole=whole,
                )
            )
    return caches
