"""Where a policy computes when it is tried out: CUDA where there is any, or where the user says."""

from pathlib import Path
from typing import NoReturn

import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import ideomotor, said

from ideomotor.systems import vpdd_published_stages, vpdd_stages, vpp_tables, vpp_trials
from ideomotor.systems.devices import chosen_device
from ideomotor.systems.stages import PUBLISHED_FILE


@pytest.mark.parametrize(
    ("system", "words", "where"),
    [
        ("vpp", ("--world", "metaworld"), vpp_trials),
        ("vpp", ("--world", "play_table"), vpp_tables),
        ("vpdd", (), vpdd_stages),
        ("vpdd", (), vpdd_published_stages),
    ],
    ids=["vpp", "vpp in a row", "vpdd", "vpdd published"],
)
def test_a_policy_is_tried_on_a_gpu_where_there_is_one(
    system: str,
    words: tuple[str, ...],
    where: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loaded(folder: Path, device: object) -> NoReturn:
        raise ValueError(f"thinks on {device}")

    monkeypatch.setattr(where, "load_agent", loaded)
    if where is vpdd_published_stages:
        (tmp_path / PUBLISHED_FILE).touch()
    for there, more, device in [(True, (), "cuda"), (False, (), "cpu"), (True, ("--device", "cpu"), "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert ideomotor(system, "evaluate", tmp_path, *words, *more) == 2
        assert said(capsys).endswith(f"thinks on {device}")
    assert ideomotor(system, "evaluate", tmp_path, *words, "--device", "cuda:99") == 2
    assert "device is 'cuda:99', and this machine has cpu" in said(capsys)


def test_the_device_that_is_named_goes_before_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device() == torch.device("cuda") and chosen_device("cpu") == torch.device("cpu")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for rank, number in (("0", 0), ("3", 3), ("5", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert chosen_device() == torch.device("cuda", number)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device() == torch.device("cpu")
