"""Structural re-parameterization: fold branches and norms into single kernels, with the same outputs in eval mode.

:func:`reparameterize` folds a whole model; the other functions are its pieces, for your own blocks. Every fold is
computed in float64 on the CPU, whatever the dtype and device of the model, and cast back at the end: in half precision
the folded model would no longer equal the original one. Fold after training and after fine-tuning, since a folded model
has lost the branches and norms that training needs.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from core.errors import InputError

__all__ = [
    "dilated_to_dense",
    "embed_kernel",
    "fold_affine",
    "fold_bn",
    "folds",
    "fuse_bn_conv",
    "fuse_conv_bn",
    "is_batch_norm",
    "merge_kernels",
    "merged_kernel",
    "norm_affine",
    "reparameterize",
    "require_eval",
    "set_folded",
    "to_float64_cpu",
]

Model = TypeVar("Model", bound=nn.Module)
Conv = TypeVar("Conv", bound=_ConvNd)
Layer = TypeVar("Layer", bound=_ConvNd | nn.Linear)
ConvAndNorm = tuple[_ConvNd, nn.Module | None]
"""A convolution and the batch norm after it, or None."""


def reparameterize(model: Model) -> Model:
    """A new model in inference form with the same outputs; the model passed in stays as it is.

    Every part that has a method ``reparameterize()`` without arguments is folded, wherever it sits: in a backbone, a
    detector, a LightningModule. A model that is already in inference form comes back as an equal copy.

    The last norm of a backbone folds into its classifier, so ``forward_head(..., pre_logits=True)`` is refused
    afterwards. For embeddings, fold a model with ``num_classes=0``. ``timm.utils.reparameterize_model`` gives the same
    outputs but leaves the last norm of a bare backbone apart.

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
        # A task of the user may call this function in a method of the same name: do not call that one in turn.
        if folds(module) and (module is not folded or _defined_here(module)):
            module.reparameterize()  # type: ignore[operator]
    return folded


def folds(module: nn.Module) -> bool:
    """Whether a module has a method ``reparameterize`` that needs no arguments.

    The method of the same name in a variational autoencoder takes a mean and a variance, and is left alone.
    """
    method = getattr(module, "reparameterize", None)
    if not callable(method):
        return False

    parameters = inspect.signature(method).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in variadic for p in parameters)


def _defined_here(module: nn.Module) -> bool:
    """Whether the method ``reparameterize`` of a module was written in this project or in timm."""
    for cls in type(module).__mro__:
        if "reparameterize" in vars(cls):
            return cls.__module__.partition(".")[0] in ("core", "timm")
    return False  # a wrapper that forwards attributes to what it wraps


def require_eval(module: nn.Module) -> None:
    """Refuse to fold a module in training mode.

    Raises:
        RuntimeError: if ``module.training``.
    """
    if module.training:
        raise RuntimeError(
            f"cannot re-parameterize {type(module).__name__} in train mode: the fold keeps the output of eval mode. "
            "Call model.eval() first"
        )


def to_float64_cpu(x: Tensor) -> Tensor:
    """The values of a tensor of any shape as float64 on the CPU, detached."""
    return x.detach().to("cpu", torch.float64)


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module normalizes by running statistics, as plain, synchronized and frozen batch norms do."""
    return isinstance(getattr(module, "running_var", None), Tensor)


def set_folded(layer: _ConvNd | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give ``layer`` a folded weight and bias, in the dtype, device and ``requires_grad`` of its weight."""
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like), requires_grad=like.requires_grad)
    layer.bias = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)


