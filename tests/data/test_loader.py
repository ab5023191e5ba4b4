import itertools
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ideomotor.data.cache import cached
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.signals import all_actions
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.token_cache import TokenCache
from ideomotor.data.windows import WindowConfig, WindowIndex
from ideomotor.types import DOMAINS, Clip, Dataset

WINDOW = WindowConfig(context=2, horizon=2, stride=3, chunk=4)


def mixed(actions: bool = True) -> list[Source]:
    first = synthetic_dataset(3, 9, 8, seed=1, actions=actions)
    second = synthetic_dataset(4, 12, 8, seed=2, actions=actions)
    return [Source(first, 1.0, WINDOW), Source(second, 2.5, replace(WINDOW, stride=1, every=2))]


def take(loader: ClipLoader, steps: int) -> list[Clip]:
    return list(itertools.islice(loader, steps))


def same(one: Clip, other: Clip) -> bool:
    def equal(a, b) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
        return a == b

    return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Clip))


def joined(parts: list[Clip]) -> Clip:
    return Clip(
        frames={"main": torch.cat([part.frames["main"] for part in parts])},
        text=sum((part.text for part in parts), ()),
        actions=torch.cat([part.actions for part in parts]),
        action_mask=torch.cat([part.action_mask for part in parts]),
        proprio=torch.cat([part.proprio for part in parts]),
        domain=torch.cat([part.domain for part in parts]),
    )


def encode(frames: torch.Tensor) -> torch.Tensor:
    return frames.float().mean(2).long()[..., ::4, ::4].flatten(2)


def test_clips_hold_what_was_recorded():
    dataset = synthetic_dataset(2, 10, 8)
    loader = ClipLoader([Source(dataset, window=WINDOW)], 5, seed=0)
    index = WindowIndex(dataset, WINDOW)
    for step, clip in enumerate(take(loader, 3)):
        assert len(clip) == 5 and clip.frames["main"].dtype == torch.uint8
        assert clip.actions.dtype == clip.proprio.dtype == torch.float32 and clip.action_mask.dtype == torch.bool
        _, windows = loader.mixture.samples(5 * step, 5)
        for row, (number, anchor) in enumerate(map(index.locate, windows.tolist())):
            episode = dataset.episodes[number]
            seen = [max(anchor - 3, 0), anchor, min(anchor + 3, 9), min(anchor + 6, 9)]
            assert torch.equal(clip.frames["main"][row], episode.frames["video"].read(seen))
            assert clip.text[row] == episode.text
            np.testing.assert_array_equal(clip.proprio[row], episode.read_proprio()[anchor])
            recorded = [anchor + k < 10 for k in range(4)]
            assert clip.action_mask[row].tolist() == recorded
            wanted = episode.read_actions()[[min(anchor + k, 9) for k in range(4)]]
            np.testing.assert_array_equal(clip.actions[row], wanted)


def test_each_sample_has_the_domain_of_its_source():
    first, second = mixed()
    loader = ClipLoader([replace(first, domain="human"), replace(second, domain="robot")], 8, seed=0)
    for step, clip in enumerate(take(loader, 5)):
        sources, _ = loader.mixture.samples(8 * step, 8)
        assert clip.domain is not None
        assert [DOMAINS[number] for number in clip.domain] == [("human", "robot")[number] for number in sources]
        seen, rest = clip.split(2)
        assert torch.equal(seen.domain, clip.domain) and torch.equal(rest.domain, clip.domain)
    assert ClipLoader(mixed(), 8, seed=0).batch(0).domain.tolist() == [0] * 8


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_start_in_the_middle_gives_the_exact_samples(prefetch: int):
    whole = take(ClipLoader(mixed(), 4, seed=5), 30)
    for start in (0, 1, 13, 29):
        resumed = ClipLoader(mixed(), 4, seed=5, start=start, prefetch=prefetch)
        for one, other in zip(whole[start : start + 4], take(resumed, 4), strict=False):
            assert same(one, other)
        assert same(resumed.batch(7), whole[7])
    assert not same(take(ClipLoader(mixed(), 4, seed=6), 1)[0], whole[0])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batch_of_one(world_size: int):
    whole = take(ClipLoader(mixed(), 6, seed=5, start=3), 8)
    ranks = [take(ClipLoader(mixed(), 6, seed=5, world_size=world_size, rank=r, start=3), 8) for r in range(world_size)]
    for one, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert same(one, joined(list(parts)))


