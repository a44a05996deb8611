"""The depthwise convolution in Triton as operators of PyTorch: autograd, autocast, ``torch.compile``, ``torch.export``.

    depthwise_triton(x, weight, bias, dilation)
      larkit::depthwise_triton                forward
      larkit::depthwise_triton_input_grad     gradient of x: the flipped convolution of the output's gradient
      larkit::depthwise_triton_weight_grad    gradient of the weight; the bias's is a sum

bfloat16 and float16 with more than 5 x 5 taps go to the tensor cores (:mod:`core.ops.triton_kernels`), float32 and
small kernels are computed tap by tap (:mod:`core.ops.triton_direct`); both add up in float32. Triton is imported when
a convolution runs: this module can be imported where there is none.
"""

from importlib.util import find_spec
from typing import Any, NoReturn

import torch
from torch import Tensor

from core.errors import InputError

__all__ = ["depthwise_triton", "triton_available"]

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
    """Whether :func:`depthwise_triton` computes on the device and in the dtype of ``x``.

    That is an NVIDIA GPU of compute capability 8.0 or later, or the CPU with ``TRITON_INTERPRET=1`` in the environment
    (for tests: Triton's interpreter is thousands of times slower), and bfloat16, float16 or float32.
    """
    return x.dtype in DTYPES and _runs_on(x.device)


def depthwise_triton(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """Convolve every channel with a kernel of its own, zero-padded so that the size stays, stride 1.

    Under autocast the inputs are cast to its dtype, as those of ``F.conv2d`` are.

    Args:
        x: (B, C, H, W), bfloat16, float16 or float32, of any strides.
        weight: (C, 1, KH, KW), KH and KW odd, in the dtype of ``x``.
        bias: (C,) in the dtype of ``x``, or None.
        dilation: distance between two taps, in pixels.

    Returns:
        (B, C, H, W) in the dtype and memory format of ``x``.

    Raises:
        InputError: if shapes, dtypes or devices do not fit, or a gradient of a gradient is wanted.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _forward(x, weight, bias, dilation)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> None:
    tensors = [x, weight] if bias is None else [x, weight, bias]
    channels = x.shape[1] if x.dim() == 4 else -1
    odd = weight.dim() == 4 and weight.shape[2] % 2 == 1 and weight.shape[3] % 2 == 1
    shapes = [tuple(t.shape) for t in tensors]
    if not odd or weight.shape[:2] != (channels, 1) or shapes[2:] not in ([], [(channels,)]) or dilation < 1:
        raise InputError(
            f"depthwise_triton got x, weight and bias of shapes {shapes} and dilation {dilation}; expected "
            "(B, C, H, W), (C, 1, KH, KW) with KH and KW odd, (C,) or no bias, and a dilation of 1 or more"
        )
    if x.dtype not in DTYPES or len({(t.dtype, t.device) for t in tensors}) > 1:
        got = ", ".join(f"{t.dtype} on {t.device}" for t in tensors)
        raise InputError(
            f"depthwise_triton got {got}; expected one device and one dtype of bfloat16, float16 and float32. "
            "Use F.conv2d for others"
        )


def _on_tensor_cores(x: Tensor, height: int, width: int) -> bool:
    return x.dtype != torch.float32 and height * width > DIRECT_TAPS


def _format(x: Tensor) -> torch.memory_format:
    """The format of the result for ``x``: channels_last also for a slice of a tensor that is."""
    last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, *, flip: bool) -> Tensor:
    y = torch.empty_like(x, memory_format=_format(x))
    if x.numel() == 0:
        return y
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        if _on_tensor_cores(x, weight.shape[2], weight.shape[3]):
            from core.ops import triton_kernels

            y = triton_kernels.convolve(x.contiguous(), weight, bias, dilation, flip=flip)
            return y.contiguous(memory_format=_format(x))
        from core.ops import triton_direct

        triton_direct.convolve(x, weight, bias, y, dilation, flip=flip)
        return y


@torch.library.custom_op("larkit::depthwise_triton", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    _check(x, weight, bias, dilation)
    if not triton_available(x):
        raise InputError(
            f"depthwise_triton got a tensor on {x.device}; expected an NVIDIA GPU of compute capability 8.0 or later "
            "and an installed Triton. Use F.conv2d elsewhere"
        )
    return _convolve(x, weight, bias, dilation, flip=False)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    _check(x, weight, bias, dilation)
    return torch.empty_like(x, memory_format=_format(x))


@torch.library.custom_op("larkit::depthwise_triton_input_grad", mutates_args=())
def _input_grad(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return _convolve(grad, weight, None, dilation, flip=True)


@_input_grad.register_fake
def _(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return torch.empty_like(grad, memory_format=_format(grad))


@torch.library.custom_op("larkit::depthwise_triton_weight_grad", mutates_args=())
def _weight_grad(grad: Tensor, x: Tensor, height: int, width: int, dilation: int) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[1], 1, height, width)
    with torch.cuda.device_of(x):
        if _on_tensor_cores(x, height, width):
            from core.ops import triton_kernels

            slopes = triton_kernels.weight_gradient(x.contiguous(), grad.contiguous(), (height, width), dilation)
        else:
            from core.ops import triton_direct

            slopes = triton_direct.weight_gradient(x, grad, (height, width), dilation)
    return slopes.to(x.dtype)


@_weight_grad.register_fake
def _(grad: Tensor, x: Tensor, height: int, width: int, dilation: int) -> Tensor:
    return x.new_empty(x.shape[1], 1, height, width)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
    x, weight, _, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    height, width = weight.shape[2:]
    need_x, need_weight, need_bias, _ = ctx.needs_input_grad
    memory_format = _format(grad)
    if _on_tensor_cores(x, height, width):
        grad = grad.contiguous()  # once for both gradients
    dx = _input_grad(grad, weight, ctx.dilation).contiguous(memory_format=memory_format) if need_x else None
    dw = _weight_grad(grad, x, height, width, ctx.dilation) if need_weight else None
    db = grad.sum((0, 2, 3)) if need_bias else None
    return dx, dw, db, None


def _refuse(ctx: Any, grad: Tensor) -> NoReturn:
    raise InputError(
        "depthwise_triton got a request for the gradient of a gradient, which it does not compute; "
        "use F.conv2d (core.ops.depthwise_conv2d on the CPU) for second derivatives"
    )


_forward.register_autograd(_backward, setup_context=_save)
_input_grad.register_autograd(_refuse)
_weight_grad.register_autograd(_refuse)
