"""Whatever kills or starves a writer, the index opens, verifies, and holds what was committed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")
needs_preload = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C compiler"
)


def run(*arguments: str, preload: Path | None = None) -> dict[str, int]:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if preload is not None:
        environment["LD_PRELOAD"] = str(preload)
    done = subprocess.run(
        [sys.executable, str(HERE / "faults.py"), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def preload(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(
        [str(COMPILER), "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"],
        check=True,
    )
    return library


@pytest.mark.parametrize("kind", ["compact", "grow"])
def test_committed_documents_survive_a_few_kills(tmp_path, kind):
    assert run(str(tmp_path / "idx"), "kill", kind, "--times", "4", "--seed", "9")["killed"] == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
@pytest.mark.parametrize("kind", ["add", "grow", "remove", "compact"])
def test_committed_documents_survive_fifty_kills(tmp_path, kind, journal):
    times = 50 if journal == "WAL" else 15
    arguments = (kind, "--times", str(times), "--journal", journal)
    result = run(str(tmp_path / "idx"), "kill", *arguments)
    assert result["killed"] == times
    assert result["cut"] > times // 3  # else the moments missed the work


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_preload
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
@pytest.mark.parametrize("kind", ["add", "grow", "remove", "compact"])
@pytest.mark.parametrize("fault", ["full", "die"])
def test_committed_documents_survive_a_fault_at_every_write(
    tmp_path, preload, fault, kind, journal
):
    """full: no space from the n-th write on. die: SIGKILL before the n-th change of a file."""
    arguments = (fault, kind, "--journal", journal)
    result = run(str(tmp_path / "idx"), *arguments, preload=preload)
    assert result["writes"] > 10  # else the faults were not where the writes are
    assert result["failed"] > result["writes"] // 2
