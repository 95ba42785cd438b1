"""The mask core: how long a selection takes, what gates cost, and how exact surgery is.

    python benchmarks/core.py [--quick] [--json]

Selection: CPU seconds of `select` on 2 million units in 400 groups, one thread; beside it one
stable sort of as many numbers, which no selection can do without. Gates: CPU time of a forward of a
width-256 transformer (batch 8, 256 tokens) with gates on every head and neuron against the same
forward without, in turn, the order drawn anew each time. Exactness: the largest difference between
a masked and a materialised model over the largest output, over random decisions and soft gates.
"""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _report import goal, parser, report

from compress3g.core import Budget, Gates, Keep, Units, gated, materialize, price, select
from compress3g.transformer import units_of

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "core"))
from architectures import ARCHITECTURES, dense


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def selection(rounds: int) -> dict[str, float]:
    g = torch.Generator().manual_seed(0)
    units = [Units(f"g{i}", 5000, cost={"params": 1.0 + i % 7}) for i in range(400)]
    scores = {u.name: torch.randn(u.size, generator=g) for u in units}
    whole = torch.cat(list(scores.values())).double()
    row = {"one sort": min(cpu_seconds(lambda: whole.argsort(stable=True)) for _ in range(rounds))}
    for budget in (Budget(0.6, scope="global"), Budget(0.6, scope="group")):
        run = partial(select, scores, units, budget)
        row[budget.scope] = min(cpu_seconds(run) for _ in range(rounds))
    return row


def overhead(pairs: int) -> dict[str, float]:
    import transformers

    config = transformers.BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    units = units_of(model)
    tokens = torch.randint(0, 1000, (8, 256))
    gates = {u.name: torch.rand(u.size) for u in units}

    @torch.no_grad()
    def plain() -> None:
        model(tokens)

    @torch.no_grad()
    def masked() -> None:
        model(tokens)

    plain()
    order, ratios = random.Random(0), []
    for _ in range(pairs):
        times = {}
        for run in order.sample([plain, masked], 2):
            if run is masked:
                with gated(model, units, gates):
                    times[run] = cpu_seconds(run)
            else:
                times[run] = cpu_seconds(run)
        ratios.append(times[masked] / times[plain] - 1)
    ordered = sorted(ratios)
    return {
        "median": ordered[len(ordered) // 2],
        "quartile 1": ordered[len(ordered) // 4],
        "quartile 3": ordered[3 * len(ordered) // 4],
    }


def decision(units: list[Units], seed: int) -> tuple[Keep, Gates]:
    g = torch.Generator().manual_seed(seed)
    scores = {u.name: torch.rand(u.size, generator=g) for u in units}
    keep = select(scores, units, Budget(0.5 + 0.5 * float(torch.rand(1, generator=g))))
    gates = {}
    for u in units:
        soft = torch.rand(u.size, generator=g) + 0.5 if u.bypass is None else torch.ones(1)
        gates[u.name] = torch.zeros(u.size).index_copy(0, keep[u.name], soft[keep[u.name]])
    return keep, gates


@torch.no_grad()
def exactness(name: str, seeds: int) -> dict[str, float]:
    case, model = ARCHITECTURES[name], dense(name)
    units = price(model, case.units_of(model))
    errors, unpriced = [], 0.0
    for seed in range(seeds):
        keep, gates = decision(units, seed)
        with gated(model, units, gates):
            masked = case.run(model, 2)
        small = materialize(copy.deepcopy(model), units, keep, gates=gates)
        errors.append(float((masked - case.run(small, 2)).abs().max() / masked.abs().max()))
        removed = sum(p.numel() for p in model.parameters()) - sum(
            p.numel() for p in small.parameters()
        )
        priced = sum(u.cost["params"] * (u.size - len(keep[u.name])) for u in units)
        unpriced = max(unpriced, abs(removed - priced))
    groups, total = len(units), sum(u.size for u in units)
    return {"groups": groups, "units": total, "error": max(errors), "unpriced": unpriced}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    seeds = 3 if options.quick else 20
    chosen = selection(3 if options.quick else 10)
    print(f"{'select 2 M units in 400 groups':40}{'CPU seconds':>12}")
    for what, seconds in chosen.items():
        print(f"  {what:38}{seconds:>12.3f}")
    cost = overhead(12 if options.quick else 60)
    print(f"\ngates on a width-256 transformer, extra CPU time: {cost['median']:.1%} "
          f"(quartiles {cost['quartile 1']:.1%}, {cost['quartile 3']:.1%})\n")  # fmt: skip
    print(
        f"{'masked against materialised':28}{'groups':>8}{'units':>8}{'error':>11}{'unpriced':>10}"
    )
    exact = {}
    for name in ARCHITECTURES:
        row = exact[name] = exactness(name, seeds)
        print(
            f"  {name:26}{row['groups']:>8}{row['units']:>8}{row['error']:>11.1e}"
            f"{row['unpriced']:>10.0f}",
            flush=True,
        )
    print()
    goals = [
        goal("select, 2 M units in 400 groups", chosen["global"], 0.5, unit="s", at_least=False),
        goal("gates on a transformer", 100 * cost["median"], 5, unit="%", at_least=False),
        goal(
            "largest error of surgery, 1e-5",
            max(row["error"] for row in exact.values()) / 1e-5,
            1,
            at_least=False,
        ),
    ]
    rows = {"select": chosen, "gated": cost, "exactness": exact}
    report("core", options, seeds=range(seeds), goals=goals, rows=rows)


if __name__ == "__main__":
    main()
