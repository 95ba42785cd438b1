"""ONNX files: the logits of the pruned model by another runtime, and what is said without it."""

from __future__ import annotations

import sys

import pytest
import torch

from compress3g.cli.main import main
from compress3g.errors import ConfigError, MissingExtra
from compress3g.mamba import (
    MambaVision,
    MambaVisionConfig,
    PlainMamba,
    PlainMambaConfig,
    PruneConfig,
    PruneSchedule,
    Vim,
    VimConfig,
    VMamba,
    VMambaConfig,
    apply_patch,
    preset,
    save_checkpoint,
)
from compress3g.mamba.onnx_export import export_onnx
from compress3g.mamba.pictures import Preprocess

PLAIN = {"image": (16, 24), "width": 16, "patch": 4, "classes": 3}
WINDOWS = {"stem": 4, "depths": (1, 1, 2, 1), "heads": (1, 1, 2, 4), "windows": (8, 8, 4, 3)}
MODELS = {
    "vim": lambda: Vim(VimConfig(**PLAIN, depth=2, stride=4)),
    "plain": lambda: PlainMamba(PlainMambaConfig(**PLAIN, depth=2)),
    "vmamba": lambda: VMamba(VMambaConfig(image=(32, 48), width=8, depths=(2, 1), classes=3)),
    "vision": lambda: MambaVision(
        MambaVisionConfig(image=(64, 96), width=8, classes=3, **WINDOWS)
    ),
}  # fmt: skip


def model_of(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


@pytest.fixture
def runtime():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def differences(runtime, file, model):
    """Of the logits of four random images, relative to the largest."""
    session = runtime.InferenceSession(file)
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        images = torch.randn(1, 3, *model.config.image, generator=g)
        (got,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            want = model(images)
        yield float((torch.from_numpy(got) - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(
    "kind", ["vim", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(MODELS)[1:])]
)
def test_another_runtime_gives_the_logits_of_the_pruned_model(runtime, kind):
    model = model_of(kind)
    apply_patch(model, keep_ratio=0.5, layers=(1,))
    file = export_onnx(model)
    # float32 over three blocks, summed in another order
    assert max(differences(runtime, file, model)) < 1e-5


def test_another_runtime_merges_the_same_tokens(runtime):
    model = model_of("vim")
    schedule = PruneSchedule(layers=(1,), keep=(0.6,))
    apply_patch(model, preset("ward", schedule))
    assert max(differences(runtime, export_onnx(model), model)) < 1e-5  # as above


def test_tokens_are_chosen_by_the_image_and_ties_as_in_torch(runtime):
    """A constant image: all its patches have the same score but for their positions."""
    model = model_of("vim")
    with torch.no_grad():
        model.pos_embed.zero_()
        model.cls_token.zero_()
    apply_patch(model, keep_ratio=0.5, layers=(1,), score="delta", conv_align="none")
    session = runtime.InferenceSession(export_onnx(model))
    images = torch.ones(1, 3, 16, 24)
    (got,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), model(images), rtol=1e-5, atol=1e-6)


def test_a_scan_is_one_node_whatever_its_length(runtime):
    import onnx

    counts = []
    for side in (16, 32):
        model = Vim(VimConfig(**PLAIN | {"image": (side, side)}, depth=1, stride=4)).eval()
        nodes = onnx.load_from_string(export_onnx(model)).graph.node
        assert sum(node.op_type == "Scan" for node in nodes) == 2  # a direction each
        counts.append(len(nodes))
    # The rest of the graph may spell a size differently; chunks of 16 steps would add dozens.
    assert abs(counts[0] - counts[1]) < 4


@pytest.mark.parametrize("suffix", [".onnx", pytest.param("", marks=pytest.mark.slow)])
def test_the_command_line_writes_it(runtime, tmp_path, capsys, suffix):
    model = model_of("vim")
    apply_patch(model, keep_ratio=0.5, layers=(1,))
    look = Preprocess(size=(16, 24), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(tmp_path / "model", model, look)
    words = ["mamba", "export", "--ckpt", str(tmp_path / "model")]
    words += [str(tmp_path / f"program{suffix}"), *(["--format", "onnx"] if not suffix else [])]
    assert main(words) == 0
    assert "keep 0.5" in capsys.readouterr().out
    file = (tmp_path / f"program{suffix}").read_bytes()
    assert max(differences(runtime, file, model)) < 1e-5


def test_a_schedule_by_threshold_has_no_fixed_shapes(runtime):
    model = model_of("vim")
    schedule = PruneSchedule(layers=(1,), keep=(0.5,), mode="threshold")
    apply_patch(model, PruneConfig(schedule=schedule))
    with pytest.raises(ConfigError, match="no fixed shapes"):
        export_onnx(model)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_extra_it_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtra, match=r"compress3g\[onnx\]"):
        export_onnx(model_of("vim"))


def test_a_name_that_says_no_format_is_refused(tmp_path, capsys):
    look = Preprocess(size=(16, 24), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(tmp_path / "model", model_of("vim"), look)
    words = ["mamba", "export", "--ckpt", str(tmp_path / "model"), str(tmp_path / "model.txt")]
    assert main(words) == 2
    assert "ends in .pt2 or .onnx" in capsys.readouterr().err
