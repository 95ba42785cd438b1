"""Architectures out of names and shapes: those of the authors' files of VMamba and MambaVision."""

from __future__ import annotations

import pytest
import torch

from compress3g.errors import FormatError
from compress3g.mamba import MambaVisionConfig, VMambaConfig, create_model, load_checkpoint
from compress3g.mamba.inference import infer
from compress3g.mamba.models import MODELS


def vmamba_state(width=96, depths=(2, 2, 8, 2), expand=1, old=False):
    """Names and shapes of the authors' files; old: those of their current code."""
    e, half = expand * width, width // 2
    shapes = {
        "patch_embed.0.weight": (half, 3, 3, 3), "patch_embed.0.bias": (half,),
        "patch_embed.5.weight": (width, half, 3, 3), "patch_embed.5.bias": (width,),
    }  # fmt: skip
    norms = {"patch_embed.2": half, "patch_embed.7": width}
    for i, depth in enumerate(depths):
        d, e = width * 2**i, expand * width * 2**i
        rank = -(-d // 16)
        if i + 1 < len(depths):
            at = f"layers.{i}.downsample"
            shapes |= {f"{at}.1.weight": (2 * d, d, 3, 3), f"{at}.1.bias": (2 * d,)}
            norms[f"{at}.3"] = 2 * d
        for j in range(depth):
            at = f"layers.{i}.blocks.{j}"
            norms |= {f"{at}.norm": d, f"{at}.norm2": d, f"{at}.op.out_norm": e}
            tail = (1, 1) if old else ()
            shapes |= {
                f"{at}.op.A_logs": (4 * e, 1), f"{at}.op.Ds": (4 * e,),
                f"{at}.op.in_proj.weight": (e, d, *tail), f"{at}.op.conv2d.weight": (e, 1, 3, 3),
                f"{at}.op.out_proj.weight": (d, e, *tail), f"{at}.op.dt_projs_bias": (4, e),
                f"{at}.mlp.fc1.weight": (4 * d, d, *tail), f"{at}.mlp.fc1.bias": (4 * d,),
                f"{at}.mlp.fc2.weight": (d, 4 * d, *tail), f"{at}.mlp.fc2.bias": (d,),
            }  # fmt: skip
            if old:
                shapes[f"{at}.op.x_proj.weight"] = (4 * (rank + 2), e)
                shapes[f"{at}.op.dt_projs.weight"] = (4 * e, rank)
            else:
                shapes[f"{at}.op.x_proj_weight"] = (4, rank + 2, e)
                shapes[f"{at}.op.dt_projs_weight"] = (4, e, rank)
    d = width * 2 ** (len(depths) - 1)
    shapes |= {"classifier.head.weight": (1000, d), "classifier.head.bias": (1000,)}
    norms["classifier.norm"] = d
    shapes |= {f"{at}.{k}": (size,) for at, size in norms.items() for k in ("weight", "bias")}
    return {k: torch.zeros(v) for k, v in shapes.items()}


@pytest.mark.parametrize("old", [False, True])
def test_published_vmambas_load(old):
    state = {"model": vmamba_state(old=old)}
    assert load_checkpoint(state).model.config == VMambaConfig()


def test_other_vmambas_are_inferred():
    sizes = {"width": 8, "depths": (1, 2, 1), "expand": 2}
    want = VMambaConfig(width=8, depths=(1, 2, 1), expand=2.0)
    assert load_checkpoint(vmamba_state(**sizes)).model.config == want


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("layers.2.blocks.3.op.Ds"), r"lacks layers\.2\.blocks\.3\.op\.Ds"),
        (lambda s: s.update(extra=torch.zeros(1)), "has what the model has not: extra"),
        (lambda s: s.pop("classifier.head.weight"), "no VMamba: it lacks classifier.head.weight"),
        (
            lambda s: s.update({"layers.0.blocks.0.op.in_proj.weight": torch.zeros(192, 96)}),
            "only v05_noz is known",
        ),
    ],
)
def test_files_that_are_no_vmamba_are_refused_by_name(change, told):
    state = vmamba_state()
    change(state)
    with pytest.raises(FormatError, match=told):
        load_checkpoint(state)


