"""What every `units_of` must satisfy, on tiny models of real library classes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.core import (
    Budget,
    HardConcrete,
    Masks,
    gated,
    load,
    materialize,
    price,
    save,
    select,
)

from .architectures import ARCHITECTURES, dense

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
keeps = given(keep=st.floats(0.3, 1.0), seed=st.integers(0, 1 << 16))
few = settings(max_examples=6, deadline=None)


def decision(units, keep, seed, scope="global"):
    g = torch.Generator().manual_seed(seed)
    scores = {u.name: torch.rand(u.size, generator=g) for u in units}
    # Floors of many small groups may cost more than a small budget.
    return select(scores, units, Budget(max(keep, 0.5), scope=scope))


def soft_gates(units, keep, seed):
    """Random multipliers of what is kept, zeros elsewhere; bypasses are whole or gone."""
    g = torch.Generator().manual_seed(seed + 1)
    gates = {}
    for u in units:
        value = torch.rand(u.size, generator=g) + 0.5
        if u.bypass is not None:
            value = torch.ones(1)
        gates[u.name] = torch.zeros(u.size).index_copy(0, keep[u.name], value[keep[u.name]])
    return gates


def relative_error(a, b):
    return float((a - b).abs().max() / a.abs().max())


@every_architecture
@few
@keeps
def test_masked_equals_materialized(name, keep, seed):
    case, model = ARCHITECTURES[name], dense(name)
    units = price(model, case.units_of(model))
    kept = decision(units, keep, seed)
    gates = soft_gates(units, kept, seed)
    with torch.no_grad(), gated(model, units, gates):
        masked = case.run(model, 2)
    small = materialize(copy.deepcopy(model), units, kept, gates=gates)
    with torch.no_grad():
        # Sums of fewer terms round differently: some float32 steps of the largest output.
        assert relative_error(masked, case.run(small, 2)) < 1e-5


@every_architecture
@few
@keeps
def test_cost_is_what_surgery_removes(name, keep, seed):
    case, model = ARCHITECTURES[name], dense(name)
    units = price(model, case.units_of(model))
    kept = decision(units, keep, seed)
    small = materialize(copy.deepcopy(model), units, kept)
    removed = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in small.parameters()
    )
    priced = sum(u.cost["params"] * (u.size - len(kept[u.name])) for u in units)
    assert removed == round(priced)


@every_architecture
def test_keeping_everything_changes_nothing(name):
    case, model = ARCHITECTURES[name], dense(name)
    units = price(model, case.units_of(model))
    small = materialize(copy.deepcopy(model), units, decision(units, 1.0, 0))
    with torch.no_grad():
        assert torch.equal(case.run(model, 2), case.run(small, 2))


@every_architecture
def test_a_larger_budget_keeps_what_a_smaller_one_kept(name):
    model = dense(name)
    units = [u for u in price(model, ARCHITECTURES[name].units_of(model)) if u.bypass is None]
    flat = [type(u)(u.name, u.size, u.writes, u.reads, cost=u.cost) for u in units]
    small, large = decision(flat, 0.5, 3), decision(flat, 0.8, 3)
    assert all(set(small[n].tolist()) <= set(large[n].tolist()) for n in small)


@every_architecture
def test_every_logit_gets_a_gradient(name):
    case, model = ARCHITECTURES[name], dense(name)
    units = case.units_of(model)
    masks = Masks(units, HardConcrete(), keep=0.7)
    generator = torch.Generator().manual_seed(0)
    seen = {n: torch.zeros_like(z) for n, z in masks.scores().items()}
    for _ in range(12):  # a clipped sample passes no gradient, so several draws
        with gated(model, units, lambda: masks.sample(generator)):
            case.run(model, 2).square().sum().backward()
        for u in units:
            seen[u.name] += masks.logits[u.name.replace(".", "/")].grad.abs()
        masks.zero_grad()
    model.zero_grad()
    assert all(bool((g > 0).all()) for g in seen.values())


@every_architecture
def test_gates_per_sample_equal_one_run_each(name):
    case, model = ARCHITECTURES[name], dense(name)
    units = case.units_of(model)
    g = torch.Generator().manual_seed(5)
    rows = {u.name: torch.rand(2, u.size, generator=g) + 0.5 for u in units}
    with torch.no_grad(), gated(model, units, rows):
        both = case.run(model, 2)
    for i in range(2):
        with torch.no_grad(), gated(model, units, {n: r[i] for n, r in rows.items()}):
            alone = case.run(model, 2)
        assert relative_error(alone[i], both[i]) < 1e-5


@every_architecture
def test_gates_on_weights_equal_gates_on_inputs(name):
    case, model = ARCHITECTURES[name], dense(name)
    units = case.units_of(model)
    g = torch.Generator().manual_seed(5)
    gates = {u.name: torch.rand(u.size, generator=g) + 0.5 for u in units}
    before = {n: p for n, p in model.named_parameters()}
    with torch.no_grad(), gated(model, units, gates):
        inputs = case.run(model, 2)
    with torch.no_grad(), gated(model, units, gates, via="weight"):
        weights = case.run(model, 2)
    assert relative_error(inputs, weights) < 1e-5
    assert all(before[n] is p for n, p in model.named_parameters())


@every_architecture
def test_a_saved_model_loads_bit_for_bit(name, tmp_path):
    case, model = ARCHITECTURES[name], dense(name)
    units = price(model, case.units_of(model))
    kept = decision(units, 0.6, 1)
    small = materialize(copy.deepcopy(model), units, kept)
    save(tmp_path / "small.safetensors", small, units, kept)
    again = load(tmp_path / "small.safetensors", case.build, case.units_of).eval()
    with torch.no_grad():
        assert torch.equal(case.run(small, 2), case.run(again, 2))
    ours, theirs = small.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


_FRESH = """
import json, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from core.architectures import ARCHITECTURES
from compress3g.core import load
for name, file in json.loads(sys.argv[2]).items():
    case = ARCHITECTURES[name]
    model = load(Path(file), case.build, case.units_of).eval()
    with torch.no_grad():
        torch.save(case.run(model, 2), file + ".out")
"""


def test_a_fresh_process_computes_the_same(tmp_path):
    files, expected = {}, {}
    for i, (name, case) in enumerate(ARCHITECTURES.items()):
        model = dense(name)
        units = price(model, case.units_of(model))
        kept = decision(units, 0.6, 1)
        small = materialize(copy.deepcopy(model), units, kept)
        files[name] = str(tmp_path / f"{i}.safetensors")
        save(Path(files[name]), small, units, kept)
        with torch.no_grad():
            expected[name] = case.run(small, 2)
    tests = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FRESH, tests, json.dumps(files)], check=True
    )
    for name, file in files.items():
        assert torch.equal(torch.load(file + ".out"), expected[name]), name
