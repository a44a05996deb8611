"""Turning parallel convolution kernels into one: dilated to dense, small into large, several into their sum."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from core.errors import InputError
from core.reparam.norms import fold_bn, set_folded, wide

__all__ = ["Branch", "add_kernel", "dilated_to_dense", "embed_kernel", "merge_kernels", "merged_kernel"]

Branch = tuple[_ConvNd, nn.Module | None]
"""A convolution and the batch norm after it, or None."""


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
    steps = _each(dilation, weight.ndim - 2)
    if min(steps) < 1:
        raise InputError(f"dilation={dilation}; give 1 or more")
    sizes = [(k - 1) * r + 1 for k, r in zip(weight.shape[2:], steps, strict=True)]
    dense = weight.new_zeros(*weight.shape[:2], *sizes)
    taps: Any = (..., *(slice(None, None, r) for r in steps))
    dense[taps] = weight
    return dense


def embed_kernel(weight: Tensor, size: int | Sequence[int]) -> Tensor:
    """Pad an odd kernel of any number of dimensions with zeros to ``size``, keeping its centre.

    Raises:
        InputError: if the kernel is larger than ``size`` or one of the two is even.
    """
    small, large = tuple(weight.shape[2:]), _each(size, weight.ndim - 2)
    for k, s in zip(small, large, strict=True):
        if k > s or k % 2 == 0 or s % 2 == 0:
            raise InputError(f"cannot centre a {_by(small)} kernel in a {_by(large)} one: both odd, the first smaller")
    margins = [(s - k) // 2 for k, s in zip(small, large, strict=True)]
    return F.pad(weight, [margin for margin in reversed(margins) for _ in range(2)])


def add_kernel(total: Tensor, weight: Tensor, dilation: int | Sequence[int] = 1) -> None:
    """Add a smaller kernel to a dense one in place, spread by its dilation, centre on centre; differentiable.

    Args:
        total: (A, B, K, ...).
        weight: (A, B, k, ...) with (k-1)r+1 <= K, both odd or both even.
        dilation: r, in pixels, for all spatial dimensions or for each.
    """
    steps = _each(dilation, weight.ndim - 2)
    spans = [(k - 1) * r + 1 for k, r in zip(weight.shape[2:], steps, strict=True)]
    margins = [(size - span) // 2 for size, span in zip(total.shape[2:], spans, strict=True)]
    places: Any = (..., *(slice(m, m + span, r) for m, span, r in zip(margins, spans, steps, strict=True)))
    total[places].add_(weight)


def merged_kernel(branches: Sequence[Branch], *, identity: bool = False) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals a sum of parallel ones, each with its batch norm.

    Args:
        branches: (convolution, batch norm or None), which agree in channels, groups and stride, and whose paddings
            align their centres; the largest kernel (after undoing dilation) gives the size.
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
    folded = [_folded(conv, norm) for conv, norm in branches]
    dense = [dilated_to_dense(weight, conv.dilation) for (weight, _), (conv, _) in zip(folded, branches, strict=True)]
    size = tuple(max(sizes) for sizes in zip(*(weight.shape[2:] for weight in dense), strict=True))
    total = sum((embed_kernel(weight, size) for weight in dense), start=torch.zeros(()).double())
    if identity:
        total = total + _identity_kernel(first, size)
    return total, sum((bias for _, bias in folded), start=torch.zeros(()).double())


def merge_kernels(branches: Sequence[Branch], *, identity: bool = False) -> _ConvNd:
    """The one convolution, of the class of the first, that equals a sum of parallel ones; see :func:`merged_kernel`.

    Plain and transposed convolutions in 1, 2 and 3 dimensions, depthwise or in any groups.

    Example:
        >>> large, small = nn.Conv1d(4, 4, 9, padding=4, groups=4), nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4)
        >>> merge_kernels([(large, None), (small, None)])
        Conv1d(4, 4, kernel_size=(9,), stride=(1,), padding=(4,), groups=4)
    """
    weight, bias = merged_kernel(branches, identity=identity)
    merged = copy.deepcopy(branches[0][0])
    merged.padding = tuple((k - offset) // 2 for k, offset in zip(weight.shape[2:], _offsets(merged), strict=True))
    merged.kernel_size, merged.dilation = tuple(weight.shape[2:]), (1,) * (weight.ndim - 2)
    set_folded(merged, weight, bias)
    return merged


def _folded(conv: _ConvNd, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    if norm is None:
        bias = torch.zeros(conv.out_channels).double() if conv.bias is None else wide(conv.bias)
        return wide(conv.weight), bias
    transposed = isinstance(conv, _ConvTransposeNd)
    return fold_bn(conv.weight, conv.bias, norm, transposed=transposed, groups=conv.groups)


def _check_branches(convs: list[_ConvNd], identity: bool) -> None:
    first = convs[0]
    for name in ("in_channels", "out_channels", "groups", "stride", "transposed", "output_padding"):
        values = {str(getattr(conv, name)) for conv in convs}
        if len(values) > 1:
            raise InputError(f"branches with {name} {' and '.join(sorted(values))} do not merge; it must be the same")
    if any(conv.padding_mode != "zeros" for conv in convs):
        raise InputError("only branches with padding_mode='zeros' merge exactly")
    offsets = {_offsets(conv) for conv in convs}
    if len(offsets) > 1:
        raise InputError(
            f"the centres of the branches do not align: kernel {[c.kernel_size for c in convs]}, dilation "
            f"{[c.dilation for c in convs]}, padding {[c.padding for c in convs]}; use padding (k-1)*r//2 in each"
        )
    padding = first.output_padding
    if isinstance(first, _ConvTransposeNd) and any(p >= s for p, s in zip(padding, first.stride, strict=True)):
        raise InputError(f"output_padding={padding} needs dilation, which merging takes away; keep it below the stride")
    keeps_shape = first.in_channels == first.out_channels and set(first.stride) == {1} and set(*offsets) == {1}
    if identity and not (keeps_shape and set(padding) == {0}):
        raise InputError(f"an identity merges only where the output has the input's shape; got {first}")


def _offsets(conv: _ConvNd) -> tuple[int, ...]:
    """Reach minus twice the padding, in pixels: 1 for the padding that keeps the size."""
    reach = [(k - 1) * r + 1 for k, r in zip(conv.kernel_size, conv.dilation, strict=True)]
    if isinstance(conv.padding, str):
        return tuple(1 if conv.padding == "same" else size for size in reach)
    return tuple(size - 2 * p for size, p in zip(reach, conv.padding, strict=True))


def _identity_kernel(conv: _ConvNd, size: tuple[int, ...]) -> Tensor:
    kernel = torch.zeros(*conv.weight.shape[:2], *size).double()
    channels = torch.arange(conv.in_channels)
    centre: Any = (channels, channels % conv.weight.shape[1], *(s // 2 for s in size))
    kernel[centre] = 1
    return kernel


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
