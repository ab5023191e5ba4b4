"""Stage 2 of VPP on latents, by the command: those that demonstrations were published as, and those of their video."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import digest, ideomotor, said

from ideomotor.data.formats import open_dataset
from ideomotor.data.formats.latent_files import SCALE
from ideomotor.data.loader import ClipLoader
from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import write_video
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.systems.sources import DataOptions, TrainingClips, open_sources
from ideomotor.systems.vpp import VPP, ActionDenoising, Foreseeing, Looking
from ideomotor.systems.vpp_latents import as_latents
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.systems.vpp_robot import acting_window
from ideomotor.systems.vpp_stages import load_agent, seeing
from ideomotor.systems.vpp_text import goal_encoder, token_encoder
from ideomotor.tokenizers.svd_vae import SVDVAE
from ideomotor.training.checkpoint import save_model
from ideomotor.types import Clip

FRAMES = 9
ROBOT = ("--views", 2, "--robot", "xarm_xhand")
BLIND = ("--eyes", "latents", "--former.feature-width", 4, "--former.frames", 1)


def poses(rng: np.random.Generator) -> list[list[float]]:
    """A position, a quaternion of norm 1, twelve joints a frame."""
    rows = rng.uniform(-1, 1, (FRAMES, 19))
    rows[:, 3:7] /= np.linalg.norm(rows[:, 3:7], axis=1, keepdims=True)
    return rows.tolist()


def filmed(root: Path) -> Path:
    """Demonstrations of an arm with a hand, seen by two cameras."""
    (root / "annotation/train").mkdir(parents=True)
    for number in range(3):
        rng = np.random.default_rng(number)
        for camera in range(2):
            video = synthetic_disc(2 * number + camera, 0).render(np.arange(FRAMES, dtype=float), (32, 32))
            write_video(root / f"videos/{number}/{camera}.mp4", video, fps=10)
        entry = {
            "texts": [f"push disc {number}"],
            "videos": [{"video_path": f"videos/{number}/{camera}.mp4"} for camera in range(2)],
            "latent_videos": [{"latent_video_path": f"latent_videos/{number}/{camera}.pt"} for camera in range(2)],
            "states": poses(rng),
            "actions": poses(rng),
        }
        (root / f"annotation/train/{number}.json").write_text(json.dumps(entry))
    return root


def passed_on(films: Path, root: Path, vae: SVDVAE) -> Path:
    """The same demonstrations as VPP's release passes them on, without video; here the latents are the VAE's means."""
    shutil.copytree(films / "annotation", root / "annotation")
    for episode in open_dataset(films).episodes:
        number = episode.id.split("/")[1]
        (root / "latent_videos" / number).mkdir(parents=True)
        for camera, frames in enumerate(episode.frames.values()):
            mean, _ = vae.moments(frames.read(range(FRAMES))[None])
            torch.save(SCALE * mean[0], root / f"latent_videos/{number}/{camera}.pt")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations as video and as latents alone, an autoencoder that nobody trained, and a video model."""
    home = tmp_path_factory.mktemp("acting")
    torch.manual_seed(0)
    vae = SVDVAE(replace(PRESETS["tiny"]().vae, scale=0.5)).eval()
    save_model(home / "vae", vae, vae.config)
    filmed(home / "films")
    passed_on(home / "films", home / "latents", vae)
    words = ("--preset", "tiny", "--data", home / "latents", "--vae-from", home / "vae", "--cache", home / "cache")
    assert ideomotor("vpp", "video", *words, "--out", home / "video", "--views", 2, "--video-stage.steps", 2) == 0
    return home


def policy(home: Path, data: str, out: Path, *more: object, cache: str = "cache") -> int:
    words = ("--preset", "tiny", "--data", home / data, "--video-from", home / "video", "--cache", home / cache)
    return ideomotor("vpp", "policy", *words, "--out", out, "--policy-stage.steps", 2, *more)


