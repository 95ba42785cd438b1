"""Files that are either whole or not there: tensors, JSON, and anything else written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from ..errors import FormatError

_KEY = "compress3g"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system inside say which file they are about, as those of writing do not.

    >>> with naming(Path("a.bin")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'a.bin'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Leaves either the whole new file or the whole old one, whatever happens meanwhile.

    Temporary name in the same folder, fsync, rename, fsync of the folder. OSError (a full disk, no
    permission) passes through, naming `path`, with the temporary file removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; a result is not private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes a safetensors file with JSON metadata under the key "compress3g"; never a pickle."""
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    data = serialize(whole, metadata={_KEY: json.dumps(metadata, sort_keys=True)})
    atomic_write(path, lambda file: file.write(data))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `save_tensors` wrote.

    Raises FormatError, one line, when it is missing, cut short or somebody else's.
    """
    try:
        with safe_open(str(path), "pt") as file:
            metadata = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist") from None
    except KeyError:
        raise FormatError(
            f"{path} was not written by compress3g: its metadata is missing"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path} is damaged ({error}): use another checkpoint") from None


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    text = json.dumps(value, indent=1) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """The parsed file. Raises FormatError naming it when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into `requested`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.signal = True, number

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: the caller's handlers stay
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
