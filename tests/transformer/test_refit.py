"""What stays of a pruned transformer puts out what all of it did, as far as it can."""

from __future__ import annotations

import copy

import pytest
import torch

from compress3g.errors import ConfigError
from compress3g.transformer import PruneConfig, prune, units_of
from compress3g.transformer.prune import open_model
from compress3g.transformer.refit import fitted, joined

from ..peft.families import build
from . import folders

KINDS = ("decoder", "encoder", "masked", "classifier", "vision")


def states(model, kind):
    g = torch.Generator().manual_seed(5)
    if kind == "vision":
        given = {"pixel_values": torch.rand(8, 3, 16, 16, generator=g) - 0.5}  # as resized noise
    else:
        given = {"input_ids": torch.randint(5, 20, (8, 9), generator=g)}
    with torch.no_grad():
        return model(**given, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_is_closer_with_the_refit(tmp_path, kind):
    folder = folders.folder(tmp_path / kind, kind)
    data = (
        folders.images(tmp_path / "im", 60)
        if kind == "vision"
        else folders.text(tmp_path / "t.txt")
    )
    dense = open_model(folder, device=torch.device("cpu"))
    errors = {}
    for refit in (None, False):
        config = PruneConfig(criterion="random", keep=0.6, samples=64, length=10, refit=refit)
        done = prune(copy.deepcopy(dense), folder, data, config)
        error = (states(done.model, kind) - states(dense, kind)).square().mean()
        errors[refit] = float(error)
        assert (done.refitted_on > 0) == (refit is None)
    assert errors[None] < errors[False]


def test_where_nothing_goes_nothing_is_fitted(tmp_path):
    folder, data = folders.folder(tmp_path / "encoder", "encoder"), folders.text(tmp_path / "t.txt")
    dense = open_model(folder, device=torch.device("cpu"))
    config = PruneConfig(criterion="random", keep=1.0, samples=8, length=10)
    done = prune(copy.deepcopy(dense), folder, data, config)
    assert done.refitted_on == 0
    assert torch.equal(states(done.model, "encoder"), states(dense, "encoder"))


def test_without_data_there_is_no_refit_unless_it_is_asked_for(tmp_path):
    folder = folders.folder(tmp_path / "encoder", "encoder")
    dense = open_model(folder, device=torch.device("cpu"))
    config = {"criterion": "magnitude", "keep": 0.6}
    found = [
        prune(copy.deepcopy(dense), folder, None, PruneConfig(**config, refit=refit)).model
        for refit in (None, False)
    ]
    assert torch.equal(states(found[0], "encoder"), states(found[1], "encoder"))
    with pytest.raises(ConfigError, match="--refit needs --calibrate DATA"):
        prune(copy.deepcopy(dense), folder, None, PruneConfig(**config, refit=True))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "opt"])  # OPT's neurons: (b t, f)
def test_padding_changes_nothing_that_is_fitted(name):
    model = build(name)
    units = units_of(model)
    keep = {u.name: torch.arange(u.size // 2) for u in units}
    ids = torch.randint(6, 60, (8, 9), generator=torch.Generator().manual_seed(1))
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {k: torch.nn.functional.pad(t, (0, 5)) for k, t in plain.items()}
    expected, found = (fitted(model, units, keep, [batch]) for batch in (plain, padded))
    assert expected.keys() == found.keys() == {cut.module for u in units for cut in u.reads}
    for reader, more in expected.items():
        torch.testing.assert_close(found[reader].weight, more.weight, rtol=1e-3, atol=1e-5)
        if more.bias is not None:
            torch.testing.assert_close(found[reader].bias, more.bias, rtol=1e-3, atol=1e-5)


def test_batches_of_other_widths_become_one():
    first, second = (
        {"input_ids": torch.randint(6, 60, (rows, n)), "attention_mask": torch.ones(rows, n)}
        for rows, n in ((4, 9), (3, 5))
    )
    made = joined([first, second])
    assert made["input_ids"].shape == (7, 9)
    assert torch.equal(made["input_ids"][4:, :5], second["input_ids"])
    assert not made["attention_mask"][4:, 5:].any()


def test_batches_that_do_not_fit_together_are_refused():
    with pytest.raises(ConfigError, match=r"shapes \(2, 3, 8, 8\) and \(2, 3, 16, 16\)"):
        joined([{"pixels": torch.zeros(2, 3, n, n)} for n in (16, 8)])
    with pytest.raises(ConfigError, match="input_ids has shapes"):  # nothing says what is padding
        joined([{"input_ids": torch.zeros(2, n)} for n in (5, 7)])
    with pytest.raises(ConfigError, match="labels is not a tensor in every batch"):
        joined([{"labels": torch.zeros(2)}, {"input_ids": torch.zeros(2, 2)}])


@pytest.mark.parametrize(
    ("kind", "length", "more", "warned"),
    [
        ("encoder", 10, {"samples": 12}, True),
        ("encoder", 10, {"samples": 17}, False),
        ("encoder", 10, {"samples": 12, "refit": False}, False),
        ("decoder", 128, {"samples": 16}, False),  # 2,048 tokens were enough
        ("decoder", 10, {"samples": 16}, True),
    ],
)
def test_a_fit_on_few_samples_warns_with_the_remedy(tmp_path, caplog, kind, length, more, warned):
    folder, data = folders.folder(tmp_path / kind, kind), tmp_path / "t.txt"
    data.write_text("the old cat runs over the green house and sleeps\n" * 250)
    config = PruneConfig(criterion="random", keep=0.6, length=length, **more)
    dense = open_model(folder, device=torch.device("cpu"))
    with caplog.at_level("WARNING", "compress3g"):
        prune(dense, folder, data, config)
    told = [r.getMessage() for r in caplog.records if "fitted on" in r.getMessage()]
    assert len(told) == warned
    assert all("no fit: give --calibrate more of them, or --no-refit" in line for line in told)
