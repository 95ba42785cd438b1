from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress3g.core import Cut, Units, load, materialize, price, save
from compress3g.errors import BudgetError, CutError, FormatError, SiteError

NEURONS = Units("n", 6, writes=(Cut("0", "out"),), reads=(Cut("2", "in"),))
KEEP = {"n": torch.tensor([0, 2, 5])}


def mlp(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=bias))


def units_of(model):
    return [NEURONS]


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_takes_over_what_constant_units_gave(bias):
    model = mlp(bias)
    with torch.no_grad():
        model[0].weight[[1, 3, 4]] = 0  # their output is tanh(bias): constant
    x = torch.randn(5, 4)
    before = model(x)
    means = {"2": model[1](model[0](x)).mean(0)}
    small = materialize(model, [NEURONS], KEEP, means=means)
    assert small[2].weight.shape == (3, 3)
    torch.testing.assert_close(small(x), before)


def test_a_convolution_takes_over_constant_channels_of_its_whole_kernel():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 3, bias=False))
    units = [Units("c", 3, writes=(Cut("0", "out"),), reads=(Cut("1", "in"),))]
    with torch.no_grad():
        model[0].weight[1] = 0
    x = torch.randn(2, 2, 5, 5)
    before = model(x)
    means = {"1": model[0](x).mean((0, 2, 3))}
    small = materialize(model, units, {"c": torch.tensor([0, 2])}, means=means)
    torch.testing.assert_close(small(x), before)


def test_sizes_and_attributes_follow():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1))
    model[0].width = 8
    writes = (Cut("0", "out", 2), Cut("1", "out", 2))
    units = [Units("g", 4, writes=writes, reads=(Cut("2", "in", 2),), attrs=(("0.width", 2),))]
    materialize(model, units, {"g": torch.tensor([1, 3])})
    assert (model[0].out_channels, model[0].width) == (4, 4)
    assert (model[1].num_channels, model[1].num_groups) == (4, 2)
    assert model[2].in_channels == 4


def test_a_model_without_data_gets_the_same_shapes():
    with torch.device("meta"):
        skeleton = mlp()
    materialize(skeleton, [NEURONS], KEEP)
    shapes = {n: p.shape for n, p in skeleton.named_parameters()}
    assert shapes == {n: p.shape for n, p in materialize(mlp(), [NEURONS], KEEP).named_parameters()}


def test_frozen_weights_stay_frozen():
    model = mlp()
    model[0].requires_grad_(False)
    materialize(model, [NEURONS], KEEP)
    assert not model[0].weight.requires_grad
    assert model[2].weight.requires_grad


def test_tied_weights_are_not_torn_apart():
    model = nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(4, 6)})
    model["b"].weight = model["a"].weight
    one = [Units("n", 6, writes=(Cut("a", "out"),))]
    with pytest.raises(CutError, match=r"a shares its weight with b\.weight, which is not cut"):
        materialize(model, one, {"n": torch.tensor([0])})


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
            self.last.weight = self.first.weight
            self.register_buffer("scale", torch.arange(3.0), persistent=False)

    def units_of(model):
        return [Units("n", 6, writes=(Cut("net.0", "out"),), reads=(Cut("net.2", "in"),))]

    model = Tied()
    model.scale += 1
    materialize(model, units_of(model), KEEP)
    save(tmp_path / "m", model, units_of(model), KEEP)
    again = load(tmp_path / "m", Tied, units_of)
    assert again.last.weight is again.first.weight
    assert torch.equal(again.scale, model.scale)


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ({}, BudgetError, "which units of 'n'"),
        ({"n": torch.tensor([], dtype=torch.long)}, BudgetError, "no unit of 'n' is left"),
        ({"n": torch.tensor([0, 6])}, BudgetError, "must ascend within 0 .. 5"),
        ({"n": torch.tensor([2, 1])}, BudgetError, "must ascend"),
        ({"n": torch.tensor([1, 1])}, BudgetError, "must ascend"),
    ],
)
def test_bad_decisions_change_nothing(keep, error, message):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        materialize(model, [NEURONS], keep)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_soft_gates_on_a_block_are_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    units = [Units("b", 1, bypass="0")]
    with pytest.raises(SiteError, match=r"0 has gate 0\.5"):
        materialize(model, units, {"b": torch.tensor([0])}, gates={"b": torch.tensor([0.5])})


def test_means_of_another_site_are_refused():
    with pytest.raises(SiteError, match="2 has no mean input"):
        materialize(mlp(), [NEURONS], KEEP, means={})


def pruned(path):
    model = materialize(mlp(), [NEURONS], KEEP)
    save(path, model, [NEURONS], KEEP, extra={"keep": 0.5})
    return model


def test_files_of_another_model_name_the_first_group_that_differs(tmp_path):
    pruned(tmp_path / "m")
    with pytest.raises(FormatError, match=r"it has \['n', 6\], this one \['n', 5\]"):
        load(tmp_path / "m", mlp, lambda m: [Units("n", 5, writes=(Cut("0", "out"),))])
    with pytest.raises(FormatError, match=r"it has None, this one \['z', 1\]"):
        load(tmp_path / "m", mlp, lambda m: [NEURONS, Units("z", 1)])


def test_files_of_other_shapes_name_the_tensor(tmp_path):
    pruned(tmp_path / "m")

    def wider():
        model = mlp()
        model[2] = nn.Linear(6, 4)
        return model

    with pytest.raises(FormatError, match=r"2\.bias is \(3,\), the model needs \(4,\)"):
        load(tmp_path / "m", wider, units_of)
    with pytest.raises(FormatError, match=r"the model has no 0\.bias"):
        load(tmp_path / "m", lambda: nn.Sequential(nn.Identity(), nn.Tanh(), nn.Linear(6, 3)),
             lambda m: [Units("n", 6, reads=(Cut("2", "in"),))])  # fmt: skip


def test_damaged_files_are_refused(tmp_path):
    pruned(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(data[:-7])
    with pytest.raises(FormatError, match="damaged"):
        load(tmp_path / "m", mlp, units_of)


def test_a_bias_that_surgery_made_comes_back(tmp_path):
    units = [NEURONS]
    model = materialize(mlp(bias=False), units, KEEP, means={"2": torch.ones(6)})
    save(tmp_path / "m", model, units, KEEP)
    again = load(tmp_path / "m", lambda: mlp(bias=False), units_of)
    assert torch.equal(again[2].bias, model[2].bias)


def test_gpt2_layers_are_cut_along_their_transposed_axes():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6))
    x = torch.randn(2, 4)
    g = torch.zeros(6).index_fill(0, KEEP["n"], 1.0)
    expected = model[2](model[1](model[0](x)) * g)
    units = price(model, [NEURONS])
    assert units[0].cost["params"] == 4 + 1 + 3
    torch.testing.assert_close(materialize(model, units, KEEP)(x), expected)
