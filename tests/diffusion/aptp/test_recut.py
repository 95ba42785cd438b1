"""Codes cut again keep what their own prompts need, at the same mean cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from compress3g.cli.main import main
from compress3g.core import gated
from compress3g.criteria import CRITERIA
from compress3g.diffusion.aptp import AptpConfig, AptpPipeline, train_router
from compress3g.diffusion.aptp.codes import SoftCode, as_gates
from compress3g.diffusion.aptp.recut import fill, recut, scores_of
from compress3g.diffusion.aptp.router import Router
from compress3g.profile import count_flops

from .conftest import CONFIG, deep

GRADED = dataclasses.replace(CONFIG, start="graded", depth=False, recut="fisher")
FISHER = CRITERIA["fisher"]


@pytest.fixture(scope="module")
def cut(corpus):
    return train_router(corpus, GRADED)


def test_scores_are_the_squared_gradients_of_the_gates_over_their_cost(corpus, cut):
    rows = torch.tensor([1, 4])
    found = scores_of(corpus, cut, rows, torch.Generator().manual_seed(3))
    generator, units = torch.Generator().manual_seed(3), cut.space.units
    wanted = {u.name: torch.zeros(u.size) for u in units}
    for step in range(4):  # as many as the inference has
        sample = corpus.draw(rows, generator, step=step)
        for i in range(2):  # each sample's loss has a gradient of its own
            gates = {u.name: torch.ones(2, u.size, requires_grad=True) for u in units}
            with gated(corpus.denoiser, units, gates):
                answer = corpus.denoiser(**sample.arguments, return_dict=False)[0]
            loss = (answer[i] - sample.target[i]).square().mean()
            grads = torch.autograd.grad(loss, list(gates.values()))
            for u, g in zip(units, grads, strict=True):
                wanted[u.name] += g[i].square() / 8
    for u in units:
        assert torch.allclose(found[u.name], wanted[u.name] / u.cost["flops"], rtol=1e-3)


def test_a_cost_is_filled_with_the_best_scores_of_all_groups(cut):
    space, g = cut.space, torch.Generator().manual_seed(0)
    scores = {u.name: torch.rand(u.size, generator=g) for u in space.units}
    asked = (space.least + 1) / 2
    keep = fill(space, scores, cut.keep[0], asked, FISHER)
    share = float(space.share(as_gates(keep, space)))
    assert share <= asked + 1e-9
    for u in space.units:
        gone = torch.ones(u.size, dtype=torch.bool).index_fill(0, keep[u.name], False)
        assert len(keep[u.name])
        if gone.any():
            assert float(scores[u.name][~gone].min()) >= float(scores[u.name][gone].max())
            assert share + u.cost["flops"] / space.total > asked  # nothing more fits
    assert len(fill(space, scores, cut.keep[0], 0.0, FISHER)[space.units[0].name]) == 1


def test_the_budget_is_met_and_sizes_keep_their_order(corpus, cut):
    before = train_router(corpus, dataclasses.replace(GRADED, recut=None))
    least = min(u.cost["flops"] for u in cut.space.units) / cut.space.total
    mean = cut.expected(corpus.embeddings)
    assert GRADED.target - 2 * least <= mean <= GRADED.target + 1e-6
    assert torch.equal(cut.shares.argsort(), before.shares.argsort())
    assert cut.likeness() < before.likeness()
    assert torch.equal(cut.usage, before.usage)


def test_codes_say_what_stays_also_of_many_blocks(corpus, monkeypatch):
    _, space = deep(32)
    g, stays = torch.Generator().manual_seed(0), (1, 28)
    logits = torch.randn(2, space.width, generator=g)
    for row, stay in zip(logits, stays, strict=True):
        row[space.order[stay - 1]] = 30.0
    code = SoftCode(space)
    router = Router(
        config=AptpConfig(experts=2, target=0.4, recut="fisher", bundle=6), space=space,
        encoder="pipeline", weight=torch.randn(space.width, 4, generator=g), mean=torch.zeros(4),
        intercept=torch.zeros(space.width), scale=1.0, logits=logits, shares=torch.ones(2),
        keep=tuple(code.hard(row) for row in logits), prices=torch.zeros(2), usage=torch.ones(2),
    )  # fmt: skip
    monkeypatch.setattr(
        "compress3g.diffusion.aptp.recut.scores_of",
        lambda corpus, router, rows, generator: {f"n{i}": torch.rand(6) for i in range(32)},
    )
    found = recut(router, corpus, torch.randn(16, 4, generator=g), g)
    for row, keep, stay in zip(found.logits, found.keep, stays, strict=True):
        assert sum(len(keep[f"b{i}"]) for i in range(32)) == stay
        assert all(torch.equal(v, keep[n]) for n, v in found.code.hard(row).items())


def test_codes_routing_and_networks_say_the_same(corpus, pipe, cut, tmp_path):
    owner = AptpPipeline(pipe, cut)
    for i, (logits, keep) in enumerate(zip(cut.logits, cut.keep, strict=True)):
        assert all(torch.equal(v, keep[n]) for n, v in cut.code.hard(logits).items())
        sample = corpus.draw(torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(0))

        def call(model, arguments=sample.arguments):
            with torch.no_grad():
                return model(**arguments, return_dict=False)

        ours = count_flops(lambda i=i: call(owner.expert(i))).total
        whole = count_flops(lambda: call(corpus.denoiser)).total
        assert ours / whole == pytest.approx(float(cut.shares[i]), rel=1e-6)
    owner.save(tmp_path / "routed")
    again = AptpPipeline.from_pretrained(tmp_path / "routed").router
    assert again.likeness() == pytest.approx(cut.likeness())
    assert torch.equal(again.route(corpus.embeddings), cut.route(corpus.embeddings))


def test_blocks_stay_as_they_are_and_codes_without_prompts_too(corpus):
    config = dataclasses.replace(CONFIG, target=0.5)
    before = train_router(corpus, config)
    closed = [u.name for u in before.space.units if u.bypass is not None]
    asked = dataclasses.replace(config, recut="taylor")
    one = dataclasses.replace(before, config=asked)
    chosen = one.route(corpus.embeddings)
    found = recut(one, corpus, corpus.embeddings, torch.Generator().manual_seed(0))
    for i, (then, now) in enumerate(zip(before.keep, found.keep, strict=True)):
        assert all(torch.equal(then[n], now[n]) for n in closed)
        if i not in chosen:
            assert all(torch.equal(then[n], now[n]) for n in then)


def test_one_code_and_weights_alone(corpus):
    config = dataclasses.replace(GRADED, experts=1, recut="magnitude")
    router = train_router(corpus, config)
    assert router.likeness() == 0
    assert router.expected(corpus.embeddings) <= config.target + 1e-6


def test_an_unknown_criterion_is_refused(capsys):
    asked = ["diffusion", "route", "train", "a", "b", "--captions", "c", "--recut", "wanda"]
    assert main(asked) == 2
    assert "'wanda' is not one of" in capsys.readouterr().err
