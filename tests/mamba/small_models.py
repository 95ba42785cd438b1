"""Small models of three families; projections are larger than at first, so that tokens matter."""

from __future__ import annotations

import torch

from compress3g.mamba import (
    MambaVision,
    MambaVisionConfig,
    PlainMamba,
    PlainMambaConfig,
    VMamba,
    VMambaConfig,
)

PLAIN = {"image": (16, 20), "patch": 4, "width": 24, "depth": 3, "classes": 5, "depthwise": ()}
# 5x7 patches, then 3x4: odd sides at both strides.
CROSS = {"image": (20, 28), "width": 12, "depths": (3, 3), "classes": 5, "mlp": 2.0}
# 8x12 patches in six windows of 4, then 4x6 in four windows of 3, two of them reaching beyond.
VISION = {
    "image": (128, 192), "width": 8, "stem": 4, "depths": (1, 1, 5, 3), "heads": (1, 1, 2, 4),
    "windows": (8, 8, 4, 3), "classes": 5,
}  # fmt: skip


def plain_model(**sizes):
    torch.manual_seed(0)
    model = PlainMamba(PlainMambaConfig(**PLAIN | sizes))
    with torch.no_grad():
        for layer in model.layers:
            layer.mamba.in_proj.weight.mul_(12)
            layer.mamba.x_proj.weight.mul_(8)
            layer.mamba.direction_Bs.mul_(20)
        model.pos_embed.mul_(20)
    return model.eval()


def cross_model(**sizes):
    torch.manual_seed(0)
    model = VMamba(VMambaConfig(**CROSS | sizes))
    with torch.no_grad():  # what stands in a token shall matter to the others
        for stage in model.layers:
            for block in stage.blocks:
                block.op.in_proj.weight.mul_(12)
                block.op.x_proj_weight.mul_(12)
                block.op.dt_projs_bias.add_(2)
                block.op.out_proj.weight.mul_(8)
    return model.eval()


def vision_model(**sizes):
    torch.manual_seed(0)
    model = MambaVision(MambaVisionConfig(**VISION | sizes))
    with torch.no_grad():  # what stands in a token shall matter to the others
        for name, parameter in model.named_parameters():
            if name.endswith(("in_proj.weight", "x_proj.weight", "qkv.weight")):
                parameter.mul_(12)
            elif name.endswith(("dt_proj.bias",)):
                parameter.add_(1)
            elif name.endswith(("out_proj.weight", "mixer.proj.weight")):
                parameter.mul_(8)
            elif "gamma" in name:
                parameter.uniform_(0.5, 1.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()