def test_sources_come_by_their_weights_and_windows_once_an_epoch():
    sources = mixed()
    loader = ClipLoader(sources, 7, seed=0)
    clips = take(loader, 30)
    texts = {source.dataset.episodes[0].text: number for number, source in enumerate(sources)}
    assert len(texts) == 1  # the texts do not tell the sources apart; the states do
    states = [torch.from_numpy(np.concatenate([e.read_proprio() for e in s.dataset.episodes])) for s in sources]
    seen: list[Counter[tuple[float, ...]]] = [Counter(), Counter()]
    for row in torch.cat([clip.proprio for clip in clips]):
        number = next(n for n, known in enumerate(states) if bool((known == row).all(1).any()))
        seen[number][tuple(row.tolist())] += 1
    assert (
        [sum(counts.values()) for counts in seen]
        == [loader.mixture.count(number, 210) for number in (0, 1)]
        == [60, 150]
    )
    assert len(seen[0]) == 27 and set(seen[0].values()) == {2, 3}
    assert len(seen[1]) == 24 and set(seen[1].values()) == {6, 7}


def test_a_cache_equals_no_cache(tmp_path: Path):
    dataset = synthetic_dataset(3, 9, 16, cameras=("front", "side"))
    settings = {"window": WINDOW, "cameras": {"main": "side", "other": "front"}, "size": (8, 8)}
    slow = take(ClipLoader([Source(dataset, **settings)], 4, seed=0), 5)
    fast = take(ClipLoader([Source(cached(dataset, tmp_path, 8, ("front", "side")), **settings)], 4, seed=0), 5)
    assert set(slow[0].frames) == {"main", "other"} and slow[0].frames["main"].shape == (4, 4, 3, 8, 8)
    assert all(same(one, other) for one, other in zip(slow, fast, strict=True))


def test_tokens_come_with_their_windows(tmp_path: Path):
    sources = mixed()
    caches = [
        TokenCache.build(WindowIndex(s.dataset, s.window), tmp_path, encode, tokenizer="t", vocab=256, camera="video")
        for s in sources
    ]
    for clip in take(ClipLoader(sources, 6, seed=0, token_cache=caches[::-1]), 4):
        frames = clip.frames["main"]
        assert torch.equal(clip.tokens["main"], torch.cat([encode(frames[:, :2]), encode(frames[:, 2:])], dim=1))
    alone = ClipLoader(sources[:1], 6, seed=0, token_cache=caches[0], with_frames=False)
    clip = alone.batch(0)
    assert clip.frames == {} and clip.tokens["main"].shape == (6, 4, 4) and clip.actions is not None
    with pytest.raises(ValueError, match=r"0 of 1 token caches fit .* 'synthetic-2'"):
        ClipLoader(sources, 6, seed=0, token_cache=caches[0])
    other = TokenCache.build(
        WindowIndex(sources[1].dataset, sources[1].window), tmp_path, encode, tokenizer="u", vocab=256, camera="video"
    )
    with pytest.raises(ValueError, match="tokenizer of 'main'"):
        ClipLoader(sources, 6, seed=0, token_cache=[caches[0], other])


def test_video_needs_no_actions_and_may_be_mixed_with_what_has_them():
    sources = [mixed(actions=False)[0], mixed()[1]]
    clip = take(ClipLoader(sources, 8, seed=0, actions=False), 1)[0]
    assert clip.actions is None and clip.action_mask is None and clip.proprio is None
    assert all(text.endswith("disc moves") for text in clip.text)
    with pytest.raises(ValueError, match="'disc-1-0000' has no actions: load with actions=False"):
        ClipLoader(sources, 8, seed=0)


def with_signal(dataset: Dataset, number: int, **signals: object) -> Dataset:
    episodes = list(dataset.episodes)
    episodes[number] = replace(episodes[number], **{name: lambda value=value: value for name, value in signals.items()})
    return replace(dataset, episodes=tuple(episodes))


def test_batches_may_be_pinned(monkeypatch: pytest.MonkeyPatch):
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    plain, clip = (take(ClipLoader(mixed(), 4, seed=0, pin=pin), 1)[0] for pin in (False, True))
    assert same(plain, clip)
    held = [*clip.frames.values(), clip.actions, clip.action_mask, clip.proprio]
    assert {id(tensor) for tensor in held if tensor is not None} <= {id(tensor) for tensor in pinned}


def test_damaged_actions_are_named():
    dataset = synthetic_dataset(3, 9, 8)
    broken = np.zeros((9, 2), np.float32)
    broken[4, 1] = np.nan
    for reader in (all_actions, lambda data: ClipLoader([Source(data, window=WINDOW)], 2, seed=0)):
        with pytest.raises(
            ValueError, match=r"'disc-0-0001' has actions .* not finite in 1 of 9 frames, first in frame 4"
        ):
            reader(with_signal(dataset, 1, read_actions=broken))
        with pytest.raises(ValueError, match=r"'disc-0-0002' .* of width 3, episode 'disc-0-0000' of width 2"):
            reader(with_signal(dataset, 2, read_actions=np.zeros((9, 3))))
        with pytest.raises(ValueError, match=r"'disc-0-0001' has actions of shape \(8, 2\) for 9 frames"):
            reader(with_signal(dataset, 1, read_actions=np.zeros((8, 2))))
    with pytest.raises(ValueError, match=r"'disc-0-0001' has proprio .* not finite"):
        ClipLoader([Source(with_signal(dataset, 1, read_proprio=broken), window=WINDOW)], 2, seed=0)
    assert all_actions(dataset).shape == (27, 2) and all_actions(dataset).dtype == np.float32
    with pytest.raises(ValueError, match="no episodes"):
        all_actions(replace(dataset, episodes=()))


