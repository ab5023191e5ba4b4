from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ideomotor.data.formats import open_dataset
from ideomotor.data.loader import ClipLoader
from ideomotor.data.sampling import Sampling, StridedWindow, sampled_sources
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.video import write_video
from ideomotor.systems.vpp_prepare import (
    PrepareOptions,
    load_vae,
    prepare,
    prepared_dataset,
    published_dataset,
    rated,
    vae_fingerprint,
)
from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig
from ideomotor.training.checkpoint import save_model

pytest.importorskip("diffusers")
TINY = SVDVAEConfig(widths=(32, 32), blocks=1, scale=0.5, together=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos in ``videos``, a VAE in ``run/vae``, another in ``other``."""
    root = tmp_path_factory.mktemp("prepare")
    for number, episode in enumerate(synthetic_dataset(2, 9, 16).episodes):
        write_video(root / "videos" / f"{number}.mp4", episode.frames["video"].read(range(9)), 10)
    for seed, place in enumerate((root / "run" / "vae", root / "other")):
        torch.manual_seed(seed)
        save_model(place, SVDVAE(TINY), TINY)
    return root


def test_videos_become_clips_of_latents(folder: Path, tmp_path: Path):
    options = PrepareOptions(data=(folder / "videos",), vae=folder / "run", size=16, cache=tmp_path, device="cpu")
    (made,) = prepare(options)
    assert (made.name, made.camera, made.episodes, made.frames, made.left_out) == ("videos", "video", 2, 18, 0)
    assert made.folder is not None and str(made.folder) in made.line
    vae = load_vae(folder / "run" / "vae")
    name = vae_fingerprint(vae)
    dataset = prepared_dataset(folder / "videos", ["video"], tmp_path, 16, name)
    (source,) = sampled_sources(dataset, Sampling(window=StridedWindow(frames=3, stride=2)))
    loader = ClipLoader([source], 2, seed=0, actions=False, latents="mean", prefetch=0)
    clip = loader.batch(0)
    torch.testing.assert_close(clip.latents["main"], vae.moments(clip.frames["main"])[0], atol=5e-3, rtol=2e-3)
    with pytest.raises(ValueError, match=r"made by another VAE .*: prepare them with this one"):
        prepared_dataset(folder / "videos", ["video"], tmp_path, 16, vae_fingerprint(load_vae(folder / "other")))
    with pytest.raises(FileNotFoundError, match="ideomotor vpp prepare"):
        prepared_dataset(folder / "videos", ["video"], tmp_path, 8, name)
    # The same command again encodes nothing, and looks whether all is sound.
    (shard,) = made.folder.glob("*.safetensors")
    before = shard.stat().st_mtime_ns
    assert prepare(options) == [made] and shard.stat().st_mtime_ns == before
    content = bytearray(shard.read_bytes())
    content[-3] ^= 8
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors was changed"):
        prepare(options)


def annotated(root: Path, latents: int) -> Path:
    (root / "annotation" / "val").mkdir(parents=True)
    (root / "latent_videos").mkdir()
    for number in range(2):
        entry = f'{{"latent_videos": [{{"latent_video_path": "latent_videos/{number}.pt"}}]}}'
        (root / "annotation" / "val" / f"{number}.json").write_text(entry)
        torch.save(torch.full((latents, 4, 2, 2), 0.18215 * number), root / "latent_videos" / f"{number}.pt")
    return root


def test_published_latents_need_no_vae(tmp_path: Path):
    root = annotated(tmp_path / "published", 5)
    (found,) = prepare(PrepareOptions(data=(root,)))
    assert (found.camera, found.episodes, found.frames, found.folder) == ("camera0", 2, 10, None)
    assert "published" in found.line
    dataset = published_dataset(root, ["camera0"], "svd")
    assert dataset.episodes[1].latents["camera0"].vae == "svd"
    assert dataset.episodes[1].latents["camera0"].read([4]).mean.unique().tolist() == pytest.approx([1.0])
    torch.save(torch.full((5, 4, 2, 2), float("inf")), root / "latent_videos" / "1.pt")
    with pytest.raises(ValueError, match=r"1\.pt holds values that are no numbers"):
        prepare(PrepareOptions(data=(root,)))


def test_what_cannot_be_prepared_says_why(folder: Path, tmp_path: Path):
    videos = PrepareOptions(data=(folder / "videos",), vae=folder / "run", size=16, cache=tmp_path)
    with pytest.raises(ValueError, match="size 15 is no multiple of 2"):
        prepare(replace(videos, size=15))
    with pytest.raises(ValueError, match="no video of camera 'wrist'"):
        prepare(replace(videos, cameras=("wrist",)))
    with pytest.raises(ValueError, match=r"2 of 2 episodes .* have no latents of camera 'video'"):
        prepare(replace(videos, vae=None))
    with pytest.raises(ValueError, match="none of the 2 episodes"):
        published_dataset(folder / "videos", ["video"], "svd")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        prepare(replace(videos, vae=folder / "videos"))
    with pytest.raises(ValueError, match="--cameras has 2 values for 1 data sets"):
        replace(videos, cameras=("a", "b"))
    with pytest.raises(ValueError, match="device is 'cuda:99', and this machine has cpu"):
        prepare(replace(videos, device="cuda:99"))
    with pytest.raises(ValueError, match="which it would change: choose another"):
        prepare(replace(videos, cache=folder / "videos/cache"))
    assert not list(tmp_path.glob("latents-*[!k]")) and not (folder / "videos/cache").exists()


def test_the_rate_counts_what_was_done_since_the_start():
    told: list[tuple[int, int, str]] = []
    now = iter([10.0, 10.0, 12.0, 14.0])
    report = rated(lambda *what: told.append(what), "videos", lambda: next(now))
    report(1000, 3000)  # resumed
    report(1100, 3000)
    report(1400, 3000)
    assert told == [
        (1000, 3000, "videos"),
        (1100, 3000, "videos (50 frames/s)"),
        (1400, 3000, "videos (100 frames/s)"),
    ]


@pytest.mark.golden
def test_real_recordings_of_all_kinds_are_prepared(shared: Path, folder: Path, tmp_path: Path):
    real = shared / "data" / "real"
    data = tuple(real / name for name in ("rt1", "sthv2"))
    made = prepare(PrepareOptions(data=data, vae=folder / "run", size=16, cache=tmp_path, device="cpu", batch=64))
    assert [(one.name, one.episodes, one.frames) for one in made] == [("rt1", 2, 86), ("sthv2", 4, 189)]
    lengths = {episode.id: episode.length for episode in open_dataset(real / "rt1").episodes}
    dataset = prepared_dataset(real / "rt1", ["camera0"], tmp_path, 16, vae_fingerprint(load_vae(folder / "run")))
    assert {episode.id: episode.latents["camera0"].shape[0] for episode in dataset.episodes} == lengths
