"""A model that is fine-tuned and gets smaller: its stage, its gates, its report."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..core import Gates, Keep, price
from ..engine.checkpoint import load_tensors, save_tensors
from ..errors import ConfigError, require
from ..transformer import units_of as sites_of
from ..transformer.refit import joined
from .config import AUTO, ESTIMATED, LightPeftConfig, parse_budget
from .cost import Batch, cost_of
from .cut import (
    READER,
    Refit,
    apply_plan,
    check_cuttable,
    readers_of,
    removed_parts,
    scale_rates,
)
from .dropout import lighten_dropout
from .estimate import Estimator, Scores
from .plan import Plan, make_plan
from .ranking import Loss, losses_of, own_loss, ranking_of
from .report import Report
from .units import adapter_of, base_of, candidates, lora_layers, of_base

Stage: TypeAlias = Literal["whole", "estimation", "cut"]
STATE = "light_state.safetensors"
_log = logging.getLogger(__name__)
_WEAK = 0.03  # steps times learning rate below which gates have not moved apart (2406.03792's own)


class Light:
    """Estimation, cut and what is known of them, for one PeftModel with one LoRA adapter.

    Raises ConfigError when the model cannot be cut in place, CutError when nothing may go.
    """

    def __init__(self, model: Any, config: LightPeftConfig) -> None:
        self._model, self.config = model, config
        adapter_of(model)
        check_cuttable(model)
        self.units, held = candidates(model, config)
        self.held = tuple(held)
        self.stage: Stage = "whole"
        self.steps = 0
        self.plan: Plan | None = None
        self.report: Report | None = None
        self._away: dict[str, Tensor] = {}  # of the adapter, merged into the base
        self._refit_s: float | None = None
        self._estimator: Estimator | None = None
        self._cost: float | None = None
        self.loss: Loss = own_loss  # of model and batch, for criteria that look at it at the cut
        self.losses: dict[str, float] = {}
        self.criterion = config.criterion
        self._learnt: Gates = {}  # multipliers that a criterion found beside its scores

    def begin(self, total: int) -> None:
        """Open the gates for a run of `total` optimiser steps.

        Raises ConfigError when nothing of the run would be left after the cut.
        """
        if self.stage == "cut":
            lighten_dropout(self._model)
            return
        lighten_dropout(self._model)
        if self._estimator is None:  # not restored
            self.steps = steps_of(self.config, total)
            self._estimator = Estimator(self._model, self.units, self.config, steps=self.steps)
        self._estimator.__enter__()
        self.stage = "estimation"

    def close(self) -> None:
        """Takes the gates, and all that watches, off the model; `begin` puts them back."""
        if self._estimator is not None:
            self._estimator.__exit__(None, None, None)

    @property
    def estimator(self) -> Estimator:
        """The open gates. Raises ConfigError outside the estimation."""
        if self._estimator is None:
            raise ConfigError("there is no estimation to look at: call begin() first")
        return self._estimator

    @property
    def due(self) -> bool:
        """Whether the estimation has made all its steps."""
        return self.stage == "estimation" and self.estimator.done >= self.steps

    def observe(
        self, learning_rate: float, *, scale: float = 1.0, batches: Callable[[], Sequence[Batch]]
    ) -> bool:
        """One step of the gates after `backward`; False when the optimiser must skip its own.

        Raises what `decide` does, once the gates are closed.
        """
        finite = self.estimator(learning_rate, scale=scale)
        left = self.steps - self.estimator.done
        if left and left == self.config.shrink_steps:
            try:
                self.plan = self.decide(batches)
            except BaseException:
                self.close()
                raise
            self.estimator.fade(self.plan.indices(), left)
        return finite

    def decide(self, batches: Callable[[], Sequence[Batch]] = list) -> Plan:
        """The plan by what is known now.

        batches: model inputs, asked for by criteria that take a pass of their own and by budgets in
        flops or ms. Raises BudgetError when nothing meets the budget.
        """
        config, cost, limit = self.config, None, 0.0
        if config.budget is not None:
            kind, limit = parse_budget(config.budget)
            cost = cost_of(self._model, self.units, kind, batches)
        names = AUTO if config.criterion == "auto" else (config.criterion,)
        plans = {name: self._plan(name, batches, cost, limit) for name in names}
        self.losses = {}
        if len(plans) > 1:
            keeps = {name: plan.indices() for name, plan in plans.items()}
            self.losses = losses_of(self._model, self.units, keeps, batches, self.loss)
        self.criterion = min(plans, key=lambda name: self.losses.get(name, 0.0))
        plan = plans[self.criterion]
        self._cost = None if cost is None else cost(plan.indices())
        return plan

    def _plan(
        self,
        criterion: str,
        batches: Callable[[], Sequence[Batch]],
        cost: Callable[[Keep], float] | None,
        limit: float,
    ) -> Plan:
        scores, ranking = self.estimator.scores(), None
        config = replace(self.config, criterion=criterion)
        if criterion not in ESTIMATED:
            ranking, learnt = ranking_of(self._model, self.units, config, batches, self.loss)
            if learnt is not None:
                self._learnt = learnt
        multiple = multiple_of(base_of(self._model), config)
        return make_plan(
            _times(scores, self._learnt),
            self.units,
            config,
            ranking=ranking,
            multiple=multiple,
            cost=cost,
            limit=limit,
        )

    def cut(self, optimizer: Any = None, batches: Callable[[], Sequence[Batch]] = list) -> Report:
        """Close the gates, decide, and cut model, adapter and optimiser in place.

        The optimiser's rates are multiplied by `rate_after_cut`; those that a schedule keeps are
        the caller's to multiply (`cut.scale_schedule`). The gates are closed whatever is raised.
        """
        try:
            scores = self.estimator.scores()
            if self.plan is None:
                plan = self.decide(batches)
            else:
                plan = _regated(self.plan, _times(scores, self._learnt))
        finally:
            self.close()
        before = self._sizes()
        self._away = removed_parts(self._model, plan) if plan.merge_dropped else {}
        refit = self._refit(scores, batches)
        started = time.perf_counter()
        apply_plan(self._model, plan, optimizer, away=self._away, refit=refit)
        if refit is not None:
            self._refit_s = time.perf_counter() - started
        if optimizer is not None:
            scale_rates(optimizer, self.config.rate_after_cut)
        self.plan, self.stage = plan, "cut"
        self.report = self._reported(plan, scores, before)
        self._estimator = None
        return self.report

    def _refit(self, scores: Scores, batches: Callable[[], Sequence[Batch]]) -> Refit | None:
        """What readers are fitted on at the cut, or nothing.

        Raises ConfigError when it is asked for and there are no samples, or they make no one batch.
        """
        if self.config.refit is False or self.config.shrink_steps:  # what fades is gone already
            return None
        looked = list(batches())
        if not looked:
            if self.config.refit:
                raise ConfigError("--refit needs training data to look at: give some")
            return None
        try:
            joined(looked)
        except ConfigError as error:
            if self.config.refit:
                raise
            _log.warning(f"nothing is fitted at the cut: {error}")
            return None
        gates = _times(scores, self._learnt).gates if self.config.fold == "merge" else None
        return Refit(looked, gates)

    @property
    def away(self) -> dict[str, Tensor]:
        """What the plan needs besides to make this base of the dense one.

        What the adapter lost, which was merged, and the weights that a refit changed.
        """
        if self.plan is None or self.report is None or self.report.refit_s is None:
            return self._away
        return self._away | readers_of(self._model, self.plan)

    def timed(self, before: float, after: float) -> None:
        """Put measured milliseconds per step into the report."""
        if self.report is not None:
            self.report = replace(self.report, step_ms=(before, after))

    def _sizes(self) -> tuple[int, int, int, int]:
        base, adapter = base_of(self._model), adapter_of(self._model)
        layers = lora_layers(base, adapter)
        lora = {id(p) for m in layers.values() for n, p in m.named_parameters() if "lora_" in n}
        parameters = {id(p): p.numel() for p in base.parameters()}
        trained = sum(n for key, n in parameters.items() if key in lora)
        ranks = sum(int(m.lora_A[adapter].out_features) for m in layers.values())
        return sum(parameters.values()) - trained, trained, len(layers), ranks

    def _reported(self, plan: Plan, scores: Scores, before: tuple[int, ...]) -> Report:
        after = self._sizes()
        gone = before[0] - after[0]
        whole = self._prunable + gone
        return Report(
            steps=scores.steps,
            skipped=scores.skipped,
            kept={n: (len(kept), plan.sizes[n]) for n, kept in plan.keep.items()},
            held=self.held,
            params=(before[0], after[0]),
            sites=(whole, whole - gone),
            trained=(before[1], after[1]),
            adapters=(before[2], after[2]),
            ranks=(before[3], after[3]),
            correlations=_correlations(scores),
            criterion=self.criterion,
            losses=self.losses,
            budget=self.config.budget,
            cost=self._cost,
            refit_s=self._refit_s,
        )

    @property
    def _prunable(self) -> int:
        """Parameters of heads and neurons that are there now."""
        base = base_of(self._model)
        chosen = {u.name for u in self.units}
        units = [u for u in sites_of(base) if u.name in chosen]
        return round(sum(u.cost["params"] * u.size for u in price(base, of_base(base, units))))

    def share(self) -> None:
        """What adapters showed to every process, before one saves it; all have to call this."""
        if self.stage == "estimation":
            self.estimator.adapters.share()

    def save_state(self, folder: Path) -> None:
        """Stage, gates, sums and plan, for a checkpoint: light_state.safetensors."""
        # A command's own configuration says more than what is cut.
        config = {f.name: getattr(self.config, f.name) for f in fields(LightPeftConfig)}
        about: dict[str, Any] = {"stage": self.stage, "config": config}
        tensors: dict[str, Tensor] = self.away if self.stage == "cut" else {}
        if self.stage == "estimation":
            tensors, about["estimator"] = self.estimator.state()
            tensors |= {f"learnt/{n}": t for n, t in self._learnt.items()}
            about |= {"steps": self.steps, "criterion": self.criterion, "losses": self.losses}
        if self.plan is not None:
            about["plan"] = self.plan.to_json()
        if self.report is not None:
            about["report"] = self.report.to_json()
        save_tensors(folder / STATE, tensors, about)

    def restore(self, folder: Path) -> None:
        """Go on as a checkpoint was left; after its cut, the (dense) model is cut first.

        Raises FormatError when the folder holds no state, ConfigError when the model was cut.
        """
        if self.stage != "whole":
            raise ConfigError(
                f"a checkpoint is restored before training, not in stage {self.stage}"
            )
        tensors, about = load_tensors(folder / STATE)
        self.config = LightPeftConfig(**about["config"])
        if "plan" in about:
            self.plan = Plan.from_json(about["plan"], str(folder / STATE))
        if about["stage"] == "cut":
            assert self.plan is not None
            self._away = {n: t for n, t in tensors.items() if n.rpartition(".")[2] not in READER}
            apply_plan(self._model, self.plan, away=tensors)
            self.stage, self.report = "cut", Report.from_json(about["report"])
        elif about["stage"] == "estimation":
            self.steps = int(about["steps"])
            self.criterion, self.losses = about["criterion"], about["losses"]
            learnt = {n: t for n, t in tensors.items() if n[:7] == "learnt/"}
            self._learnt = {n.removeprefix("learnt/"): t for n, t in learnt.items()}
            self._estimator = Estimator(self._model, self.units, self.config, steps=self.steps)
            self._estimator.restore(tensors, about["estimator"])
            if self.plan is not None:  # it was fading
                left = self.config.shrink_steps
                self._estimator.fade(self.plan.indices(), left)
                for _ in range(self._estimator.done - (self.steps - left)):
                    self._estimator.shrink()


def _times(scores: Scores, learnt: Gates) -> Scores:
    """The same scores, with gates that another pass has moved further."""
    gates = {n: g * learnt[n] if n in learnt else g for n, g in scores.gates.items()}
    return replace(scores, gates=gates)


def _regated(plan: Plan, scores: Scores) -> Plan:
    """A plan made before the gates' last steps, with the gates as they are now."""
    if plan.gates is None:
        return plan
    return replace(plan, gates={n: scores.gates[n][i].tolist() for n, i in plan.indices().items()})


