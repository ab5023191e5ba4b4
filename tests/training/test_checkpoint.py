import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toy_stage import Toy, ToyConfig

import ideomotor
from ideomotor.training import checkpoint
from ideomotor.training.checkpoint import (
    SaveError,
    check_writable,
    latest_state,
    load_model,
    load_state,
    read_model_info,
    save_model,
    save_state,
    write_json,
)
from ideomotor.training.learner import LearnerState

CONFIG = ToyConfig(width=6)


def toy(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    return Toy(CONFIG)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_folder_is_what_the_contract_says(tmp_path: Path) -> None:
    fingerprint = save_model(tmp_path / "m", toy(), CONFIG, {"steps": 3})
    assert listing(tmp_path) == ["m"] and listing(tmp_path / "m") == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == {
        "class": "Toy",
        "format": 1,
        "ideomotor": ideomotor.__version__,
        "config": {"width": 6, "dropout": 0.1},
        "fingerprint": fingerprint,
        "meta": {"steps": 3},
    }
    assert load_file(tmp_path / "m" / "model.safetensors").keys() == toy().state_dict().keys()


def test_round_trip_leaves_the_random_state_alone(tmp_path: Path) -> None:
    model = toy()
    save_model(tmp_path / "m", model, CONFIG)
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    loaded = load_model(tmp_path / "m", Toy, ToyConfig)
    assert torch.equal(torch.rand(2), wanted)
    assert same(model, loaded) and not loaded.training


def test_fingerprint_is_of_weights_and_config(tmp_path: Path) -> None:
    def fingerprint(model: nn.Module, config: ToyConfig = CONFIG, meta=None) -> str:
        return save_model(tmp_path / "m", model, config, meta)

    first = fingerprint(toy())
    assert first == fingerprint(toy(), meta={"other": 1})
    assert first != fingerprint(toy(1))
    assert first != fingerprint(toy(), ToyConfig(width=6, dropout=0.2))
    assert read_model_info(tmp_path / "m")["config"]["dropout"] == 0.2


def test_tied_weights_and_odd_strides_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, config: ToyConfig) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, config.width), nn.Linear(config.width, 5, bias=False)
            self.head.weight = self.embed.weight
            self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
            self.register_buffer("scalar", torch.tensor(3.0))

    model = Tied(CONFIG)
    save_model(tmp_path / "m", model, CONFIG)
    loaded = load_model(tmp_path / "m", Tied, ToyConfig)
    assert same(model, loaded) and loaded.head.weight is loaded.embed.weight


def test_another_version_says_who_wrote_it_and_what_to_do(tmp_path: Path) -> None:
    save_model(tmp_path / "m", toy(), CONFIG)
    edit(tmp_path / "m", format=7, ideomotor="9.1")
    with pytest.raises(
        ValueError, match=r"written by ideomotor 9\.1 in format 7; ideomotor .* reads format 1: install"
    ):
        load_model(tmp_path / "m", Toy, ToyConfig)


def test_another_class_config_or_shape_is_an_error(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Other:
        depth: int = 1

    folder = tmp_path / "m"
    save_model(folder, toy(), CONFIG)
    with pytest.raises(ValueError, match="holds a Toy; wanted a Linear"):
        load_model(folder, nn.Linear, ToyConfig)
    with pytest.raises(ValueError, match="unknown 'dropout', 'width'; missing 'depth'"):
        load_model(folder, Toy, Other)
    edit(folder, config={"width": 5, "dropout": 0.1})
    with pytest.raises(ValueError, match=r"net\.0\.weight is \(6, 4\), the model wants \(5, 4\)"):
        load_model(folder, Toy, ToyConfig)


def test_damage_is_found(tmp_path: Path) -> None:
    folder, weights = tmp_path / "m", tmp_path / "m" / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no saved model"):
        load_model(folder, Toy, ToyConfig)
    save_model(folder, toy(), CONFIG)
    whole = weights.read_bytes()
    save_file(toy(1).state_dict(), weights)
    with pytest.raises(ValueError, match="fingerprint"):
        load_model(folder, Toy, ToyConfig)
    weights.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="damaged or missing"):
        load_model(folder, Toy, ToyConfig)
    (folder / "config.json").write_text('{"class"')
    with pytest.raises(ValueError, match="not JSON"):
        load_model(folder, Toy, ToyConfig)


def test_a_state_that_a_disk_changed_is_found(tmp_path: Path) -> None:
    save_state(tmp_path, {"step": 1}, state(1.0))
    (file,) = tmp_path.glob("step-*/learner-0.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40  # a number, which the file's own layout says nothing of
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"learner-0\.safetensors is damaged .* to train from the start"):
        load_state(tmp_path)
    about = json.loads((file.parent / "state.json").read_text())
    (file.parent / "state.json").write_text(json.dumps({k: v for k, v in about.items() if k != "sha256"}))
    assert load_state(tmp_path)[0]["step"] == 1  # as an earlier version left it


