"""A model imagines what comes next, and you watch it: context, then truth, two imagined futures, and the first one's
error.

    python examples/imagine_video.py [MODEL CLIP "a sentence" VIDEO]

MODEL is the OUT of `ideomotor vpdd pretrain`, CLIP any video file. Without arguments a model of seconds is trained on
moving discs and asked about one that it has never seen: a blur that moves, and is soon lost.
"""

import sys
from dataclasses import replace
from pathlib import Path

from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.video import write_video
from ideomotor.systems.imagination import imagine_file
from ideomotor.systems.sources import TrainingClips, tokenized
from ideomotor.systems.vpdd import Stage, tiny
from ideomotor.systems.vpdd_stages import load_models, open_run, pretrain, tokenizer_of, train_tokenizer
from ideomotor.training import OptimConfig


def train(out: Path) -> Path:
    """Tokenizer and predictor on moving discs, with the stages that the commands use; returns the model's folder."""
    stage = Stage(steps=150, batch=8, optim=OptimConfig(lr=3e-3, warmup=10))
    config = replace(tiny(), tokenizer_stage=stage, pretrain_stage=stage, window=replace(tiny().window, stride=2))
    video = [Source(dataset=synthetic_dataset(40, actions=False), window=config.window)]
    with open_run(out / "tokenizer", config, seed=0) as run:
        train_tokenizer(config, TrainingClips(video), run)
    tokenizer = tokenizer_of(load_models(out / "tokenizer"), out / "tokenizer")
    with open_run(out / "pretrain", config, seed=0) as run:
        pretrain(config, tokenized(video, tokenizer, config, out / "cache", with_frames=False), tokenizer, run)
    return out / "pretrain"


def film(path: Path) -> tuple[Path, str]:
    """A clip that the model has not seen, and what happens in it."""
    (episode,) = synthetic_dataset(1, seed=9, actions=False).episodes
    return write_video(path, episode.frames["video"].read(range(episode.length)), episode.fps), episode.text


if __name__ == "__main__":
    if len(sys.argv) == 5:
        model, clip, text, video = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    else:
        room = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/imagine")
        model, (clip, text), video = train(room), film(room / "clip.mp4"), room / "imagined.gif"
    # A sample is one draw at temperature 1; a round goes on from the last one's tokens.
    print(*imagine_file(model, clip, video, text=text, samples=2, rounds=2), sep="\n")
