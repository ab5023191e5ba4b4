from dataclasses import replace

import pytest
import torch
from latents_made_up import with_latents

from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.sampling import Sampling, sampled_sources
from ideomotor.data.whole_clips import WholeClip
from ideomotor.types import Dataset, Latents

WINDOW = WholeClip(frames=4)


def loader(*datasets: Dataset, **settings) -> ClipLoader:
    sources = [Source(dataset, window=WINDOW) for dataset in datasets]
    return ClipLoader(sources, 4, **({"seed": 5, "prefetch": 0, "actions": False, "latents": "mean"} | settings))


def test_clips_hold_the_latents_of_their_frames():
    dataset = with_latents()
    assert all(isinstance(latents, Latents) for episode in dataset.episodes for latents in episode.latents.values())
    loading = loader(dataset)
    for step in range(3):
        clip = loading.batch(step)
        assert clip.latents["main"].shape == (4, 4, 4, 2, 2) and clip.latents["main"].dtype == torch.float32
        windows = loading.mixture.samples(4 * step, 4)[1]
        wanted = [[1000.0 * number + t for t in (0, 2, 5, 8)] for number in windows.tolist()]
        assert clip.latents["main"][..., 0, 0, 0].tolist() == wanted
        moved = clip.to("cpu")
        assert torch.equal(moved.latents["main"], clip.latents["main"])
    assert loader(dataset, latents=None).batch(0).latents is None


def test_a_sample_is_drawn_again_by_seed_and_step_whoever_loads_it():
    dataset = with_latents()
    whole = [loader(dataset, latents="sample").batch(step) for step in range(3)]
    again = loader(dataset, latents="sample", start=2)
    assert torch.equal(next(iter(again)).latents["main"], whole[2].latents["main"])
    halves = [loader(dataset, latents="sample", world_size=2, rank=rank).batch(1) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.latents["main"] for half in halves]), whole[1].latents["main"])
    other = loader(dataset, latents="sample", seed=6).batch(0)
    assert not torch.equal(other.latents["main"], whole[0].latents["main"])
    # The same window in another epoch is another sample of the same moments.
    many = [loader(dataset, latents="sample").batch(step).latents["main"] for step in range(60)]
    means = [loader(dataset).batch(step).latents["main"] for step in range(60)]
    noise = torch.stack(many) - torch.stack(means)
    assert noise.std().item() == pytest.approx(0.5, rel=0.05) and abs(noise.mean().item()) < 0.02


def test_a_frame_shown_twice_has_one_latent_and_views_have_their_own_noise():
    short = with_latents(episodes=1, length=2, cameras=("front", "wrist"))
    source = Source(short, window=WINDOW, cameras={"front": "front", "wrist": "wrist"})
    clip = ClipLoader([source], 1, seed=0, actions=False, latents="sample", prefetch=0).batch(0)
    front, wrist = clip.latents["front"][0], clip.latents["wrist"][0]
    assert torch.equal(front[0], front[1]) and torch.equal(front[0], front[2])  # frames 0, 0, 0, 1
    assert not torch.equal(front, wrist)


def test_published_samples_stay_as_they_are():
    dataset = with_latents(std=None)
    assert torch.equal(
        loader(dataset, latents="sample").batch(0).latents["main"], loader(dataset).batch(0).latents["main"]
    )


def test_latents_without_video_load_without_frames():
    dataset = with_latents()
    bare = replace(dataset, episodes=tuple(replace(episode, frames={}) for episode in dataset.episodes))
    with pytest.raises(ValueError, match=r"has latents of camera 'video' and no video: .*with_frames=False"):
        loader(bare)
    clip = loader(bare, with_frames=False).batch(0)
    assert not clip.frames and clip.latents["main"].shape[1] == 4
    sources = sampled_sources(bare, Sampling(window=WINDOW, cameras={"video": 1.0}))
    assert sources[0].camera_names() == {"main": "video"}
    with pytest.raises(ValueError, match="has no camera 'wrist'; it has 'video'"):
        sampled_sources(bare, Sampling(window=WINDOW, cameras={"wrist": 1.0}))


def test_what_does_not_fit_is_refused():
    dataset = with_latents()
    some = replace(dataset, episodes=(replace(dataset.episodes[0], latents={}), *dataset.episodes[1:]))
    with pytest.raises(
        ValueError, match=r"1 of 3 episodes .* have no latents of camera 'video', 'disc-0-0000' for one"
    ):
        loader(some)
    other = with_latents(vae="another")
    with pytest.raises(ValueError, match=r"latents of the VAEs \['v'\], source .* \['another'\]"):
        loader(dataset, other)
    with pytest.raises(ValueError, match="made by 2 VAEs"):
        loader(replace(dataset, episodes=(dataset.episodes[0], other.episodes[1])))