def clips(home: Path, config: VPP, data: str, latents: bool, *cameras: str) -> TrainingClips:
    options = DataOptions(data=(home / data,), cache=home / "cache", cameras=cameras, validation=0.0)
    vae, _ = seeing(home / "video", config)
    encode = as_latents(options, config, vae, home / "video") if latents else None
    window = acting_window(config)
    sources = open_sources(options, config, config.policy_stage, actions=True, window=window, encode=encode)
    return TrainingClips(sources.train, with_frames=not latents, actions=True, latents="mean" if latents else None)


def batch(clips: TrainingClips) -> Clip:
    return ClipLoader(clips.sources, 4, 0, with_frames=clips.with_frames, latents=clips.latents, prefetch=0).batch(3)


def two_views() -> VPP:
    tiny = PRESETS["tiny"]()
    return replace(tiny, views=2, policy=replace(tiny.policy, action_width=19))


def test_latents_show_what_video_shows(home: Path) -> None:
    config = two_views()
    vae, predictor = seeing(home / "video", config)
    foreseeing = Foreseeing(config, vae, predictor, token_encoder(config))
    torch.manual_seed(0)
    parts = Looking(config).eval(), EDMTransformer(config.head).eval(), foreseeing, goal_encoder(config)
    seen, known = [], []
    objective = ActionDenoising(config, *parts)
    for data, latents in (("films", False), ("latents", True), ("films", True)):
        clip = batch(clips(home, config, data, latents))
        assert (clip.latents is None) == bool(clip.frames)
        seen.append(objective._looked(clip))
        torch.manual_seed(1)
        known.append(objective(clip).total.item())
    # Published: scaled and unscaled in float32. Of the cache: rounded to float16, by 1 in 2,048 at most.
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[2], seen[0], rtol=1e-2, atol=5e-3)
    assert not torch.equal(seen[2], seen[0])
    assert known[1:] == [pytest.approx(known[0], rel=tolerance) for tolerance in (1e-5, 1e-3)]


def test_cameras_come_in_the_order_they_are_named(home: Path) -> None:
    config = two_views()
    plain, turned = (batch(clips(home, config, "latents", True, *named)) for named in ((), ("camera1,camera0",)))
    assert plain.latents is not None and turned.latents is not None
    assert torch.equal(plain.latents["main"], turned.latents["view1"])
    assert torch.equal(plain.latents["view1"], turned.latents["main"])
    assert not torch.equal(plain.latents["main"], turned.latents["main"])


def test_a_robot_learns_from_latents_alone_and_acts_on_frames(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set((home / "cache").glob("latents-*"))
    words = (*ROBOT, "--validation", 0.3)
    assert policy(home, "latents", tmp_path / "plain", *words) == 0
    assert "taken as they were published, for those of --video-from" in capsys.readouterr().err
    assert policy(home, "latents", tmp_path / "cached", *words, "--cache-features") == 0
    assert set((home / "cache").glob("latents-*")) == before, "nothing is encoded"
    (noted,) = json.loads((tmp_path / "plain/data.json").read_text())["datasets"]
    assert noted["camera"] == "camera0,camera1" and noted["learned"] == 2 and len(noted["held_out"]) == 1
    slow, fast = (load_agent(tmp_path / name) for name in ("plain", "cached"))
    whole = fast.looking.state_dict()
    apart = torch.cat([(whole[name] - weight).abs().flatten() for name, weight in slow.looking.state_dict().items()])
    assert apart.mean() < 1e-4, "features are float16 in the cache, where a step moves weights by up to 2e-3"
    frames = {name: torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8) for name in ("main", "view1")}
    state = torch.tensor(poses(np.random.default_rng(9))[:2])
    chunk = slow.act(Clip(frames=frames, text=("push",) * 2, proprio=state))
    assert chunk.shape == (2, 4, 19) and chunk.isfinite().all()


