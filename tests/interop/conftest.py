"""Lets timm be imported beside a torchvision whose operators are for another build of PyTorch.

Where packages come from one place alone, PyTorch may be the build for CPUs and torchvision the one for CUDA, whose
library then does not load. timm needs the import, and none of the operators.
"""

import contextlib

_kept = []  # a library of operators lives as long as its object

with contextlib.suppress(ImportError):
    import torch

    try:
        import torchvision
    except RuntimeError:  # an operator that its own code expects is not there
        _kept.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _kept[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
