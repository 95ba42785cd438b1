"""Training speed and peak memory on a GPU after a cut of 40 %, beside plain LoRA, in turns.

Random weights: a Llama of 1B (Llama 3.2's shapes) in bfloat16 at 1,024 tokens, and BERT-base at 128
under autocast. LoRA of rank 8 in float32, as the library makes it. Ours is what the pipeline itself
leaves: estimation, plan, cut, and the adapters that are left. Ratios are medians of the device's
time of neighbouring steps (`profile.compare`); peak memory is allocated bytes, weights and
optimiser included, of one model's step. `lean`: the Llama with adapters in bfloat16, no autocast.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from _report import goal, parser, report

from compress3g.engine.run import device as find_device
from compress3g.peft import Estimator, LightPeftConfig, apply_plan, candidates, make_plan
from compress3g.profile import compare

CONFIG = LightPeftConfig(attn_ratio=0.4, ffn_ratio=0.4)
LOOK, WARM = 4, 2


@dataclass(frozen=True, slots=True)
class Setting:
    """A model, what it is fed, and how its numbers are kept."""

    name: str
    config: dict[str, Any]
    batch: int
    tokens: int
    every: str
    some: str
    autocast: bool = True

    @property
    def encoder(self) -> bool:
        return self.name == "BERT-base"

    @property
    def title(self) -> str:
        return self.name if self.autocast else f"{self.name}, lean"


LLAMA = Setting(
    "Llama 1B",
    {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64,
     "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256,
     "tie_word_embeddings": True},
    4, 1024, r".*layers.*\.(q|k|v|o|gate|up|down)_proj", r".*layers.*\.(q|v)_proj",
)  # fmt: skip
BERT = Setting(
    "BERT-base",
    {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
     "intermediate_size": 3072, "vocab_size": 30522},
    64, 128, r".*encoder.*\.(query|key|value|dense)", r".*encoder.*\.(query|value)",
)  # fmt: skip
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 8,
         "intermediate_size": 512, "vocab_size": 100}  # fmt: skip


def quick(setting: Setting) -> Setting:
    return replace(setting, config={**setting.config, **SMALL}, batch=2, tokens=32)


class Tuned:
    """A model with its adapters and optimiser, and what a step of it holds at its peak."""

    def __init__(self, setting: Setting, device: torch.device, parts: str) -> None:
        import peft
        import transformers

        torch.manual_seed(0)
        self.setting, self.device = setting, device
        self.start = allocated(device)
        with device:
            if setting.encoder:
                base: Any = transformers.BertForSequenceClassification(
                    transformers.BertConfig(**setting.config)
                )
            else:
                base = transformers.LlamaForCausalLM(
                    transformers.LlamaConfig(**setting.config, use_cache=False)
                ).to(torch.bfloat16)
        lora = peft.LoraConfig(
            task_type="SEQ_CLS" if setting.encoder else "CAUSAL_LM",
            r=8,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules=parts,
        )
        lean = {} if setting.autocast else {"autocast_adapter_dtype": False}
        self.model: Any = peft.get_peft_model(base, lora, **lean).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.batch = batch_of(setting, device)
        self.look: Callable[[], Any] | None = None
        self.peak = 0

    def step(self) -> None:
        how = torch.autocast(self.device.type, torch.bfloat16)
        with how if self.setting.autocast else nullcontext():
            loss = self.model(**self.batch).loss
        loss.backward()
        if self.look is not None:
            self.look()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measured(self) -> Tuned:
        """Itself, with its peak known."""
        for _ in range(WARM):
            self.step()
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - self.start
        return self

    def cut(self) -> Tuned:
        """Itself after a short estimation and the cut it leads to."""
        units, _ = candidates(self.model, CONFIG)
        with Estimator(self.model, units, CONFIG, steps=LOOK) as estimator:
            self.look = lambda: estimator(1e-4)
            for _ in range(LOOK):
                self.step()
            scores, self.look = estimator.scores(), None
        apply_plan(
            self.model, make_plan(scores, units, CONFIG, multiple=multiple(self)), self.optimizer
        )
        return self

    def forward(self) -> None:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
            self.model(**{k: v for k, v in self.batch.items() if k != "labels"})


def multiple(tuned: Tuned) -> int:
    return 64 if tuned.device.type == "cuda" else 16


def allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())


def batch_of(setting: Setting, device: torch.device) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(
        1, setting.config["vocab_size"], (setting.batch, setting.tokens), generator=g
    )
    labels = torch.randint(0, 2, (setting.batch,), generator=g) if setting.encoder else ids
    return {"input_ids": ids.to(device), "labels": labels.to(device)}


def race(setting: Setting, device: torch.device, seconds: float) -> dict[str, Any]:
    """How many times as fast ours is, and what share of the memory it takes."""
    ours = Tuned(setting, device, setting.every).cut().measured()
    row: dict[str, Any] = {"peak of ours, GB": ours.peak / 1e9}
    for name, parts in (("LoRA-all", setting.every), ("LoRA-qv", setting.some)):
        plain = Tuned(setting, device, parts).measured()
        ratio = compare(ours.step, plain.step, seconds=seconds, device=device.type)
        row[f"step vs {name}"] = [ratio.median, ratio.low, ratio.high]
        tokens = setting.batch * setting.tokens * 1e3
        row["tokens/s of ours"] = tokens / ratio.a.p50
        row[f"tokens/s of {name}"] = tokens / ratio.b.p50
        row[f"peak of {name}, GB"] = plain.peak / 1e9
        if plain.peak:
            row[f"peak vs {name}"] = ours.peak / plain.peak
        show(setting, row)
    for each in (ours, plain):
        each.optimizer, each.model = None, each.model.merge_and_unload().eval()
    ratio = compare(ours.forward, plain.forward, seconds=seconds, device=device.type)
    row["forward, merged"] = [ratio.median, ratio.low, ratio.high]
    show(setting, row)
    return row


def show(setting: Setting, row: dict[str, Any]) -> None:
    shown = {k: [round(x, 3) for x in v] if isinstance(v, list) else round(v, 3)
             for k, v in row.items()}  # fmt: skip
    print(f"  {setting.title}: {shown}", flush=True)


def looked(setting: Setting, device: torch.device, seconds: float) -> list[float]:
    """A step with open gates and watched adapters over the same step without."""
    plain, other = (Tuned(setting, device, setting.every) for _ in range(2))
    units, _ = candidates(other.model, CONFIG)
    estimator = Estimator(other.model, units, CONFIG, steps=1)
    other.look = lambda: estimator(1e-4)
    with estimator:  # steps=1: adapters are watched from the start, which is the dearer half
        ratio = compare(plain.step, other.step, seconds=seconds, device=device.type)
    print(f"  {setting.title}: estimation over plain step {ratio.median:.3f}", flush=True)
    return [ratio.median, ratio.low, ratio.high]


def goals_of(rows: dict[str, Any]) -> list[dict[str, Any]]:
    goals = []
    for against in ("LoRA-all", "LoRA-qv"):
        for name, speed, peak in (("Llama 1B", 1.35, 0.75), ("BERT-base", None, 0.70)):
            row = rows.get(name, {})
            if speed is not None and f"step vs {against}" in row:
                value = row[f"step vs {against}"][0]
                goals.append(goal(f"{name}: tokens/s vs {against}", value, speed, unit="x"))
            if f"peak vs {against}" in row:
                value = row[f"peak vs {against}"]
                text = f"{name}: peak memory vs {against}"
                goals.append(goal(text, value, peak, at_least=False))
    if "estimation over plain step" in rows.get("Llama 1B", {}):
        value = rows["Llama 1B"]["estimation over plain step"][0]
        goals.append(goal("Llama 1B: estimation over plain step", value, 1.10, at_least=False))
    return goals


def options_of() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--device", default="auto", help="auto (default), cuda or cpu.")
    made.add_argument("--seconds", type=float, default=6.0, help="Per comparison (default 6).")
    made.add_argument(
        "--batch", type=int, default=LLAMA.batch, help="Sequences of the Llama's (default 4)."
    )
    made.add_argument("--lean", action="store_true", help="Also with adapters in bfloat16.")
    options = made.parse_args()
    if options.batch < 1 or options.seconds <= 0:
        made.error("give at least one sequence and more than no seconds")
    return options


def main() -> None:
    options = options_of()
    warnings.filterwarnings("ignore")
    device = find_device(options.device)
    if device.type == "cpu":
        print("no GPU: small models, and no peak of memory")
        torch.set_num_threads(1)
        options.quick = True
    llama = replace(LLAMA, batch=options.batch)
    settings = [llama, BERT, *([replace(llama, autocast=False)] if options.lean else [])]
    settings = [quick(setting) for setting in settings] if options.quick else settings
    seconds, rows = 0.5 if options.quick else options.seconds, {}
    for setting in settings:
        rows[setting.title] = race(setting, device, seconds)
        finish(options, rows, device)
    for setting in settings[:2]:
        rows[setting.title]["estimation over plain step"] = looked(setting, device, seconds)
    finish(options, rows, device, complete=True)


def finish(
    options: argparse.Namespace,
    rows: dict[str, Any],
    device: torch.device,
    *,
    complete: bool = False,
) -> None:
    """Writes what is known by now."""
    cuda = device.type == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
    report(
        "peft_gpu",
        options,
        seeds=[0],
        goals=[] if options.quick else goals_of(rows),
        rows=rows,
        complete=complete,
        device=torch.cuda.get_device_name() if cuda else "cpu",
        shapes={LLAMA.name: [options.batch, LLAMA.tokens], BERT.name: [BERT.batch, BERT.tokens]},
    )


if __name__ == "__main__":
    main()
