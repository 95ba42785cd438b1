from __future__ import annotations

import errno
import os
import signal

import pytest
import torch

from compress3g.engine.checkpoint import (
    StopSignal,
    atomic_write,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from compress3g.errors import FormatError


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path):
    file = tmp_path / "x.bin"
    file.write_bytes(b"old")

    def fill(out):
        out.write(b"half of the new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    with pytest.raises(OSError, match="No space left"):
        atomic_write(file, fill)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"a": torch.arange(5), "b": torch.rand(2, 3), "c": torch.tensor(2.5).double()}
    save_tensors(tmp_path / "t", tensors, {"step": 3, "names": ["x"]})
    found, metadata = load_tensors(tmp_path / "t")
    assert metadata == {"step": 3, "names": ["x"]}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K.", b"{}" * 40])
def test_other_files_are_one_clear_error(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(FormatError, match="t is damaged") as caught:
        load_tensors(tmp_path / "t")
    assert "\n" not in str(caught.value)


def test_json_errors_name_the_file(tmp_path):
    write_json(tmp_path / "j", {"a": [1]})
    assert read_json(tmp_path / "j") == {"a": [1]}
    (tmp_path / "j").write_text("{")
    with pytest.raises(FormatError, match="j is not JSON"):
        read_json(tmp_path / "j")
    with pytest.raises(FormatError, match="none does not exist"):
        read_json(tmp_path / "none")


def test_sigterm_is_noted_and_the_handler_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_is_immediate():
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