# Norms


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The scale and shift of a norm, (C,) each, float64 on the CPU, so that y = x * scale + shift.

    A batch norm in eval mode does nothing else: scale = weight / sqrt(var + eps), shift = bias - mean * scale. Of a
    layer norm this is the part after the normalization, its weight and bias.

    Raises:
        RuntimeError: if a batch norm is in training mode.
        InputError: if ``norm`` has neither running statistics nor a weight.
    """
    if is_batch_norm(norm):
        require_eval(norm)
        mean = to_float64_cpu(cast(Tensor, norm.running_mean))
        var = to_float64_cpu(cast(Tensor, norm.running_var))
        scale = (var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * to_float64_cpu(norm.weight)
        shift = -mean * scale
        if norm.bias is not None:
            shift = shift + to_float64_cpu(norm.bias)
        return scale, shift

    weight = getattr(norm, "weight", None)
    bias = getattr(norm, "bias", None)
    if isinstance(norm, _BatchNorm) or weight is None:
        raise InputError(
            f"cannot fold {type(norm).__name__}: it has no running statistics and no weight; a batch norm needs "
            "track_running_stats=True"
        )
    scale = to_float64_cpu(weight).flatten()
    shift = torch.zeros_like(scale) if bias is None else to_float64_cpu(bias).flatten()
    return scale, shift


def fold_bn(
    weight: Tensor,
    bias: Tensor | None,
    bn: nn.Module,
    *,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that equals a convolution or linear layer and the batch norm after it.

    With s = weight / sqrt(var + eps): K' = K * s for each output channel, b' = beta + (b - mean) * s.

    Args:
        weight: (C, ...) of the layer, C outputs, in any number of spatial dimensions; (C_in, C / groups, ...) if
            ``transposed``.
        bias: (C,) of the layer, or None.
        bn: batch norm over those C channels, plain or synchronized.
        transposed: whether the layer is a transposed convolution.
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
    kernel = to_float64_cpu(weight)
    if bias is not None:
        shift = shift + to_float64_cpu(bias) * scale

    if transposed:
        # (G, C_in / G, C / G, ...): the outputs are the second dimension of a transposed kernel
        kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
        scale = scale.view(groups, 1, -1, *[1] * (kernel.ndim - 3))
        return (kernel * scale).reshape(weight.shape), shift
    return kernel * scale.view(-1, *[1] * (kernel.ndim - 1)), shift


def fold_affine(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that equals ``x * scale + shift`` and a pointwise layer after it.

    Args:
        weight: (C_out, C_in / groups) of a linear layer or (C_out, C_in / groups, 1, ...) of a 1x1 convolution. A
            larger kernel would not do, since its zero padding comes after the shift.
        bias: (C_out,) or None.
        scale: (C_in,).
        shift: (C_in,).
        groups: of the convolution.

    Returns:
        The weight in its shape and the bias (C_out,), float64 on the CPU.
    """
    matrix = to_float64_cpu(weight).reshape(groups, -1, weight.shape[1])  # (G, C_out / G, C_in / G)
    scale = to_float64_cpu(scale).view(groups, 1, -1)
    shift = to_float64_cpu(shift).view(groups, 1, -1)
    offset = (matrix * shift).sum(dim=2).flatten()
    if bias is not None:
        offset = offset + to_float64_cpu(bias)
    return (matrix * scale).reshape(weight.shape), offset