def vision_state():
    """Names and shapes of the authors' MambaVision-T."""
    bn = ("weight", "bias", "running_mean", "running_var")
    shapes = {"patch_embed.conv_down.0.weight": (32, 3, 3, 3),
              "patch_embed.conv_down.3.weight": (80, 32, 3, 3)}  # fmt: skip
    norms = {"patch_embed.conv_down.1": 32, "patch_embed.conv_down.4": 80, "norm": 640}
    for i, depth in enumerate((1, 3, 8, 4)):
        d = 80 * 2**i
        if i < 3:
            shapes[f"levels.{i}.downsample.reduction.0.weight"] = (2 * d, d, 3, 3)
        for j in range(depth):
            at = f"levels.{i}.blocks.{j}"
            if i < 2:
                for k in (1, 2):
                    shapes[f"{at}.conv{k}.weight"] = (d, d, 3, 3)
                    shapes[f"{at}.conv{k}.bias"] = (d,)
                    norms[f"{at}.norm{k}"] = d
                continue
            shapes |= {f"{at}.norm{n}.{k}": (d,) for n in (1, 2) for k in ("weight", "bias")}
            shapes |= {f"{at}.mlp.fc1.weight": (4 * d, d), f"{at}.mlp.fc1.bias": (4 * d,),
                       f"{at}.mlp.fc2.weight": (d, 4 * d), f"{at}.mlp.fc2.bias": (d,)}  # fmt: skip
            if j >= depth // 2:
                shapes |= {f"{at}.mixer.qkv.weight": (3 * d, d), f"{at}.mixer.qkv.bias": (3 * d,),
                           f"{at}.mixer.proj.weight": (d, d),
                           f"{at}.mixer.proj.bias": (d,)}  # fmt: skip
                continue
            e, r = d // 2, d // 16
            shapes |= {f"{at}.mixer.{k}": v for k, v in {
                "in_proj.weight": (d, d), "x_proj.weight": (r + 16, e), "dt_proj.weight": (e, r),
                "dt_proj.bias": (e,), "A_log": (e, 8), "D": (e,), "out_proj.weight": (d, d),
                "conv1d_x.weight": (e, 1, 3), "conv1d_z.weight": (e, 1, 3)}.items()}  # fmt: skip
    shapes |= {"head.weight": (1000, 640), "head.bias": (1000,)}
    shapes |= {f"{at}.{k}": (size,) for at, size in norms.items() for k in bn}
    state = {k: torch.zeros(v) for k, v in shapes.items()}
    return state | {f"{at}.num_batches_tracked": torch.tensor(3) for at in norms}


def test_published_mamba_visions_load():
    found = load_checkpoint({"state_dict": vision_state()})
    assert found.model.config == MambaVisionConfig()
    assert found.preprocess.resize == 224  # its evaluation crops nothing


@pytest.mark.parametrize("name", ["tiny2", "small", "base"])
def test_other_mamba_visions_are_inferred(name):
    with torch.device("meta"):
        state = create_model(f"mamba_vision_{name}").state_dict()
    assert infer(state) == MODELS[f"mamba_vision_{name}"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("levels.3.blocks.1.mixer.D"), r"lacks levels\.3\.blocks\.1\.mixer\.D"),
        (lambda s: s.pop("head.weight"), "no MambaVision: it lacks head.weight"),
        (lambda s: s.update({"levels.4.blocks.0.norm1.bias": torch.zeros(1)}), "of 5 stages"),
    ],
)
def test_files_that_are_no_mamba_vision_are_refused_by_name(change, told):
    state = vision_state()
    change(state)
    with pytest.raises(FormatError, match=told):
        load_checkpoint(state)
