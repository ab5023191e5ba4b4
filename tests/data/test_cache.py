import contextlib
import json
import multiprocessing
import os
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ideomotor.data.cache import FrameCache, cached
from ideomotor.data.synthetic import SyntheticFrames, synthetic_dataset
from ideomotor.data.token_cache import TokenCache
from ideomotor.data.windows import WindowConfig, WindowIndex, split
from ideomotor.types import Dataset, Frames


@dataclass(frozen=True)
class Damaged:
    """Frames that fail from some frame on, or count what is asked of them."""

    frames: SyntheticFrames
    sound: int
    asked: list[int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames.shape

    def read(self, indices, size=None):
        self.asked.extend(indices)
        if max(indices) >= self.sound:
            raise ValueError(f"frame {max(indices)} is damaged")
        return self.frames.read(indices, size)


def with_frames(dataset: Dataset, number: int, frames: Frames) -> Dataset:
    episodes = list(dataset.episodes)
    episodes[number] = replace(episodes[number], frames={"video": frames})
    return replace(dataset, episodes=tuple(episodes))


def encode(frames: torch.Tensor) -> torch.Tensor:
    """Two frames to one latent frame of four tokens: a tokenizer whose result can be worked out."""
    b, t, _, h, w = frames.shape
    return frames.reshape(b, t // 2, -1, 2, h // 2, 2, w // 2).float().mean((2, 4, 6)).long().flatten(2)


def test_a_cache_equals_no_cache(tmp_path: Path):
    dataset = synthetic_dataset(5, 70, 16, cameras=("front", "side"))
    seen: list[tuple[int, int]] = []
    copy = cached(dataset, tmp_path, 12, cameras=("front", "side"), progress=lambda *done: seen.append(done))
    assert seen[-1] == (10, 10) and len(seen) == 10
    assert [episode.id for episode in copy.episodes] == [episode.id for episode in dataset.episodes]
    for ours, theirs in zip(copy.episodes, dataset.episodes, strict=True):
        assert (ours.text, ours.fps, ours.length, ours.outcome) == (
            theirs.text,
            theirs.fps,
            theirs.length,
            theirs.outcome,
        )
        for camera, frames in ours.frames.items():
            assert isinstance(frames, Frames) and frames.shape == (70, 3, 12, 12)
            assert torch.equal(frames.read([69, 3, 3]), theirs.frames[camera].read([69, 3, 3], size=(12, 12)))
        np.testing.assert_array_equal(ours.read_actions(), theirs.read_actions())
        np.testing.assert_array_equal(ours.read_proprio(), theirs.read_proprio())


def test_frames_cover_the_size_and_are_cut_to_the_centre(tmp_path: Path):
    @dataclass(frozen=True)
    class Wide(SyntheticFrames):
        @property
        def shape(self) -> tuple[int, int, int, int]:
            return (self.length, 3, 20, 30)

    dataset = synthetic_dataset(1, 4, 20)
    wide = Wide(disc=dataset.episodes[0].frames["video"].disc, length=4, size=20)
    frames = cached(with_frames(dataset, 0, wide), tmp_path, 10).episodes[0].frames["video"]
    assert torch.equal(frames.read([1]), wide.read([1], size=(10, 15))[..., 2:12])
    assert frames.read([1], size=(5, 7)).shape == (1, 3, 5, 7)
    for wrong in ([4], [-1]):
        with pytest.raises(IndexError):
            frames.read(wrong)


def test_every_episode_is_decoded_once_and_a_second_opening_decodes_nothing(tmp_path: Path):
    dataset = synthetic_dataset(2, 100, 8)
    counting = Damaged(dataset.episodes[1].frames["video"], 100, [])
    dataset = with_frames(dataset, 1, counting)
    first = cached(dataset, tmp_path, 8)
    assert sorted(counting.asked) == list(range(100))
    again = cached(dataset, tmp_path, 8)
    assert len(counting.asked) == 100 and again.fingerprint == first.fingerprint
    assert FrameCache(next(tmp_path.glob("frames-*"))).dataset.name == dataset.name


@pytest.mark.parametrize("change", ["fingerprint", "size", "text", "split"])
def test_another_key_makes_another_cache(tmp_path: Path, change: str):
    dataset, size = synthetic_dataset(4, 3, 8), 8
    fingerprint = cached(dataset, tmp_path, size).fingerprint
    if change == "size":
        size = 4
    elif change == "split":
        dataset = split(dataset, 0.5)[0]
    elif change == "text":
        dataset = replace(dataset, episodes=(replace(dataset.episodes[0], text="new"), *dataset.episodes[1:]))
    else:
        dataset = replace(dataset, fingerprint="other")
    other = cached(dataset, tmp_path, size)
    assert other.fingerprint != fingerprint and len(list(tmp_path.glob("frames-*"))) == 2
    assert [episode.id for episode in other.episodes] == [episode.id for episode in dataset.episodes]


def test_what_does_not_decode_is_reported_never_dropped(tmp_path: Path):
    dataset = synthetic_dataset(4, 70, 8)
    dataset = with_frames(dataset, 2, Damaged(dataset.episodes[2].frames["video"], 66, []))
    short = replace(dataset.episodes[0], length=71)  # says more than its video holds

    def broken() -> np.ndarray:
        raise ValueError("the table is torn")

    episodes = (short, replace(dataset.episodes[1], read_actions=broken), *dataset.episodes[2:])
    for _ in range(2):  # made, then opened
        copy = cached(replace(dataset, episodes=episodes), tmp_path, 8)
        assert [episode.id for episode in copy.episodes] == ["disc-0-0003"]
        reasons = {entry.path: entry.reason for entry in copy.quarantined}
        assert set(reasons) == {"disc-0-0000", "disc-0-0001", "disc-0-0002"}
        assert "frame 70" in reasons["disc-0-0000"] and "frame 69 is damaged" in reasons["disc-0-0002"]
        assert "torn" in reasons["disc-0-0001"]
        frames = synthetic_dataset(4, 70, 8).episodes[3].frames["video"]
        assert torch.equal(copy.episodes[0].frames["video"].read([5]), frames.read([5]))


def test_caches_that_cannot_be_made_say_why(tmp_path: Path):
    dataset = synthetic_dataset(1, 3, 8)
    with pytest.raises(ValueError, match=r"none of the 1 episodes .* frame 2 is damaged"):
        cached(with_frames(dataset, 0, Damaged(dataset.episodes[0].frames["video"], 0, [])), tmp_path, 8)
    with pytest.raises(ValueError, match="no camera 'wrist'; it has 'video'"):
        cached(dataset, tmp_path, 8, cameras=["wrist"])
    with pytest.raises(ValueError, match="no fingerprint"):
        cached(replace(dataset, fingerprint=""), tmp_path, 8)
    with pytest.raises(ValueError, match=r"two episodes .* 'disc-0-0000'"):
        cached(replace(dataset, episodes=dataset.episodes * 2), tmp_path, 8)
    with pytest.raises(ValueError, match="sizes start at 1"):
        cached(dataset, tmp_path, 0)


def test_a_full_disk_is_seen_before_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = synthetic_dataset(2, 50, 64)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match=r"100 frames of 64 x 64\) needs 1.2 MB and .* has 1.0 MB free"):
        cached(dataset, tmp_path, 64)
    assert not list(tmp_path.glob("frames-*[!l]"))
    monkeypatch.undo()
    assert len(cached(dataset, tmp_path, 64).episodes) == 2


def test_a_damaged_cache_names_the_way_out(tmp_path: Path):
    dataset = synthetic_dataset(1, 50, 8)
    cached(dataset, tmp_path, 8)
    folder = next(tmp_path.glob("frames-*"))
    whole = (folder / "signals.safetensors").read_bytes()
    os.truncate(folder / "signals.safetensors", len(whole) // 2)
    with pytest.raises(ValueError, match=r"signals\.safetensors is damaged .*delete the folder"):
        cached(dataset, tmp_path, 8)
    (folder / "signals.safetensors").write_bytes(whole)
    os.truncate(folder / "frames.npy", 1000)
    with pytest.raises(ValueError, match="delete the folder"):
        cached(dataset, tmp_path, 8)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"version": 99}))
    with pytest.raises(ValueError, match=r"version 99.*delete the folder"):
        cached(dataset, tmp_path, 8)
    with pytest.raises(FileNotFoundError, match="build it first"):
        FrameCache(tmp_path / "nothing")


