"""Roll-outs against a fake vector world: no simulator, an episode whose whole course can be told from its goal."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ideomotor.evaluation.rollout import EpisodeSpec, read_log, rollout
from ideomotor.policies.actions import TemporalEnsemble

CHUNK, CONTEXT, STRIDE, HORIZON = 4, 3, 2, 10


class FakeWorld:
    """A fake. Goal ``g`` succeeds at step ``g`` if every action so far was ``g``; else the horizon ends the episode.

    Every pixel of a frame is ``10 * goal + step``, so an agent can read its goal, and a test which frame it is.
    """

    def __init__(self, tasks):
        self.tasks, self.num_envs = tasks, len(tasks)
        self.state = [None] * len(tasks)
        self.resets, self.batches = [], []

    def reset(self, seeds=None, options=None, where=None):
        assert where is not None or not self.resets, "only the first reset may be of all"
        for i in np.flatnonzero(np.ones(self.num_envs, bool) if where is None else where):
            goal = (options[i] or {"goal": 0})["goal"]
            self.state[i] = {"goal": goal, "seed": seeds[i], "step": 0, "good": True, "over": False, "executed": 0}
            self.resets.append((self.tasks[i], seeds[i], goal))
        return self.seen(), self.infos()

    def step(self, chunks, active=None):
        assert chunks.shape == (self.num_envs, CHUNK, 1)
        self.batches.append(int(np.sum(active)))
        rewards = np.zeros(self.num_envs)
        for i, state in enumerate(self.state):
            state["executed"] = 0
            if not active[i]:
                assert (chunks[i] == 0).all()
                continue
            assert not state["over"], "an episode that is over was stepped"
            for action in chunks[i]:
                state["step"] += 1
                state["executed"] += 1
                rewards[i] += 1
                state["good"] &= bool(action[0] == state["goal"])
                state["over"] = self.success(state) or state["step"] == HORIZON
                if state["over"]:
                    break
        won = np.array([self.success(state) for state in self.state])
        return self.seen(), rewards, won, np.array([state["over"] for state in self.state]) & ~won, self.infos()

    def success(self, state):
        return state["good"] and state["step"] == state["goal"]

    def infos(self):
        return [
            {"text": f"do {task}", "executed": state["executed"], "success": self.success(state)}
            for task, state in zip(self.tasks, self.state, strict=True)
        ]

    def seen(self):
        frames = [
            np.stack(
                [
                    np.full((3, 2, 2), 10 * s["goal"] + max(0, s["step"] - back * STRIDE), np.uint8)
                    for back in reversed(range(CONTEXT))
                ]
            )
            for s in self.state
        ]
        return {"frames": {"corner": np.stack(frames)}, "proprio": np.zeros((self.num_envs, 2), np.float32)}


class Reader:
    """Reads the goal from the newest frame. On task "b" it errs for odd goals."""

    def __init__(self, camera="corner", fail_after=None):
        self.camera, self.fail_after, self.calls = camera, fail_after, []

    def act(self, context):
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(len(context))
        video = context.frames[self.camera]
        assert video.dtype == torch.uint8 and video.shape[1:] == (CONTEXT, 3, 2, 2)
        assert context.proprio.shape == (len(context), 2)
        goals = video[:, -1, 0, 0, 0].float() // 10
        wrong = torch.tensor([text == "do b" for text in context.text]) & (goals % 2 == 1)
        return (goals + wrong).view(-1, 1, 1).expand(-1, CHUNK, 1)


SLOTS = ["a", "a", "b"]
SPECS = [EpisodeSpec(task=task, seed=seed, goal=goal) for task in "ab" for seed in (0, 1) for goal in (1, 2, 5, 7)]


def facts(results):
    return [(*r.key, r.success, r.steps, r.total_reward) for r in results]


def expected(specs):
    rows = []
    for spec in specs:
        success = spec.task == "a" or spec.goal % 2 == 0
        steps = spec.goal if success else HORIZON
        rows.append((*spec.key, success, steps, float(steps)))
    return rows


def test_every_episode_is_run_once_and_told_right(tmp_path):
    world, agent, log = FakeWorld(SLOTS), Reader(), tmp_path / "runs" / "log.jsonl"
    told = []
    results = rollout(agent, world, SPECS, slots=SLOTS, arm="x", log=log, done=told.append)
    assert facts(results) == expected(SPECS)
    assert sorted(world.resets) == sorted(spec.key for spec in SPECS)
    assert agent.calls == world.batches  # only the worlds that act are shown to the agent
    assert 1 in agent.calls and 3 in agent.calls
    assert told == read_log(log)
    assert sorted(told, key=lambda result: result.key) == sorted(results, key=lambda result: result.key)
    assert all(r.seconds > 0 and r.inference_cpu_seconds >= 0 for r in results)


def test_shares_of_time_add_up(monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr("ideomotor.evaluation.rollout.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr("ideomotor.evaluation.rollout.time.process_time", lambda: 0.5 * next(ticks))
    agent = Reader()
    results = rollout(agent, FakeWorld(SLOTS), SPECS, slots=SLOTS, arm="x")
    rounds = len(agent.calls)
    assert sum(r.seconds for r in results) == pytest.approx(3.0 * rounds)  # the fake clock ticks thrice within a round
    assert sum(r.inference_cpu_seconds for r in results) == pytest.approx(0.5 * rounds)


@pytest.mark.parametrize("after", range(14))
def test_a_killed_roll_out_goes_on(tmp_path, after):
    log = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        rollout(Reader(fail_after=after), FakeWorld(SLOTS), SPECS, slots=SLOTS, arm="x", log=log)
    before = read_log(log)
    if log.exists():
        with log.open("ab") as file:
            file.write(b'{"arm": "x", "task": "a", "se')  # the kill came in the middle of a row
        assert read_log(log) == before
    world = FakeWorld(SLOTS)
    results = rollout(Reader(), world, SPECS, slots=SLOTS, arm="x", log=log)
    assert facts(results) == expected(SPECS)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted((r["task"], r["seed"], r["goal"]) for r in rows) == sorted(spec.key for spec in SPECS)
    assert not {r.key for r in before} & set(world.resets) - {("a", None, 0), ("b", None, 0)}


def test_two_arms_share_a_log_and_a_finished_one_touches_no_world(tmp_path):
    log = tmp_path / "log.jsonl"
    first = rollout(Reader(), FakeWorld(SLOTS), SPECS, slots=SLOTS, arm="x", log=log)
    second = rollout(Reader(), FakeWorld(SLOTS), SPECS[:5], slots=SLOTS, arm="y", log=log)
    assert len(read_log(log)) == len(SPECS) + 5
    idle = FakeWorld(SLOTS)
    assert rollout(Reader(fail_after=0), idle, SPECS, slots=SLOTS, arm="x", log=log) == first
    assert rollout(Reader(fail_after=0), idle, SPECS[:5], slots=SLOTS, arm="y", log=log) == second
    assert idle.resets == []


def test_more_worlds_than_episodes():
    specs = [EpisodeSpec(task="b", seed=3, goal=2)]
    assert facts(rollout(Reader(), FakeWorld(SLOTS), specs, slots=SLOTS, arm="x")) == expected(specs)


def test_recorded_episodes_show_every_frame_once(tmp_path):
    films, log = {}, tmp_path / "log.jsonl"

    def recorder(result, cameras):
        assert result.key not in {row.key for row in read_log(log)}  # a kill in between repeats the episode, whole
        films[result.key] = cameras["corner"]

    picked = {"record": SPECS[3::4], "recorder": recorder, "stride": STRIDE}
    rollout(Reader(), FakeWorld(SLOTS), SPECS, slots=SLOTS, arm="x", log=log, **picked)
    assert sorted(films) == sorted(spec.key for spec in SPECS[3::4])
    for (task, _, goal), film in films.items():
        assert film.dtype == torch.uint8 and film.shape[1:] == (3, 2, 2)
        # Every second step, and where it ended: at success in step 7, or at the horizon.
        steps = [0, 2, 4, 7] if task == "a" else [0, 2, 4, 6, 8, 10]
        assert film[:, 0, 0, 0].tolist() == [10 * goal + step for step in steps]


def test_cameras_are_renamed_and_fewer_actions_may_be_executed():
    class Long(Reader):
        def act(self, context):
            return super().act(context).repeat(1, 3, 1)

    specs = [dataclasses.replace(spec, seed=9) for spec in SPECS[:4]]
    results = rollout(
        Long("main"), FakeWorld(["a"]), specs, slots=["a"], arm="x", cameras={"main": "corner"}, execute=CHUNK
    )
    assert facts(results) == expected(specs)


class Steps(Reader):
    """Foretells the number of the step at which it was asked, for every step of its chunk of 8."""

    def act(self, context):
        super().act(context)
        return (context.frames["corner"][:, -1, 0, 0, 0].float() % 10).view(-1, 1, 1).expand(-1, 8, 1)


class Told(FakeWorld):
    """Keeps what was done in each episode; none succeeds."""

    def step(self, chunks, active=None):
        self.done = getattr(self, "done", {})
        for i, state in enumerate(self.state):
            if active[i]:
                self.done.setdefault((self.tasks[i], state["seed"], state["goal"]), []).extend(chunks[i, :, 0].tolist())
        return super().step(chunks, active)


def test_an_ensemble_blends_within_an_episode_and_never_across():
    ensemble = TemporalEnsemble(0.0)
    for _ in range(2):  # the same ensemble again: a new roll-out begins with nothing
        world = Told(SLOTS)
        rollout(Steps(), world, SPECS, slots=SLOTS, arm="x", execute=CHUNK, ensemble=ensemble)
        assert sorted(world.done) == sorted(spec.key for spec in SPECS)
        # Asked at steps 0, 4 and 8; each chunk of 8 reaches the next one's first half.
        assert all(actions == [0, 0, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6] for actions in world.done.values())


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_killed_roll_out_with_an_ensemble_begins_its_episodes_anew(tmp_path, after):
    log, ensemble, world = tmp_path / "log.jsonl", TemporalEnsemble(0.0), Told(SLOTS)
    how = {"slots": SLOTS, "arm": "x", "log": log, "execute": CHUNK, "ensemble": ensemble}
    with pytest.raises(KeyboardInterrupt):
        rollout(Steps(fail_after=after), Told(SLOTS), SPECS, **how)
    finished = {row.key for row in read_log(log)}
    rollout(Steps(), world, SPECS, **how)
    assert sorted([*world.done, *finished]) == sorted(spec.key for spec in SPECS)
    assert all(actions == [0, 0, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6] for actions in world.done.values())


class Answers:
    def __init__(self, actions):
        self.actions = actions

    def act(self, context):
        return self.actions


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"slots": ["a"]}, "3 worlds"),
        ({"slots": ["a", "a", "c"]}, r"no world runs the tasks \['b'\]"),
        ({"episodes": SPECS + SPECS[:1]}, "asked for twice"),
        ({"cameras": {"main": "wrist"}}, r"no camera \['wrist'\]"),
        ({"execute": 9}, "execute is 9"),
        ({"agent": Answers(torch.zeros(3, 1))}, "wanted \\(3, chunk, action\\)"),
        ({"agent": Answers(torch.full((3, CHUNK, 1), torch.nan))}, "all finite"),
    ],
)
def test_errors_say_what_was_wanted(change, says):
    given = {"agent": Reader(), "world": FakeWorld(SLOTS), "episodes": SPECS, "slots": SLOTS, "arm": "x"} | change
    with pytest.raises(ValueError, match=says):
        rollout(**given)


def edited(rows, **values):
    return [rows[0], json.dumps(json.loads(rows[1]) | values)]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda rows: [rows[0][:20], *rows[1:]], "line 1 of .* is no row"),
        (lambda rows: [*rows, rows[0]], "repeats x"),
        (lambda rows: ['{"arm": "x"}', *rows], "line 1 of .* is no row"),
        (lambda rows: edited(rows, success="yes"), "line 2 of .* is no row .*success is 'yes'; wanted bool"),
        (lambda rows: edited(rows, success=7), "success is 7; wanted bool"),
        (lambda rows: edited(rows, steps=None), "steps is None; wanted int"),
        (lambda rows: edited(rows, total_reward="x"), "total_reward is 'x'; wanted float"),
    ],
)
def test_a_damaged_log_is_no_silent_loss(tmp_path, damage, says):
    log = tmp_path / "log.jsonl"
    rollout(Reader(), FakeWorld(SLOTS), SPECS[:3], slots=SLOTS, arm="x", log=log)
    log.write_text("".join(row + "\n" for row in damage(log.read_text().splitlines())))
    with pytest.raises(ValueError, match=says):
        read_log(log)


def test_with_the_real_vector_of_worlds(tmp_path):
    pytest.importorskip("gymnasium", reason="worlds need gymnasium")
    from ideomotor.envs.chunked import Chunked
    from ideomotor.envs.toy import ToyConfig, ToyEnv
    from ideomotor.envs.vector import ChunkedVector

    class Still:
        def act(self, context):
            assert context.frames["main"].shape[1] == 4
            return torch.zeros(len(context), 8, width)

    films = {}
    env = ToyEnv(ToyConfig(horizon=20))
    width = env.action_space.shape[0]
    specs = [EpisodeSpec(task="toy", seed=0, goal=goal) for goal in (30, 31, 32)]
    camera = next(iter(env.observation_space["frames"]))
    with ChunkedVector([lambda: Chunked(ToyEnv(ToyConfig(horizon=20)))] * 2, workers=0) as world:
        results = rollout(
            Still(),
            world,
            specs,
            slots=["toy", "toy"],
            arm="still",
            log=tmp_path / "log.jsonl",
            cameras={"main": camera},
            record=specs[:1],
            recorder=lambda result, cameras: films.update({result.key: cameras[camera]}),
        )
    assert [result.key for result in results] == [spec.key for spec in specs]
    assert all(result.steps == 20 and not result.success for result in results)
    assert len(films[specs[0].key]) == 6  # steps 0, 4, 8, ..., 20
