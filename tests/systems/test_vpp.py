"""VPP by its commands, on moving discs and in the toy world: every stage, resumption, controls, and what is refused."""

import itertools
import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import digest, ideomotor, recording, said

from ideomotor.data.formats import open_dataset
from ideomotor.data.loader import ClipLoader
from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import write_video
from ideomotor.files import sole_writer
from ideomotor.policies.own_robots import OwnRobotConfig
from ideomotor.systems.sources import DataOptions, open_sources
from ideomotor.systems.stages import read_config
from ideomotor.systems.vpp import VPP, ActionDenoising, Foreseeing, Foresight
from ideomotor.systems.vpp_presets import PRESETS, looking_with
from ideomotor.systems.vpp_shards import pack, unpack
from ideomotor.systems.vpp_stages import (
    load_agent,
    load_models,
    run_policy,
    run_vae,
    run_video,
)
from ideomotor.systems.vpp_text import goal_encoder, token_encoder
from ideomotor.tokenizers.patch_pca import PatchPCA, PatchPCAConfig
from ideomotor.types import Clip, Prefix

BLIND = ("--eyes", "latents", "--former.feature-width", 4, "--former.frames", 1)
TOY = ("--world", "toy", "--tasks", "red")
THROUGH = ("--camera", "main", "--other-camera")  # recordings call it otherwise
MODELS = ("vae", "predictor", "looking", "policy")
ARM = ("lift", "turn")


