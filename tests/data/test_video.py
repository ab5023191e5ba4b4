"""Any frame of any file, exactly: containers, codecs and damage, on small files encoded here."""

import multiprocessing
import random
import resource
import threading
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler

import av
import numpy as np
import pytest
import torch

from ideomotor.data.formats.folder import read as read_folder
from ideomotor.data.video import VideoError, VideoFrames, count_decodable, encode_bytes, probe, write_video

B_FRAMES = {"bf": "3", "g": "10", "preset": "veryfast"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "10"}
FILES = {
    "h264_b_frames.mp4": ("libx264", B_FRAMES),
    "h264_open_gop.mp4": ("libx264", {**B_FRAMES, "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}),
    "h264.mkv": ("libx264", B_FRAMES),
    "vp9.webm": ("libvpx-vp9", VP9),
    "vp8_alternate_references.webm": (
        "libvpx",
        {"auto-alt-ref": "1", "lag-in-frames": "10", "g": "20", "cpu-used": "8"},
    ),
    "mpeg4.avi": ("mpeg4", {"g": "8", "b": "4M"}),
    "h264_b_frames.avi": ("libx264", B_FRAMES),
    "h264.ts": ("libx264", B_FRAMES),
    "palette.gif": ("gif", {}),
}
UNSEEKABLE = {"h264_b_frames.avi", "h264.ts"}
COUNT = 27


def pictures(count=COUNT, size=(48, 64)):
    """Grey rising with time, so that a frame says its number; a bright left and a dark top edge, so that it says its
    turn.
    """
    out = torch.empty(count, 3, *size, dtype=torch.uint8)
    out[:] = torch.linspace(60, 190, count)[:, None, None, None].to(torch.uint8)
    out[..., : size[1] // 4] = 235
    out[..., : size[0] // 4, :] = 20
    return out


def encode(path, frames, codec="libx264", options=None, pts=None, rate=10):
    """Writes a file with PyAV alone, without the code under test. ``pts`` are in thousandths of a second."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[2:]
        stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv444p" if frames.shape[2] % 2 else "yuv420p")
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = (
                (pts[number], Fraction(1, 1000)) if pts is not None else (number, Fraction(1, rate))
            )
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def decoded(path):
    """Every shown frame from the first to the last, by PyAV alone."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("video")
    for name, (codec, options) in FILES.items():
        encode(root / name, pictures(), codec, options)
    return root


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_what_decoding_finds(folder, name):
    info, everything = probe(folder / name), decoded(folder / name)
    assert (info.frames, info.height, info.width) == (len(everything), 48, 64)
    assert info.frames == COUNT
    assert info.fps == pytest.approx(10) and info.duration == pytest.approx(COUNT / 10, abs=0.02)
    assert not info.variable_rate
    assert info.seekable == (name not in UNSEEKABLE)


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_decoding_from_the_start(folder, name):
    ours = VideoFrames(folder / name).read(range(COUNT))
    difference = np.abs(ours.numpy().astype(int) - decoded(folder / name))
    # Another rounding of colours (PyAV's default way is quicker and coarser), never another frame: those are 5 apart.
    assert difference.mean() < 1.5
    levels = ours[:, :, 24:, 32:].float().mean((1, 2, 3))
    assert (levels.diff() > 2).all(), "frames are out of order"


@pytest.mark.parametrize("name", FILES)
def test_random_access_equals_sequential_decoding(folder, name):
    video = VideoFrames(folder / name)
    everything = video.read(range(COUNT))
    shuffled = random.Random(0).sample(range(COUNT), COUNT)
    for order in (list(range(COUNT))[::-1], shuffled, shuffled[:3] * 2, [COUNT - 1, 0], [13], [11, 12, 12, 5]):
        assert torch.equal(video.read(order), everything[order]), order
    for index in shuffled:  # one call a frame: every seek starts where the last ended
        assert torch.equal(video.read([index])[0], everything[index]), index


def test_files_interleave_and_outnumber_the_open_ones(folder, tmp_path):
    paths = [encode(tmp_path / f"{n}.mp4", pictures(6).roll(n, 0), options={"preset": "ultrafast"}) for n in range(10)]
    videos = [VideoFrames(path) for path in paths]
    whole = [video.read(range(6)) for video in videos]
    for index in (3, 1, 5):
        for video, frames in zip(videos, whole, strict=True):
            assert torch.equal(video.read([index])[0], frames[index])


def test_nothing_asked_for_is_an_empty_tensor(folder):
    assert VideoFrames(folder / "h264.mkv").read([]).shape == (0, 3, 48, 64)


def test_a_stretch_is_a_video_of_its_own(folder):
    whole = VideoFrames(folder / "h264_b_frames.mp4").read(range(COUNT))
    part = VideoFrames(folder / "h264_b_frames.mp4", start=7, count=9)
    assert len(part) == 9 and part.shape == (9, 3, 48, 64)
    assert torch.equal(part.read(range(9)), whole[7:16])
    assert torch.equal(part.read([8, 0]), whole[[15, 7]])
    assert part.times() == pytest.approx(np.arange(9) / 10)
    by_time = VideoFrames.between(folder / "h264_b_frames.mp4", 0.7, 1.6)
    assert (by_time.start, by_time.count) == (7, 9)
    with pytest.raises(IndexError, match=r"frame 9 .*0\.\.8"):
        part.read([9])
    with pytest.raises(IndexError):
        part.read([-1])


@pytest.mark.parametrize(("start", "count"), [(-1, 3), (0, 0), (20, 8), (27, None)])
def test_a_stretch_must_lie_in_the_file(folder, start, count):
    with pytest.raises(VideoError, match="has 27 frames"):
        VideoFrames(folder / "mpeg4.avi", start=start, count=count)


def test_no_stretch_beyond_the_end(folder):
    with pytest.raises(VideoError, match="no frame from"):
        VideoFrames.between(folder / "mpeg4.avi", 3.0, 4.0)


def test_a_video_travels_to_other_threads_and_processes(folder):
    video = VideoFrames(folder / "vp9.webm")
    everything = video.read(range(COUNT))
    assert torch.equal(ForkingPickler.loads(ForkingPickler.dumps(video)).read([9]), everything[[9]])
    wrong = []

    def read(seed):
        for index in random.Random(seed).sample(range(COUNT), 9):
            if not torch.equal(video.read([index])[0], everything[index]):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_a_child(video, everything, wrong):
    for index in (20, 3, 14, 2):
        if not torch.equal(video.read([index])[0], everything[index]):
            wrong.put(index)
    wrong.put("done")


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_b_frames.avi"])
def test_a_forked_process_does_not_disturb_its_parent(folder, name):
    """Parent and child share the offset of a file that was open at the fork."""
    video = VideoFrames(folder / name)
    everything = video.read(range(COUNT))
    video.read([5])
    context = multiprocessing.get_context("fork")
    wrong = context.Queue()
    children = [context.Process(target=_in_a_child, args=(video, everything, wrong)) for _ in range(2)]
    for child in children:
        child.start()
    for index in (6, 7, 19, 1, 26):
        assert torch.equal(video.read([index])[0], everything[index])
    assert [wrong.get(timeout=20) for _ in children] == ["done", "done"]
    for child in children:
        child.join()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_variable_rate_is_read_by_frame_and_by_time(tmp_path, suffix):
    pts = [0, 40, 80, 500, 540, 1200, 1240, 1280, 2000]
    codec, options = ("libvpx-vp9", VP9) if suffix == ".webm" else ("libx264", B_FRAMES)
    path = encode(tmp_path / f"v{suffix}", pictures(9), codec, options, pts=pts, rate=25)
    video = VideoFrames(path)
    assert video.info.frames == 9 and video.info.variable_rate
    assert video.times() == pytest.approx(np.array(pts) / 1000, abs=1e-3)
    assert video.info.fps == pytest.approx(4, rel=1e-3)
    assert video.at_times([0, 0.3, 0.5, 0.51, 1.19, 1.2, 1.999, 2.0, 0.0]) == [0, 2, 3, 3, 4, 5, 7, 8, 0]
    everything = video.read(range(9))
    assert torch.equal(video.read([8, 3, 5, 0]), everything[[8, 3, 5, 0]])
    assert (everything[:, :, 24:, 32:].float().mean((1, 2, 3)).diff() > 5).all()
    for moment in (-0.1, 2.5):
        with pytest.raises(ValueError, match="shows frames from 0"):
            video.at_times([moment])


# x' = a x + c y, y' = b x + d y; quarter turns clockwise, then a mirror image.
@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda p: p.rot90(-1, (-2, -1))),
        ((-1, 0, 0, -1), lambda p: p.rot90(2, (-2, -1))),
        ((0, -1, 1, 0), lambda p: p.rot90(1, (-2, -1))),
        ((-1, 0, 0, 1), lambda p: p.flip(-1)),
        ((0, 1, 1, 0), lambda p: p.transpose(-2, -1)),
    ],
)
def test_pictures_are_turned_as_the_file_asks(tmp_path, matrix, shown):
    """PyAV writes no display matrix, so it is set in the bytes of the track header (tkhd, version 0) of an mp4."""
    path = encode(tmp_path / "v.mp4", pictures(5), options={"preset": "ultrafast"})
    upright = VideoFrames(path).read(range(5))
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    wanted = shown(upright)
    video = VideoFrames(turned)
    assert video.shape == tuple(wanted.shape)
    assert torch.equal(video.read(range(5)), wanted)
    resized = video.read([2], size=(30, 20))
    assert resized.shape == (1, 3, 30, 20)
    area = torch.nn.functional.interpolate(wanted[2:3].float(), (30, 20), mode="area")
    assert (resized.float() - area).abs().mean() < 3


def test_odd_sizes(tmp_path):
    for name, codec in (("v.mp4", "libx264"), ("v.webm", "libvpx-vp9"), ("v.gif", "gif")):
        path = encode(tmp_path / name, pictures(5, (37, 53)), codec, VP9 if codec == "libvpx-vp9" else {})
        assert VideoFrames(path).read([4, 0]).shape == (2, 3, 37, 53), name


@pytest.mark.parametrize("size", [(24, 32), (16, 16), (37, 53), (96, 128), (20, 100)])
def test_reading_at_another_size(folder, size):
    video = VideoFrames(folder / "h264.mkv")
    small, full = video.read([20, 3], size=size), video.read([20, 3]).float()
    assert small.shape == (2, 3, *size) and small.dtype == torch.uint8
    mode = {"mode": "area"} if size[0] <= 48 and size[1] <= 64 else {"mode": "bilinear", "align_corners": False}
    assert (small.float() - torch.nn.functional.interpolate(full, size, **mode)).abs().mean() < 3
    assert torch.equal(video.read([3], size=size)[0], small[1])


def test_a_lone_frame(tmp_path):
    video = VideoFrames(encode(tmp_path / "v.mp4", pictures(1)))
    assert len(video) == 1 and video.info.fps == pytest.approx(10) and not video.info.variable_rate
    assert video.read([0, 0]).shape == (2, 3, 48, 64)
    still = VideoFrames(encode(tmp_path / "v.gif", pictures(1), "gif"))
    assert len(still) == 1 and still.info.fps > 0


def test_a_file_that_changes_is_noticed(tmp_path):
    path = encode(tmp_path / "v.mp4", pictures(6))
    video = VideoFrames(path)
    video.read([0])
    encode(path, pictures(8))
    with pytest.raises(VideoError, match="was changed"):
        video.read([0])
    assert len(VideoFrames(path)) == 8


def test_the_name_says_nothing(folder, tmp_path):
    """A WebM named .mp4 is read as what it is; a play list named .mp4 opens no other file."""
    (tmp_path / "v.mp4").write_bytes((folder / "vp9.webm").read_bytes())
    assert probe(tmp_path / "v.mp4").container == "matroska"
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {folder / 'h264.mkv'}\n")
    (tmp_path / "stream.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder / 'h264.ts'}\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "stream.mp4"):
        with pytest.raises(VideoError, match="holds text, not video"):
            probe(tmp_path / name)


def _text(path, folder):
    path.write_text("frame,x,y\n0,1,2\n" * 20)


def _nothing(path, folder):
    path.write_bytes(b"")


def _noise(path, folder):
    path.write_bytes(np.random.default_rng(0).bytes(4096))


def _cut(name, share):
    def make(path, folder):
        data = (folder / name).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return make


def _cut_with_its_table(path, folder):
    """The table comes first in files made for the web, so that a download that broke off looks whole."""
    data = write_video(path, pictures(), 10).read_bytes()
    path.write_bytes(data[:-200])


def _sound_alone(path, folder):
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _no_frames(path, folder):
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        output.start_encoding()


def _strange_codec(path, folder):
    path.write_bytes((folder / "h264_b_frames.mp4").read_bytes().replace(b"avc1", b"qqzz"))


def _one_broken_frame(path, folder):
    encode(path, pictures(1), options={"preset": "ultrafast"})
    with av.open(str(path)) as container:
        place, size = next((packet.pos, packet.size) for packet in container.demux(video=0))
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)


BROKEN = {
    "text": (_text, "text, not video"),
    "empty": (_nothing, "is empty"),
    "noise": (_noise, "damaged or no video"),
    "mp4 cut": (_cut("h264_b_frames.mp4", 0.6), "is cut short"),
    "mp4 cut, table first": (_cut_with_its_table, r"is cut short: 2\d of 27 frames"),
    "webm cut": (_cut("vp9.webm", 0.6), "is cut short"),
    "mkv cut": (_cut("h264.mkv", 0.6), "is cut short"),
    "avi cut": (_cut("mpeg4.avi", 0.6), "is cut short"),
    "gif cut": (_cut("palette.gif", 0.6), "is cut short"),
    "sound alone": (_sound_alone, "holds no video, only audio"),
    "no frames": (_no_frames, "no frame|no video|ends before"),
    "strange codec": (_strange_codec, "codec that is unknown"),
    "one broken frame": (_one_broken_frame, "no frame that decodes|is damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_says_why(folder, tmp_path, case):
    make, reason = BROKEN[case]
    path = tmp_path / "broken.mp4"
    make(path, folder)
    for function in (probe, VideoFrames, count_decodable):
        with pytest.raises(VideoError, match=reason) as caught:
            function(path)
    assert caught.value.path == str(path) and str(path) not in caught.value.reason
    assert str(path) in str(caught.value)
    ForkingPickler.loads(ForkingPickler.dumps(caught.value))  # it crosses from a worker
    (left_out,) = read_folder(tmp_path).quarantined
    assert (left_out.path, left_out.reason) == ("broken.mp4", caught.value.reason)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="is a folder"):
        probe(tmp_path)


def test_damage_in_the_middle_is_found_when_read(tmp_path):
    """The header is whole; the first frames are read, the damaged ones are refused with the count of the good ones."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (20, 3, 48, 64), dtype=np.uint8))
    path = encode(tmp_path / "v.mp4", frames, options={"bf": "0", "g": "5", "preset": "ultrafast"})
    whole = VideoFrames(path).read(range(20))
    assert count_decodable(path) == (20, "")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (place, size) = bytearray(path.read_bytes()), packets[12]
    data[place + 4 : place + size] = b"\xff" * (size - 4)
    path.write_bytes(data)
    video = VideoFrames(path)
    good, why = count_decodable(path)
    assert good == 12 and why
    assert torch.equal(video.read([3, 9]), whole[[3, 9]])
    with pytest.raises(VideoError, match=r"frame 12 does not decode .*the first 12 of 20 frames do"):
        video.read([12])
    assert torch.equal(video.read([17, 5]), whole[[17, 5]]), "the reader does not recover after damage"


# Writing.


@pytest.mark.parametrize(
    ("name", "codec"),
    [("v.mp4", None), ("v.mp4", "vp9"), ("v.mov", None), ("v.mkv", "h264"), ("v.webm", None), ("v.gif", None)],
)
def test_what_is_written_reads_back(tmp_path, name, codec):
    frames = pictures(12)
    path = write_video(tmp_path / "new" / name, frames, 12.5, codec)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (12, 48, 64) and info.seekable
    assert info.fps == pytest.approx(12.5)
    assert (VideoFrames(path).read(range(12)).float() - frames.float()).abs().mean() < 3
    again = write_video(tmp_path / "again" / name, iter(frames), 12.5, codec)
    assert again.read_bytes() == path.read_bytes(), "the same frames gave other bytes"
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_odd_sizes_when_writing(tmp_path):
    frames = pictures(4, (37, 53))
    even = VideoFrames(write_video(tmp_path / "v.mp4", frames, 10))
    assert even.shape == (4, 3, 38, 54)
    assert (even.read(range(4))[:, :, :37, :53].float() - frames.float()).abs().mean() < 3
    for name in ("v.webm", "v.gif"):
        assert VideoFrames(write_video(tmp_path / name, frames, 10)).shape == (4, 3, 37, 53)


def test_grey_frames_and_key_frames(tmp_path):
    path = write_video(tmp_path / "v.mp4", pictures(9)[:, :1], 10, keyframe_every=3)
    read = VideoFrames(path).read(range(9)).int()
    assert (read - read.float().mean(1, keepdim=True)).abs().max() <= 3
    with av.open(str(path)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert sum(keys) >= 3


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_video(tmp_path / "v.mp4", pictures(4), 10)
    before = path.read_bytes()

    def breaks_off():
        yield from pictures(5)
        raise RuntimeError("the camera was unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        write_video(path, breaks_off(), 10)
    with pytest.raises(ValueError, match=r"frame 2 has shape .*the first has"):
        write_video(path, [*pictures(2), *pictures(1, (24, 24))], 10)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"], "a draft was left behind"
    with pytest.raises(RuntimeError):
        write_video(tmp_path / "other.mp4", breaks_off(), 10)
    assert not (tmp_path / "other.mp4").exists()


@pytest.mark.parametrize(("name", "short"), [("v.mp4", 20_000), ("v.mp4", 1), ("v.webm", 1), ("v.gif", 1)])
def test_a_full_disk_leaves_the_old_file(tmp_path, name, short):
    """A limit on file size stands for the full disk; it strikes in the data, or at the very end."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (12, 3, 48, 64), dtype=np.uint8))
    whole = write_video(tmp_path / name, noise, 10).stat().st_size
    before = write_video(tmp_path / name, pictures(2), 10).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole - short, hard))
    try:
        with pytest.raises(OSError, match=f"nothing was written.*{name}"):
            write_video(tmp_path / name, noise, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / name).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name], "a draft was left behind"


