"""Frames to a file: mp4, gif, or a folder of numbered PNGs, one frame in memory at a time."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import GifImagePlugin, Image, ImageChops

from ..engine.checkpoint import naming
from ..errors import BackendError, ConfigError, require

Frame = UInt8[np.ndarray, "_ _ 3"]
_Writer = Callable[[Iterator[Frame], Path, float], None]

# H.264 as every browser plays it. The matrix is named because players guess it from the size.
_H264 = [
    *("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    *("-crf", "18", "-movflags", "+faststart"),
    *("-vf", "scale=out_color_matrix=bt709:out_range=tv"),
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
    *("-color_range", "tv"),
]


def write_video(
    frames: Iterable[Frame], path: str | os.PathLike[str], *, fps: float = 30.0
) -> Path:
    """The path written: a .mp4, a .gif, or, without a suffix or with a final slash, a folder.

    All frames must have one size; an mp4 with an odd one gets its last row or column twice, since
    its colours are stored for 2x2 pixels. A folder holds frame_0000.png and so on, and replaces
    one of earlier frames only. The file appears when it is whole, under a temporary name before.
    Raises ConfigError for another suffix, no frames, frames that differ in size, or an fps outside
    0.01 to 1000; MissingExtra without the package an mp4 needs; BackendError when ffmpeg fails;
    OSError as it comes.
    """
    target, write = _target(path)
    if not 0.01 <= fps <= 1000:  # also true for NaN
        raise ConfigError(f"{fps} frames per second are impossible: give 0.01 to 1000")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: writers want the right suffix, and whatever they leave goes with it.
    workshop = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with naming(target):
            write(_checked(frames, target), workshop / target.name, fps)
        _publish(workshop, target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return target


def _target(path: str | os.PathLike[str]) -> tuple[Path, _Writer]:
    """Where to write and how, judged before a single frame is rendered."""
    text, target = os.fspath(path), Path(path)
    if text.endswith("/") or not target.suffix:
        if not target.name or (target.exists() and not _only_frames(target)):
            raise ConfigError(f"{text} holds other things than frames: give a new folder's name")
        return target, _write_pngs
    write = _WRITERS.get(target.suffix.lower())
    if write is None:
        allowed = ", ".join(_WRITERS)
        raise ConfigError(f"{text}: cannot write {target.suffix}, use {allowed} or a folder name")
    if target.is_dir():
        raise ConfigError(f"{text} is a folder: end it with a slash to have PNGs, or rename it")
    return target, write


def _only_frames(path: Path) -> bool:
    return path.is_dir() and all(p.match("frame_*.png") for p in path.iterdir())


def _checked(frames: Iterable[Frame], target: Path) -> Iterator[Frame]:
    """The frames, each of the first one's size. Raises ConfigError naming the frame that is not."""
    size: tuple[int, ...] | None = None
    for i, frame in enumerate(frames):
        size = size or frame.shape
        if frame.dtype != np.uint8 or frame.shape != size or frame.shape[2:] != (3,):
            raise ConfigError(
                f"{target}: frame {i} is {frame.dtype} {frame.shape}, not uint8 {(*size[:2], 3)}"
            )
        yield frame
    if size is None:
        raise ConfigError(f"{target}: there are no frames to write")


def _write_mp4(frames: Iterator[Frame], path: Path, fps: float) -> None:
    purpose = "mp4 output (.gif and PNGs need nothing)"
    ffmpeg = require("imageio_ffmpeg", extra="nerf", purpose=purpose)
    try:
        program = ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise _ffmpeg_failed(str(error)) from error
    first = _even(next(frames))
    size = f"{first.shape[1]}x{first.shape[0]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    command = [program, "-v", "error", *source, *_H264, f"file:{path}"]
    # A file and not a pipe for what it says: nobody reads a pipe while frames are rendered.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said)
        try:
            _feed(process, itertools.chain([first], frames))
            process.communicate()  # closes its input and waits
        finally:
            process.kill()  # does nothing to one that is done
            process.communicate()
        if process.returncode != 0:
            said.seek(0)
            raise _ffmpeg_failed(said.read().decode(errors="replace"))


def _feed(process: subprocess.Popen[bytes], frames: Iterable[Frame]) -> None:
    assert process.stdin is not None  # for mypy
    for frame in frames:
        even = _even(frame)
        try:
            process.stdin.write(even.data)
        except BrokenPipeError:
            return  # its exit code and what it said tell more


def _even(frame: Frame) -> Frame:
    high, wide, _ = frame.shape
    return np.pad(frame, ((0, high % 2), (0, wide % 2), (0, 0)), mode="edge")


def _ffmpeg_failed(said: str) -> BackendError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else "it does not say why"
    return BackendError(f"ffmpeg cannot write an mp4 here ({reason}): try .gif")


def _write_gif(frames: Iterator[Frame], path: Path, fps: float) -> None:
    # Pillow's own save_all keeps every frame until the last has come.
    before: Image.Image | None = None
    with path.open("wb") as file:
        for frame, delay in zip(frames, _delays(fps), strict=False):
            picture = Image.fromarray(frame)
            box: tuple[int, int, int, int] = (0, 0, *picture.size)
            if before is None:
                file.writelines(GifImagePlugin.getheader(picture.quantize(), info={"loop": 0})[0])
            else:
                box = ImageChops.difference(before, picture).getbbox() or (0, 0, 1, 1)
            changed = picture.crop(box).quantize()
            blocks = GifImagePlugin.getdata(
                changed, box[:2], duration=delay, include_color_table=True
            )
            file.writelines(blocks)
            before = picture
        file.write(b";")


def _delays(fps: float) -> Iterator[int]:
    """Milliseconds per frame in GIF's steps of 10 that keep time; never below the 20 that play."""
    ends = (round(i * 100 / fps) for i in itertools.count())
    return (10 * max(2, end - start) for start, end in itertools.pairwise(ends))


def _write_pngs(frames: Iterator[Frame], path: Path, fps: float) -> None:
    path.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame_{i:04d}.png")


def _publish(workshop: Path, target: Path) -> None:
    if target.is_dir():
        os.replace(target, workshop / ".before")
    os.replace(workshop / target.name, target)


_WRITERS: dict[str, _Writer] = {".mp4": _write_mp4, ".gif": _write_gif}
