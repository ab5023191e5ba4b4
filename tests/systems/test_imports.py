"""The core alone: everything imports without extras and without a network, and a feature names the extra it needs."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXTRAS = {
    "av": "video",
    "pyarrow": "video",
    "h5py": "convert",
    "transformers": "text",
    "diffusers": "svd",
    "accelerate": "train",
    "tensorboard": "train",
    "gymnasium": "metaworld",
    "mujoco": "metaworld",
    "metaworld": "metaworld",
    "websockets": "serve",
    "msgpack": "serve",
    "prometheus_client": "serve",
}
# A world is a Gymnasium environment by inheritance, so these cannot be imported without it.
TABLES = ("calvin", "play_table", *(f"play_table_{name}" for name in ("contract", "scripts", "tasks", "walk")))
WORLDS = {
    f"ideomotor.envs.{name}"
    for name in ("chunked", "imagined", "metaworld", "pixels", "toy", "vector", "world", *TABLES)
}

# Stands for a machine that has the core alone: the optional packages are not found, and nothing is connected to.
CORE_ONLY = f"""
import importlib, importlib.abc, json, os, pkgutil, socket, sys, time
from pathlib import Path

OPTIONAL = {set(EXTRAS)!r}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def offline(*args):
    raise OSError("a network was asked for")

sys.meta_path.insert(0, Refuse())
socket.socket.connect = socket.socket.connect_ex = offline
"""


def core_only(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the code in a process without the optional packages."""
    script = CORE_ONLY + textwrap.dedent(code)
    known = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=known)


def test_the_package_is_quick_and_brings_torch_only_when_a_name_is_asked_for() -> None:
    done = core_only(
        """
        began = time.monotonic()
        import ideomotor
        took = time.monotonic() - began
        heavy = [name for name in ("torch", "numpy") if name in sys.modules]
        words = [getattr(ideomotor, name).__name__ for name in ideomotor.__all__]
        print(json.dumps([took, heavy, os.environ["OMP_WAIT_POLICY"], words == ideomotor.__all__]))
        print(time.process_time())
        """
    )
    assert done.returncode == 0, done.stderr
    said, seconds = done.stdout.splitlines()
    took, heavy, policy, alike = json.loads(said)
    assert took < 3 and heavy == [] and policy == "PASSIVE" and alike
    assert float(seconds) < 3  # of the processor, interpreter and torch included


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    """What each module says when it is imported without extras; nothing of those that import."""
    done = core_only(
        """
        import ideomotor
        refused = {}
        for found in pkgutil.walk_packages(ideomotor.__path__, "ideomotor."):
            if not found.name.endswith("__main__"):
                try:
                    importlib.import_module(found.name)
                except Exception as error:
                    refused[found.name] = f"{type(error).__name__}: {error}"
        print(json.dumps([refused, sorted(set(sys.modules) & OPTIONAL)]))
        """
    )
    assert done.returncode == 0, done.stderr
    modules, brought = json.loads(done.stdout)
    assert brought == []
    return modules


def test_worlds_name_their_extra(refused: dict[str, str]) -> None:
    for name in WORLDS:
        assert refused.get(name, "").startswith("ModuleNotFoundError: this needs the package 'gymnasium'"), name
        assert refused[name].endswith('pip install "ideomotor[metaworld]"')


def test_every_other_module_imports_without_extras(refused: dict[str, str]) -> None:
    assert {name: said for name, said in refused.items() if name not in WORLDS} == {}


FEATURES = {
    "av": [
        "from ideomotor.data.video import VideoFrames; VideoFrames('videos/a.mp4')",
        "from ideomotor.data.formats import open_dataset; open_dataset('videos')",
        "from ideomotor.data.video import write_video; write_video('b.mp4', torch.zeros(2, 3, 8, 8).byte(), 5)",
    ],
    "pyarrow": ["from ideomotor.data.formats.lerobot import read; read('lerobot')"],
    "transformers": ["from ideomotor.layers.text import SentenceEncoder; SentenceEncoder()"],
    "gymnasium": [
        "from ideomotor.systems.collection_worlds import make_world; make_world('toy', {}, 'red')",
        "from ideomotor.systems.collection_worlds import make_world; make_world('metaworld', {}, 'reach')",
    ],
    "accelerate": ["os.environ['WORLD_SIZE'] = '2'; from ideomotor.training import Run; Run('run')"],
}


def test_a_feature_names_the_extra_it_needs(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_bytes(b"\0" * 64)
    (tmp_path / "lerobot/meta").mkdir(parents=True)
    about = {"codebase_version": "v3.0", "fps": 10, "data_path": "{chunk_index}", "video_path": "{chunk_index}"}
    about["features"] = {"observation.images.main": {"dtype": "video", "shape": [8, 8, 3]}}
    (tmp_path / "lerobot/meta/info.json").write_text(json.dumps(about))
    done = core_only(
        """
        os.chdir(sys.argv[1])
        import torch
        said = {}
        for package, codes in json.loads(sys.argv[2]).items():
            for code in codes:
                try:
                    exec(code)
                except ModuleNotFoundError as error:
                    said[code] = str(error)
        print(json.dumps(said))
        """,
        str(tmp_path),
        json.dumps(FEATURES),
    )
    assert done.returncode == 0, done.stderr
    for package, codes in FEATURES.items():
        wanted = (
            f'this needs the package {package!r}, which is not installed: pip install "ideomotor[{EXTRAS[package]}]"'
        )
        assert {code: json.loads(done.stdout).get(code) for code in codes} == dict.fromkeys(codes, wanted)
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "lerobot"}


def test_a_command_names_the_extra_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0" * 64)
    code = "from ideomotor.cli import main; main(sys.argv[1:])"
    done = core_only(code, "data", "inspect", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: this needs the package 'av'") and line.endswith('pip install "ideomotor[video]"')


def test_training_needs_neither_tensorboard_nor_a_simulator(tmp_path: Path) -> None:
    """Actionless clips to a tokenizer and a predictor with the core alone."""
    done = core_only(
        """
        from dataclasses import replace
        from ideomotor.data.loader import ClipLoader
        from ideomotor.data.mixture import Source
        from ideomotor.data.synthetic import synthetic_dataset
        from ideomotor.layers.text import HashedWords
        from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
        from ideomotor.systems.vpdd import VideoDenoising, tiny
        from ideomotor.tokenizers.vqvae3d import VQVAE3D
        from ideomotor.training import OptimConfig, Run

        config = tiny()
        source = Source(dataset=synthetic_dataset(2, 12, actions=False), window=config.window)
        with Run(sys.argv[1]) as run:
            predictor = DiscreteDiffusionPredictor(config.predictor)
            objective = VideoDenoising(predictor, VQVAE3D(config.tokenizer), HashedWords())
            learner = run.learner(objective, OptimConfig(), 2)
            run.fit(lambda start: ClipLoader([source], 2, 0, start=start, actions=False), learner, steps=2)
            run.save(predictor, config.predictor, "predictor")
        """,
        str(tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/predictor/model.safetensors").is_file() and not (tmp_path / "run/tensorboard").exists()
