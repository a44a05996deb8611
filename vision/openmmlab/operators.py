"""Replacements for mmcv's compiled operators by torchvision's, for ``mmcv-lite``, which comes without them.

MMDetection and MMSegmentation import ``mmcv.ops``, which looks for some 150 compiled functions in ``mmcv._ext``. The
heads that are used with large-kernel backbones call three of them: NMS, RoIAlign and, on CUDA, the focal loss of FCOS.
torchvision has all three for CPU and CUDA. Every other name can be imported and raises an error when it is called.
Where mmcv has its own operators, nothing is replaced.
"""

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any, NoReturn

import mmcv
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from core.errors import MissingError

__all__ = ["install_operators"]


def install_operators() -> bool:
    """Put the replacements where mmcv looks for its operators, unless it has its own.

    Call it before ``mmcv.ops`` is imported.

    Returns:
        Whether the replacements are in place.
    """
    name = "mmcv._ext"
    if isinstance(sys.modules.get(name), _Operators):
        return True
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return False

    operators = _Operators(name)
    sys.modules[name] = operators
    mmcv._ext = operators
    return True


class _Operators(types.ModuleType):
    """The module ``mmcv._ext``: three operators with gradients, and a function that raises for every other name."""

    def __init__(self, name: str) -> None:
        super().__init__(name, __doc__)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.nms = _nms
        self.roi_align_forward = _roi_align_forward
        self.roi_align_backward = _roi_align_backward
        self.sigmoid_focal_loss_forward = _focal_loss_forward
        self.sigmoid_focal_loss_backward = _focal_loss_backward

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing_operator(*args: Any, **kwargs: Any) -> NoReturn:
            raise _missing(name)

        return missing_operator


def _missing(name: str) -> MissingError:
    return MissingError(
        f"mmcv's compiled operator {name!r} is missing: mmcv-lite has none, and LarKit replaces only nms, roi_align "
        "and sigmoid_focal_loss. Use a head that does not need it, or install the full mmcv 2.1 instead of mmcv-lite, "
        "which may have to be compiled: https://mmcv.readthedocs.io/en/latest/get_started/installation.html"
    )


def _to_float(x: Tensor) -> Tensor:
    """Cast to float32, since torchvision has no kernels for bfloat16 and, on CPUs, none for float16."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes (N, 4) to keep, best score first; the width of a box is x2 - x1 + offset."""
    widening = boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(_to_float(boxes + widening), _to_float(scores), iou_threshold)


def _roi_align_forward(
    x_BCHW: Tensor,
    rois_N5: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` (N, C, aligned_height, aligned_width) with means of bilinear samples of the map."""
    if pool_mode != 1:
        raise _missing("roi_align with pool_mode='max'")

    x_BCHW = _to_float(x_BCHW)
    output.copy_(
        torch.ops.torchvision.roi_align(
            x_BCHW,
            rois_N5.to(x_BCHW.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def _roi_align_backward(
    gradient: Tensor,
    rois_N5: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    into_BCHW: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``into_BCHW`` with the gradient of the map, given that of the output (N, C, height, width)."""
    if pool_mode != 1:
        raise _missing("roi_align with pool_mode='max'")

    gradient = _to_float(gradient)
    into_BCHW.copy_(
        torch.ops.torchvision._roi_align_backward(
            gradient,
            rois_N5.to(gradient.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *into_BCHW.shape,
            sampling_ratio,
            aligned,
        )
    )


def _focal_loss(x_NC: Tensor, target_N: Tensor, weight_C: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the losses (N, C); target C means background, and ``weight_C`` may be empty."""
    classes = x_NC.shape[1]
    one_hot = F.one_hot(target_N, classes + 1)[:, :classes].to(x_NC.dtype)
    loss = torchvision.ops.sigmoid_focal_loss(x_NC, one_hot, alpha, gamma)
    return loss * weight_C if weight_C.numel() else loss


def _focal_loss_forward(
    x_NC: Tensor, target_N: Tensor, weight_C: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    output.copy_(_focal_loss(_to_float(x_NC), target_N, weight_C, gamma, alpha))


def _focal_loss_backward(
    x_NC: Tensor, target_N: Tensor, weight_C: Tensor, into_NC: Tensor, *, gamma: float, alpha: float
) -> None:
    with torch.enable_grad():
        x = _to_float(x_NC).detach().requires_grad_()
        total = _focal_loss(x, target_N, weight_C, gamma, alpha).sum()
    into_NC.copy_(torch.autograd.grad(total, x)[0])
