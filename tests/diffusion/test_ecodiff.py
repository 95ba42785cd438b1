from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress3g.core import HardConcrete, gated, price
from compress3g.core._layout import layout_of
from compress3g.diffusion import EcoDiffConfig, Learned, Replay, ecodiff, learn_masks, units_of
from compress3g.diffusion.criterion_scores import criterion_scores
from compress3g.diffusion.ecodiff import _error, _Learning
from compress3g.diffusion.learning import frozen
from compress3g.diffusion.pipelines import denoiser_of
from compress3g.errors import BudgetError, ConfigError, FormatError, ScoreError

from .pipelines import OPTIONS, pipeline

# Schedulers of diffusers hand tensors to numpy in a way that numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

PROMPTS = ["a red cat", "blue dog", "three dog"]
QUICK = {"target": 0.1, "steps": 2, "updates": 3, "accumulate": 2}


def learn(name="SD3", pipe=None, **options):
    more = {k: options.pop(k) for k in ("checkpoint", "cache", "after_update") if k in options}
    pipe = pipe or pipeline(name)
    return learn_masks(
        pipe, PROMPTS, EcoDiffConfig(**{**QUICK, **options}), call=OPTIONS[name], **more
    )


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def plant(model):
    """A quarter of every group's units of four and more is read by nobody: it can go for free."""
    g, planted = torch.Generator().manual_seed(0), {}
    for u in units_of(model):
        planted[u.name] = torch.randperm(u.size, generator=g)[: u.size // 4]
        for cut in u.reads:
            layout = layout_of(model, cut.module)
            ((tensor, dim),) = layout.tensors["in"]
            weight = getattr(layout.owner, tensor).data.movedim(dim, 0)
            weight[cut.slots(planted[u.name])] = 0
    return planted


def test_useless_units_are_found_and_the_budget_reached():
    pipe = copy.deepcopy(pipeline("DiT"))
    planted = plant(pipe.transformer)
    config = EcoDiffConfig(
        target=0.03, steps=2, updates=40, accumulate=1, batch=2, learning_rate=0.25
    )
    learned = learn_masks(pipe, [0, 1, 5], config)
    useless, useful = [], []
    for name, z in learned.logits.items():
        rest = torch.ones(len(z), dtype=torch.bool)
        rest[planted[name]] = False
        useless.append(z[planted[name]])
        useful.append(z[rest])
    assert float(torch.cat(useless).max()) < float(torch.cat(useful).min())
    last = learned.history[-1]
    assert abs(last["open"] - last["target"]) < 0.02
    units = price(pipe.transformer, units_of(pipe.transformer))
    prunable = sum(u.cost["params"] * u.size for u in units)
    whole = sum(p.numel() for p in pipe.transformer.parameters())
    assert last["target"] == pytest.approx(1 - 0.03 * whole / prunable)


@pytest.mark.parametrize("loss", ["last", "step"])
def test_masks_are_learnt_on_one_step(loss):
    learned = learn(steps=1, loss=loss)
    assert len(learned.history) == QUICK["updates"]
    assert not learned.stopped


def test_the_budget_is_reached_by_default():
    """With two fifths of all that can go; half of it takes a steeper multiplier."""
    pipe = pipeline("DiT")
    units = price(pipe.transformer, units_of(pipe.transformer))
    prunable = sum(u.cost["params"] * u.size for u in units)
    target = 0.4 * prunable / sum(p.numel() for p in pipe.transformer.parameters())
    config = EcoDiffConfig(target=target, steps=2, accumulate=1, batch=2)
    learned = learn_masks(pipe, [0, 1, 5], config)
    assert learned.history[-1]["target"] == pytest.approx(0.6)
    assert learned.missed < 0.05
    gentle = learn_masks(pipe, [0, 1, 5], replace(config, rho=0.6, dual_rate=7))
    assert gentle.missed > 0.2
    steep = replace(config, target=target * 0.5 / 0.4, dual_rate=420)
    assert learn_masks(pipe, [0, 1, 5], steep).missed < 0.05


def test_masks_do_not_depend_on_the_scale_of_the_loss(monkeypatch):
    how = {"updates": 12, "learning_rate": 0.3, "target": 0.15}
    plain = learn(**how)
    monkeypatch.setattr(ecodiff, "_error", lambda *latents: _error(*latents) / 64)
    small = learn(**how)
    assert small.history[0]["loss"] == pytest.approx(plain.history[0]["loss"] / 64)
    for name, z in plain.logits.items():
        # float32, but a power of two rounds nothing; Adam's epsilon is below what matters.
        assert torch.allclose(small.logits[name], z, atol=1e-3)
    assert plain.history[-1]["open"] < plain.history[0]["open"]


def test_logits_may_start_in_the_order_of_a_score():
    """One that is given, or that of the pipeline's own images of the prompts."""
    pipe = pipeline("SD3")
    how = {**QUICK, "target": 0.12, "updates": 1, "learning_rate": 1e-8}
    config = EcoDiffConfig(**how, start="fisher", start_closed=0.4)
    learned = learn_masks(pipe, PROMPTS, config)
    wanted = 1 - 0.4 * (1 - learned.history[0]["target"])
    assert learned.history[0]["open"] == pytest.approx(wanted, abs=1e-4)
    units = price(denoiser_of(pipe)[1], units_of(denoiser_of(pipe)[1]))
    scores = criterion_scores(pipe, PROMPTS, "fisher", units=units, steps=QUICK["steps"])
    given = learn_masks(pipe, PROMPTS, replace(config, start="open"), start=scores)
    assert same(given.logits, learned.logits)
    assert not same(learn_masks(pipe, PROMPTS, EcoDiffConfig(**how)).logits, learned.logits)


def test_a_start_by_scores_of_images_of_another_size_is_refused():
    with pytest.raises(ConfigError, match="as `start`"):
        learn(start="taylor")


def test_the_error_is_a_mean_over_samples():
    theirs = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    ours = torch.tensor([[0.0, 0.0], [0.0, 9.0]])
    # Of energies 1 and 100, errors 1 and 1.
    assert float(_error(ours, theirs, theirs)) == pytest.approx((1 + 0.01) / 2)


def test_the_learning_rate_falls_to_zero_over_the_last_quarter():
    rates = []
    learning = _Learning(
        pipeline("SD3"), PROMPTS, EcoDiffConfig(**{**QUICK, "updates": 8, "accumulate": 1}),
        None, None, OPTIONS["SD3"],
    )  # fmt: skip
    with frozen(learning.denoiser, False):
        for _ in range(8):
            learning.update()
            rates.append(learning.adam.param_groups[0]["lr"] / 0.15)
    assert rates == pytest.approx([1] * 7 + [0.5])


def reference(learning, loss):
    """Gradients of the mean loss of an update's trajectories by one graph over all steps."""
    for m in range(learning.config.accumulate):
        replay, gates = learning._replay(0, m), learning._draw(m)
        replay.halves = False
        with torch.no_grad():
            zs = [replay.start()]
            for i in range(replay.steps):
                zs.append(replay.step(zs[-1], i))
        z, total = replay.start(), 0.0
        with gated(learning.denoiser, learning.units, gates):
            for i in range(replay.steps):
                # DDIM and flow matching remember nothing: a step from a dense latent needs no more.
                z = replay.step(z if loss == "last" else zs[i], i)
                if loss == "step":
                    total = total + (z - zs[i + 1]).square().flatten(1).sum(1) / replay.steps
        if loss == "last":
            total = (z - zs[-1]).square().flatten(1).sum(1)
        relative = total / zs[-1].square().flatten(1).sum(1)
        (relative.sum() / learning.config.batch / learning.config.accumulate).backward()
    return [z.grad.clone() for z in learning.masks.parameters()]


@pytest.mark.parametrize("loss", ["last", "step"])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch": 2, "keep_last": 0, "inner_checkpoint": True, "halves": True}],
    ids=["plain", "short of memory"],
)
def test_gradient_is_that_of_the_mean_over_trajectories(loss, options):
    config = EcoDiffConfig(**QUICK, loss=loss, init=0.5, **options)
    pipe = pipeline("SD3")
    learning = _Learning(pipe, PROMPTS, config, None, None, OPTIONS["SD3"])
    expected = reference(learning, loss)
    learning.adam.zero_grad()
    run = learning._last if loss == "last" else learning._each_step
    with frozen(learning.denoiser, config.inner_checkpoint):
        for m in range(config.accumulate):
            run(learning._replay(0, m), learning._draw(m))
    for z, theirs in zip(learning.masks.parameters(), expected, strict=True):
        # float32; half batches and another order of sums round differently.
        assert float((z.grad - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())
        assert float(theirs.abs().max()) > 0


def test_every_trajectory_has_its_own_noise_and_mask():
    learning = _Learning(
        pipeline("SD3"), PROMPTS, EcoDiffConfig(**QUICK, batch=2), None, None, OPTIONS["SD3"]
    )
    latents = torch.cat([learning._replay(u, m).latent for u in (0, 1) for m in (0, 1)])
    assert len(latents.flatten(1).unique(dim=0)) == 8
    first, other = learning._draw(0), learning._draw(1)
    name = max(first, key=lambda n: first[n].shape[1])
    assert not torch.equal(first[name][0], first[name][1])
    assert not torch.equal(first[name], other[name])
    assert same(first, learning._draw(0))


def test_a_run_goes_on_bit_for_bit(tmp_path):
    whole = learn(updates=4)
    file = tmp_path / "run.safetensors"
    part = learn(updates=4, checkpoint=file, after_update=lambda done, record: done < 2)
    assert len(part.history) == 2
    again = learn(updates=4, checkpoint=file)
    assert same(again.logits, whole.logits)
    assert again.history == whole.history


def test_another_runs_checkpoint_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    learn(updates=1, checkpoint=file)
    with pytest.raises(FormatError, match=r"learning_rate 0\.15 instead of 0\.2"):
        learn(updates=1, learning_rate=0.2, checkpoint=file)
    pipe = copy.deepcopy(pipeline("SD3"))
    pipe.transformer.proj_out.weight.data.mul_(1.5)  # another model of the same sizes
    with pytest.raises(FormatError, match="other prompts, model or call"):
        learn(pipe=pipe, updates=1, checkpoint=file)


def test_learning_stops_at_nan_with_the_last_good_masks(tmp_path):
    pipe = copy.deepcopy(pipeline("SD3"))

    def break_it(done, record):
        if done == 2:
            pipe.transformer.proj_out.weight.data[0] = torch.nan

    stopped = learn(pipe=pipe, after_update=break_it)
    assert "update 3" in stopped.stopped
    assert len(stopped.history) == 2
    good = learn(after_update=lambda done, record: done < 2)
    assert same(stopped.logits, good.logits)


def test_nan_at_once_is_an_error():
    pipe = copy.deepcopy(pipeline("SD3"))
    pipe.transformer.proj_out.weight.data[0] = torch.nan
    with pytest.raises(ScoreError, match="not finite at update 1"):
        learn(pipe=pipe)


def test_cached_latents_change_nothing_and_are_used(tmp_path, monkeypatch):
    plain = learn()
    assert same(learn(cache=tmp_path).logits, plain.logits)
    files = sorted(tmp_path.iterdir())
    assert len(files) == QUICK["updates"] * QUICK["accumulate"]
    dense, run = [], Replay.run

    def counted(self, *args, **kwargs):
        dense.append(not torch.is_grad_enabled())
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Replay, "run", counted)
    assert same(learn(cache=tmp_path).logits, plain.logits)
    assert not any(dense)
    pipe = copy.deepcopy(pipeline("SD3"))
    pipe.transformer.proj_out.weight.data.mul_(1.5)  # another model: none of the files is its own
    learn(pipe=pipe, cache=tmp_path)
    assert sum(dense) == len(files)