def stage(home: Path, name: str, out: Path, *more: object) -> int:
    words = ["--preset", "tiny", "--out", out, "--cache", home / "cache"]
    words += ["--data", home / ("shown" if name == "policy" else "films")]
    earlier = {"video": ("--vae-from", "vae"), "policy": ("--video-from", "video")}
    if name in earlier and earlier[name][0] not in more and "pixels" not in more:
        words += [earlier[name][0], home / earlier[name][1]]
    return ideomotor("vpp", name, *words, *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the three stages trained on it."""
    home = tmp_path_factory.mktemp("vpp")
    for number in range(4):
        video = synthetic_disc(0, number).render(np.arange(12, dtype=float), (32, 32))
        write_video(home / f"films/{number}.mp4", video, fps=10)
        recording(home / f"shown/{number}.npz")
    for name in ("vae", "video", "policy"):
        assert stage(home, name, home / name) == 0
    return home


def seen(count: int = 2) -> Clip:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, 1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Clip(frames={"main": frames}, text=("push the disc",) * count)


def test_every_preset_is_sound() -> None:
    for name, make in PRESETS.items():
        config = make()
        assert config.seen_shape[0] == config.former.feature_width, name
        assert looking_with(config, "latents").seen_shape == (config.vae.channels, 1)


def test_places_are_those_of_all_views() -> None:
    tiny, eight = PRESETS["tiny"](), 8 * 8
    for config, count in ((tiny, eight), (replace(tiny, views=2), 2 * eight), (looking_with(tiny, "latents"), 16 * 16)):
        former = replace(config.former, places=count)
        assert replace(config, former=former).seen_places == count
        with pytest.raises(ValueError, match=rf"knows {count + 1} places: set --former.places {count}, or 0"):
            replace(config, former=replace(former, places=count + 1))


def test_a_policy_acts_alike_whoever_stands_beside(home: Path) -> None:
    agent = load_agent(home / "policy")
    both, one = agent.act(seen(2)), agent.act(seen(1))
    assert both.shape == (2, 4, 2) and both.isfinite().all()
    torch.testing.assert_close(both[:1], one, atol=1e-5, rtol=1e-4)
    assert torch.equal(agent.act(seen(2)), both)


def test_a_state_that_is_recorded_and_not_read_changes_nothing(home: Path) -> None:
    models = load_models(home / "policy")
    assert models.vae is not None and models.looking is not None and models.policy is not None
    foreseeing = Foreseeing(models.config, models.vae, models.predictor, token_encoder(models.config))
    parts = (models.looking.eval(), models.policy.eval(), foreseeing, goal_encoder(models.config))
    objective, losses = ActionDenoising(models.config, *parts), []
    for proprio in (None, torch.randn(2, 3)):
        torch.manual_seed(0)
        losses.append(objective(replace(seen(), actions=torch.zeros(2, 4, 2), proprio=proprio)).total)
    assert losses[0] == losses[1] > 0


def test_a_policy_comes_back_from_small_files(home: Path, tmp_path: Path) -> None:
    files = pack(home / "policy", tmp_path / "packed", limit=400_000)
    assert len(files) > 4 and max(file.stat().st_size for file in files) < 450_000
    unpack(tmp_path / "packed", tmp_path / "again")
    there, again = load_models(home / "policy"), load_models(tmp_path / "again")
    assert there.config == again.config
    for one, other in [pair for pair in zip(there[1:], again[1:], strict=True) if pair != (None, None)]:
        rounded = {name: weight.bfloat16().float() for name, weight in one.named_parameters()}
        assert all(torch.equal(weight, rounded[name]) for name, weight in other.named_parameters())
    assert load_agent(tmp_path / "again").act(seen()).isfinite().all()


def test_the_scale_of_latents_is_measured_and_handed_on(home: Path) -> None:
    models = load_models(home / "video")
    assert models.vae is not None and models.predictor is not None
    assert models.vae.scale != 1.0 and models.predictor.config.latent_scale == models.vae.scale
    mean, std = models.vae.moments(seen(4).frames["main"])
    assert 0.2 < models.vae.scale * (mean + std).std() < 5


def test_the_scale_is_that_of_the_weights_that_are_saved(home: Path, tmp_path: Path) -> None:
    assert stage(home, "vae", tmp_path / "vae", "--vae-stage.optim.ema", 0.9) == 0
    vae = load_models(tmp_path / "vae").vae
    assert vae is not None
    config = read_config(tmp_path / "vae/vpp.json", VPP)
    sources = open_sources(DataOptions(data=(home / "films",)), config, config.vae_stage)
    loader = ClipLoader(sources.train, config.vae_stage.batch, 0, actions=False, prefetch=0)
    noted = vae.scale
    assert vae.measure_scale(loader.batch(step).frames["main"] for step in range(8)) == pytest.approx(noted, rel=1e-5)


@pytest.fixture(scope="module")
def patches(home: Path) -> Path:
    """The stages of ``home`` with a map of patches in place of the autoencoder."""
    tiny = PRESETS["tiny"]()
    config, out, cache = replace(tiny, vae=PatchPCAConfig(patch=2, channels=4)), home / "patches", home / "cache"
    films, shown = (DataOptions(data=(home / name,), cache=cache) for name in ("films", "shown"))
    run_vae(films, config, out / "vae", 0, False)
    run_video(films, config, out / "vae", out / "video", 0, False)
    run_policy(shown, config, out / "video", out / "policy", 0, False)
    return home / "patches"


def test_a_map_of_patches_stands_for_the_autoencoder(patches: Path, tmp_path: Path) -> None:
    agent = load_agent(patches / "policy")
    assert agent.act(seen()).shape == (2, 4, 2)
    pack(patches / "policy", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    again = load_models(tmp_path / "again").vae
    there = load_models(patches / "policy").vae
    assert isinstance(again, PatchPCA) and isinstance(there, PatchPCA)
    assert torch.equal(again.into, there.into) and again.scale == there.scale


@pytest.mark.parametrize("name", ["vae", "video", "policy"])
def test_two_parts_are_one_whole(home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ideomotor.systems import stages
    from ideomotor.training import Run

    class Pausing(Run):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs, pause_at=2)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(stages, "Run", Pausing)
        stage(home, name, tmp_path / name)
    assert not (tmp_path / name / "done.json").exists()
    assert stage(home, name, tmp_path / name) == 0
    for there in (file for model in MODELS for file in (home / name / model).glob("*.safetensors")):
        assert there.read_bytes() == (tmp_path / there.relative_to(home)).read_bytes(), there.parent.name


@pytest.mark.parametrize("eyes", ["pixels", "latents"])
def test_controls_train_and_act(home: Path, tmp_path: Path, eyes: str) -> None:
    assert stage(home, "policy", tmp_path / eyes, *(BLIND if eyes == "latents" else ("--eyes", eyes))) == 0
    agent = load_agent(tmp_path / eyes)
    assert agent.act(seen()).shape == (2, 4, 2)
    assert (tmp_path / eyes / "predictor").exists() is False


@pytest.mark.parametrize("more", [(), ("--policy-stage.optim.bf16",), BLIND], ids=["foresight", "bf16", "latents"])
def test_cached_features_train_the_same_policy(home: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    caches = [set((home / "cache").glob("features-*"))]
    for words in ((), ("--cache-features",), ("--cache-features", "--fresh")):
        assert stage(home, "policy", tmp_path / "".join(words[:1]), *more, *words) == 0
        caches.append(set((home / "cache").glob("features-*")))
    assert [len(now - before) for before, now in itertools.pairwise(caches)] == [0, 1, 0]
    slow, fast = (load_models(tmp_path / out) for out in ("", "--cache-features"))
    for one, other in ((slow.policy, fast.policy), (slow.looking, fast.looking)):
        assert one is not None and other is not None
        # Each moved by up to 8e-3; a few went elsewhere, as Adam's first steps are whole however small a gradient.
        apart = torch.cat([(w - other.state_dict()[n]).abs().flatten() for n, w in one.state_dict().items()])
        assert apart.mean() < 1e-4 and (apart > 1e-3).float().mean() < 0.02, (apart.max(), apart.mean())


def test_single_layers_can_be_read(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = ("--foresight.layers", 0.1, 1.0)  # of up-blocks 0 and 1
    assert stage(home, "policy", tmp_path / "policy", *layers) == 0
    there = json.loads((tmp_path / "policy/vpp.json").read_text())["foresight"]["layers"]
    agent, whole = load_agent(tmp_path / "policy"), load_agent(home / "policy")
    assert there == [[0, 1], [1, 0]] and agent.config.foresight.layers == ((0, 1), (1, 0))
    assert agent.foreseeing is not None and whole.foreseeing is not None
    found, blocks = (one.foreseeing(seen().frames["main"], seen().text) for one in (agent, whole))
    assert found.shape[2] > 0 and found.shape[3] == blocks.shape[3] == 64
    assert not torch.equal(found[..., :32], blocks[..., :32]) and agent.act(seen()).shape == (2, 4, 2)
    capsys.readouterr()
    for words, why in [
        (("--foresight.layers", 1.2), "there is no 1.2 on the way up: wanted an up-block 0..3, or block.layer"),
        (("--foresight.layers", "1:0"), "BLOCK.LAYER"),
        (("--foresight.layers",), "wanted sigma above 0, up-blocks and layers from 0 on"),
        (layers[:2], "features of width 32; the former reads"),
    ]:
        assert stage(home, "policy", tmp_path / "a", *words) == 2
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert why in shown and "Traceback" not in shown and not (tmp_path / "a").exists()


def test_both_stages_train_in_fp16(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy-stage.optim.fp16", "--cache-features")
    assert stage(home, "video", tmp_path / "video", "--video-stage.optim.fp16") == 0
    assert stage(home, "policy", tmp_path / "policy", "--video-from", tmp_path / "video", *words) == 0
    actions = load_agent(tmp_path / "policy").act(seen())
    assert actions.shape == (2, 4, 2) and actions.isfinite().all()
    for name in ("video", "policy"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert all(row[key] > 0 for row in rows for key in row if key.endswith(("loss_scale", "/loss")))
        assert sum(key.endswith("loss_scale") for row in rows for key in row) == len(rows) > 0
        assert "fp16" not in (home / name / "vpp.json").read_text()  # earlier versions read what does not use it
    capsys.readouterr()
    assert stage(home, "video", tmp_path / "both", "--video-stage.optim.fp16", "--video-stage.optim.bf16") == 2
    assert "optim.no-bf16" in capsys.readouterr().err and not (tmp_path / "both").exists()


def test_features_that_cannot_be_made_once_or_have_no_room_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage(home, "policy", tmp_path / "a", "--cache-features", "--foresight.seed", "None") == 2
    assert "set --foresight.seed 0, or --no-cache-features" in " ".join(capsys.readouterr().err.split())
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
        assert stage(home, "policy", tmp_path / "a", "--cache-features", "--foresight.sigma", 3) == 2
    shown = capsys.readouterr().err
    assert "features of 12 windows: 0.4 MB in" in shown and "or --no-cache-features" in shown
    assert not (tmp_path / "a").exists()


def test_fresh_noise_is_another_future_and_fixed_noise_the_same(home: Path) -> None:
    models = load_models(home / "video")
    assert models.vae is not None
    encoder, frames = token_encoder(models.config), seen().frames["main"]
    fixed = Foreseeing(models.config, models.vae, models.predictor, encoder)
    drawn = Foreseeing(replace(models.config, foresight=Foresight(seed=None)), models.vae, models.predictor, encoder)
    assert torch.equal(fixed(frames, seen().text), fixed(frames, seen().text))
    assert not torch.equal(drawn(frames, seen().text), drawn(frames, seen().text))
    other = replace(models.config, foresight=Foresight(sigma=5.0))
    changed = Foreseeing(other, models.vae, models.predictor, encoder)
    assert not torch.equal(changed(frames, seen().text), fixed(frames, seen().text))


def test_it_is_tried_in_a_world_and_a_rerun_tries_nothing(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    words = ("evaluate", home / "policy", "--world", "toy", "--tasks", "red", "--episodes", 1, "--workers", 0)
    for _ in range(2):
        assert ideomotor("vpp", *words, *THROUGH, "--out", tmp_path / "log.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 1


def test_what_does_not_fit_is_refused_and_nothing_is_lost(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(home)
    for words, why in [
        (("policy", tmp_path / "a", "--video-from", home / "vae"), "holds no video model"),
        (("policy", tmp_path / "a", "--policy.action-width", 3), "actions of width 2, the policy of 3"),
        (("policy", tmp_path / "a", "--foresight.layers", 1), "features of width 32; the former reads"),
        (("policy", tmp_path / "a", "--foresight.sigma", 0), "wanted sigma above 0"),
        (("policy", tmp_path / "a", "--window.stride", 3), "stride: 2 -> 3"),
        (("video", tmp_path / "a", "--vae.channels", 8), "latents have 8 channels"),
        (("video", tmp_path / "a", "--vae.blocks", 2), "has other sizes"),
        (("policy", tmp_path / "a", "--size", 64), "size: 32 -> 64"),
        (("video", home / "vae"), "reads from"),
        (("policy", home / "shown/a"), "in the data set"),
        (("policy", tmp_path / "a", "--policy.proprio-width", 3), "has no proprioception"),
        (("policy", tmp_path / "a", "--foresight.sigma", "inf"), "wanted sigma above 0"),
        (("vae", tmp_path / "a", "--size", 0), "size 0 a multiple"),
        (("vae", tmp_path / "a", "--size", 33), "a multiple of 2"),
    ]:
        capsys.readouterr()
        assert stage(home, *words) == 2
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())  # some are told in a box
        assert why in shown and "Traceback" not in shown
        assert digest(home) == before and not (tmp_path / "a").exists()


def test_a_state_of_another_width_is_told_before_anything_is_thrown_away(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        recording(tmp_path / f"shown/{number}.npz")
        with np.load(tmp_path / f"shown/{number}.npz") as file:
            arrays = dict(file)
        np.savez(tmp_path / f"shown/{number}.npz", **arrays, proprio=np.full((12, 2), 5, np.float32))
    words = ("policy", tmp_path / "a", "--data", tmp_path / "shown", "--policy.proprio-width")
    assert stage(home, *words, 2, "--policy.proprio-standard") == 0
    learned = load_models(tmp_path / "a").policy
    assert learned is not None and learned.proprio_mean.tolist() == [5, 5]  # measured, and saved
    before = digest(tmp_path / "a")
    assert stage(home, *words, 3, "--fresh") == 2
    assert "a state of width 2, the policy is to read one of 3: set --policy.proprio-width 2" in said(capsys)
    assert digest(tmp_path / "a") == before


def test_two_trials_at_once_do_not_mix_their_logs(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", home / "policy", "--world", "toy", "--tasks", "red", "--episodes", 1, "--workers", 0)
    with sole_writer(tmp_path / "log.jsonl"):
        assert ideomotor("vpp", *words, *THROUGH, "--out", tmp_path / "log.jsonl") == 2
    assert f"process {os.getpid()} adds to {tmp_path / 'log.jsonl'}: wait for its end" in said(capsys)
    assert ideomotor("vpp", *words, *THROUGH, "--out", tmp_path / "log.jsonl") == 0


def test_a_video_model_of_another_run_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(home, "video", tmp_path / "video", "--seed", 1) == 0
    shutil.copytree(home / "policy", tmp_path / "policy")
    shutil.rmtree(tmp_path / "policy/predictor")
    shutil.copytree(tmp_path / "video/predictor", tmp_path / "policy/predictor")
    assert ideomotor("vpp", "evaluate", tmp_path / "policy", *TOY, *THROUGH) == 2
    assert "they do not belong together" in said(capsys)


def test_other_features_cameras_and_latents_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = shutil.copytree(home / "policy", tmp_path / "policy")
    evaluate = ("vpp", "evaluate", policy, *TOY)
    assert ideomotor(*evaluate, "--camera", "main") == 2
    assert "was trained on what image saw, and main is to take that place" in said(capsys)
    # A policy of features of another noise level, or other layers, goes by its own folder's; an edit does not pass.
    edited = json.loads((policy / "vpp.json").read_text())
    edited["foresight"] |= {"sigma": 28.0, "layers": [1, 0]}
    (policy / "vpp.json").write_text(json.dumps(edited))
    assert ideomotor(*evaluate, *THROUGH) == 2
    shown = said(capsys)
    assert "foresight.sigma: 700.0 -> 28.0" in shown and "foresight.layers: [0, 1] -> [1, 0]" in shown
    assert stage(home, "policy", home / "policy", "--foresight.sigma", 28) == 2
    assert "foresight.sigma: 700.0 -> 28.0" in said(capsys)
    # Latents of another autoencoder: beside the video model, and in a run that goes on.
    assert stage(home, "vae", tmp_path / "vae", "--seed", 1) == 0
    video = shutil.copytree(home / "video", tmp_path / "video")
    shutil.rmtree(video / "vae")
    shutil.copytree(tmp_path / "vae/vae", video / "vae")
    capsys.readouterr()
    assert stage(home, "policy", tmp_path / "a", "--video-from", video) == 2
    assert "the predictor in" in (shown := said(capsys)) and "learned with the vae" in shown
    assert stage(home, "video", home / "video", "--vae-from", tmp_path / "vae") == 2
    assert "vae" in said(capsys) and not (tmp_path / "a").exists()


def test_a_truncated_pt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("annotation/val", "latent_videos"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/annotation/val/0.json").write_text(
        '{"latent_videos": [{"latent_video_path": "latent_videos/0.pt"}]}'
    )
    torch.save(torch.rand(5, 4, 2, 2), whole := tmp_path / "data/latent_videos/0.pt")
    whole.write_bytes(whole.read_bytes()[:700])
    assert ideomotor("vpp", "prepare", "--data", tmp_path / "data", "--cache", tmp_path / "cache") == 2
    assert "0.pt" in (shown := said(capsys)) and "cut short" in shown
    assert ideomotor("import", "vpp", whole, "--out", tmp_path / "out") == 2
    assert "0.pt" in said(capsys) and not (tmp_path / "out").exists()


def arm(path: Path, states: int = 12, norm: float = 1.0) -> None:
    """A recording of an arm with a hand: poses that wander, quaternions of either sign, and commands ahead of them."""
    generator = np.random.default_rng(sum(path.name.encode()))
    walk = 0.05 * generator.normal(size=(13, 19)).cumsum(0) + np.eye(19)[3]
    walk[:, 3:7] *= norm * generator.choice([-1, 1], (13, 1)) / np.linalg.norm(walk[:, 3:7], axis=1, keepdims=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = synthetic_disc(0, 3).render(np.arange(12, dtype=float), (32, 32)).permute(0, 2, 3, 1).numpy()
    np.savez(path, image=images, action=walk[1:].astype(np.float32), proprio=walk[:states].astype(np.float32))


def test_an_own_robot_learns_and_acts_in_its_units(home: Path, tmp_path: Path) -> None:
    for number in range(3):
        arm(tmp_path / f"arm/{number}.npz")
    words = ("--data", tmp_path / "arm", "--robot", "xarm_xhand", "--action-stride", 2, "--remain", 3)
    assert stage(home, "policy", tmp_path / "policy", *words, "--policy-stage.optim.bf16") == 0
    models, agent = load_models(tmp_path / "policy"), load_agent(tmp_path / "policy")
    assert models.policy is not None and models.policy.config.proprio_width == 19
    assert [group.name for group in models.policy.config.groups] == ["xyz", "rotation", "hand"]
    states = torch.from_numpy(np.load(tmp_path / "arm/0.npz")["proprio"][:2])
    context = replace(seen(2), proprio=states)
    commands = agent.act(context)
    assert commands.shape == (2, 4, 19) and commands.isfinite().all()
    torch.testing.assert_close(commands[..., 3:7].norm(dim=-1), torch.ones(2, 4))
    # The other sign is the same turn: what is done does not change.
    turned = states * torch.where((torch.arange(19) >= 3) & (torch.arange(19) < 7), -1.0, 1.0)
    again = agent.act(replace(context, proprio=turned))
    torch.testing.assert_close(again[..., :3], commands[..., :3], atol=1e-4, rtol=1e-3)
    # Commands that are under way already stay as they are, of each row as many as it has, and the others follow them.
    shifted = torch.cat([commands[..., :3] + 0.01, commands[..., 3:]], -1)
    begun = Prefix(shifted, torch.tensor([0, 2]))
    on = agent.act(context, prefix=begun)
    assert torch.equal(on[1, :2], begun.actions[1, :2])
    torch.testing.assert_close(on[0], commands[0], atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="proprioception of width 19 and got None"):
        agent.act(seen(2))
    shutil.rmtree(tmp_path / "policy/robot")
    with pytest.raises(ValueError, match="learned with the robot"):
        load_agent(tmp_path / "policy")


def test_a_robot_of_a_file_is_learned_and_the_folder_needs_the_file_no_more(home: Path, tmp_path: Path) -> None:
    for number in range(3):
        arm(tmp_path / f"arm/{number}.npz")
    parts = [
        {"name": "xyz", "kind": "position", "form": "difference", "width": 3, "weight": 2.0},
        {"name": "rotation", "kind": "quaternion", "form": "relative_euler", "width": 4},
        {"name": "fingers", "kind": "joints", "form": "absolute", "width": 12},
    ]
    (tmp_path / "mine.json").write_text(json.dumps({"parts": parts}))
    words = ("policy", tmp_path / "policy", "--data", tmp_path / "arm", "--robot", tmp_path / "mine.json")
    assert stage(home, *words) == 0 and stage(home, *words) == 0  # the second time nothing is left to do
    (tmp_path / "mine.json").unlink()
    agent = load_agent(tmp_path / "policy")
    assert isinstance(agent.config.robot, OwnRobotConfig) and agent.robot is not None
    assert agent.config.robot == agent.robot.config and agent.config.robot.canonical
    assert [(group.name, group.width, group.weight) for group in agent.policy.config.groups] == [
        ("xyz", 3, 2.0), ("rotation", 3, 1.0), ("fingers", 12, 1.0)
    ]  # fmt: skip
    states = torch.from_numpy(np.load(tmp_path / "arm/0.npz")["proprio"][:2])
    assert agent.act(replace(seen(2), proprio=states)).shape == (2, 4, 19)


def test_what_is_no_recording_of_the_robot_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm(tmp_path / "arm/0.npz")
    arm(tmp_path / "arm/1.npz", norm=0.5)
    arm(tmp_path / "short/0.npz", states=9)
    xhand, mine = ("--robot", "xarm_xhand"), tmp_path / "mine.json"
    joints = [{"name": name, "kind": "joints", "form": "absolute", "width": 2 + n} for n, name in enumerate(ARM)]
    mine.write_text(json.dumps({"parts": joints, "state": False}))
    for words, why in [
        (("--data", tmp_path / "arm", *xhand), "'1': the quaternion of part 'rotation' of the states"),
        (("--data", tmp_path / "short", *xhand), "9"),
        (("--data", tmp_path / "arm", "--robot", "bimanual"), "of width 19, the robot 'bimanual' takes 38"),
        (("--data", tmp_path / "arm", "--robot", "xarm_xhnd"), "did you mean 'xarm_xhand'?"),
        (("--robot", "calvin"), "of width 2, the robot 'calvin' takes 7"),
        (("--robot", mine), "of width 2, the robot of lift, turn takes 5"),
        (("--robot", tmp_path / "other.json"), "other.json"),
        (("--action-stride", 0), "action_stride 0"),
    ]:
        capsys.readouterr()
        assert stage(home, "policy", tmp_path / "a", *words) == 2
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert why in shown and "Traceback" not in shown, shown
        assert not (tmp_path / "a").exists()


@pytest.mark.golden
def test_real_recordings_of_a_hand_are_learned(shared: Path, home: Path, tmp_path: Path) -> None:
    words = ("--data", shared / "data/real/xhand", "--robot", "xarm_xhand", "--policy-stage.every", 50)
    assert stage(home, "policy", tmp_path / "hand", *words) == 0
    agent = load_agent(tmp_path / "hand")
    episode = open_dataset(shared / "data/real/xhand").episodes[0]
    assert episode.read_proprio is not None and episode.read_actions is not None
    state = torch.from_numpy(episode.read_proprio()[:1]).float()
    commands = agent.act(replace(seen(1), proprio=state))
    recorded = torch.from_numpy(episode.read_actions()[:4]).float()
    assert commands.shape == (1, 4, 19) and (commands[0, :, :3] - recorded[:, :3]).abs().max() < 0.2
