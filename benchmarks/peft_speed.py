"""Time and memory of a training step before and after the cut, beside plain LoRA, paired.

A random 3-layer encoder of width 768 (BERT's layer), batch 4 of 128 tokens, LoRA of rank 8; after
the cut the adapters have rank 4 on queries and values, and the dropout that runs of ours have.
Ratios are medians of CPU time of neighbouring steps (`profile.compare`); bytes saved for backward
are counted. Rows "as a plan leaves it" are of the product's own cut instead, after an estimation of
four steps that began with LoRA on every layer, or on queries and values: half of these adapters
live. End to end: estimation, cut and its refit included, over LoRA on every layer, equal
steps; from the mean seconds of the parts of one run of 40 steps, in turn with those of the other.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _report import goal, parser, report

from compress3g.core import materialize
from compress3g.peft import (
    Estimator,
    LightPeftConfig,
    Plan,
    Scores,
    apply_plan,
    candidates,
    make_plan,
)
from compress3g.peft.bench import saved_bytes
from compress3g.peft.cost import cost_of
from compress3g.peft.cut import Refit
from compress3g.peft.dropout import lighten_dropout
from compress3g.profile import compare
from compress3g.transformer import units_of

ALL = r".*layer.*\.(query|key|value|dense)"
QV = ["query", "value"]
BATCH, TOKENS = 4, 128
RUNS = (40, 4), (500, 50)  # steps, of them the estimation, whose default is at least 50
# Share of heads that go, and neurons that stay: aligned widths for a third and for 0.4.
SETTINGS = {"1/3": (1 / 3, 2048), "0.4": (0.4, 1856)}


def base() -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "num_hidden_layers": 3, "num_attention_heads": 12,
             "intermediate_size": 3072, "vocab_size": 1000}  # fmt: skip
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))


def adapted(model: Any, parts: Any, rank: int = 8) -> Any:
    import peft

    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=parts
    )
    return peft.get_peft_model(model, lora).train()


def cut(
    heads: float, neurons: int, *, light: bool = True, heads_of: Sequence[int] | None = None
) -> Any:
    """A model with as many units as a plan of these ratios leaves, adapters as after a cut.

    light: with the dropout that runs of ours have, else with the library's. heads_of: how many
    heads every layer keeps, instead of the same share in each.
    """
    model = base()
    keep, left = {}, iter(heads_of or ())
    for u in units_of(model):
        if u.name.endswith("neurons"):
            keep[u.name] = torch.arange(neurons)
            continue
        stay = round((1 - heads) * u.size) if heads_of is None else next(left)
        keep[u.name] = torch.arange(stay)
    small = adapted(materialize(model, units_of(model), keep), QV, 4)
    if light:
        lighten_dropout(small)
    return small


def planned(parts: Any, share: float) -> Any:
    """A model as estimation, plan and cut of these ratios leave it, adapted at these parts."""
    model = adapted(base(), parts)
    lighten_dropout(model)
    config = LightPeftConfig(attn_ratio=share, ffn_ratio=share)
    units, _ = candidates(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with Estimator(model, units, config, steps=4) as estimator:
        for seed in range(4):
            model(**batch(seed)).loss.backward()
            estimator(1e-3)
            optimizer.step()
            optimizer.zero_grad()
        scores = estimator.scores()
    apply_plan(model, make_plan(scores, units, config, multiple=16), optimizer)
    return model


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 1000, (BATCH, TOKENS), generator=g)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "labels": torch.randint(0, 2, (BATCH,), generator=g)}  # fmt: skip


def step_of(model: Any, look: Callable[[], Any] | None = None) -> Callable[[], Any]:
    part = batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        model(**part).loss.backward()
        if look is not None:
            look()
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward_of(model: Any) -> Callable[[], Any]:
    model = model.merge_and_unload().eval()
    part = {k: v for k, v in batch().items() if k != "labels"}

    def forward() -> None:
        with torch.inference_mode():
            model(**part)

    return forward


def kept_bytes(model: Any) -> int:
    part = batch()
    return saved_bytes(lambda: model(**part).loss, model)


def speed(seconds: float, tried: list[str]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    plain = {name: adapted(base(), parts) for name, parts in (("qv", QV), ("all", ALL))}
    for name in tried:
        small = cut(*SETTINGS[name])
        row: dict[str, Any] = {}
        for against, model in plain.items():
            ratio = compare(step_of(small), step_of(model), seconds=seconds, clock="cpu")
            row[f"step vs {against}"] = [ratio.median, ratio.low, ratio.high]
            row[f"saved vs {against}"] = kept_bytes(small) / kept_bytes(model)
        stock = cut(*SETTINGS[name], light=False)
        ratio = compare(step_of(stock), step_of(plain["qv"]), seconds=seconds, clock="cpu")
        row["step vs qv, the library's dropout"] = [ratio.median, ratio.low, ratio.high]
        row["saved vs qv, the library's dropout"] = kept_bytes(stock) / kept_bytes(plain["qv"])
        dense = forward_of(adapted(base(), QV))
        ratio = compare(forward_of(cut(*SETTINGS[name])), dense, seconds=seconds, clock="cpu")
        row["inference"] = [ratio.median, ratio.low, ratio.high]
        for start, parts, peers in (("all", ALL, ("qv", "all")), ("qv", QV, ("qv",))):
            left = planned(parts, SETTINGS[name][0])
            for against in peers:
                ratio = compare(
                    step_of(left), step_of(plain[against]), seconds=seconds, clock="cpu"
                )
                told = f"as a plan leaves it, begun with {start}: "
                row[f"{told}step vs {against}"] = [ratio.median, ratio.low, ratio.high]
                row[f"{told}saved vs {against}"] = kept_bytes(left) / kept_bytes(plain[against])
        rows[name] = row
        shown = {k: round(v[0] if isinstance(v, list) else v, 3) for k, v in row.items()}
        print(f"  {name}: {shown}", flush=True)
    return rows


def overhead(seconds: float) -> list[float]:
    """A step with open gates and watched adapters over the same step without."""
    plain, looked = (adapted(base(), ALL) for _ in range(2))
    lighten_dropout(looked)
    units, _ = candidates(looked, LightPeftConfig())
    estimator = Estimator(looked, units, LightPeftConfig(), steps=1)
    with estimator:  # steps=1: adapters are watched from the start, which is the dearer half
        ratio = compare(
            step_of(plain), step_of(looked, lambda: estimator(1e-3)), seconds=seconds, clock="cpu"
        )
    print(f"  estimation over plain step: {ratio.median:.3f}", flush=True)
    return [ratio.median, ratio.low, ratio.high]


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of one run with its cut, and of the same steps of LoRA on every layer."""

    looking: float  # a step of the estimation
    cut: float
    refit: float
    after: float  # a step after the cut
    plain: float  # a step of LoRA on every layer

    def share(self, steps: int, look: int, *, refit: bool = True) -> float:
        """Time of a run of so many steps over that of LoRA on every layer."""
        once = self.cut + (self.refit if refit else 0.0)
        whole = look * self.looking + once + (steps - look) * self.after
        return whole / (steps * self.plain)