def test_the_papers_regulariser_is_beta_times_mean_logits():
    config = EcoDiffConfig(**QUICK, reg="l1", beta=0.3, init=3.0, noise_floor=0.5)
    learning = _Learning(pipeline("SD"), PROMPTS, config, None, None, {})
    for z in learning.masks.parameters():
        torch.nn.init.normal_(z, generator=torch.Generator().manual_seed(len(z)))
    by_kind = {}
    for u in learning.units:
        z = learning.masks.scores()[u.name]
        by_kind.setdefault(u.name.split(".")[-1], []).append(sum(abs(float(x)) for x in z) / u.size)
    assert set(by_kind) == {"heads", "neurons", "groups"}
    expected = 0.3 * sum(sum(v) / len(v) for v in by_kind.values())
    assert float(learning._penalty(learning._open(), 1.0).detach()) == pytest.approx(
        expected, rel=1e-5
    )
    learned = learn(reg="l1", init=3.0, noise_floor=0.5, updates=2)
    assert all(bool((z < 3).all()) for z in learned.logits.values())


def test_the_pipeline_is_left_as_it_was():
    pipe = copy.deepcopy(pipeline("SD3"))
    pipe.transformer.train()
    next(pipe.transformer.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in pipe.transformer.parameters()]
    weights = {n: p.clone() for n, p in pipe.transformer.named_parameters()}
    learn(pipe=pipe, updates=1, inner_checkpoint=True)
    assert [p.requires_grad for p in pipe.transformer.parameters()] == before
    assert all(m.training for m in pipe.transformer.modules())
    assert not pipe.transformer.is_gradient_checkpointing
    assert all(p.grad is None for p in pipe.transformer.parameters())
    assert all(torch.equal(weights[n], p) for n, p in pipe.transformer.named_parameters())


