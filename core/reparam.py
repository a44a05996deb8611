"""Structural re-parameterization: fold branches and norms into single kernels, with the same outputs in eval mode.

:func:`reparameterize` folds a model; the other functions are building blocks for your own modules. Every fold is
computed in float64 on the CPU, whatever the dtype and device of the model, and cast back at the end: in half precision,
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
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
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
"""A convolution and the batch norm after it, or None if it has no norm."""


def reparameterize(model: Model) -> Model:
    """Return a new model in inference form with the same outputs; the given model is not changed.

    Every submodule with a method ``reparameterize()`` without arguments is folded, at any depth: in a backbone, a
    detector or a LightningModule. Of a model that is already in inference form, an equal copy is returned.

    The last norm of a backbone is folded into its classifier, so ``forward_head(..., pre_logits=True)`` raises an error
    afterwards. For embeddings, fold a model with ``num_classes=0``. ``timm.utils.reparameterize_model`` gives the same
    outputs, but does not fold the last norm if the model is a backbone itself.

    Args:
        model: any module in eval mode, in any dtype and on any device.

    Raises:
        RuntimeError: if the model, or a submodule that can be folded, is in train mode.

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
        # A user's module may define a method of this name that calls this function; calling it would never end.
        if folds(module) and (module is not folded or _defined_here(module)):
            module.reparameterize()  # type: ignore[operator]
    return folded


def folds(module: nn.Module) -> bool:
    """Return whether a module can be folded: it has a method ``reparameterize`` that needs no arguments.

    Variational autoencoders often have a method of the same name that takes a mean and a variance; it is not called.
    """
    method = getattr(module, "reparameterize", None)
    if not callable(method):
        return False

    parameters = inspect.signature(method).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in variadic for p in parameters)


def _defined_here(module: nn.Module) -> bool:
    """Return whether the method ``reparameterize`` of a module is defined in this project or in timm."""
    for cls in type(module).__mro__:
        if "reparameterize" in vars(cls):
            return cls.__module__.partition(".")[0] in ("core", "timm")
    return False  # a wrapper that forwards attributes to the module inside it


def require_eval(module: nn.Module) -> None:
    """Check that a module is in eval mode.

    Raises:
        RuntimeError: if it is in training mode.
    """
    if module.training:
        raise RuntimeError(
            f"cannot re-parameterize {type(module).__name__} in train mode: the fold keeps the output of eval mode. "
            "Call model.eval() first"
        )


def to_float64_cpu(x: Tensor) -> Tensor:
    """Return the values of a tensor as float64 on the CPU, detached."""
    return x.detach().to("cpu", torch.float64)


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a module normalizes by running statistics, as plain, synchronized and frozen batch norms do."""
    return isinstance(getattr(module, "running_var", None), Tensor)


def _is_frozen(norm: nn.Module) -> bool:
    """Return whether a batch norm computes the same in both modes, as torchvision's ``FrozenBatchNorm2d`` does.

    Such a norm is no batch norm of PyTorch, and its scale and shift are buffers. timm's ``freeze_batch_norm_2d`` makes
    them in training mode, even in a model in eval mode.
    """
    return not isinstance(norm, _NormBase) and next(norm.parameters(), None) is None


def set_folded(layer: _ConvNd | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Replace weight and bias by folded ones, with the dtype, device and ``requires_grad`` of the old weight."""
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like), requires_grad=like.requires_grad)
    layer.bias = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)


# Norms


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a norm, (C,) each, float64 on the CPU, so that y = x * scale + shift.

    A batch norm in eval mode is such an affine function, with scale = weight / sqrt(var + eps) and
    shift = bias - mean * scale. For a layer norm, x is its normalized input, and scale and shift are its weight and
    bias.

    Raises:
        RuntimeError: if a batch norm is in training mode.
        InputError: if ``norm`` has neither running statistics nor a weight.
    """
    if is_batch_norm(norm):
        if not _is_frozen(norm):
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
    """Fold a batch norm into the convolution or linear layer before it.

    With s = gamma / sqrt(var + eps), the folded kernel is K' = K * s for each output channel, and the folded bias is
    b' = beta + (b - mean) * s.

    Args:
        weight: weight of the layer, (C, ...) with C outputs and any number of spatial dimensions; (C_in, C / groups,
            ...) if ``transposed``.
        bias: bias of the layer, (C,), or None.
        bn: batch norm over the C output channels, plain or synchronized.
        transposed: whether the layer is a transposed convolution.
        groups: number of groups of the transposed convolution.

    Returns:
        The folded weight in the shape of ``weight``, and the folded bias (C,), float64 on the CPU.

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
        # The outputs are the second dimension of a transposed kernel: (G, C_in / G, C / G, ...).
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
    """Fold ``x * scale + shift`` into the pointwise layer after it.

    Args:
        weight: weight (C_out, C_in / groups) of a linear layer, or (C_out, C_in / groups, 1, ...) of a 1x1 convolution.
            A larger kernel cannot be folded exactly, since its zero padding is added after the shift.
        bias: bias of the layer, (C_out,), or None.
        scale: (C_in,).
        shift: (C_in,).
        groups: number of groups of the convolution.

    Returns:
        The folded weight in the shape of ``weight``, and the folded bias (C_out,), float64 on the CPU.
    """
    matrix = to_float64_cpu(weight).reshape(groups, -1, weight.shape[1])  # (G, C_out / G, C_in / G)
    scale = to_float64_cpu(scale).view(groups, 1, -1)
    shift = to_float64_cpu(shift).view(groups, 1, -1)
    offset = (matrix * shift).sum(dim=2).flatten()
    if bias is not None:
        offset = offset + to_float64_cpu(bias)
    return (matrix * scale).reshape(weight.shape), offset