class Timed:
    """One model in training, whose CPU seconds are taken step by step."""

    def __init__(self, light: bool) -> None:
        self.model = adapted(base(), ALL)
        if light:
            lighten_dropout(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def step(self, estimator: Estimator | None = None) -> float:
        part, started = batch(), time.process_time()
        self.model(**part).loss.backward()
        if estimator is not None:
            estimator(1e-3)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - started


def end_to_end(steps: int, look: int) -> Spent:
    """Both runs step by step in turn, so that what else the machine does slows both."""
    config, light, plain = LightPeftConfig(), Timed(True), Timed(False)
    seconds: dict[str, list[float]] = {"looking": [], "after": [], "plain": []}
    units, _ = candidates(light.model, config)
    with Estimator(light.model, units, config, steps=look) as estimator:
        for _ in range(look):
            seconds["looking"].append(light.step(estimator))
            seconds["plain"].append(plain.step())
        scores = estimator.scores()
    plan = make_plan(scores, units, config, multiple=16)
    refit = Refit([batch(seed) for seed in range(config.samples // BATCH)], scores.gates)
    without = cut_s(copy.deepcopy(light), plan, None)
    whole = cut_s(light, plan, refit)
    for _ in range(steps - look):
        seconds["after"].append(light.step())
        seconds["plain"].append(plain.step())
    means = {name: sum(found) / len(found) for name, found in seconds.items()}
    return Spent(cut=without, refit=whole - without, **means)


def cut_s(run: Timed, plan: Plan, refit: Refit | None) -> float:
    started = time.process_time()
    apply_plan(run.model, plan, run.optimizer, refit=refit)
    return time.process_time() - started


def uneven_heads(seconds: float) -> dict[str, list[float]]:
    """A step and a forward pass with 12, 8 and 4 heads in the layers, over 8 in each."""
    even, uneven = (cut(*SETTINGS["1/3"], heads_of=heads) for heads in ((8, 8, 8), (12, 8, 4)))
    rows = {}
    for name, made in (("step", step_of), ("inference", forward_of)):
        ratio = compare(made(even), made(uneven), seconds=seconds, clock="cpu")
        rows[name] = [ratio.median, ratio.low, ratio.high]
    print(f"  uneven heads: { {k: round(v[0], 3) for k, v in rows.items()} }", flush=True)
    return rows


def budget() -> float:
    """Measured time of a model cut for three quarters of the dense one's, over that."""
    model = adapted(base(), QV)
    units, _ = candidates(model, LightPeftConfig())
    cost = cost_of(model, units, "ms", lambda: [batch()])
    g = torch.Generator().manual_seed(0)
    draws = {u.name: torch.rand(u.size, generator=g) for u in units}
    whole = {u.name: torch.arange(u.size) for u in units}
    limit = 0.75 * cost(whole)
    config = LightPeftConfig(budget=f"ms={limit}")
    scores = Scores({config.criterion: draws}, draws, {}, {}, 1)
    plan = make_plan(scores, units, config, multiple=16, cost=cost, limit=limit)
    found = cost(plan.indices()) / limit
    print(f"  ms budget: {found:.3f} of what was asked", flush=True)
    return found


def main() -> None:
    options = parser(__doc__).parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    global TOKENS
    if options.quick:
        TOKENS = 32
    seconds = 1.0 if options.quick else 6.0
    rows: dict[str, Any] = {
        **speed(seconds, ["1/3"] if options.quick else list(SETTINGS)),
        "overhead": overhead(seconds),
        "uneven heads": uneven_heads(seconds),
        "ms budget": budget(),
    }
    spent = end_to_end(*((12, 2) if options.quick else (40, 4)))
    rows["seconds of a run"] = asdict(spent)
    rows["refit, in steps of LoRA-all"] = spent.refit / spent.plain
    for steps, look in RUNS:
        for refit in (False, True):
            name = f"end to end, {look} of {steps} steps looking, {'' if refit else 'no '}refit"
            rows[name] = spent.share(steps, look, refit=refit)
            print(f"  {name}: {rows[name]:.3f}", flush=True)
    third, more = rows["1/3"], rows.get("0.4")
    goals = [
        goal("1/3: step vs LoRA-qv", third["step vs qv"][0], 1.45, unit="x"),
        goal("1/3: step vs LoRA-all", third["step vs all"][0], 1.7, unit="x"),
        goal("1/3: inference", third["inference"][0], 1.4, unit="x"),
        goal("1/3: saved vs LoRA-qv", third["saved vs qv"], 0.76, at_least=False),
        goal("1/3: saved vs LoRA-all", third["saved vs all"], 0.56, at_least=False),
        goal("estimation over plain step", rows["overhead"][0], 1.10, at_least=False),
        goal("end to end over LoRA-all", spent.share(*RUNS[-1]), 0.75, at_least=False),
        goal("ms budget, off by", abs(rows["ms budget"] - 1), 0.05, at_least=False),
    ]
    if more is not None:
        goals.append(goal("0.4: step vs LoRA-qv", more["step vs qv"][0], 1.6, unit="x"))
        goals.append(goal("0.4: saved vs LoRA-qv", more["saved vs qv"], 0.70, at_least=False))
    report("peft_speed", options, seeds=[0], goals=goals, rows=rows, batch=BATCH, tokens=TOKENS)


if __name__ == "__main__":
    main()
