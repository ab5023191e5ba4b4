import errno
import json
import multiprocessing
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from latents_made_up import Opened, encode
from safetensors import SafetensorError
from torch.nn import functional

from ideomotor.data.cache import cached
from ideomotor.data.latents import LatentCache, LatentSpec, with_cached_latents
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.whole_clips import WholeClip
from ideomotor.data.windows import split
from ideomotor.types import Dataset, Latents

SPEC = LatentSpec(camera="video", size=(8, 8), vae="v" * 20, scale=0.5, batch=4)


def build(dataset: Dataset, root: Path, **settings) -> LatentCache:
    settings = {"spec": SPEC, "open_encoder": lambda: encode, "shard_frames": 20} | settings
    return LatentCache.build(dataset, root, **settings)


def same(one: LatentCache, other: LatentCache) -> bool:
    assert one.latents.keys() == other.latents.keys()
    return all(
        torch.equal(*(torch.cat(each.latents[name].read(range(each.latents[name].shape[0]))) for each in (one, other)))
        for name in one.latents
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_holds_what_the_encoder_said(tmp_path: Path, dtype: str):
    dataset = synthetic_dataset(5, 11, 16)
    seen: list[tuple[int, int]] = []
    cache = build(
        dataset, tmp_path, spec=replace(SPEC, dtype=dtype), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0] == (0, 55) and seen[-1] == (55, 55) and len(seen) == 1 + 5 * 3
    assert len(list(cache.folder.glob("*.safetensors"))) == 3  # of 2, 2 and 1 episodes
    assert (cache.vae, cache.scale, cache.dtype, cache.camera) == (SPEC.vae, 0.5, dtype, "video")
    for episode in dataset.episodes:
        latents = cache.latents[episode.id]
        assert isinstance(latents, Latents) and latents.shape == (11, 3, 2, 2) and latents.vae == SPEC.vae
        wanted = encode(episode.frames["video"].read([10, 0, 10], size=(8, 8)))
        for ours, theirs in zip(latents.read([10, 0, 10]), wanted, strict=True):
            assert ours.dtype == torch.float32
            assert torch.equal(ours, theirs.to(getattr(torch, dtype)).float())
        with pytest.raises(IndexError):
            latents.read([11])
    cache.verify()


@pytest.mark.parametrize("rows", [[5], [4, 2, 9, 2], [], [10, 0]])
def test_some_frames_of_an_episode_are_those_of_all(tmp_path: Path, rows: list[int]):
    (latents,) = build(synthetic_dataset(1, 11, 8), tmp_path).latents.values()
    for some, whole in zip(latents.read(rows), latents.read(range(11)), strict=True):
        assert some is not None and whole is not None and torch.equal(some, whole[rows])


def test_what_is_made_of_latents_is_told_apart_by_how_they_were_made(tmp_path: Path):
    dataset, names = synthetic_dataset(2, 5, 8), set()
    for place, spec in ((tmp_path / "a", SPEC), (tmp_path / "b", replace(SPEC, dtype="bfloat16"))):
        for _ in range(2):
            build(dataset, place, spec=spec)
            names.add(with_cached_latents(dataset, place, ["video"], (8, 8), SPEC.vae).fingerprint)
    assert len(names | {dataset.fingerprint}) == 3


def test_datasets_carry_their_latents_through_a_split_to_the_loader(tmp_path: Path):
    dataset = synthetic_dataset(4, 9, 16)
    build(dataset, tmp_path)
    ready = with_cached_latents(dataset, tmp_path, ["video"], (8, 8), SPEC.vae)
    train, _ = split(ready, 0.5)
    source = Source(train, window=WholeClip(frames=4))
    clip = ClipLoader([source], 4, seed=0, actions=False, latents="mean", prefetch=0, with_frames=False).batch(0)
    assert clip.latents["main"].shape == (4, 4, 3, 2, 2)
    wanted = {float(encode(e.frames["video"].read([0], size=(8, 8)))[0].half().sum()) for e in train.episodes}
    assert {float(row[0].half().sum()) for row in clip.latents["main"]} == wanted


@dataclass(frozen=True)
class Ramp:
    """Wide frames that are the brighter the further to the right."""

    shape: tuple[int, int, int, int] = (1, 3, 8, 16)

    def read(self, indices, size=None):
        row = torch.arange(16, dtype=torch.float32).mul(10).expand(len(indices), 3, 8, 16)
        return functional.interpolate(row, size or self.shape[2:], mode="area").to(torch.uint8)


def test_frames_are_cut_or_squeezed(tmp_path: Path):
    dataset = synthetic_dataset(1, 1, 8)
    wide = replace(dataset, episodes=(replace(dataset.episodes[0], frames={"video": Ramp()}),))
    means = {}
    for fit in ("crop", "squeeze"):
        build(wide, tmp_path, spec=replace(SPEC, fit=fit))
        ready = with_cached_latents(wide, tmp_path, ["video"], (8, 8), SPEC.vae, fit)
        means[fit] = (ready.episodes[0].latents["video"].read([0]).mean[0, 0, 0] * 8).tolist()
    assert means == {"crop": [55, 95], "squeeze": [35, 115]}  # columns 4 to 11, and all of them


def test_latents_of_another_vae_are_refused_and_both_may_lie_there(tmp_path: Path):
    dataset = synthetic_dataset(2, 5, 8)
    with pytest.raises(FileNotFoundError, match="prepare them first"):
        with_cached_latents(dataset, tmp_path, ["video"], (8, 8), SPEC.vae)
    build(dataset, tmp_path)
    with pytest.raises(ValueError, match=r"made by another VAE \(vvvvvvvvvvvv, wanted wwwwwwwwwwww\)"):
        with_cached_latents(dataset, tmp_path, ["video"], (8, 8), "w" * 20)
    build(dataset, tmp_path, spec=replace(SPEC, vae="w" * 20))
    for vae in (SPEC.vae, "w" * 20):
        ready = with_cached_latents(dataset, tmp_path, ["video"], (8, 8), vae)
        assert ready.episodes[0].latents["video"].vae == vae
    with pytest.raises(FileNotFoundError, match="4x4 pixels"):
        with_cached_latents(dataset, tmp_path, ["video"], (4, 4), SPEC.vae)


def test_two_workers_make_what_one_makes(tmp_path: Path):
    """Frames of a cache are memory-mapped and its signals read by open files: neither may be sent as they are."""
    dataset = cached(synthetic_dataset(5, 11, 8), tmp_path / "frames", 8)
    alone = build(dataset, tmp_path / "one")
    (tmp_path / "notes").mkdir()
    seen: list[int] = []
    both = build(
        dataset,
        tmp_path / "two",
        workers=2,
        open_encoder=Opened(tmp_path / "notes"),
        progress=lambda done, total: seen.append(done),
    )
    assert same(alone, both)
    assert [file.read_bytes() for file in sorted(alone.folder.glob("*.safetensors"))] == [
        file.read_bytes() for file in sorted(both.folder.glob("*.safetensors"))
    ]
    opened = {path.name for path in (tmp_path / "notes").iterdir()}
    assert 1 <= len(opened) <= 2 and f"opened-{os.getpid()}" not in opened
    assert seen == sorted(seen) and seen[-1] == 55


def build_slowly(root: Path, report) -> None:
    def slowly(done: int, total: int) -> None:
        report.send(done)
        time.sleep(0.02)

    build(synthetic_dataset(9, 10, 8), root, progress=slowly)


def test_a_killed_build_goes_on_after_its_last_whole_shard(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    report, theirs = context.Pipe(duplex=False)
    victim = context.Process(target=build_slowly, args=(tmp_path, theirs))
    victim.start()
    while report.recv() < 54:  # in the third shard of two episodes
        pass
    victim.kill()
    victim.join()
    (draft,) = tmp_path.glob("*.partial")
    kept = [json.loads(line)["shard"] for line in (draft / "journal.jsonl").read_text().splitlines()]
    assert kept == [0, 1]
    (draft / ".latents-00002.safetensors.abc.part").write_bytes(b"cut")
    cut = draft / "latents-00001.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])  # the disk lost the end of a shard that was noted
    seen: list[int] = []
    dataset = synthetic_dataset(9, 10, 8)
    cache = build(dataset, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] == 20 and seen[-1] == 90
    assert same(cache, build(dataset, tmp_path / "straight"))
    assert not list(tmp_path.glob("*.partial")) and not list(cache.folder.glob(".*.part"))


def test_damaged_shards_are_named(tmp_path: Path):
    cache = build(synthetic_dataset(6, 10, 8), tmp_path)
    shards = sorted(cache.folder.glob("*.safetensors"))
    flipped = bytearray(shards[1].read_bytes())
    flipped[-5] ^= 1
    shards[1].write_bytes(flipped)
    opened = LatentCache(cache.folder)  # sizes are right
    assert opened.latents["disc-0-0000"].read([0]).mean.shape == (1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"latents-00001\.safetensors was changed: delete the cache's folder"):
        opened.latents["disc-0-0002"].read([0])
    shards[0].write_bytes(shards[0].read_bytes()[:-8])
    shards[2].unlink()
    with pytest.raises(ValueError, match=r"00000\.safetensors has \d+ bytes .*00001.* changed; .*00002.* is missing"):
        opened.verify()
    with pytest.raises(ValueError, match=r"00000\.safetensors has \d+ bytes instead of \d+; .*00002.* is missing"):
        LatentCache(cache.folder)


@dataclass(frozen=True)
class Torn:
    """Frames of which the last ones do not decode."""

    shape: tuple[int, int, int, int]

    def read(self, indices, size=None):
        if max(indices) > 5:
            raise ValueError(f"frame {max(indices)} does not decode")
        return torch.zeros(len(indices), 3, *(size or self.shape[2:]), dtype=torch.uint8)


def test_episodes_that_do_not_decode_are_named_and_left_out(tmp_path: Path):
    dataset = synthetic_dataset(3, 12, 8)
    torn = replace(dataset.episodes[1], frames={"video": Torn((12, 3, 8, 8))})
    dataset = replace(dataset, episodes=(dataset.episodes[0], torn, dataset.episodes[2]))
    seen: list[int] = []
    cache = build(dataset, tmp_path, progress=lambda done, total: seen.append(done), shard_frames=12)
    assert seen == sorted(seen) and seen[-1] == 36
    assert list(cache.latents) == ["disc-0-0000", "disc-0-0002"]
    (lost,) = cache.quarantined
    assert lost.path == "disc-0-0001" and "frame 7 does not decode" in lost.reason
    ready = with_cached_latents(dataset, tmp_path, ["video"], (8, 8), SPEC.vae)
    assert len(ready.episodes) == 2 and lost in ready.quarantined
    with pytest.raises(ValueError, match=r"none of the 1 episodes .* frame 7 does not decode"):
        build(replace(dataset, episodes=(torn,)), tmp_path)


def test_what_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = synthetic_dataset(4, 6, 8)
    with pytest.raises(ValueError, match="no video of camera 'wrist'; it has 'video'"):
        build(dataset, tmp_path, spec=replace(SPEC, camera="wrist"))
    with pytest.raises(ValueError, match=r"reach 1e\+06, which float16 does not hold: store bfloat16"):
        build(dataset, tmp_path, open_encoder=lambda: lambda frames: [torch.full((len(frames), 3, 2, 2), 1e6)] * 2)
    with pytest.raises(TypeError, match="wanted mean and deviation"):
        build(dataset, tmp_path, open_encoder=lambda: lambda frames: [torch.zeros(1, 3)] * 2)
    with pytest.raises(ValueError, match="no fingerprint"):
        replace(SPEC, vae="")
    with pytest.raises(ValueError, match="one of float16, bfloat16"):
        replace(SPEC, dtype="float32")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    for _ in range(2):  # after the first shard, and before the second
        with pytest.raises(OSError, match=r"the rest of the latents of 'synthetic-0' \(18 frames\) needs"):
            build(dataset, tmp_path, shard_frames=6)
    monkeypatch.undo()

    def full(tensors, path):
        raise SafetensorError("No space left on device (os error 28)")

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"os error 28.*What was encoded is kept"):
        patched.setattr("ideomotor.data.latent_encoding.save_file", full)
        build(dataset, tmp_path, shard_frames=6)
    seen: list[int] = []
    cache = build(dataset, tmp_path, shard_frames=6, progress=lambda done, total: seen.append(done))
    assert len(cache.latents) == 4 and seen[0] == 6


def test_a_disk_that_is_full_at_the_very_end_costs_nothing_that_was_made(tmp_path: Path, monkeypatch):
    dataset = synthetic_dataset(3, 6, 8)

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("ideomotor.data.draft.write_text", full)
        build(dataset, tmp_path, shard_frames=6)
    seen: list[int] = []
    cache = build(dataset, tmp_path, shard_frames=6, progress=lambda done, total: seen.append(done))
    assert seen == [18]  # nothing was encoded anew
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        "index.json", *(f"latents-{number:05d}.safetensors" for number in range(3))
    ]  # fmt: skip
