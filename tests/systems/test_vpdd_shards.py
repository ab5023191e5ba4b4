"""A fine-tuned policy cut into small files and put together again."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.sources import DATA_FILE, DataFacts, Sources, read_facts
from ideomotor.systems.vpdd import VIEW, tiny
from ideomotor.systems.vpdd_shards import MANIFEST, pack, unpack
from ideomotor.systems.vpdd_stages import load_agent, load_models
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.training.checkpoint import read_json, save_model, write_json
from ideomotor.training.config import config_to_json
from ideomotor.types import Clip


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder as fine-tuning leaves it, with random weights."""
    folder, config = tmp_path / "finetune", tiny()
    torch.manual_seed(0)
    policy = DiscreteDiffusionPolicy(config.policy)
    policy.bins.fit(torch.randn(200, config.policy.action_width))
    nn.init.normal_(policy.actions.head.weight)  # zero at first: all actions would be alike
    parts = {"tokenizer": VQVAE3D(config.tokenizer), "predictor": DiscreteDiffusionPredictor(config.predictor)}
    for name, model in (parts | {"policy": policy}).items():
        save_model(folder / name, model, model.config)
    write_json(folder / "vpdd.json", config_to_json(config))
    facts = DataFacts(path="data", camera="corner", stride=4, learned=3, held_out=[], left_out=[], domain="robot")
    Sources([], [], [facts]).note(folder)
    return folder


def test_shards_are_small_and_come_back_as_the_stage(stage: Path, tmp_path: Path):
    files = pack(stage, tmp_path / "packed", limit=100_000)
    shards = [path for path in files if path.name != MANIFEST]
    assert len(shards) > 3 and max(path.stat().st_size for path in shards) < 110_000
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == sorted(path.name for path in files)
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in pack(stage, tmp_path / "packed", limit=100_000)] == before

    unpack(tmp_path / "packed", tmp_path / "again")
    assert load_agent(tmp_path / "again").domain == "robot"
    old, new = load_models(stage), load_models(tmp_path / "again")
    assert old.config == new.config and read_facts(stage) == read_facts(tmp_path / "again")
    for one, other in zip(old[1:], new[1:], strict=True):
        assert type(one) is type(other) and one.config == other.config
        weights = dict(one.named_parameters())
        for name, value in other.state_dict().items():
            wanted = one.state_dict()[name]
            assert torch.equal(value, wanted.bfloat16().float() if name in weights else wanted), name


def test_data_noted_before_there_were_domains(stage: Path):
    noted = read_json(stage / DATA_FILE)
    del noted["datasets"][0]["domain"]
    write_json(stage / DATA_FILE, noted)
    assert [facts.domain for facts in read_facts(stage)] == ["unknown"]
    noted["datasets"][0]["domain"] = "martian"
    write_json(stage / DATA_FILE, noted)
    with pytest.raises(ValueError, match="was edited"):
        read_facts(stage)


def test_what_came_back_acts(stage: Path, tmp_path: Path):
    pack(stage, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    config = tiny()
    frames = torch.randint(0, 256, (2, config.window.context, 3, config.size, config.size), dtype=torch.uint8)
    clip = Clip(frames={VIEW: frames}, text=("press the button", "open the door"))
    acted, again = (load_agent(folder).act(clip) for folder in (stage, tmp_path / "again"))
    assert torch.isfinite(again).all() and len(set(again.flatten().tolist())) > 3
    assert (acted == again).float().mean() > 0.9  # rounding may tip an action into the next bin


def test_what_cannot_be_packed_or_unpacked_says_why(stage: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"alone has \d+ bytes; a shard may have 50: raise limit"):
        pack(stage, tmp_path / "packed", limit=50)
    (first, *_), manifest = pack(stage, tmp_path / "packed", limit=100_000), tmp_path / "packed" / MANIFEST
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="has format 9; this version reads 1"):
        unpack(tmp_path / "packed", tmp_path / "again")
    manifest.write_text(text.replace('"weights-0.safetensors",', ""))
    with pytest.raises(ValueError, match=r"the tokenizer in .* does not fit the model: missing"):
        unpack(tmp_path / "packed", tmp_path / "again")
    manifest.write_text(text)
    first.unlink()
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "packed", tmp_path / "again")
    with pytest.raises(ValueError, match="holds no policy"):
        pack(_without_policy(stage), tmp_path / "packed")


def _without_policy(stage: Path) -> Path:
    (stage / "policy").rename(stage.with_name("policy-elsewhere"))
    return stage
