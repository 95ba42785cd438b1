"""Programs of torch.export: the same numbers, none of our kernels, tokens chosen by image."""

from __future__ import annotations

import pytest
import torch

from compress3g.cli.main import main
from compress3g.errors import ConfigError
from compress3g.mamba import (
    PlainMamba,
    PlainMambaConfig,
    PruneConfig,
    PruneSchedule,
    Vim,
    VimConfig,
    apply_patch,
    save_checkpoint,
)
from compress3g.mamba.export import export
from compress3g.mamba.pictures import Preprocess

SIZES = {"image": (8, 12), "patch": 4, "width": 16, "depth": 2, "classes": 3}


@pytest.mark.parametrize("kind", ["vim", "plain", "ward"])
def test_the_program_computes_what_the_pruned_model_does(kind, tmp_path):
    torch.manual_seed(0)
    if kind == "plain":
        model = PlainMamba(PlainMambaConfig(**SIZES))
    else:
        model = Vim(VimConfig(**SIZES, stride=4))
    name = "ward" if kind == "ward" else None
    apply_patch(model.eval(), keep_ratio=0.5, layers=(1,), preset=name)
    program = export(model).module()
    for seed in (1, 2):
        image = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(seed))
        # other backends than that of the graph round differently
        torch.testing.assert_close(program(image), model(image), rtol=1e-5, atol=1e-6)


def test_the_file_runs_in_torch_alone(tmp_path, capsys):
    model = Vim(VimConfig(**SIZES | {"depth": 1}, stride=4))
    look = Preprocess(size=(8, 12), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(tmp_path / "model", model, look)
    words = ["mamba", "export", "--ckpt", str(tmp_path / "model"), str(tmp_path / "model.pt2")]
    assert main(words) == 0
    assert "operators, dense" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "model.pt2")
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in used if "compress3g" in name]


def test_a_schedule_by_threshold_has_no_fixed_shapes():
    model = Vim(VimConfig(**SIZES, stride=4))
    schedule = PruneSchedule(layers=(1,), keep=(0.5,), mode="threshold")
    apply_patch(model, PruneConfig(schedule=schedule))
    with pytest.raises(ConfigError, match="no fixed shapes"):
        export(model)
