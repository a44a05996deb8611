"""The depthwise convolution in Triton, for NVIDIA GPUs: one operator, which chooses between two kinds of kernels.

Convolutions in bfloat16 and float16 with more than 5 x 5 taps run on tensor cores
(:mod:`core.ops.triton.tensor_cores`). All others are computed tap by tap (:mod:`core.ops.triton.direct`). Both add up
in float32.

These kernels are used only if the environment variable ``LARKIT_TRITON`` is 1, because they have not been measured on
a GPU. The tests run them in Triton's interpreter and compile them. Triton is imported when a convolution runs.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError

__all__ = ["convolve", "triton_available", "triton_depthwise_conv2d", "weight_gradient"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

DIRECT_TAPS = 25
"""Largest number of taps for which the direct kernels are used in 16 bits: tensor cores would multiply mostly zeros."""


@torch.library.custom_op("larkit::depthwise_conv2d", mutates_args=())
def triton_depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Call :func:`convolve` as an operator of PyTorch, which can be differentiated any number of times."""
    return convolve(x, weight, bias, dilation)


@torch.library.custom_op("larkit::depthwise_conv2d_weight_gradient", mutates_args=())
def triton_weight_gradient(x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int) -> Tensor:
    """Call :func:`weight_gradient` as an operator of PyTorch."""
    return weight_gradient(x, grad, (rows, columns), dilation)


@triton_depthwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


@triton_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int) -> Tensor:
    return x.new_empty(x.shape[1], 1, rows, columns)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.dilation = inputs[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    to_x = to_weight = to_bias = None
    if ctx.needs_input_grad[0]:
        to_x = triton_depthwise_conv2d(grad, weight.flip(2, 3), None, ctx.dilation)
    if ctx.needs_input_grad[1]:
        to_weight = triton_weight_gradient(x, grad, *weight.shape[2:], ctx.dilation)
    if ctx.needs_input_grad[2]:
        to_bias = grad.sum((0, 2, 3))
    return to_x, to_weight, to_bias, None


def _backward_of_weight_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the weight gradient, which is linear in the map and in the output gradient."""
    x, output_grad = ctx.saved_tensors
    to_x = to_output_grad = None
    if ctx.needs_input_grad[0]:
        to_x = triton_depthwise_conv2d(output_grad, grad.flip(2, 3), None, ctx.dilation)
    if ctx.needs_input_grad[1]:
        to_output_grad = triton_depthwise_conv2d(x, grad, None, ctx.dilation)
    return to_x, to_output_grad, None, None, None


triton_depthwise_conv2d.register_autograd(_backward, setup_context=_save_inputs)
triton_weight_gradient.register_autograd(_backward_of_weight_gradient, setup_context=_save_inputs)


@torch.compiler.assume_constant_result
def _runs_on(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device."""
    if find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)

    from triton import knobs

    return device.type == "cpu" and bool(knobs.runtime.interpret)


def triton_available(x: Tensor) -> bool:
    """Return whether :func:`convolve` supports the device and the dtype of ``x``.

    Devices are NVIDIA GPUs of compute capability 8.0 or later, and, for tests, the CPU if ``TRITON_INTERPRET=1`` is in
    the environment: Triton's interpreter is thousands of times slower. Dtypes are bfloat16, float16 and float32.
    """
    return x.dtype in DTYPES and _runs_on(x.device)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """Convolve every channel with a kernel of its own, with stride 1 and zero padding that keeps the size.

    Args:
        x: (B, C, H, W), bfloat16, float16 or float32, with any strides.
        weight: (C, 1, KH, KW), KH and KW odd, in the dtype of ``x``.
        bias: (C,) in the dtype of ``x``, or None.
        dilation: distance between two taps, in pixels.

    Returns:
        (B, C, H, W) in the dtype and memory format of ``x``.

    Raises:
        InputError: if the device or the dtype is not supported, or the tensors have different dtypes.
    """
    _check(x, weight, bias)
    memory_format = _memory_format(x)
    y = torch.empty_like(x, memory_format=memory_format)
    if x.numel() == 0:
        return y

    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        if _on_tensor_cores(x, weight.shape[2], weight.shape[3]):
            from core.ops.triton import tensor_cores

            y = tensor_cores.convolve(x.contiguous(), weight, bias, dilation)
            return y.contiguous(memory_format=memory_format)

        from core.ops.triton import direct

        direct.convolve(x, weight, bias, y, dilation)
        return y


def weight_gradient(x: Tensor, grad: Tensor, kernel: tuple[int, int], dilation: int = 1) -> Tensor:
    """Compute the gradient of the weight.

    Args:
        x: (B, C, H, W), as for :func:`convolve`.
        grad: output gradient (B, C, H, W), in the dtype of ``x``.
        kernel: (KH, KW), odd.
        dilation: distance between two taps, in pixels.

    Returns:
        (C, 1, KH, KW) in the dtype of ``x``.

    Raises:
        InputError: if the device or the dtype is not supported, or the tensors have different dtypes.
    """
    _check(x, grad)
    if x.numel() == 0:
        return x.new_zeros(x.shape[1], 1, *kernel)

    with torch.cuda.device_of(x):
        if _on_tensor_cores(x, *kernel):
            from core.ops.triton import tensor_cores

            gradient = tensor_cores.weight_gradient(x.contiguous(), grad.contiguous(), kernel, dilation)
        else:
            from core.ops.triton import direct

            gradient = direct.weight_gradient(x, grad, kernel, dilation)
    return gradient.to(x.dtype)


def _on_tensor_cores(x: Tensor, height: int, width: int) -> bool:
    return x.dtype != torch.float32 and height * width > DIRECT_TAPS


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of the result: that of ``x``, which may be a slice of a channels_last map."""
    channels_last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _check(x: Tensor, *others: Tensor | None) -> None:
    """Check that all tensors have one dtype, and that Triton's kernels support it and the device."""
    for other in others:
        if other is not None and other.dtype != x.dtype:
            raise InputError(f"Triton's convolution got a map in {x.dtype} with {other.dtype}; expected one dtype")
    if not triton_available(x):
        raise InputError(
            f"Triton's convolution got {x.dtype} on {x.device}; expected bfloat16, float16 or float32 on an NVIDIA GPU "
            "of compute capability 8.0 or later, and an installed Triton"
        )
