"""A robot's loop, whole: a rate that is held, chunks asked for while others are carried out, limits, a recording.

    python examples/robot_loop.py [OUT [URL]]

The robot is a fake: two numbers that go where they are told. Put your own in its place, and the URL of your server in
place of the stand-in that is served here. You see the rate that was held, where the robot came, what was recorded.
"""

import sys
import time
from pathlib import Path

import numpy as np

from ideomotor.serving.client import Client, Limits, Pacer, SafetyFilter, run_chunks
from ideomotor.serving.recorder import Recorder
from ideomotor.serving.server import Server, ServerConfig, running

HZ, STEPS, CHUNK, GREY = 20, 60, 10, np.full((32, 32, 3), 128, np.uint8)


class FakeRobot:
    """Not a robot: it has no motors, and its camera shows grey."""

    place = np.zeros(2, np.float32)

    def observe(self) -> dict:
        return {"images": {"main": GREY}, "state": self.place.copy(), "prompt": "go to the corner"}


class ToTheCorner:
    """A backend in a few lines, for want of a trained policy: places on the way from the state to (1, -1)."""

    max_batch, metadata = 1, {"ideomotor": {"kind": "policy", "actions": {"chunk": CHUNK, "execute": 5, "width": 2}}}
    session, prepare = staticmethod(dict), staticmethod(lambda session, message: message["state"])

    def infer(self, batch):
        ways = [np.linspace(state, np.clip(state + np.array([0.5, -0.5]), -1, 1), CHUNK + 1) for state in batch]
        return [{"actions": way[1:].astype(np.float32)} for way in ways]


def main(out: Path, url: str, robot: FakeRobot) -> None:
    """The loop."""
    pacer, safe = Pacer(HZ), SafetyFilter(Limits(low=-1, high=1, jump=0.2, age_s=1), 2, start=robot.place)
    with Client(url) as client, Recorder(out / time.strftime("%Y%m%d-%H%M%S"), fps=HZ) as recorder:
        chunks = run_chunks(client, blend=3)
        recorder.begin("go to the corner")
        while pacer.ticks < STEPS:
            pacer.wait()
            step = chunks.act(seen := robot.observe())
            checked = safe.check(step.action, age_s=step.age / HZ)
            if checked.action is not None:  # else there is nothing to do yet
                robot.place = checked.action
                recorder.step(seen["images"], checked.action, seen["state"])
    print(f"{pacer.report()}\nthe fake robot came to {robot.place.round(2)}; recorded in {recorder.path}")


if __name__ == "__main__":
    with running(Server(ToTheCorner(), ServerConfig(port=0))) as stand_in:
        main(Path([*sys.argv, "runs/examples/robot"][1]), sys.argv[2] if len(sys.argv) > 2 else stand_in, FakeRobot())