@pytest.mark.parametrize(
    ("name", "frames", "fps", "codec", "error", "said"),
    [
        ("v.mp4", pictures(2).float(), 10, None, TypeError, "wanted uint8"),
        ("v.mp4", pictures(2)[:, :2], 10, None, ValueError, r"wanted \(3, h, w\)"),
        ("v.mp4", pictures(2)[0], 10, None, ValueError, r"wanted \(3, h, w\)"),
        ("v.mp4", pictures(2)[:0], 10, None, ValueError, "at least one"),
        ("v.mp4", pictures(2), 0, None, ValueError, "wanted more than 0"),
        ("v.gif", pictures(2), 60, None, ValueError, "at most 50"),
        ("v.xyz", pictures(2), 10, None, ValueError, "choose one of"),
        ("v.webm", pictures(2), 10, "h264", ValueError, "cannot hold h264"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, frames, fps, codec, error, said):
    with pytest.raises(error, match=said):
        write_video(tmp_path / name, frames, fps, codec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_bytes_for_a_page_play(tmp_path, codec):
    data = encode_bytes(pictures(8), 10, codec)
    assert data == encode_bytes(pictures(8), 10, codec)
    path = tmp_path / "v"
    path.write_bytes(data)
    info = probe(path)
    assert (info.frames, info.codec) == (8, {"h264": "h264", "vp9": "vp9"}[codec])
    assert (VideoFrames(path).read(range(8)).float() - pictures(8).float()).abs().mean() < 3
    if codec == "h264":
        assert data.index(b"moov") < data.index(b"mdat"), "a browser would have to load all of it first"
