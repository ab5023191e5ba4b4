"""The learned world as simulator: does it rank policies as the real world does?

On a finished `ideomotor ivideogpt quickstart` (`--run`): the pixel actor is cloned from episodes of the scripted expert
with more or fewer updates, the last clone is tried with noise on its actions too, and every policy is tried in
Meta-World (test goals, cut off after `--steps` steps, each as long as the world's) and inside the world, from the same
first frames, with the foretold rewards summed over as many steps; `--samples` futures are drawn and averaged, and
beyond the trained horizon the window slides.
A row a policy; then Spearman's correlation of the imagined with the real returns, and with success, intervals by
bootstrap over policies and episodes. OUT/policies/ranking.svg is the scatter. Stopped, the same command goes on.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import numpy as np
import torch

from ideomotor.data.replay import Replay, ReplayConfig
from ideomotor.evaluation.statistics import Estimate
from ideomotor.layers.sampling import Sampling
from ideomotor.policies.actor_critic import ActorCriticConfig
from ideomotor.systems.agent_worlds import pixel_world
from ideomotor.systems.experience import experts, shaken
from ideomotor.systems.ivideogpt import tiny
from ideomotor.systems.ivideogpt_stages import load_config, run_tokenizer, run_world
from ideomotor.systems.ranking import Ranking, RankingConfig, rank
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.world import World

EPISODES = 20  # of the expert


def main() -> None:
    """Clones, tries and ranks."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--run", type=Path, default=Path("runs/world"), help="folder of a finished quickstart")
    parser.add_argument("--task", default="button-press-topdown-wall", help="one that the quickstart has recorded")
    parser.add_argument("--out", type=Path, help="experts, clones, episodes, drawing; RUN/ranking/TASK by default")
    parser.add_argument("--episodes", type=int, default=20, help="test goals a policy, at most 20")
    parser.add_argument("--steps", type=int, default=20, help="steps of an episode, as far apart as the world's")
    parser.add_argument("--samples", type=int, default=2, help="futures drawn from each first frame")
    parser.add_argument("--seed", type=int, default=0, help="of cloning, noise and draws")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tiny:
        args.out = args.out or Path(tempfile.mkdtemp())
        args.run, args.task = args.out / "run", "red"
        args.episodes, args.steps, args.samples = 3, 12, 2
        tiny_run(args.run)
    if not (args.run / "world/done.json").is_file():
        raise SystemExit(
            f"{args.run} holds no finished quickstart: run `ideomotor ivideogpt quickstart`, or give --run"
        )
    window = load_config(args.run / "world").window
    world = World.load(args.run / "world", horizon=window.horizon, sampling=Sampling(top_k=100))
    network = ActorCriticConfig(size=world.tokenizer.config.size, actions=world.action_width, filters=16, hidden=256)
    config = RankingConfig(
        task=args.task, episodes=args.episodes, steps=args.steps, held=window.held, samples=args.samples,
        seed=args.seed, network=network,
    )  # fmt: skip
    if args.tiny:
        config = replace(config, updates=(0, 1, 2, 4, 8), batch=8, network=replace(network, stack=2, filters=4))
    out = args.out or args.run / "ranking" / args.task
    shown = experts(args.task, out / "experts", EPISODES, config.network.stack, noise=(0.0, 0.3))
    ranking = rank(config, world, [shown], out / "policies", lambda said: print(said, flush=True))
    _table.publish("world_ranking", rows_of(ranking), args)


def rows_of(ranking: Ranking) -> list[dict[str, object]]:
    """Returns a row a policy, and one for each correlation."""

    def row(name: str, found: Estimate) -> dict[str, object]:
        numbers = [None if np.isnan(value) else value for value in found]
        return {"policy": name, "Spearman": numbers[0], "low": numbers[1], "high": numbers[2]}

    return [
        *ranking.rows,
        row("imagined return and real return", ranking.of_return),
        row("imagined return and real success", ranking.of_success),
    ]


def tiny_run(run: Path) -> None:
    """Makes what a quickstart leaves, in the toy world and in seconds."""
    world, folder = pixel_world("red", "train", stack=2), run / "data" / "red"
    replay = Replay(folder, ReplayConfig(stack=2))
    for number in range(4):
        replay.add(number, shaken(world, 0.5 * (number % 2), False, np.random.default_rng(number)))
    world.close()
    model = tiny()
    model = replace(model, world=replace(model.world, reward=True))
    data = DataOptions(data=(run / "data",), cache=run / "cache", validation=0.5)
    run_tokenizer(data, model, run / "tokenizer", 0, fresh=False)
    run_world(data, model, run / "tokenizer", None, 0, run / "world", 0, fresh=False)


if __name__ == "__main__":
    main()
