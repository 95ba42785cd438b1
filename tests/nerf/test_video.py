from __future__ import annotations

import importlib
import re
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compress3g.errors import BackendError, ConfigError, MissingExtra
from compress3g.nerf import video
from compress3g.nerf.video import write_video

_PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (10, 200, 90), (255, 255, 255)]


def _flat(colour: tuple[int, int, int], height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def _numbered(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return [_flat(_PALETTE[i % len(_PALETTE)], height, width) for i in range(count)]


def _noise(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _decoded(path) -> tuple[str, list[np.ndarray]]:
    """What ffmpeg says of the video stream, and its frames."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="decoding an mp4 needs it")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24"]
    done = subprocess.run([*command, "-"], capture_output=True, check=True)
    stream = next(line for line in done.stderr.decode().splitlines() if " Video: " in line)
    wide, high = map(int, re.search(r" (\d+)x(\d+)[, ]", stream).groups())
    return stream, list(np.frombuffer(done.stdout, np.uint8).reshape(-1, high, wide, 3))


def _gif(path) -> tuple[list[np.ndarray], list[int]]:
    frames, delays = [], []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            delays.append(image.info["duration"])
            frames.append(np.asarray(image.convert("RGB")))
    return frames, delays


def _names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("fps", "count"), [(30.0, 7), (12.5, 4), (1.0, 3), (60.0, 1)])
def test_an_mp4_has_every_frame_at_the_asked_size_and_rate(tmp_path, fps, count):
    path = write_video(_numbered(count), tmp_path / "turn.mp4", fps=fps)
    stream, frames = _decoded(path)
    assert len(frames) == count
    assert frames[0].shape == (48, 64, 3)
    # ffmpeg prints two decimals.
    assert float(re.search(r"([\d.]+) fps", stream)[1]) == pytest.approx(fps, abs=0.01)
    # What every browser plays, and no player has to guess.
    assert re.search(r"h264.* yuv420p\(tv, bt709", stream)


def test_an_mp4_keeps_colours_and_their_order(tmp_path):
    wanted = _numbered(6)
    _, frames = _decoded(write_video(iter(wanted), tmp_path / "turn.mp4", fps=10.0))
    for found, true in zip(frames, wanted, strict=True):
        # 8-bit YUV of limited range: a step of chroma is about two of RGB, and there are three
        # channels to round. A wrong matrix (BT.601 for 709) is off by 20 and more on pure colours.
        assert np.abs(found.astype(int) - true).max() <= 6


def test_an_mp4_keeps_a_picture(tmp_path):
    y, x = np.mgrid[:96, :128]
    true = np.stack([x * 2, y * 2.6, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], -1)
    true = true.clip(0, 255).astype(np.uint8)
    _, frames = _decoded(write_video([true] * 3, tmp_path / "a.mp4"))
    error = np.mean((frames[1].astype(float) - true) ** 2)
    assert 10 * np.log10(255**2 / error) > 35  # visually lossless; swapped axes give 10


@settings(max_examples=4, deadline=None)
@given(st.integers(17, 40), st.integers(17, 40))
def test_an_mp4_of_an_odd_size_repeats_the_last_row_or_column(tmp_path_factory, height, width):
    frame = _flat((10, 200, 90), height, width)
    path = write_video([frame] * 2, tmp_path_factory.mktemp("odd") / "a.mp4")
    _, frames = _decoded(path)
    assert [f.shape for f in frames] == [(height + height % 2, width + width % 2, 3)] * 2
    assert np.abs(frames[0].astype(int) - np.array([10, 200, 90])).max() <= 6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (15, 33)])
@pytest.mark.parametrize("name", ["a.gif", "frames/", "a.mp4"])
def test_tiny_and_odd_pictures_are_written(tmp_path, name, height, width):
    path = write_video([_flat((9, 9, 9), height, width)] * 2, f"{tmp_path}/{name}")
    assert path.exists()


def test_a_gif_of_flat_pictures_is_lossless(tmp_path):
    wanted = _numbered(6)
    frames, delays = _gif(write_video(iter(wanted), tmp_path / "turn.gif", fps=10.0))
    assert delays == [100] * 6
    assert np.array_equal(frames, wanted)


def test_a_gif_changes_only_where_the_frames_do(tmp_path):
    wanted = [_flat((30, 60, 90)) for _ in range(5)]
    for i in range(1, 5):
        wanted[i][8 * i : 8 * i + 5, 10:30] = _PALETTE[i]
    wanted.append(wanted[-1])  # and nowhere at all
    frames, _ = _gif(write_video(wanted, tmp_path / "turn.gif"))
    assert np.array_equal(frames, wanted)


def test_a_gif_of_a_picture_stays_close(tmp_path):
    y, x = np.mgrid[:48, :64]
    frames = [np.stack([x * 4, y * 5, (x + y + i) % 112 * 2], -1).astype(np.uint8) for i in (0, 9)]
    found, _ = _gif(write_video(frames, tmp_path / "a.gif"))
    # 256 colours for 3,072 different ones: about 12 pixels share a colour.
    assert np.abs(np.array(found).astype(int) - np.array(frames)).mean() < 6


def test_a_gif_plays_for_ever(tmp_path):
    with Image.open(write_video(_numbered(3), tmp_path / "a.gif")) as image:
        assert image.info["loop"] == 0


@pytest.mark.parametrize("fps", [7.0, 24.0, 25.0, 29.97, 30.0, 48.0])
def test_the_delays_of_a_gif_keep_time(tmp_path, fps):
    _, delays = _gif(write_video(_numbered(31, 4, 4), tmp_path / "a.gif", fps=fps))
    # Each end is rounded to GIF's 10 ms by itself, so errors do not add up.
    ends = np.cumsum(delays)
    np.testing.assert_allclose(ends, np.arange(1, 32) * 1000 / fps, atol=5.001)


def test_a_gif_is_never_faster_than_players_play(tmp_path):
    _, delays = _gif(write_video(_numbered(5, 4, 4), tmp_path / "a.gif", fps=200.0))
    assert delays == [20] * 5


@pytest.mark.parametrize("name", ["frames", "frames/", "run.v2/"])
def test_a_folder_holds_exact_pngs_in_order(tmp_path, name):
    wanted = [_noise(i, 5, 7) for i in range(11)]
    path = write_video(iter(wanted), f"{tmp_path}/{name}")
    assert path == tmp_path / name.rstrip("/")
    assert _names(path) == [f"frame_{i:04d}.png" for i in range(11)]
    for name, true in zip(_names(path), wanted, strict=True):
        assert np.array_equal(np.asarray(Image.open(path / name)), true)


def test_a_folder_of_earlier_frames_is_replaced(tmp_path):
    write_video(_numbered(9, 4, 4), tmp_path / "frames")
    write_video(_numbered(2, 4, 4), tmp_path / "frames")
    assert _names(tmp_path / "frames") == ["frame_0000.png", "frame_0001.png"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "frames").mkdir()
    assert len(_names(write_video(_numbered(2, 4, 4), tmp_path / "frames"))) == 2


def test_missing_folders_are_made(tmp_path):
    assert write_video(_numbered(1, 4, 4), tmp_path / "a" / "b" / "c.gif").is_file()


@pytest.mark.parametrize("name", ["a.MP4", "a.Gif"])
def test_capital_suffixes_are_known(tmp_path, name):
    assert write_video(_numbered(2), tmp_path / name).is_file()


def test_frames_that_are_views_of_others_are_written(tmp_path):
    big = _noise(0, 20, 30)
    view = big[::-2, 1::3]
    path = write_video([view, view], tmp_path / "frames")
    assert np.array_equal(np.asarray(Image.open(path / "frame_0001.png")), view)
    assert len(_decoded(write_video([view], tmp_path / "a.mp4"))[1]) == 1


def test_one_frame_is_in_memory_at_a_time(tmp_path):
    alive: list[int] = []

    class Frame(np.ndarray):
        def __del__(self):
            if type(self.base) is not Frame:
                alive.remove(1)

    def frames():
        for i in range(12):
            frame = _flat(_PALETTE[i % 6], 8, 8).view(Frame)
            alive.append(1)
            assert len(alive) <= 3  # this one, and one on its way through each generator
            yield frame
            del frame

    write_video(frames(), tmp_path / "frames")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a/"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_failing_iterator_leaves_the_old_file_and_no_rubbish(tmp_path, name, after):
    def failing():
        yield from _numbered(after)
        raise RuntimeError("the GPU caught fire")

    path = write_video([_flat((1, 2, 3))] * 2, f"{tmp_path}/{name}")
    files = [path, *path.glob("*")]
    before = [p.read_bytes() for p in files if p.is_file()]
    with pytest.raises(RuntimeError, match="caught fire"):
        write_video(failing(), f"{tmp_path}/{name}")
    assert [p.read_bytes() for p in files if p.is_file()] == before
    assert _names(tmp_path) == ["a" if name == "a/" else name]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
def test_an_interrupted_first_video_leaves_nothing(tmp_path, name):
    def interrupted():
        yield from _numbered(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(interrupted(), tmp_path / name)
    assert _names(tmp_path) == []


def test_the_file_is_not_there_before_it_is_whole(tmp_path):
    def watching():
        for frame in _numbered(3):
            assert not (tmp_path / "a.gif").exists()
            yield frame

    assert write_video(watching(), tmp_path / "a.gif").exists()


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a/"])
def test_no_frames_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="no frames"):
        write_video([], f"{tmp_path}/{name}")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a/"])
def test_frames_of_another_size_are_refused_by_their_number(tmp_path, name):
    with pytest.raises(ConfigError, match=r"frame 2 is uint8 \(8, 9, 3\), not .* \(8, 8, 3\)"):
        write_video([*_numbered(2, 8, 8), *_numbered(1, 8, 9)], f"{tmp_path}/{name}")
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
    ],
)
def test_anything_but_uint8_colours_is_refused(tmp_path, frame):
    with pytest.raises(ConfigError, match="frame 0 is"):
        write_video(iter([frame]), tmp_path / "a.gif")


@pytest.mark.parametrize("name", ["a.avi", "a.webm", "a.jpg", ".hidden.txt"])
def test_another_suffix_is_refused_before_anything_is_rendered(tmp_path, name):
    def untouched():
        raise AssertionError
        yield

    with pytest.raises(ConfigError, match=r"use \.mp4, \.gif or a folder"):
        write_video(untouched(), tmp_path / name)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e-300])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a/"])
def test_impossible_rates_are_refused(tmp_path, name, fps):
    with pytest.raises(ConfigError, match="frames per second"):
        write_video(_numbered(1), f"{tmp_path}/{name}", fps=fps)


@pytest.mark.parametrize("fps", [0.01, 1000.0])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a/"])
def test_extreme_rates_work(tmp_path, name, fps):
    assert write_video(_numbered(2), f"{tmp_path}/{name}", fps=fps).exists()


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "grandmother.jpg").write_text("dear")
    with pytest.raises(ConfigError, match="other things"):
        write_video(_numbered(1), tmp_path / "photos")
    assert (tmp_path / "photos" / "grandmother.jpg").read_text() == "dear"


def test_a_file_is_not_replaced_by_a_folder_nor_a_folder_by_a_file(tmp_path):
    (tmp_path / "notes").write_text("dear")
    with pytest.raises(ConfigError, match="other things"):
        write_video(_numbered(1), tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "dear"
    (tmp_path / "a.gif").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        write_video(_numbered(1), tmp_path / "a.gif")


@pytest.mark.parametrize("path", [".", "/", "./"])
def test_a_path_without_a_name_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="new folder"):
        write_video(_numbered(1), path)


def test_a_missing_package_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    known = importlib.import_module

    def import_module(name):
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return known(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(MissingExtra, match=r"pip install 'compress3g\[nerf\]'") as caught:
        write_video(_numbered(1), tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("count", [1, 40])  # less than a pipe holds, and more
def test_an_ffmpeg_that_refuses_is_one_line_with_its_reason(tmp_path, monkeypatch, count):
    monkeypatch.setattr(video, "_H264", ["-no_such_option", "1"])
    with pytest.raises(BackendError, match=r"ffmpeg cannot .*not found.*: try \.gif") as caught:
        write_video(_numbered(count, 200, 300), tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == []


def test_a_broken_pipe_of_the_frames_is_not_taken_for_one_of_ffmpeg(tmp_path):
    def failing():
        yield from _numbered(2)
        raise BrokenPipeError("the render server hung up")

    with pytest.raises(BrokenPipeError, match="hung up"):
        write_video(failing(), tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a:b.mp4", "-y.mp4", "100%d %04d.mp4", "a b'c.mp4"])
def test_a_name_that_ffmpeg_would_read_in_its_own_way_is_taken_as_it_is(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    write_video(_numbered(2), name)
    assert _names(tmp_path) == [name]


def test_no_ffmpeg_at_all_is_one_line_with_a_way_out(tmp_path, monkeypatch):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="mp4 output needs it")

    def nowhere():
        raise RuntimeError("No ffmpeg exe could be found.\nInstall ffmpeg on your system")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", nowhere)
    with pytest.raises(BackendError, match=r"try \.gif"):
        write_video(_numbered(1), tmp_path / "a.mp4")


def test_errors_of_the_system_come_as_they_are(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_video(_numbered(1), tmp_path / "file" / "a.gif")
