"""Folding norms into the convolutions and linear layers before and after them."""

import copy
from typing import TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from core.errors import InputError

__all__ = [
    "fold_affine",
    "fold_bn",
    "fuse_bn_conv",
    "fuse_conv_bn",
    "is_batch_norm",
    "norm_affine",
    "require_eval",
    "set_folded",
    "wide",
]

Conv = TypeVar("Conv", bound=_ConvNd)
Layer = TypeVar("Layer", bound=_ConvNd | nn.Linear)


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


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a norm multiplies by and adds, (C,) each, float64 on the CPU, so that y = x * scale + shift.

    A batch norm in eval mode is that and nothing else: scale = weight / sqrt(var + eps), shift = bias - mean * scale.
    Of a layer norm it is the part after the normalisation: its weight and bias.

    Raises:
        RuntimeError: if a batch norm is in training mode.
        InputError: if ``norm`` keeps no running statistics and has no weight.
    """
    if is_batch_norm(norm):
        require_eval(norm)
        scale = (wide(cast(Tensor, norm.running_var)) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * wide(norm.weight)
        shift = -wide(cast(Tensor, norm.running_mean)) * scale
        return scale, shift if norm.bias is None else shift + wide(norm.bias)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(norm, _BatchNorm) or weight is None:
        raise InputError(
            f"cannot fold {type(norm).__name__}: it has no running statistics and no weight; a batch norm needs "
            "track_running_stats=True"
        )
    return wide(weight).flatten(), torch.zeros(weight.numel()).double() if bias is None else wide(bias).flatten()


def fold_bn(
    weight: Tensor, bias: Tensor | None, bn: nn.Module, *, transposed: bool = False, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that equals a convolution or linear layer and the batch norm after it, in eval mode.

    With s = weight / sqrt(var + eps): K' = K * s for each output channel, b' = beta + (b - mean) * s.

    Args:
        weight: (C, ...) of the layer, C outputs, in any number of spatial dimensions; (C_in, C / groups, ...) if
            ``transposed``.
        bias: (C,) of the layer, or None.
        bn: batch norm over those C channels, plain or synchronised.
        transposed: the layer is a transposed convolution.
        groups: of the transposed convolution.

    Returns:
        The weight in its shape and the bias (C,), float64 on the CPU.

    Raises:
        RuntimeError: if ``bn`` is in training mode.
        InputError: if ``bn`` keeps no running statistics.
    """
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    _check_norm(bn, channels)
    scale, shift = norm_affine(bn)
    offset = shift if bias is None else shift + wide(bias) * scale
    kernel = wide(weight)
    if transposed:
        grouped = kernel.reshape(groups, -1, *kernel.shape[1:])
        return (grouped * _like(scale.view(groups, 1, -1), grouped)).reshape(kernel.shape), offset
    return kernel * _like(scale, kernel), offset


def fold_affine(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, *, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that equals ``x * scale + shift`` and a pointwise layer after it.

    Args:
        weight: (C_out, C_in / groups) of a linear layer or (C_out, C_in / groups, 1, ...) of a 1x1 convolution. A
            larger kernel would not do: its zero padding comes after the shift.
        bias: (C_out,) or None.
        scale: (C_in,).
        shift: (C_in,).
        groups: of the convolution.

    Returns:
        The weight in its shape and the bias (C_out,), float64 on the CPU.
    """
    matrix = wide(weight).reshape(groups, -1, weight.shape[1])  # (G, out, in)
    scale, shift = (value.view(groups, 1, -1) for value in (wide(scale), wide(shift)))
    offset = (matrix * shift).sum(dim=2).flatten()
    return (matrix * scale).reshape(weight.shape), offset if bias is None else offset + wide(bias)


def fuse_conv_bn(conv: Conv, bn: nn.Module) -> Conv:
    """A new convolution that equals ``bn(conv(x))``: 1-D, 2-D or 3-D, plain or transposed, any groups.

    Raises:
        RuntimeError: if ``bn`` is in training mode.
        InputError: if ``bn`` keeps no running statistics, or normalises another number of channels.
    """
    transposed = isinstance(conv, _ConvTransposeNd)
    fused = copy.deepcopy(conv)
    set_folded(fused, *fold_bn(conv.weight, conv.bias, bn, transposed=transposed, groups=conv.groups))
    return fused


def fuse_bn_conv(bn: nn.Module, layer: Layer) -> Layer:
    """A new layer that equals ``layer(bn(x))`` for a 1x1 convolution without padding, or a linear layer.

    Raises:
        RuntimeError: if ``bn`` is in training mode.
        InputError: if the layer is transposed, padded or larger than 1x1, where this would not be exact at the border.
    """
    if isinstance(layer, _ConvNd) and (
        isinstance(layer, _ConvTransposeNd) or set(layer.kernel_size) != {1} or _padded(layer)
    ):
        raise InputError(
            f"a norm folds into the layer after it only if that is pointwise; got {layer}: kernel_size 1 and padding 0"
        )
    _check_norm(bn, layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features)
    fused = copy.deepcopy(layer)
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    set_folded(fused, *fold_affine(layer.weight, layer.bias, *norm_affine(bn), groups=groups))
    return fused


def set_folded(layer: _ConvNd | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give ``layer`` a folded weight and bias, in the dtype, device and ``requires_grad`` of its weight."""
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like), requires_grad=like.requires_grad)
    layer.bias = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)


def _padded(conv: _ConvNd) -> bool:
    """Whether a 1x1 convolution sees a border of zeros; 'same' and 'valid' are no padding for it."""
    return not isinstance(conv.padding, str) and set(conv.padding) != {0}


def _check_norm(bn: nn.Module, channels: int) -> None:
    activation = getattr(bn, "act", None)
    if not is_batch_norm(bn) or not isinstance(activation, nn.Identity | None):
        raise InputError(
            f"cannot fuse {type(bn).__name__}: it has no running statistics (track_running_stats=True), or an "
            "activation of its own; expected a plain batch norm"
        )
    own = cast(Tensor, bn.running_var).numel()
    if own != channels:
        raise InputError(f"the batch norm has {own} channels and the layer {channels}")


def _like(scale: Tensor, kernel: Tensor) -> Tensor:
    return scale.reshape(*scale.shape, *[1] * (kernel.ndim - scale.ndim))
