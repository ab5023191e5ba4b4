"""What one look at the foretold future costs at VPP's full size: diffusers' plain forward pass, and ours.

Stable Video Diffusion's network (1.52 billion random weights), its autoencoder and CLIP's text tower, two views, one
noise level of 700, up-blocks 0 and 1. The plain look runs the whole network in float32 with hooks on its up-blocks,
each view by itself, and encodes the sentence anew. Ours stops behind the last block that is read, takes both views in
one batch, remembers the sentence and may have weights in bf16, the autoencoder's too; the ladder between shows what
each brings. The published code already stops early and batches the views, in float16: but for that it stands on the
third rung.

CPU-seconds of one process; the rungs take turns, and a figure is the median of its turns. Films here are shorter and
smaller than the published 16 frames of 32 x 32 latents, which ``--whole`` adds. "difference" is the largest absolute
one of the features to those of the plain look with the same noise, "error" the root mean square over their deviation.
The floor is what the network must at least take: the longer of its products at the measured rate, and of reading its
weights once a pass at the measured bandwidth. Target: ours at least 4 times cheaper than the plain look.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig
from svd_sized import SENTENCE, filled, ids_of, plain_features, published_sizes, reduced, sized, text_tower
from world_machine import Machine, Row, measure_machine

VIEWS, TAPS, SIGMA = 2, (0, 1), 700.0


@dataclass(frozen=True)
class Film:
    """How much is foretold: so many frames of square latents, and the turns that every rung takes."""

    frames: int
    side: int
    turns: int


FILMS, WHOLE = (Film(8, 16, 3), Film(4, 32, 3)), Film(16, 32, 1)


@dataclass(frozen=True)
class Rung:
    """One way to look; ``passes`` are those of the network, over ``weights_read`` bytes each."""

    name: str
    weights: str
    text: Callable[[], Tensor]
    encode: Callable[[], Tensor]
    look: Callable[[Tensor, Tensor], Tensor]
    passes: int
    weights_read: int

    @torch.inference_mode()
    def __call__(self) -> tuple[Tensor, dict[str, float]]:
        """Returns the features and CPU-seconds of each part."""
        times = [time.process_time()]
        text = self.text()
        times.append(time.process_time())
        latents = self.encode()
        times.append(time.process_time())
        features = self.look(text, latents)
        times.append(time.process_time())
        spent = dict(zip(("text", "autoencoder", "network"), torch.tensor(times).double().diff().tolist(), strict=True))
        return features.float(), spent


def stored(predictor: LatentDiffusion, early: bool) -> int:
    """Returns the bytes of the weights that a pass reads."""
    net: Any = predictor.unet
    skipped = [*net.up_blocks[max(TAPS) + 1 :], net.conv_norm_out, net.conv_out] if early else []
    without = sum(weight.nbytes for part in skipped for weight in part.parameters())
    return sum(weight.nbytes for weight in net.parameters()) - without


def ladder(
    plain_models: tuple[LatentDiffusion, SVDVAE], fast_models: tuple[LatentDiffusion, SVDVAE], film: Film, tiny: bool
) -> list[Rung]:
    """Returns the ways to look at the same two views, with the same noise, from the plain one to ours."""
    (predictor, vae), (fast, fast_vae) = plain_models, fast_models
    generator = torch.Generator().manual_seed(0)
    size = film.side * vae.config.factor
    frames = torch.randint(0, 256, (VIEWS, 1, 3, size, size), dtype=torch.uint8, generator=generator)
    noise = torch.randn(1, film.frames, vae.config.channels, film.side, film.side, generator=generator)
    tokens = text_tower(tiny)
    ids, mask = ids_of(tokens)
    tokens([SENTENCE])  # remembered from here on

    def anew() -> Tensor:
        states: Tensor = tokens.model(ids, attention_mask=mask).last_hidden_state
        return states

    def one_by_one() -> Tensor:
        return torch.cat([vae.moments(view[None])[0][0] for view in frames])

    def together(model: SVDVAE) -> Callable[[], Tensor]:
        return lambda: model.moments(frames)[0][:, 0]

    def plain(views: int) -> Callable[[Tensor, Tensor], Tensor]:
        def look(text: Tensor, latents: Tensor) -> Tensor:
            parts = [plain_features(predictor.unet, text, part, noise, TAPS, SIGMA) for part in latents.split(views)]
            return torch.cat(parts).transpose(0, 1).flatten(1, 2)[None]

        return look

    def ours(model: LatentDiffusion) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda text, latents: model.features(latents[None], text, SIGMA, TAPS, noise=noise[None])

    def memory() -> Tensor:
        return tokens([SENTENCE])

    whole = stored(predictor, early=False)
    return [
        Rung("plain, each view by itself", "fp32", anew, one_by_one, plain(1), VIEWS, whole),
        Rung("plain, views in one batch", "fp32", anew, together(vae), plain(VIEWS), 1, whole),
        Rung(
            "views in one batch, early exit", "fp32", memory, together(vae), ours(predictor), 1, stored(predictor, True)
        ),
        Rung("views in one batch, early exit", "bf16", memory, together(fast_vae), ours(fast), 1, stored(fast, True)),
    ]


def rows_of(rungs: Sequence[Rung], film: Film, machine: Machine) -> list[Row]:
    """Returns a row a rung; the first is what the others are held against."""
    floors, features = [], []
    for rung in rungs:  # a first look of each counts operations, and warms up
        with FlopCounterMode(display=False) as counter:
            found, _ = rung()
        features.append(found)
        read = rung.passes * rung.weights_read / machine.bandwidth
        floors.append(max(counter.get_total_flops() / machine.operations[rung.weights], read))
    turns = [[rung()[1] for rung in rungs] for _ in range(film.turns)]
    rows: list[Row] = []
    for place, rung in enumerate(rungs):
        spent = {part: median(turn[place][part] for turn in turns) for part in turns[0][place]}
        ratios = [sum(turn[0].values()) / sum(turn[place].values()) for turn in turns]
        networks = [turn[0]["network"] / turn[place]["network"] for turn in turns]
        difference = features[place] - features[0]
        rows.append(
            {
                "look": rung.name,
                "weights": rung.weights,
                "frames": film.frames,
                "latents": film.side,
                "CPU-s": sum(spent.values()),
                **{f"CPU-s {part}": value for part, value in spent.items()},
                "times cheaper": median(ratios),
                "network: times cheaper": median(networks),
                "least, most": f"{min(ratios):.2f}, {max(ratios):.2f}",
                "floor, s": floors[place],
                "over floor": sum(spent.values()) / floors[place],
                "difference": float(difference.abs().max()),
                "error": float(difference.square().mean().sqrt() / features[0].std()),
                "turns": film.turns,
            }
        )
    return rows


def main() -> None:
    """Measures all rungs at each size of film."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--whole", action="store_true", help="also 16 frames of 32 x 32 latents, one turn: many minutes"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = measure_machine(args.tiny)
    films = (Film(2, 8, 1),) if args.tiny else (*FILMS, WHOLE) if args.whole else FILMS
    predictor = sized(published_sizes(args.tiny, films[0].frames))
    vae = filled(lambda: SVDVAE(SVDVAEConfig(widths=(32, 32, 32, 32), blocks=1) if args.tiny else SVDVAEConfig()))
    fast = reduced(predictor, torch.bfloat16), deepcopy(vae).bfloat16()
    rows: list[Row] = []
    for film in films:
        found = rows_of(ladder((predictor, vae), fast, film, args.tiny), film, machine)
        rows += found
        print(_table.table(found), flush=True)
    facts = {
        "network weights": sum(weight.numel() for weight in predictor.unet.parameters()),
        "threads": args.threads,
        "GB a s": machine.bandwidth / 1e9,
        **{f"{name} Gop a s": machine.operations[name] / 1e9 for name in ("fp32", "bf16")},
        "most memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    _table.publish("features_cost", [row | facts for row in rows], args)


if __name__ == "__main__":
    main()