def steps_of(config: LightPeftConfig, total: int) -> int:
    """Estimation steps of a run. Raises ConfigError when the run is not longer than that."""
    given = config.estimation_steps
    steps = max(50, math.ceil(0.1 * total)) if given == "auto" else given
    if config.shrink_steps >= steps:
        raise ConfigError(f"--shrink-steps {config.shrink_steps} leave nothing of {steps} to look")
    if total <= steps:
        raise ConfigError(
            f"{total} steps in all are not more than the {steps} of the estimation: train longer, "
            "or give fewer --estimation-steps"
        )
    return steps


def is_weak(steps: int, rate: float) -> bool:
    """Whether gates cannot have moved apart: each moves by about the rate per step."""
    return steps * rate < _WEAK


def multiple_of(base: nn.Module, config: LightPeftConfig) -> int:
    """What kept neurons are a multiple of: widths between run slower than wider ones."""
    given = config.multiple_of
    if given != "auto":
        return given
    return 64 if next(base.parameters()).is_cuda else 16


def _correlations(scores: Scores) -> dict[str, float]:
    def ranks(values: Gates) -> Tensor:
        order = torch.cat([values[n] for n in scores.gates]).argsort()
        return torch.empty(len(order), dtype=torch.float64).index_copy(
            0, order, torch.arange(len(order), dtype=torch.float64)
        )

    gates = ranks(scores.gates)
    return {
        name: float(torch.corrcoef(torch.stack((gates, ranks(found))))[0, 1])
        for name, found in scores.units.items()
        if name != "l1_mask"
    }


def get_light_peft_model(model: Any, lora: Any, config: LightPeftConfig | None = None) -> Any:
    """A PeftModel whose `.light` is ready to begin.

    lora: a LoraConfig; without target_modules, every projection of every site gets an adapter.
    """
    peft = require("peft", extra="peft", purpose="Light-PEFT")
    chosen = config or LightPeftConfig()
    check_cuttable(model)
    if lora.target_modules is None:
        units, _ = candidates(model, chosen)
        lora = copy.copy(lora)
        lora.target_modules = sorted({c.module for u in units for c in (*u.writes, *u.reads)})
        kinds = {type(model.get_submodule(name)).__name__ for name in lora.target_modules}
        lora.fan_in_fan_out = kinds == {"Conv1D"}
    wrapped = peft.get_peft_model(model, lora)
    wrapped.light = Light(wrapped, chosen)
    return wrapped