def test_an_interrupted_cache_goes_on_where_it_stopped(tmp_path: Path):
    dataset = synthetic_dataset(6, 20, 8)
    counters = [Damaged(episode.frames["video"], 20, []) for episode in dataset.episodes]
    for number, counter in enumerate(counters):
        dataset = with_frames(dataset, number, counter)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(dataset, tmp_path, 8, workers=1, progress=stop)
    journal = next(tmp_path.glob("frames-*.partial")) / "journal.jsonl"
    done = [json.loads(line)["episode"] for line in journal.read_text().splitlines()]
    assert len(done) == 3
    journal.write_text(journal.read_text() + '{"epis')  # a kill in the middle of a line
    for counter in counters:
        counter.asked.clear()
    copy = cached(dataset, tmp_path, 8)
    assert [number for number, counter in enumerate(counters) if not counter.asked] == sorted(done)
    for ours, theirs in zip(copy.episodes, dataset.episodes, strict=True):
        assert torch.equal(ours.frames["video"].read(range(20)), theirs.frames["video"].frames.read(range(20)))
    assert not list(tmp_path.glob("*.partial"))


def build_slowly(folder: Path, pause: float, report: Connection) -> None:
    def slowly(done: int, total: int) -> None:
        report.send(done)
        time.sleep(pause)

    copy = cached(synthetic_dataset(10, 30, 16), folder, 16, workers=1, progress=slowly)
    report.send(copy.fingerprint)
    report.close()