@pytest.fixture
def full_disk():
    """Every file of this process ends at 64 bytes, as on a full disk: the kernel refuses the write in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))

    def clear() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    fill.clear = clear
    yield fill
    clear()
    signal.signal(signal.SIGXFSZ, handler)


def state(value: float) -> dict[str, LearnerState]:
    return {"a": LearnerState({"x": torch.full((100,), value)}, {"step": 1})}


def test_a_full_disk_leaves_model_state_and_json(tmp_path: Path, full_disk) -> None:
    save_model(tmp_path / "m", toy(), CONFIG)
    save_state(tmp_path / "state", {"step": 1}, state(1.0))
    write_json(tmp_path / "a.json", {"a": 1})
    before = listing(tmp_path), listing(tmp_path / "state")
    full_disk()
    with pytest.raises(SaveError, match=r"cannot write .*m: .*What was saved before is intact"):
        save_model(tmp_path / "m", toy(1), CONFIG)
    with pytest.raises(SaveError, match=r"cannot write .*state"):
        save_state(tmp_path / "state", {"step": 2}, state(2.0))
    with pytest.raises(SaveError, match=r"cannot write .*a\.json"):
        write_json(tmp_path / "a.json", {"a": "x" * 100})
    full_disk.clear()
    assert (listing(tmp_path), listing(tmp_path / "state")) == before
    assert same(load_model(tmp_path / "m", Toy, ToyConfig), toy())
    values, learners = load_state(tmp_path / "state")
    assert values["step"] == 1 and learners["a"].tensors["x"][0] == 1 and learners["a"].values == {"step": 1}
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_no_space_left_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SaveError, match=r"No space left on device.*free some space and run the same command") as caught:
        save_model(tmp_path / "m", toy(), CONFIG)
    assert caught.value.errno == errno.ENOSPC and listing(tmp_path) == []


@pytest.mark.parametrize("call", range(2))
def test_a_kill_between_the_renames_leaves_a_readable_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    class Killed(BaseException):
        pass

    folder = tmp_path / "m"
    save_model(folder, toy(), CONFIG)
    rename, calls = Path.rename, []

    def dying(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == call + 1:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", dying)
        save_model(folder, toy(1), CONFIG)
    assert folder.exists() == (call == 0)
    assert same(load_model(folder, Toy, ToyConfig), toy())
    save_model(folder, toy(2), CONFIG)
    assert same(load_model(folder, Toy, ToyConfig), toy(2)) and listing(tmp_path) == ["m"]


@pytest.mark.parametrize("name", ["rename", "replace"])
def test_a_kill_while_a_state_is_put_in_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Killed(BaseException):
        pass

    def die(self: Path, target: Path) -> None:
        if self.name.startswith((".step", ".latest")):
            raise Killed

    save_state(tmp_path, {"step": 1}, state(1.0))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, name, die)
        save_state(tmp_path, {"step": 2}, state(2.0))
    assert latest_state(tmp_path).name == "step-000000001" and load_state(tmp_path)[0]["step"] == 1
    save_state(tmp_path, {"step": 2}, state(2.0))
    assert listing(tmp_path) == ["latest", "step-000000002"] and load_state(tmp_path)[1]["a"].tensors["x"][0] == 2


def test_a_state_of_another_format_or_without_folder_is_an_error(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    save_state(tmp_path, {"step": 1}, state(1.0))
    path = tmp_path / "step-000000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0, "ideomotor": "0.0.1"}))
    with pytest.raises(ValueError, match=r"written by ideomotor 0\.0\.1 in format 0"):
        load_state(tmp_path)
    (tmp_path / "latest").write_text("step-000000005\n")
    with pytest.raises(ValueError, match="points at step-000000005, which is not there"):
        load_state(tmp_path)


def test_a_folder_that_may_not_be_written_is_refused() -> None:
    # Root may write anywhere, so a child process becomes nobody before it tries.
    code = (
        "import os, sys; from pathlib import Path; from ideomotor.training import Run\n"
        "os.getuid() or os.setuid(65534)\n"
        "try:\n    Run(Path(sys.argv[1]) / 'run')\nexcept OSError as error:\n    print(type(error).__name__, error)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd="/")
        Path(folder).chmod(0o755)
    assert "SaveError" in done.stdout and f"cannot write {folder}/run" in done.stdout, done.stderr
    assert "choose another --out" in done.stdout


def test_check_writable_makes_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert listing(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot write"):
        check_writable(tmp_path / "file" / "run")
