"""Structural re-parameterisation: the folding maths, and the function that folds a whole model.

Every fold is computed in float64 on the CPU, whatever the model's dtype and device, and cast back at the end: a fold in
half precision would lose the equality that makes it worth having. Fold after training and after fine-tuning; a folded
model has lost the branches and norms that training needs.
"""

import copy
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "dilated_to_dense",
    "embed_kernel",
    "fold_bn",
    "is_batch_norm",
    "reparameterize",
    "require_eval",
    "set_folded",
    "wide",
]


M = TypeVar("M", bound=nn.Module)


def wide(x: Tensor) -> Tensor:
    """The values of ``x``, of any shape, as float64 on the CPU, detached."""
    return x.detach().to("cpu", torch.float64)


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module normalises by running statistics: batch norm, synchronised or frozen too."""
    return isinstance(getattr(module, "running_var", None), Tensor)


def require_eval(module: nn.Module) -> None:
    """Refuse to fold a module in training mode.

    Raises:
        RuntimeError: if ``module.training``; its norm statistics are still moving and its output would not be kept.
    """
    if module.training:
        raise RuntimeError(
            f"cannot re-parameterise {type(module).__name__} in train mode: the fold keeps the output of eval mode. "
            "Call model.eval() first"
        )


def fold_bn(weight: Tensor, bias: Tensor | None, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that equals a convolution or linear layer and the batch norm after it, in eval mode.

    With s = weight / sqrt(var + eps): K' = K * s for each output channel, b' = beta + (b - mean) * s.

    Args:
        weight: (C, ...) of the layer, C outputs.
        bias: (C,) of the layer, or None.
        bn: batch norm over those C channels, plain or synchronised.

    Returns:
        The weight in its shape and the bias (C,), float64 on the CPU.

    Raises:
        RuntimeError: if ``bn`` is in training mode.
        ValueError: if ``bn`` keeps no running statistics.
    """
    require_eval(bn)
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("cannot fold a batch norm without running statistics; build it with track_running_stats=True")
    scale = (wide(bn.running_var) + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * wide(bn.weight)
    offset = -wide(bn.running_mean) if bias is None else wide(bias) - wide(bn.running_mean)
    offset = offset * scale
    if bn.bias is not None:
        offset = offset + wide(bn.bias)
    return wide(weight) * scale.view(-1, *[1] * (weight.ndim - 1)), offset


def dilated_to_dense(weight: Tensor, dilation: int) -> Tensor:
    """The dense kernel that equals a dilated one: r - 1 zeros between two taps (UniRepLKNet section 3.2, equation 1).

    Args:
        weight: (C_out, C_in / groups, k, k).
        dilation: r, in pixels.

    Returns:
        (C_out, C_in / groups, (k-1)r+1, (k-1)r+1), the dtype of ``weight``.
    """
    out_channels, in_channels, height, width = weight.shape
    dense = weight.new_zeros(out_channels, in_channels, (height - 1) * dilation + 1, (width - 1) * dilation + 1)
    dense[:, :, ::dilation, ::dilation] = weight
    return dense


def embed_kernel(weight: Tensor, size: int) -> Tensor:
    """Pad a square odd kernel with zeros to ``size``, keeping its centre.

    Raises:
        ValueError: if the kernel is larger than ``size`` or one of the two is even.
    """
    small = weight.shape[-1]
    if small > size or small % 2 == 0 or size % 2 == 0:
        raise ValueError(f"cannot centre a {small}x{small} kernel in a {size}x{size} one: both odd, the first smaller")
    return F.pad(weight, [(size - small) // 2] * 4)


def set_folded(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give ``layer`` a folded weight and bias, in the dtype, device and ``requires_grad`` of its weight."""
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like), requires_grad=like.requires_grad)
    layer.bias = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)


def reparameterize(model: M) -> M:
    """A new model in inference form with the same outputs; the model passed in stays as it is.

    Every module that offers ``reparameterize()`` is folded, wherever it sits: in a backbone, a detector, a
    LightningModule. A model already in inference form comes back as an equal copy. ``timm.utils.reparameterize_model``
    gives the same weights.

    Args:
        model: any module in eval mode, any dtype, any device.

    Raises:
        RuntimeError: if the model, or a part of it that folds, is in train mode.

    Example:
        >>> import core, timm
        >>> model = timm.create_model("test_unireplknet").eval()
        >>> folded = core.reparameterize(model)
        >>> sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
        True
    """
    require_eval(model)
    folded = copy.deepcopy(model)
    for module in list(folded.modules()):
        fold = getattr(module, "reparameterize", None)
        if callable(fold):
            fold()
    return folded