def test_latents_of_video_are_made_once_and_stand_beside_published_ones(home: Path, tmp_path: Path) -> None:
    wide = ("--policy.action-width", 19)
    options = {"cache": "another"}
    assert policy(home, "films", tmp_path / "a", *wide, "--cache-latents", **options) == 0
    assert [path.name.split("-")[0] for path in (home / "another").iterdir() if path.is_dir()] == ["latents"]
    # Beside what has no video nothing need be said; what is made is what is there, and features of it are others.
    both = (*wide, "--data", home / "films", home / "latents")
    assert policy(home, "films", tmp_path / "b", *both, **options) == 0
    assert len(list((home / "another").glob("latents-*/index.json"))) == 1
    for words, features in ((("--cache-latents",), 1), ((), 2)):
        out = tmp_path / f"c{features}"
        assert policy(home, "films", out, *wide, *BLIND, "--cache-features", *words, **options) == 0
        assert len(list((home / "another").glob("features-*/index.json"))) == features


def test_a_run_that_looked_at_latents_does_not_go_on_with_video(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--policy.action-width", 19, *BLIND)
    assert policy(home, "films", tmp_path / "a", *words, "--cache-latents") == 0
    before = digest(tmp_path / "a")
    assert policy(home, "films", tmp_path / "a", *words) == 2
    assert "looked at" in said(capsys) and digest(tmp_path / "a") == before


def test_what_cannot_be_looked_at_is_refused_before_anything_is_thrown_away(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ("--policy.action-width", 19)
    assert policy(home, "latents", tmp_path / "a", *wide, *BLIND) == 0
    before = digest(tmp_path / "a")
    shutil.copytree(home / "latents", tmp_path / "bare")
    for file in (tmp_path / "bare/annotation/train").glob("*.json"):
        file.write_text(json.dumps({"latent_videos": json.loads(file.read_text())["latent_videos"]}))
    shutil.copytree(home / "latents", tmp_path / "small")
    for file in (tmp_path / "small/latent_videos").rglob("*.pt"):
        torch.save(torch.load(file, weights_only=True)[..., :8, :8].clone(), file)
    for words, why in [
        (("--data", tmp_path / "bare"), "holds episodes without actions"),
        (("--data", tmp_path / "small"), "has latents of shape (4, 8, 8); this autoencoder makes (4, 16, 16)"),
        (("--cameras", "camera7"), "none of 'camera7'. Encode them (ideomotor vpp prepare --vae), or name others"),
        (("--views", 3), "3 views are wanted of 'latents', and camera0, camera1 were found"),
    ]:
        capsys.readouterr()
        assert policy(home, "latents", tmp_path / "a", *wide, *BLIND, "--fresh", *words) == 2
        assert why in said(capsys) and digest(tmp_path / "a") == before
    assert policy(home, "films", tmp_path / "b", "--cache-latents", cache="unused") == 2
    assert "actions of width 19, the policy of 2" in said(capsys) and not (home / "unused").exists(), "nothing is made"
    pixels = ("vpp", "policy", "--preset", "tiny", "--eyes", "pixels", *wide, "--out", tmp_path / "b", "--data")
    assert ideomotor(*pixels, home / "latents") == 2
    assert "without video, and --eyes pixels looks at video alone: give demonstrations with video" in said(capsys)
    assert ideomotor(*pixels, home / "films", "--cache-latents") == 2
    assert "leave it out, or take --eyes foresight" in said(capsys) and not (tmp_path / "b").exists()


def test_episodes_without_a_camera_are_left_out_by_name(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "latents", tmp_path / "latents")
    (tmp_path / "latents/latent_videos/1/1.pt").unlink()
    words = ("--views", 2, "--policy.action-width", 19, "--data", tmp_path / "latents")
    assert policy(home, "latents", tmp_path / "a", *words) == 0
    assert "train/1: has latents of 'camera0', and none of 'camera1'" in capsys.readouterr().err
    (noted,) = json.loads((tmp_path / "a/data.json").read_text())["datasets"]
    assert noted["learned"] == 2 and [entry["path"] for entry in noted["left_out"]] == ["train/1"]
