"""The files of a training run, and the rule that none is lost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.checkpoint import atomic_write, read_json
from ..errors import ConfigError, FormatError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names of what a run leaves behind."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Everything that `--resume` needs."""
        return self.path / "checkpoint.safetensors"

    @property
    def model(self) -> Path:
        """What rendering needs."""
        return self.path / "model.safetensors"

    @property
    def config(self) -> Path:
        """The options of the run, for `--config`."""
        return self.path / "config.toml"

    @property
    def result(self) -> Path:
        """The figures."""
        return self.path / "result.json"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.path / "sheet.png"

    @property
    def twin(self) -> RunFolder:
        """The folder of the plain run that `--compare` trains beside a hollow one."""
        return RunFolder(self.path / "plain")

    def claim(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that a run may write here.

        Raises ConfigError when there is a run already and neither flag was given, and when there is
        none to resume, and when nothing can be written there.
        """
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file: give the run another folder with -o")
        if resume and not self.checkpoint.exists():
            raise ConfigError(f"{self.path} holds no checkpoint to resume: leave out --resume")
        if not (resume or overwrite) and (self.model.exists() or self.checkpoint.exists()):
            raise ConfigError(
                f"{self.path} holds a run already: give --resume, --overwrite, or another folder "
                "with -o"
            )
        # It is made with its first file only, so that a run that cannot begin leaves none.
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise ConfigError(
                f"cannot write to {self.path}: {there} is no folder to write to: give the run "
                "another folder with -o"
            )

    def begin(self, toml: str, *, resume: bool) -> None:
        """Write the options, and forget what another run left here.

        To be called once the new run has its first checkpoint, so that nothing is lost too early.
        """
        atomic_write(self.config, lambda file: file.write(toml.encode()))
        if not resume:
            for folder in (self, self.twin):
                for file in (folder.model, folder.result, folder.sheet):
                    file.unlink(missing_ok=True)
            self.twin.checkpoint.unlink(missing_ok=True)

    def figures(self) -> dict[str, Any]:
        """The JSON of the result; empty when the run was not finished."""
        if not self.result.exists():
            return {}
        value = read_json(self.result)
        if not isinstance(value, dict):
            raise FormatError(f"{self.result} is not the result of a run: train again")
        return value


def model_file(path: Path) -> Path:
    """The model that a run folder or a file name stands for.

    Raises FormatError when there is none.
    """
    run = RunFolder(path)
    file = path
    if path.is_dir():
        file = run.model if run.model.is_file() else run.checkpoint  # of a run under way
    if not file.is_file():
        raise FormatError(f"{path} holds no model: give a folder that `nerf train` has written")
    return file
