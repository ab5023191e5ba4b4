"""Features on disk: those of each window, resumed after a kill, told apart by what made them; and what is refused."""

import shutil
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from ideomotor.data.acting_windows import ActingWindow
from ideomotor.data.feature_cache import FeatureCache
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.windows import WindowConfig, WindowIndex
from ideomotor.types import Frames, Moments


def see(frames, sentences):
    """Two foretold frames of four tokens; of the sentence its length."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(frames[:, 0].float() / 255, 2).flatten(2).transpose(1, 2)  # b n d
    told = torch.tensor([len(sentence) / 100 for sentence in sentences])[:, None, None]
    return torch.stack([pooled + told, pooled / 3], 1)


def build(index, root, looking=see, **settings):
    return FeatureCache.build(index, root, looking, **{"model": "m", "camera": "video"} | settings)


def test_features_are_those_of_each_windows_newest_frame(tmp_path: Path):
    dataset = synthetic_dataset(3, 7, 8)
    seen: list[tuple[int, int]] = []
    index = WindowIndex(dataset, WindowConfig(context=2, horizon=1, stride=2, every=2))
    cache = build(index, tmp_path, batch_size=4, progress=lambda *told: seen.append(told))
    assert cache.features.shape == (12, 2, 4, 3) and seen[-1] == (12, 12) and len(seen) == 3
    for window in range(12):
        number, anchor = index.locate(window)
        newest = dataset.episodes[number].frames["video"].read([anchor])[None]
        wanted = see(newest, [dataset.episodes[number].text])
        found = cache.read([window])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=2**-11, atol=3e-8)


@dataclass(frozen=True)
class Brightness:
    """Latents that say how bright frames are."""

    frames: Frames
    vae: str = "v"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames.shape[0], 3, 1, 1

    def read(self, indices: Sequence[int]) -> Moments:
        return Moments(self.frames.read(indices).float().mean((-2, -1), keepdim=True) / 255, None)


def test_what_is_seen_may_be_the_latents_of_a_window(tmp_path: Path):
    dataset = synthetic_dataset(2, 7, 8)
    episodes = [replace(e, latents={"video": Brightness(e.frames["video"])}, frames={}) for e in dataset.episodes]
    index = WindowIndex(replace(dataset, episodes=tuple(episodes)), WindowConfig(context=2, horizon=1))

    def told(latents, sentences):
        assert latents.shape[1:] == (1, 3, 1, 1) and len(latents) == len(sentences)
        return latents.flatten(2)[:, :, None]

    cache = build(index, tmp_path, told, batch_size=5, latents=True)
    for window in range(len(index)):
        number, anchor = index.locate(window)
        wanted = Brightness(dataset.episodes[number].frames["video"]).read([anchor]).mean.reshape(1, 1, 1, 3)
        torch.testing.assert_close(cache.read([window]), wanted, rtol=2**-11, atol=3e-8)


def test_what_was_bfloat16_comes_back_as_it_was(tmp_path: Path):
    index = WindowIndex(synthetic_dataset(1, 5, 8), ActingWindow(chunk=2))
    cache = build(index, tmp_path, lambda *seen: see(*seen).bfloat16() + 1)
    again = torch.cat([see(index.read([n], "video"), [index.dataset.episodes[0].text]) for n in range(5)])
    assert cache.read(range(5)).dtype == torch.bfloat16
    assert torch.equal(cache.read(range(5)), again.bfloat16() + 1)


def test_other_models_windows_and_sentences_are_others(tmp_path: Path):
    dataset = synthetic_dataset(2, 5, 8)
    renamed = replace(dataset, episodes=tuple(replace(e, text="another task") for e in dataset.episodes))
    window = ActingWindow(chunk=2)
    folders = [
        build(WindowIndex(dataset, window), tmp_path).folder,
        build(WindowIndex(dataset, window), tmp_path, model="o").folder,
        build(WindowIndex(renamed, window), tmp_path).folder,
        build(WindowIndex(dataset, replace(window, every=2)), tmp_path).folder,
        build(WindowIndex(dataset, window), tmp_path, size=(4, 4)).folder,
    ]
    assert len(set(folders)) == 5
    assert build(WindowIndex(dataset, replace(window, chunk=3)), tmp_path).folder == folders[0]


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path):
    index = WindowIndex(synthetic_dataset(2, 10, 8), ActingWindow())
    calls: list[int] = []

    def counted(frames, sentences):
        calls.append(len(frames))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return see(frames, sentences)

    with pytest.raises(KeyboardInterrupt):
        build(index, tmp_path, counted, batch_size=3)
    cache = build(index, tmp_path, counted, batch_size=3)
    assert len(calls) == 4 + 1 + 4  # the first batch tells the shape anew; three of seven were on the disk
    whole = build(index, tmp_path / "other")
    assert torch.equal(cache.read(range(20)), whole.read(range(20)))


def test_the_loader_gives_them_with_their_windows(tmp_path: Path):
    sources = [Source(synthetic_dataset(2, 6 + n, 8), window=ActingWindow(chunk=2)) for n in range(2)]
    caches = [build(WindowIndex(source.dataset, source.window), tmp_path) for source in sources]
    for step in range(3):
        clip = ClipLoader(sources, 6, seed=0, prefetch=0, feature_cache=caches[::-1]).batch(step)
        torch.testing.assert_close(clip.features["main"], see(clip.frames["main"], clip.text), rtol=2**-11, atol=3e-8)
    alone = ClipLoader(sources, 6, seed=0, prefetch=0, feature_cache=caches, with_frames=False).batch(0)
    assert alone.frames == {} and alone.actions is not None and alone.to("cpu").features["main"].shape == (6, 2, 4, 3)
    with pytest.raises(ValueError, match="1 feature caches fit the windows of source"):
        ClipLoader(sources, 6, seed=0, feature_cache=caches[:1])
    other = build(WindowIndex(sources[1].dataset, sources[1].window), tmp_path, model="other")
    with pytest.raises(ValueError, match="model of the features of 'main'"):
        ClipLoader(sources, 6, seed=0, feature_cache=[caches[0], other])


def test_what_is_refused_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index = WindowIndex(synthetic_dataset(1, 4, 8), ActingWindow())
    for looking, why in [
        (lambda *seen: see(*seen) * 1e6, r"reach .*e\+0., and float16 holds 65504"),
        (lambda *seen: see(*seen)[:, 0], "wanted features"),
        (lambda *seen: see(*seen).long(), "wanted features"),
    ]:
        with pytest.raises(ValueError, match=why):
            build(index, tmp_path, looking)
    with pytest.raises(ValueError, match="wanted a fingerprint"):
        build(index, tmp_path, model="")
    with monkeypatch.context() as patched:
        usage = namedtuple("usage", "total used free")
        patched.setattr(shutil, "disk_usage", lambda folder: usage(1000, 900, 100))
        with pytest.raises(OSError, match=r"4 windows of 48 bytes\) needs .* or train without a cache of features"):
            build(index, tmp_path)
    folder = build(index, tmp_path).folder
    content = (folder / "features.npy").read_bytes()
    (folder / "features.npy").write_bytes(content[:-7])
    with pytest.raises(ValueError, match=r"features\.npy is damaged"):
        build(index, tmp_path)


def test_rows_that_were_changed_are_told_of(tmp_path: Path):
    index = WindowIndex(synthetic_dataset(1, 4, 8), ActingWindow())
    folder = build(index, tmp_path).folder
    content = bytearray((folder / "features.npy").read_bytes())
    content[-1] ^= 0x40  # of the last window's last number
    (folder / "features.npy").write_bytes(content)
    cache = FeatureCache(folder)
    assert cache.read([0, 2]).isfinite().all()
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"features of window 3 in .*{folder.name}.* delete the folder"):
            cache.read([0, 3])
    (folder / "checks.npy").unlink()  # as an earlier version left it
    assert FeatureCache(folder).read([3]).shape == (1, 2, 4, 3)
