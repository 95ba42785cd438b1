"""torchvision built for CUDA beside torch for the CPU: importable, without detection operators.

The wheels of torchvision on the public index are built for CUDA. On a CPU-only torch their library
does not load, torchvision's import then dies on a missing operator, and with it every model of
transformers, which looks at torchvision when it is there. Declaring the operators without code
makes the import work: transforms are plain torch; only detection operators raise when called.
"""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path
from typing import Any

_POOLED = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_ROI = "Tensor input, Tensor rois, " + _POOLED
_GRAD = "Tensor grad, Tensor rois, "
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h,"
    " SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w,"
    " SymInt groups, SymInt offset_groups, bool use_mask"
)
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({_GRAD}{_POOLED}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_GRAD}Tensor argmax, {_POOLED}, {_SIZE}) -> Tensor",
    f"ps_roi_align({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_GRAD}Tensor channel_mapping, {_POOLED}, int sampling_ratio,"
    f" {_SIZE}) -> Tensor",
    f"ps_roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_GRAD}Tensor channel_mapping, {_POOLED}, {_SIZE}) -> Tensor",
    f"deform_conv2d({_DEFORM}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@functools.cache
def declare_operators() -> Any:
    """Declares the operators if torchvision is there and its library cannot be loaded.

    Call it before anything imports torchvision; does nothing where torchvision works. Returns the
    torch library that holds the declarations, None when nothing was declared.
    """
    try:
        installed = importlib.metadata.distribution("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return None
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return None
    for file in installed.files or ():
        if file.parts[:1] == ("torchvision",) and file.name.startswith("_C."):
            try:
                torch.ops.load_library(str(Path(str(installed.locate_file(file)))))
            except (ImportError, OSError):
                break
            return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # cached: must stay alive
    for schema in _SCHEMAS:
        library.define(schema)
    return library