def test_flops_as_cost():
    learned = learn(cost="flops", updates=1)
    assert 0 < learned.history[0]["target"] < 1


def test_a_target_that_cannot_be_reached_says_what_can():
    model = denoiser_of(pipeline("SD3"))[1]
    units = price(model, units_of(model))
    free = sum(u.cost["params"] * (u.size - 1) for u in units)
    most = int(1000 * free / sum(p.numel() for p in model.parameters())) / 1000
    with pytest.raises(BudgetError, match=f"give at most {most:g}"):
        learn(target=0.9)
    learn(target=most, updates=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"target": 1.0}, "--target"), ({"keep_last": -1}, "--keep-last"), ({"steps": 0}, "--steps")],
)
def test_options_out_of_range_are_named(options, says):
    with pytest.raises(ConfigError, match=says):
        EcoDiffConfig(**options)


def test_no_prompt_is_refused():
    with pytest.raises(ConfigError, match="no prompt"):
        learn_masks(pipeline("SD"), [], EcoDiffConfig(**QUICK))


def test_masks_survive_a_file(tmp_path):
    learned = learn(updates=1)
    learned.save(tmp_path / "masks.safetensors")
    again = Learned.load(tmp_path / "masks.safetensors")
    assert same(again.logits, learned.logits)
    assert list(again.logits) == list(learned.logits)
    assert (again.config, again.history, again.digest) == (
        learned.config,
        learned.history,
        learned.digest,
    )
    again.check(units_of(denoiser_of(pipeline("SD3"))[1]))
    with pytest.raises(FormatError, match="another model"):
        again.check(units_of(denoiser_of(pipeline("SD"))[1]))
    hard = learned.gates()
    assert all(torch.equal(hard[n], HardConcrete().hard(z)) for n, z in learned.logits.items())


