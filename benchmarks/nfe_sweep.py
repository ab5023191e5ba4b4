"""How many function evaluations are worth it: the same trained networks, decoded in 1 to 100 passes.

Three figures a row, on a finished quickstart (`--run`):
- nats a held-out video token, under the decoder that sets tokens in random order in that many passes (exact);
- moving-pixel PSNR of the imagined video (temperature 0, surest tokens first), held-out clips;
- closed-loop success of the policy when its chunk of actions is decoded in that many passes (a chunk has 32 tokens, so
  more than 32 passes are 32), held-out goals, with Wilson's interval.
Target: 12 or fewer come within 2 % of the best. Stopped, the same command goes on: episodes are kept in `--log`.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import torch

from ideomotor.diffusion.samplers import decoding_nll
from ideomotor.evaluation.statistics import wilson
from ideomotor.evaluation.video_metrics import SquaredError, moving_error
from ideomotor.systems.quickstart import quickstart
from ideomotor.systems.quickstart_report import QuickstartConfig
from ideomotor.systems.sources import DataOptions, TrainingClips, open_sources
from ideomotor.systems.stages import view_of
from ideomotor.systems.trials import roll_out
from ideomotor.systems.vpdd import PRESETS, VIEW
from ideomotor.systems.vpdd_imagine import imagine
from ideomotor.systems.vpdd_stages import Models, load_agent, load_models, text_encoder
from ideomotor.training.config import config_from_json
from ideomotor.types import Clip

EVALUATIONS = (1, 2, 4, 8, 12, 16, 32, 100)


def video(models: Models, clips: list[Clip], steps: int) -> dict[str, float]:
    """Returns nats a token and moving-pixel PSNR of held-out clips at that many passes."""
    config, tokenizer, predictor = models.config, models.tokenizer, models.predictor
    assert tokenizer is not None and predictor is not None
    context, encoder, generator = config.window.context, text_encoder(config), torch.Generator().manual_seed(0)
    spent, error, seconds = [], SquaredError(), 0.0
    for clip in clips:
        frames, text = clip.frames[VIEW], encoder(clip.text)
        with torch.inference_mode():
            cache, seen = predictor.observe(tokenizer.encode(frames[:, :context]), text, clip.domain)
            future = tokenizer.encode(frames[:, context:]).flatten(1)
            network = lambda xt, seen=seen, cache=cache: predictor.logits(xt, seen, cache)  # noqa: E731
            spent.append(decoding_nll(network, future, tokenizer.vocab, steps, generator))
        began = time.process_time()
        seen = frames[:, :context]
        imagined = imagine(config, tokenizer, predictor, seen, text, domain=clip.domain, steps=steps)
        seconds += time.process_time() - began
        error = error + moving_error(frames[:, context:], imagined, frames[:, context - 1 : context])
    return {
        "nats a video token": float(torch.cat(spent).mean()),
        "moving PSNR": error.psnr,
        "CPU-ms a video": 1000 * seconds / sum(len(clip.text) for clip in clips),
    }


def success(run: Path, config: QuickstartConfig, log: Path, steps: int, episodes: int) -> dict[str, object]:
    """Returns success in the simulator when actions are decoded in that many passes."""
    agent = load_agent(run / "finetune")
    agent.config = model = replace(agent.config, action_steps=steps)
    rows = roll_out(agent, view_of(model), config.tasks, episodes, log, world=config.world, arm=f"{steps} evaluations")
    low, high = wilson(sum(row.success for row in rows), len(rows))[1:]
    cpu = 1000 * sum(row.inference_cpu_seconds for row in rows) / sum(row.steps for row in rows)
    return {
        "success": sum(row.success for row in rows) / len(rows),
        "interval": f"{low:.2f} to {high:.2f}",
        "episodes": len(rows),
        "CPU-ms a step": cpu,
    }


def main() -> None:
    """Sweeps, one row a number of evaluations."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="folder of a finished quickstart")
    parser.add_argument("--log", type=Path, help="finished episodes; RUN/nfe_sweep.jsonl by default")
    parser.add_argument("--episodes", type=int, default=20, help="a task and row, at most 20")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, evaluations, batches = args.run, EVALUATIONS, 4
    if args.tiny:
        run, evaluations, batches, args.episodes = Path(tempfile.mkdtemp()) / "run", (1, 4), 1, 1
        small = QuickstartConfig(
            world="toy", tasks=("red",), preset="tiny", demonstrations=2, episodes=1, budget_minutes=2
        )
        quickstart(small, PRESETS["tiny"](), run, workers=1)
    noted = run / "quickstart.json"
    if not noted.is_file():
        raise SystemExit(f"{run} holds no quickstart: run `make quickstart` first, or give --run FOLDER")
    config = config_from_json(QuickstartConfig, json.loads(noted.read_text())["quickstart"])
    models = load_models(run / "pretrain")
    options = DataOptions(data=(run / "data" / "video",), domains=("simulated",), cache=run / "cache")
    sources = open_sources(options, models.config, models.config.pretrain_stage)
    clips = TrainingClips(sources.train, sources.validation).held_out(models.config.pretrain_stage, batches)
    log, rows = args.log or run / "nfe_sweep.jsonl", []
    for steps in evaluations:
        rows.append(
            {"evaluations": steps, **video(models, clips, steps), **success(run, config, log, steps, args.episodes)}
        )
        print(rows[-1], flush=True)
    _table.publish("nfe_sweep", rows, args)


if __name__ == "__main__":
    main()
