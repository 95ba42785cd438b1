"""Every benchmark explains itself and takes the two options that all of them share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks"

# One process for all: each would spend seconds on importing torch.
_HELP = """
import contextlib, io, runpy, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
for script in sorted(folder.glob("[!_]*.py")):
    sys.argv = [str(script), "--help"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    if not all(option in said.getvalue() for option in ("--quick", "--json")):
        sys.exit(f"{script.name} --help says: {said.getvalue()!r}")
"""


def test_benchmarks_start():
    subprocess.run([sys.executable, "-W", "ignore", "-c", _HELP, str(FOLDER)], check=True)
