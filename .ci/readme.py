"""Runs every fenced `console` block of Markdown files and compares what is printed.

A line `$ command` is run by bash in the repository, with `runs/` put away before and after. Lines
below it are what must be printed, in this order; `...` stands for any lines, and every number in
an expected line for any number, since figures depend on the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def blocks(text: str) -> list[list[str]]:
    return [
        found.splitlines() for found in re.findall(r"^```console\n(.*?)^```", text, re.M | re.S)
    ]


def commands(block: list[str]) -> list[tuple[str, list[str]]]:
    """Commands and the lines expected below each."""
    result: list[tuple[str, list[str]]] = []
    for line in block:
        if line.startswith("$ "):
            result.append((line[2:], []))
        elif result:
            result[-1][1].append(line)
    return result


def pattern(line: str) -> re.Pattern[str]:
    parts = [r"\s+".join(map(re.escape, part.split())) for part in NUMBER.split(line)]
    spaced = r"\s*" + r"\s*\d[\d,]*(?:\.\d+)?\s*".join(parts) + r"\s*"
    return re.compile(spaced)


def differs(expected: list[str], printed: list[str]) -> str | None:
    """The first expected line that is not printed in its place, None when all are."""
    at, loose = 0, False
    for line in expected:
        if line.strip() == "...":
            loose = True
            continue
        wanted = pattern(line)
        places = range(at, len(printed)) if loose else range(at, min(at + 1, len(printed)))
        found = next((i for i in places if wanted.fullmatch(printed[i])), None)
        if found is None:
            return line
        at, loose = found + 1, False
    return None


def run(file: Path, environment: dict[str, str]) -> int:
    failures = 0
    for block in blocks(file.read_text()):
        for command, expected in commands(block):
            print(f"{file}: $ {command}", flush=True)
            done = subprocess.run(
                ["bash", "-c", command], env=environment, capture_output=True, text=True
            )
            printed = [line for line in done.stdout.splitlines() if line.strip()]
            wrong = differs([line for line in expected if line.strip()], printed)
            if done.returncode or wrong is not None:
                failures += 1
                print(f"  exit code {done.returncode}; expected: {wrong!r}; printed:")
                print("  | " + "\n  | ".join((done.stdout + done.stderr).splitlines()))
    return failures


def main() -> int:
    here = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as away:
        runs = Path("runs")
        if runs.exists():
            shutil.move(runs, Path(away) / "runs")
        try:
            failures = sum(run(Path(name), environment) for name in sys.argv[1:])
        finally:
            shutil.rmtree(runs, ignore_errors=True)
            if (Path(away) / "runs").exists():
                shutil.move(Path(away) / "runs", runs)
    print("README commands: " + (f"{failures} failed" if failures else "all as printed"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