def fuse_conv_bn(conv: Conv, bn: nn.Module) -> Conv:
    """A new convolution that equals ``bn(conv(x))``: 1-D, 2-D or 3-D, plain or transposed, any groups.

    Raises:
        RuntimeError: if ``bn`` is in training mode.
        InputError: if ``bn`` keeps no running statistics, or normalizes another number of channels.
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
    groups = 1
    channels = layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features
    if isinstance(layer, _ConvNd):
        groups = layer.groups
        padded = not isinstance(layer.padding, str) and set(layer.padding) != {0}  # a 1x1 kernel pads by number only
        if isinstance(layer, _ConvTransposeNd) or set(layer.kernel_size) != {1} or padded:
            raise InputError(
                f"a norm folds into the layer after it only if that is pointwise; got {layer}: kernel_size 1 and "
                "padding 0"
            )
    _check_norm(bn, channels)
    fused = copy.deepcopy(layer)
    set_folded(fused, *fold_affine(layer.weight, layer.bias, *norm_affine(bn), groups=groups))
    return fused


def _check_norm(bn: nn.Module, channels: int) -> None:
    activation = getattr(bn, "act", None)  # timm's BatchNormAct2d
    if not is_batch_norm(bn) or not isinstance(activation, nn.Identity | None):
        raise InputError(
            f"cannot fuse {type(bn).__name__}: it has no running statistics (track_running_stats=True), or an "
            "activation of its own; expected a plain batch norm"
        )
    own = cast(Tensor, bn.running_var).numel()
    if own != channels:
        raise InputError(f"the batch norm has {own} channels and the layer {channels}")


# Kernels


def dilated_to_dense(weight: Tensor, dilation: int | Sequence[int]) -> Tensor:
    """The dense kernel that equals a dilated one: r - 1 zeros between two taps (UniRepLKNet section 3.2, equation 1).

    Args:
        weight: (A, B, k, ...) of a plain or transposed convolution in 1, 2 or 3 dimensions.
        dilation: r, in pixels, for all spatial dimensions or for each.

    Returns:
        (A, B, (k-1)r+1, ...), the dtype of ``weight``.

    Raises:
        InputError: if a dilation is below 1.

    Example:
        >>> dilated_to_dense(torch.tensor([[[1.0, 2.0, 3.0]]]), 2)
        tensor([[[1., 0., 2., 0., 3.]]])
    """
    steps = _per_dimension(dilation, weight)
    if min(steps) < 1:
        raise InputError(f"dilation={dilation}; give 1 or more")
    sizes = [(k - 1) * r + 1 for k, r in zip(weight.shape[2:], steps, strict=True)]
    dense = weight.new_zeros(*weight.shape[:2], *sizes)
    taps: Any = (..., *(slice(None, None, r) for r in steps))
    dense[taps] = weight
    return dense


def embed_kernel(weight: Tensor, size: int | Sequence[int]) -> Tensor:
    """Pad an odd kernel of any number of dimensions with zeros to ``size``, keeping its center.

    Raises:
        InputError: if the kernel is larger than ``size`` or one of the two is even.
    """
    small = tuple(weight.shape[2:])
    large = _per_dimension(size, weight)
    margins: list[int] = []
    for k, s in zip(small, large, strict=True):
        if k > s or k % 2 == 0 or s % 2 == 0:
            small_size = "x".join(map(str, small))
            large_size = "x".join(map(str, large))
            raise InputError(
                f"cannot center a {small_size} kernel in a {large_size} one: both must be odd, the first smaller"
            )
        margins = [(s - k) // 2] * 2 + margins  # F.pad begins with the last dimension
    return F.pad(weight, margins)


def merged_kernel(branches: Sequence[ConvAndNorm], *, identity: bool = False) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals a sum of parallel ones, each with its batch norm.

    Args:
        branches: (convolution, batch norm or None), which agree in channels, groups and stride, and whose paddings
            align their centers; the largest kernel (after undoing dilation) gives the size.
        identity: add the input itself to the sum; needs as many outputs as inputs, stride 1 and the 'same' padding.

    Returns:
        The weight (A, B, K, ...) in the layout of the convolutions, and the bias (C_out,), float64 on the CPU.

    Raises:
        RuntimeError: if a batch norm is in training mode.
        InputError: if the branches cannot be merged exactly.
    """
    if not branches:
        raise InputError("there is no branch to merge; give at least one (convolution, batch norm or None)")
    first = branches[0][0]
    _check_branches([conv for conv, _ in branches], identity)

    kernels: list[Tensor] = []
    bias = torch.zeros(first.out_channels, dtype=torch.float64)
    for conv, norm in branches:
        weight, offset = _folded(conv, norm)
        kernels.append(dilated_to_dense(weight, conv.dilation))
        bias = bias + offset

    size = [max(sizes) for sizes in zip(*(kernel.shape[2:] for kernel in kernels), strict=True)]
    total = torch.stack([embed_kernel(kernel, size) for kernel in kernels]).sum(0)
    if identity:
        channels = torch.arange(first.in_channels)
        center: Any = (channels, channels % total.shape[1], *(s // 2 for s in size))
        total[center] += 1
    return total, bias


def merge_kernels(branches: Sequence[ConvAndNorm], *, identity: bool = False) -> _ConvNd:
    """The one convolution, of the class of the first, that equals a sum of parallel ones; see :func:`merged_kernel`.

    Plain and transposed convolutions in 1, 2 and 3 dimensions, depthwise or in any groups.

    Example:
        >>> large, small = nn.Conv1d(4, 4, 9, padding=4, groups=4), nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4)
        >>> merge_kernels([(large, None), (small, None)])
        Conv1d(4, 4, kernel_size=(9,), stride=(1,), padding=(4,), groups=4)
    """
    weight, bias = merged_kernel(branches, identity=identity)
    merged = copy.deepcopy(branches[0][0])
    size = tuple(weight.shape[2:])
    merged.padding = tuple((k - excess) // 2 for k, excess in zip(size, _reach_beyond_padding(merged), strict=True))
    merged.kernel_size = size
    merged.dilation = (1,) * len(size)
    set_folded(merged, weight, bias)
    return merged


def _folded(conv: _ConvNd, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the norm after it, float64 on the CPU."""
    if norm is not None:
        transposed = isinstance(conv, _ConvTransposeNd)
        return fold_bn(conv.weight, conv.bias, norm, transposed=transposed, groups=conv.groups)
    if conv.bias is not None:
        return to_float64_cpu(conv.weight), to_float64_cpu(conv.bias)
    return to_float64_cpu(conv.weight), torch.zeros(conv.out_channels, dtype=torch.float64)


def _check_branches(convs: Sequence[_ConvNd], identity: bool) -> None:
    first = convs[0]
    for name in ("in_channels", "out_channels", "groups", "stride", "transposed", "output_padding"):
        values = {str(getattr(conv, name)) for conv in convs}
        if len(values) > 1:
            raise InputError(f"branches with {name} {' and '.join(sorted(values))} do not merge; it must be the same")
    if any(conv.padding_mode != "zeros" for conv in convs):
        raise InputError("only branches with padding_mode='zeros' merge exactly")

    excesses = {_reach_beyond_padding(conv) for conv in convs}
    if len(excesses) > 1:
        raise InputError(
            f"the centers of the branches do not align: kernel {[c.kernel_size for c in convs]}, dilation "
            f"{[c.dilation for c in convs]}, padding {[c.padding for c in convs]}; use padding (k-1)*r//2 in each"
        )

    padding = first.output_padding
    if isinstance(first, _ConvTransposeNd) and any(p >= s for p, s in zip(padding, first.stride, strict=True)):
        raise InputError(f"output_padding={padding} needs dilation, which merging takes away; keep it below the stride")

    keeps_shape = first.in_channels == first.out_channels and set(first.stride) == {1} and set(*excesses) == {1}
    if identity and not (keeps_shape and set(padding) == {0}):
        raise InputError(f"an identity merges only where the output has the input's shape; got {first}")


def _reach_beyond_padding(conv: _ConvNd) -> tuple[int, ...]:
    """Size of the dilated kernel minus the padding on both sides, in pixels: 1 for the padding that keeps the size."""
    sizes = [(k - 1) * r + 1 for k, r in zip(conv.kernel_size, conv.dilation, strict=True)]
    if isinstance(conv.padding, str):
        return (1,) * len(sizes) if conv.padding == "same" else tuple(sizes)
    return tuple(size - 2 * p for size, p in zip(sizes, conv.padding, strict=True))


def _per_dimension(value: int | Sequence[int], weight: Tensor) -> tuple[int, ...]:
    """One value for each spatial dimension of a kernel."""
    return (value,) * (weight.ndim - 2) if isinstance(value, int) else tuple(value)