def fuse_conv_bn(conv: Conv, bn: nn.Module) -> Conv:
    """Return a new convolution that equals ``bn(conv(x))``: 1-D, 2-D or 3-D, plain or transposed, any groups.

    Raises:
        RuntimeError: if ``bn`` is in training mode.
        InputError: if ``bn`` keeps no running statistics, or normalizes another number of channels.
    """
    transposed = isinstance(conv, _ConvTransposeNd)
    fused = copy.deepcopy(conv)
    set_folded(fused, *fold_bn(conv.weight, conv.bias, bn, transposed=transposed, groups=conv.groups))
    return fused


def fuse_bn_conv(bn: nn.Module, layer: Layer) -> Layer:
    """Return a new layer that equals ``layer(bn(x))``, for a 1x1 convolution without padding or a linear layer.

    Raises:
        RuntimeError: if ``bn`` is in training mode.
        InputError: if the layer is transposed, padded or larger than 1x1: the result would not be exact at the border.
    """
    groups = 1
    channels = layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features
    if isinstance(layer, _ConvNd):
        groups = layer.groups
        # With a 1x1 kernel, neither 'same' nor 'valid' pads.
        padded = not isinstance(layer.padding, str) and set(layer.padding) != {0}
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
    """Check that a norm is a plain batch norm over this number of channels."""
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
    """Turn a dilated kernel into a dense one, with r - 1 zeros between taps (UniRepLKNet section 3.2, equation 1).

    Args:
        weight: kernel (A, B, k, ...) of a plain or transposed convolution in 1, 2 or 3 dimensions.
        dilation: r, in pixels, one for all spatial dimensions or one for each.

    Returns:
        (A, B, (k-1)r+1, ...), in the dtype of ``weight``.

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
    """Compute weight and bias of the single convolution that equals a sum of parallel ones, each with its batch norm.

    Args:
        branches: pairs of a convolution and its batch norm or None. The convolutions agree in channels, groups and
            stride, and their paddings align the centers of their kernels. The largest dense kernel gives the size.
        identity: add the input itself to the sum, which requires as many outputs as inputs, stride 1 and 'same'
            padding.

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
    """Return the single convolution that equals a sum of parallel ones; see :func:`merged_kernel`.

    It is a copy of the first convolution with another kernel. Plain and transposed convolutions in 1, 2 and 3
    dimensions can be merged, with any number of groups.

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
    """Return weight and bias of a convolution with its norm folded in, float64 on the CPU."""
    if norm is not None:
        transposed = isinstance(conv, _ConvTransposeNd)
        return fold_bn(conv.weight, conv.bias, norm, transposed=transposed, groups=conv.groups)
    if conv.bias is not None:
        return to_float64_cpu(conv.weight), to_float64_cpu(conv.bias)
    return to_float64_cpu(conv.weight), torch.zeros(conv.out_channels, dtype=torch.float64)


def _check_branches(convs: Sequence[_ConvNd], identity: bool) -> None:
    """Check that parallel convolutions can be merged exactly."""
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
    """Return the size of the dilated kernel minus the padding on both sides: 1 for padding that keeps the size."""
    sizes = [(k - 1) * r + 1 for k, r in zip(conv.kernel_size, conv.dilation, strict=True)]
    if isinstance(conv.padding, str):
        return (1,) * len(sizes) if conv.padding == "same" else tuple(sizes)
    return tuple(size - 2 * p for size, p in zip(sizes, conv.padding, strict=True))


def _per_dimension(value: int | Sequence[int], weight: Tensor) -> tuple[int, ...]:
    """Return one value for each spatial dimension of a kernel."""
    return (value,) * (weight.ndim - 2) if isinstance(value, int) else tuple(value)