def test_states_are_left_out_where_one_source_lacks_them():
    sources = mixed()
    episodes = tuple(replace(episode, read_proprio=None) for episode in sources[1].dataset.episodes)
    sources[1] = replace(sources[1], dataset=replace(sources[1].dataset, episodes=episodes))
    clip = ClipLoader(sources, 4, seed=0).batch(0)
    assert clip.proprio is None and clip.actions is not None


@pytest.mark.parametrize(
    "change,message",
    [
        ({"window": replace(WINDOW, context=3)}, "has context 2, .* 3"),
        ({"window": replace(WINDOW, horizon=1)}, "has horizon 2, .* 1"),
        ({"window": replace(WINDOW, chunk=5)}, "has chunk 4, .* 5"),
        ({"cameras": {"side": "video"}}, "has cameras"),
    ],
)
def test_sources_that_do_not_fit_are_refused(change: dict, message: str):
    first, second = mixed()
    with pytest.raises(ValueError, match=message):
        ClipLoader([first, replace(second, **change)], 4, seed=0)


def test_actions_of_two_widths_and_frames_of_two_sizes_are_refused():
    first, second = mixed()
    wide = second.dataset
    for number in range(len(wide.episodes)):
        wide = with_signal(wide, number, read_actions=np.zeros((12, 3)))
    with pytest.raises(ValueError, match="actions of width 2, source 'synthetic-2' 3"):
        ClipLoader([first, replace(second, dataset=wide)], 4, seed=0)
    large = replace(second, dataset=synthetic_dataset(2, 12, 16))
    with pytest.raises(ValueError, match="cache all sources at one size"):
        take(ClipLoader([first, large], 4, seed=0), 1)
    assert take(ClipLoader([first, replace(large, size=(8, 8))], 4, seed=0), 1)[0].frames["main"].shape[-1] == 8


@pytest.mark.parametrize(
    "wrong", [{"world_size": 3}, {"rank": 1}, {"rank": -1}, {"batch_size": 0}, {"start": -1}, {"prefetch": -1}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClipLoader(mixed(), **{"batch_size": 4, "seed": 0} | wrong)
    with pytest.raises(ValueError, match="no sources"):
        ClipLoader([], 4, seed=0)


def test_an_error_in_the_thread_reaches_the_consumer():
    dataset = synthetic_dataset(2, 12, 8)

    class Torn:
        shape = (12, 3, 8, 8)

        def read(self, indices, size=None):
            raise ValueError("the file is torn")

    episodes = (dataset.episodes[0], replace(dataset.episodes[1], frames={"video": Torn()}))
    loader = ClipLoader([Source(replace(dataset, episodes=episodes), window=WINDOW)], 1, seed=0)
    sound = list(itertools.takewhile(lambda step: loader.mixture.samples(step, 1)[1][0] < 12, itertools.count()))
    clips = iter(loader)
    for _ in sound:  # the batches before it come whole
        next(clips)
    with pytest.raises(ValueError, match="the file is torn"):
        next(clips)


def test_a_loader_can_be_left_and_begun_again():
    loader = ClipLoader(mixed(), 4, seed=0, start=2)
    first = next(iter(loader))
    for _ in range(20):
        assert same(next(iter(loader)), first)


def test_real_recordings_of_several_formats_mix(shared: Path, tmp_path: Path):
    pytest.importorskip("av")
    from ideomotor.data.formats import open_dataset

    datasets = [open_dataset(shared / "data" / "real" / name) for name in ("bridge", "sthv2", "metaworld_demos")]
    windows = [replace(WINDOW, stride=stride) for stride in (1, 3, 4)]
    slow = [Source(data, window=window, size=(32, 32)) for data, window in zip(datasets, windows, strict=True)]
    fast = [replace(source, dataset=cached(source.dataset, tmp_path, 32)) for source in slow]
    for one, other in zip(*(take(ClipLoader(s, 6, seed=0, actions=False), 2) for s in (slow, fast)), strict=True):
        assert same(one, other) and one.frames["main"].shape == (6, 4, 3, 32, 32)
