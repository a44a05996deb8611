"""The depthwise convolution in Triton: which kernels compute it, for which tensors.

bfloat16 and float16 with more than 5 x 5 taps go to the tensor cores (:mod:`core.ops.triton_kernels`), float32 and
small kernels are computed tap by tap (:mod:`core.ops.triton_direct`); both add up in float32. Triton is imported when
a convolution runs: this module can be imported where there is none.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from core.errors import InputError
from core.ops.modes import memory_format

__all__ = ["convolve", "statistics", "triton_available", "weight_gradient"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DIRECT_TAPS = 25  # up to 5 x 5 taps a tensor core would multiply mostly zeros


@torch.compiler.assume_constant_result
def _runs_on(device: torch.device) -> bool:
    if find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    from triton import knobs

    return device.type == "cpu" and bool(knobs.runtime.interpret)


def triton_available(x: Tensor) -> bool:
    """Whether :func:`convolve` computes on the device and in the dtype of ``x``.

    That is an NVIDIA GPU of compute capability 8.0 or later, or the CPU with ``TRITON_INTERPRET=1`` in the environment
    (for tests: Triton's interpreter is thousands of times slower), and bfloat16, float16 or float32.
    """
    return x.dtype in DTYPES and _runs_on(x.device)


def _on_tensor_cores(x: Tensor, height: int, width: int) -> bool:
    return x.dtype != torch.float32 and height * width > DIRECT_TAPS


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """Convolve every channel with a kernel of its own, zero-padded so that the size stays, stride 1.

    Args:
        x: (B, C, H, W), bfloat16, float16 or float32, of any strides.
        weight: (C, 1, KH, KW), KH and KW odd, in the dtype of ``x``.
        bias: (C,) in the dtype of ``x``, or None.
        dilation: distance between two taps, in pixels.

    Returns:
        (B, C, H, W) in the dtype and memory format of ``x``.

    Raises:
        InputError: if Triton does not compute on this device and in this dtype, or there are two dtypes.
    """
    _check(x, weight, bias)
    y = torch.empty_like(x, memory_format=memory_format(x))
    if x.numel() == 0:
        return y
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        if _on_tensor_cores(x, weight.shape[2], weight.shape[3]):
            from core.ops import triton_kernels

            y = triton_kernels.convolve(x.contiguous(), weight, bias, dilation)
            return y.contiguous(memory_format=memory_format(x))
        from core.ops import triton_direct

        triton_direct.convolve(x, weight, bias, y, dilation)
        return y


def statistics(x: Tensor, weight: Tensor, dilation: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of :func:`convolve`, before it is rounded to the dtype of ``x``.

    Args:
        x: (B, C, H, W), as for :func:`convolve`, not empty.
        weight: (C, 1, KH, KW), as for :func:`convolve`.
        dilation: distance between two taps, in pixels.

    Returns:
        Two of (C,), float32.

    Raises:
        InputError: if Triton does not compute on this device and in this dtype, or there are two dtypes.
    """
    _check(x, weight)
    from core.ops import triton_statistics

    with torch.cuda.device_of(x):
        if _on_tensor_cores(x, weight.shape[2], weight.shape[3]):
            return triton_statistics.on_tensor_cores(x.contiguous(), weight.contiguous(), dilation)
        return triton_statistics.direct(x, weight.contiguous(), dilation)


def weight_gradient(x: Tensor, grad: Tensor, kernel: tuple[int, int], dilation: int = 1) -> Tensor:
    """The gradient of the weight.

    Args:
        x: (B, C, H, W), as for :func:`convolve`.
        grad: gradient of the output, (B, C, H, W).
        kernel: (KH, KW), odd.
        dilation: distance between two taps, in pixels.

    Returns:
        (C, 1, KH, KW) in the dtype of ``x``.

    Raises:
        InputError: if Triton does not compute on this device and in this dtype, or there are two dtypes.
    """
    _check(x, grad)
    if x.numel() == 0:
        return x.new_zeros(x.shape[1], 1, *kernel)
    with torch.cuda.device_of(x):
        if _on_tensor_cores(x, *kernel):
            from core.ops import triton_kernels

            slopes = triton_kernels.weight_gradient(x.contiguous(), grad.contiguous(), kernel, dilation)
        else:
            from core.ops import triton_direct

            slopes = triton_direct.weight_gradient(x, grad, kernel, dilation)
    return slopes.to(x.dtype)


def _check(x: Tensor, *others: Tensor | None) -> None:
    for other in others:
        if other is not None and other.dtype != x.dtype:
            raise InputError(f"implementation 'triton' got a map in {x.dtype} with {other.dtype}; expected one dtype")
    if not triton_available(x):
        raise InputError(
            f"implementation 'triton' got {x.dtype} on {x.device}; expected bfloat16, float16 or float32 on an NVIDIA "
            "GPU of compute capability 8.0 or later, and an installed Triton"
        )