def build_in_another_process(folder: Path, pause: float) -> tuple[BaseProcess, Connection]:
    # Forked, because a fresh process takes seconds to import torch on a busy machine.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=build_slowly, args=(folder, pause, theirs))
    process.start()
    theirs.close()
    return process, ours


def test_a_killed_build_and_two_at_once_give_the_same_cache(tmp_path: Path):
    victim, report = build_in_another_process(tmp_path, 0.1)
    while report.recv() != 3:
        pass
    victim.kill()
    victim.join()
    assert list(tmp_path.glob("*.partial"))
    both = [build_in_another_process(tmp_path, 0.0) for _ in range(2)]
    said: list[list[int | str]] = []
    for process, report in both:
        said.append([])
        with contextlib.suppress(EOFError):
            while report.poll(60):
                said[-1].append(report.recv())
        process.join()
        assert process.exitcode == 0
    # One of them went on after what the victim had done; the other waited and found it finished.
    waited, went_on = sorted(said, key=len)
    assert len(waited) == 1 and len(went_on) <= 1 + 7 and waited[-1] == went_on[-1]
    dataset = synthetic_dataset(10, 30, 16)
    copy = cached(dataset, tmp_path, 16)
    assert copy.fingerprint == waited[-1]
    for ours, theirs in zip(copy.episodes, dataset.episodes, strict=True):
        assert torch.equal(ours.frames["video"].read(range(30)), theirs.frames["video"].read(range(30)))


