"""What a policy of VPP looks with, made once for every window of its demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float, Shaped
from rich.console import Console
from torch import Tensor

from ideomotor.data.draft import digest, require_space
from ideomotor.data.feature_cache import FeatureCache
from ideomotor.data.formats.checks import pieces
from ideomotor.data.mixture import Source
from ideomotor.data.windows import WindowIndex
from ideomotor.systems.devices import chosen_device
from ideomotor.systems.progress import bar
from ideomotor.systems.vpp import VPP, Foreseeing
from ideomotor.systems.vpp_encoder import Encoding
from ideomotor.training.checkpoint import fingerprint
from ideomotor.training.config import config_to_json

console = Console(stderr=True, soft_wrap=True)


def feature_caches(
    sources: Sequence[Source], foreseeing: Foreseeing | Encoding, root: Path, latents: bool = False
) -> list[FeatureCache]:
    """Returns the features of all windows; tells the size of what is not cached yet, and makes it (a bar).

    They are made on a GPU where there is one, and in the precision that stage 2 trains in; of the data sets' latents,
    where ``latents``, in place of their video.

    Raises:
        OSError: the disk has no room for all that is missing; nothing was made.
    """
    config, alone = foreseeing.config, foreseeing.alone()
    device = chosen_device()
    for part in foreseeing.parts:
        part.to(device).eval()
    model = _model_key(foreseeing, latents)
    wanted = [
        (WindowIndex(source.dataset, source.window), camera)
        for source in sources
        for camera in source.camera_names().values()
    ]
    _tell_size(wanted, model, config, foreseeing, root)

    def see(shown: Shaped[Tensor, "b 1 c h w"], sentences: Sequence[str]) -> Float[Tensor, "b t n d"]:
        with config.policy_stage.optim.autocast(device):
            shown = shown.to(device)  # the latents of a frame by itself have the shape of those of a single view
            if latents:
                assert isinstance(alone, Foreseeing)  # the eyes of an encoder look at video alone
                return alone.of_latents(shown, sentences)
            return alone(shown, sentences)

    caches = []
    for index, camera in wanted:
        with bar(f"foresee {index.dataset.name} {camera}") as progress:
            batch = 32 if device.type == "cpu" else 64
            caches.append(
                FeatureCache.build(
                    index,
                    root,
                    see,
                    model=model,
                    camera=camera,
                    batch_size=batch,
                    progress=progress,
                    latents=latents,
                )
            )
    return caches


def window_bytes(config: VPP, foreseeing: Foreseeing | Encoding) -> int:
    """Returns what the features of one camera's window take on disk."""
    (width, frames), side = config.seen_shape, config.size // config.vae.factor
    places = side * side
    if isinstance(foreseeing, Encoding):
        places = foreseeing.encoder.places
    elif foreseeing.predictor is not None:
        places, _ = foreseeing.predictor.feature_shape(side, side, config.foresight.layers)
    return 2 * frames * places * width


def _tell_size(
    wanted: Sequence[tuple[WindowIndex, str]], model: str, config: VPP, foreseeing: Foreseeing | Encoding, root: Path
) -> None:
    """Says what is missing and refuses what has no room, before anything is made."""
    places = {FeatureCache.place(index, root, model, camera): len(index) for index, camera in wanted}
    windows = sum(count for place, count in places.items() if not place.exists())
    # A draft of an earlier try has its whole length on the disk already.
    begun = sum(
        count for place, count in places.items() if (place.with_name(f"{place.name}.partial") / "features.npy").exists()
    )
    if not windows:
        return
    size = window_bytes(config, foreseeing)
    console.print(f"features of {windows:,} windows: {windows * size / 1e6:,.1f} MB in {root}", markup=False)
    root.mkdir(parents=True, exist_ok=True)
    way_out = "choose another --cache, take a larger --policy-stage.every, or --no-cache-features"
    require_space(root, (windows - begun) * size, f"the cache of features of {windows:,} windows", way_out)


def _model_key(foreseeing: Foreseeing | Encoding, latents: bool) -> str:
    """A fingerprint of all that decides what the policy sees in a frame."""
    config, optim = foreseeing.config, foreseeing.config.policy_stage.optim
    facts: list[Any] = [config.size, "fp16" if optim.fp16 else optim.bf16]
    facts += [fingerprint(part, part.config) for part in foreseeing.parts]
    if isinstance(foreseeing, Foreseeing) and foreseeing.predictor is not None:
        facts += [config_to_json(config.foresight), _text_key(config.text)]
    return digest([*facts, "latents"] if latents else facts)


def _text_key(text: str) -> list[Any]:
    """The name of a packaged encoder; or the files of a folder, with a digest of what they hold."""
    if text in ("sentence", "hashed"):
        return [text]
    files = sorted(file for file in Path(text).iterdir() if file.is_file())
    return [(file.name, pieces(file).hex()) for file in files]
