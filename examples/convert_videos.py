"""A folder of videos of any size and rate becomes one LeRobot v3 data set, which other people's tools read too.

    python examples/convert_videos.py FOLDER OUT

You see what is in the folder and what is wrong with it, then what was written. Without arguments three clips are made
up, and a note that pretends to be a video: it is named and left out.
"""

import sys
import tempfile
from pathlib import Path

from ideomotor.data.formats import open_dataset
from ideomotor.data.formats.lerobot_writer import LeRobotWriter
from ideomotor.data.inspection import inspect
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.video import write_video
from ideomotor.data.windows import read_frames

FPS, SIZE = 10, 96


def convert(folder: Path, out: Path) -> Path:
    """Writes every video of the folder at one rate and size, cut to its centre; captions become tasks."""
    dataset = open_dataset(folder)  # headers only, nothing is decoded yet
    print(*inspect(dataset).lines(), sep="\n")
    writer = LeRobotWriter(out, fps=FPS, cameras={"main": (SIZE, SIZE)})
    for episode in dataset.episodes:
        camera = next(iter(episode.frames))
        seconds = episode.length / episode.fps
        shown = [int(k * episode.fps / FPS) for k in range(max(1, int(seconds * FPS)))]
        writer.add_episode({"main": read_frames(episode, camera, shown, (SIZE, SIZE))}, text=episode.text)
    return writer.finalize()  # only now is OUT there, and it is whole


def make_up(folder: Path) -> Path:
    """Three clips that differ in size, rate and container, captions for two of them, and a file that is no video."""
    captions = []
    for number, (name, size, fps) in enumerate([("a.mp4", 64, 10), ("b.webm", 81, 25), ("c.gif", 48, 20)]):
        (episode,) = synthetic_dataset(1, length=2 * fps, size=size, seed=number, actions=False).episodes
        write_video(folder / name, episode.frames["video"].read(range(episode.length)), fps)
        captions.append(f"{name},{episode.text}")
    (folder / "captions.csv").write_text("\n".join(["file,text", *captions[:2]]) + "\n")
    (folder / "note.mp4").write_text("remember to record more\n")
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as room:
        given = [Path(word) for word in sys.argv[1:]]
        source, target = given if len(given) == 2 else (make_up(Path(room)), Path(room) / "converted")
        print(*inspect(open_dataset(convert(source, target))).lines(), sep="\n")
