"""A recipe: how to score, prune and recover, in one TOML file with a table for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.options import read_toml, tables_of
from ..errors import ConfigError
from .config import EcoDiffConfig
from .finetune import FinetuneConfig, finetune
from .prune import prune
from .scores import PruneConfig, before_cut, scores_of

TABLES = ("learn", "prune", "finetune")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done to a pipeline: learn masks (with method "ecodiff"), prune, finetune."""

    prune: PruneConfig
    learn: EcoDiffConfig | None = None
    finetune: FinetuneConfig | None = None

    @classmethod
    def of(cls, config: PruneConfig, file: Path | None) -> Recipe:
        """The tables [learn] and [finetune] of a file beside what is decided about pruning.

        Without a target of its own, learning aims at the ratio. Raises ConfigError.
        """
        tables = tables_of(file) if file is not None else set()
        found: dict[str, Any] = {}
        for table, kind in (("learn", EcoDiffConfig), ("finetune", FinetuneConfig)):
            if file is not None and table in tables:
                values = read_toml(kind, file, table=table, tables=TABLES)
                if table == "learn":
                    values.setdefault("target", config.ratio)
                found[table] = kind(**values)
        return cls(config, **found)

    def check(self, prompts: Sequence[str], *, masks: bool) -> None:
        """Raises ConfigError when prompts are missing that something needs."""
        asks = {
            f"--method {self.prune.method}": self.prune.looks and not masks,
            "--refit": bool(self.prune.refit),
            "the table finetune": self.finetune is not None,
        }
        for what, needed in asks.items():
            if needed and not prompts:
                raise ConfigError(f"{what} needs --prompts FILE")

    def carry_out(
        self,
        pipe: Any,
        prompts: Sequence[str],
        *,
        learned: Any = None,
        dense: Callable[[], Any] | None = None,
        checkpoint: Path | None = None,
    ) -> str:
        """Prunes and recovers the pipeline in place; what went wrong on the way, or "".

        learned: masks, instead of scoring. dense: opens the dense pipeline anew, for finetuning.
        checkpoint: beginning of the names of files from which a run goes on, removed at the end.
        """
        files = [Path(f"{checkpoint}.{name}") if checkpoint else None for name in TABLES]
        if learned is None:
            learned = scores_of(pipe, prompts, self.prune, learn=self.learn, checkpoint=files[0])
        fit = before_cut(pipe, prompts, self.prune)
        prune(pipe, learned, before_cut=fit, **self.prune.how())
        stopped = str(getattr(learned, "stopped", ""))
        if self.finetune is not None and dense is not None:
            how = self.finetune
            stopped = finetune(pipe, dense(), prompts, how, checkpoint=files[2]).stopped or stopped
        for file in files:
            if file is not None:
                file.unlink(missing_ok=True)
        return stopped
