"""The client that openpi publishes, unmodified and in an environment of its own, drives Meta-World through our server.

It pins an old numpy, so it has a process without this library; the world stands in the test's.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import venv
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

pytest.importorskip("websockets", reason="the serve extra is not installed")
pytest.importorskip("metaworld", reason="the metaworld extra is not installed")

from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv
from ideomotor.serving.contract import Contract
from ideomotor.serving.policy_backend import PolicyBackend, Served
from ideomotor.serving.server import Server, ServerConfig, running
from ideomotor.types import Clip, Prefix

pytestmark = [pytest.mark.slow, pytest.mark.sim]
DRIVER = Path(__file__).with_name("openpi_driver.py")
TASK = "button-press-topdown"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with openpi-client and what it declares; and typing_extensions, which it imports undeclared."""
    home = tmp_path_factory.mktemp("openpi")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "openpi-client", "typing_extensions"]
    made = subprocess.run([python, *words], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.fail(f"openpi-client cannot be installed: {made.stderr.strip()[-300:]}")
    return python


class Driver:
    """The other process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, **told: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(told), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def observe(self, seen: dict[str, Any], state: Sequence[float], prompt: str, **more: Any) -> dict[str, Any]:
        picture = np.ascontiguousarray(seen["frames"]["corner2"].transpose(1, 2, 0))
        image = base64.b64encode(picture.tobytes()).decode()
        return self.ask(image=image, shape=picture.shape, state=list(map(float, state)), prompt=prompt, **more)


@contextmanager
def driving(python: Path, url: str) -> Iterator[Driver]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([python, DRIVER, url], text=True, env=env, **pipes) as process:
        yield Driver(process)


def expert(task: str) -> PolicyBackend:
    """Meta-World's scripted expert as a policy: it sees no pictures, only the simulator's 39 numbers as ``state``."""
    from metaworld.policies import ENV_POLICY_MAP

    scripted = ENV_POLICY_MAP[f"{task}-v3"]()

    def act(context: Clip, prefix: Prefix | None, seeds: Sequence[int]) -> Float[Tensor, "b 1 action"]:
        assert context.proprio is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns whenever an action needs clipping
            actions = [scripted.get_action(row.double().numpy()) for row in context.proprio]
        return torch.from_numpy(np.clip(np.stack(actions), -1, 1))[:, None]

    contract = Contract(
        cameras=("main",), size=96, context=1, stride=1, chunk=1, width=4, execute=1, state=39, prompt=True
    )
    return PolicyBackend(Served(system="scripted expert", contract=contract, act=act))


def test_openpi_drives_an_episode_to_success(python: Path) -> None:
    """The policy is Meta-World's scripted expert, so that success needs no training; all between is as for any other.

    A mistake on the way is told as openpi tells it, and the connection goes on.
    """
    world = MetaWorldEnv(MetaWorldConfig(task=TASK, goals="test"))
    seen, info = world.reset(seed=0, options={"goal": 30})
    served = Server(expert(TASK), ServerConfig(port=0, api_key="of the test"))
    with running(served) as url, driving(python, url) as driver:
        about = driver.ask(begin=True, api_key="of the test")
        assert about["numpy"].startswith("1.") and about["metadata"]["observation"]["state"] == 39
        assert world._state is not None
        wrong = driver.observe(seen, world._state, info["text"], camera="top")
        assert "lacks main and knows no top: send main, and no others" in wrong["error"]
        wrong = driver.observe(seen, [*world._state[:-1], np.nan], info["text"])
        assert "number 38 is nan" in wrong["error"]
        while not info["success"] and info["steps"] < 200:
            action = driver.observe(seen, world._state, info["text"])["action"]
            np.testing.assert_allclose(action, world.expert_action(), atol=1e-5)
            seen, _, _, _, info = world.step(np.array(action))
    world.close()
    assert info["success"]


@pytest.mark.skipif("IDEOMOTOR_RUN" not in os.environ, reason="IDEOMOTOR_RUN names no fine-tuned VPDD for Meta-World")
def test_openpi_drives_a_trained_policy_to_success(python: Path) -> None:
    """``ideomotor serve`` of a quickstart's ``finetune`` folder; IDEOMOTOR_EPISODES=4 tries four goals a task."""
    from ideomotor.systems.quickstart_report import DEFAULT_TASKS

    episodes = int(os.environ.get("IDEOMOTOR_EPISODES", "1"))
    won: dict[str, int] = {}
    with commanded(os.environ["IDEOMOTOR_RUN"]) as url, driving(python, url) as driver:
        for task in DEFAULT_TASKS["metaworld"]:
            world = MetaWorldEnv(MetaWorldConfig(task=task, goals="test"))
            for goal in range(30, 30 + episodes):
                assert driver.ask(begin=True)["metadata"]["system"] == "vpdd"
                seen, info = world.reset(seed=0, options={"goal": goal})
                while not info["success"] and info["steps"] < 200:
                    action = driver.observe(seen, seen["proprio"], info["text"])["action"]
                    seen, _, _, _, info = world.step(np.array(action))
                won[task] = won.get(task, 0) + bool(info["success"])
            world.close()
    print(f"{won} of {episodes} episodes a task")
    assert sum(won.values()) > 0


@contextmanager
def commanded(folder: str) -> Iterator[str]:
    """``ideomotor serve`` in a process of its own, and where it listens."""
    words = [sys.executable, "-m", "ideomotor", "serve", folder, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"ws://[^\"]+", line)))
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            assert process.wait(30) == 0