def test_files_that_hold_no_masks_are_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    learn(updates=1, checkpoint=file)
    with pytest.raises(FormatError, match="no learnt masks"):
        Learned.load(file)


_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tests.diffusion.test_ecodiff import learn
learned = learn()
learned.save(sys.argv[2])
torch.distributed.destroy_process_group()
"""


def test_two_processes_learn_what_one_does(tmp_path, monkeypatch):
    """The first is this one, with a process group of its own; the second has accelerate make it."""
    alone = learn()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    second = {"RANK": "1", "LOCAL_RANK": "1", "ACCELERATE_USE_CPU": "true"}
    root = str(Path(__file__).parent.parent.parent)
    command = [sys.executable, "-W", "ignore", "-c", _PROCESS, root, str(tmp_path / "masks")]
    with subprocess.Popen(command, env={**os.environ, **place, **second}) as other:
        for name, value in {**place, "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        torch.distributed.init_process_group("gloo")
        try:
            ours = learn()
        finally:
            torch.distributed.destroy_process_group()
        assert other.wait(timeout=240) == 0
    theirs = Learned.load(tmp_path / "masks")
    assert same(ours.logits, theirs.logits)
    assert ours.history == theirs.history
    for name, z in alone.logits.items():
        # Two sums of two gradients in another order; Adam's first steps divide by them.
        assert torch.allclose(ours.logits[name], z, atol=1e-4)


def test_processes_that_cannot_share_evenly_are_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    with pytest.raises(ConfigError, match="a multiple of 3"):
        learn()