def test_tokens_equal_encoding_each_window(tmp_path: Path):
    index = WindowIndex(synthetic_dataset(3, 7, 8), WindowConfig(context=2, horizon=4, stride=2))
    seen: list[tuple[int, int]] = []
    cache = TokenCache.build(
        index,
        tmp_path,
        encode,
        tokenizer="t",
        vocab=256,
        camera="video",
        batch_size=4,
        progress=lambda *d: seen.append(d),
    )
    assert seen[-1] == (21, 21) and len(seen) == 6
    assert cache.tokens.dtype == np.int16 and cache.tokens.shape == (21, 3, 4) and cache.context_latents == 1
    for window in range(21):
        frames = index.read([window], "video")
        expected = torch.cat([encode(frames[:, :2]), encode(frames[:, 2:])], dim=1)
        assert torch.equal(cache.read([window]), expected) and cache.read([window]).dtype == torch.int64


def test_tokens_of_another_tokenizer_or_window_are_others(tmp_path: Path):
    dataset = synthetic_dataset(2, 5, 8)

    def folder(config: WindowConfig, **settings: object) -> Path:
        settings = {"tokenizer": "t", "vocab": 256, "camera": "video"} | settings
        return TokenCache.build(WindowIndex(dataset, config), tmp_path, encode, **settings).folder

    config = WindowConfig(context=2, horizon=2)
    folders = [
        folder(config),
        folder(config, tokenizer="u"),
        folder(replace(config, stride=1)),
        folder(config, size=(4, 4)),
    ]
    folders.append(folder(config, vocab=70_000))
    assert len(set(folders)) == 5 and folder(replace(config, chunk=3)) == folders[0]
    assert TokenCache(folders[-1]).tokens.dtype == np.int32


def test_what_are_not_tokens_is_refused(tmp_path: Path):
    index = WindowIndex(synthetic_dataset(1, 4, 8), WindowConfig(context=2, horizon=0))

    def build(encoder, **settings):
        return TokenCache.build(
            index, tmp_path, encoder, **{"tokenizer": "t", "vocab": 256, "camera": "video"} | settings
        )

    with pytest.raises(ValueError, match=r"vocab of 10 they lie in 0\.\.9"):
        build(encode, vocab=10)
    with pytest.raises(ValueError, match="whole numbers"):
        build(lambda frames: encode(frames).float())
    with pytest.raises(ValueError, match="no fingerprint"):
        build(encode, tokenizer="")
    with pytest.raises(ValueError, match="at least 1"):
        build(encode, batch_size=0)
    assert build(encode).tokens.shape == (4, 1, 4)


def test_an_interrupted_token_cache_goes_on_where_it_stopped(tmp_path: Path):
    index = WindowIndex(synthetic_dataset(2, 10, 8), WindowConfig(context=2, horizon=2))
    calls: list[int] = []

    def counted(frames: torch.Tensor) -> torch.Tensor:
        calls.append(len(frames))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return encode(frames)

    def build(encoder) -> TokenCache:
        return TokenCache.build(index, tmp_path, encoder, tokenizer="t", vocab=256, camera="video", batch_size=3)

    with pytest.raises(KeyboardInterrupt):
        build(counted)
    cache = build(counted)
    assert len(calls) == 7 + 2 * (1 + 4)  # one batch tells the shape anew; three of seven were on the disk
    whole = TokenCache.build(index, tmp_path / "other", encode, tokenizer="t", vocab=256, camera="video")
    np.testing.assert_array_equal(cache.tokens, whole.tokens)


def test_a_finished_cache_opens_quickly(tmp_path: Path):
    dataset = synthetic_dataset(50, 4, 4)
    cached(dataset, tmp_path, 4)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for episode in cached(dataset, tmp_path, 4).episodes:
            episode.read_actions()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # 4 ms when the machine is idle


def test_a_mishap_of_the_machine_is_not_remembered_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = synthetic_dataset(3, 20, 8)
    read = SyntheticFrames.read

    def gone(self, indices, size=None):
        raise OSError(116, "stale file handle")

    monkeypatch.setattr(SyntheticFrames, "read", gone)
    with pytest.raises(OSError, match="stale file handle"):
        cached(dataset, tmp_path, 8)
    monkeypatch.setattr(SyntheticFrames, "read", read)
    found = cached(dataset, tmp_path, 8)
    assert len(found.episodes) == 3 and found.quarantined == ()
