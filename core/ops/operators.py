"""``larkit::depthwise_conv2d`` and its weight gradient as operators of PyTorch.

Compilers see one operator each, with shapes from fake kernels; which implementation computes it is chosen when it runs.
Both are differentiable in every input any number of times, each by the other. Where nobody looks at the operators they
are left out, :func:`depthwise_at_once`: they cost a third of a millisecond of Python for each training step of a layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from core.ops.choose import choose
from core.ops.implementations import IMPLEMENTATIONS, convolved
from core.ops.modes import memory_format, onednn
from core.ops.table import Kind
from core.ops.taps import near_kernel, near_taps, taps_flops

__all__ = ["depthwise", "depthwise_at_once", "depthwise_weight_gradient"]


_library = torch.library.Library("larkit", "DEF")  # torch.library.custom_op takes 0.1 ms a call, this 0.02
_library.define(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, int dilation, str implementation) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "depthwise_conv2d_weight_gradient(Tensor x, Tensor g, SymInt height, SymInt width, int dilation, "
    "str implementation) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
depthwise = torch.ops.larkit.depthwise_conv2d.default
depthwise_weight_gradient = torch.ops.larkit.depthwise_conv2d_weight_gradient.default


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, implementation: str) -> Tensor:
    """Stride 1, zero padding that keeps the size; only the taps that meet the map are computed."""
    near = near_taps(x, weight, dilation)
    if near.shape[2:] == (1, 1):
        y = x * near.view(-1, 1, 1)
        return y if bias is None else y + bias.view(-1, 1, 1)
    chosen = choose(implementation, "forward", x, (near.shape[2], near.shape[3]), dilation)
    return chosen.forward(x, near, bias, dilation)


def _weight_gradient(x: Tensor, g: Tensor, height: int, width: int, dilation: int, implementation: str) -> Tensor:
    """(C, 1, height, width): the gradient of the weight, given that of the output; 0 for taps that meet no map."""
    kernel = near_kernel(x, (height, width), dilation)
    if kernel == (1, 1):
        near = (x * g).sum((0, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype).view(-1, 1, 1, 1)
    else:
        chosen = choose(implementation, "weight_gradient", x, kernel, dilation)
        near = chosen.weight_gradient(x, g, kernel, dilation)
    if kernel == (height, width):
        return near
    gradient = x.new_zeros(x.shape[1], 1, height, width)
    near_taps(x, gradient, dilation).copy_(near)
    return gradient


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, implementation: str) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _fake_gradient(x: Tensor, g: Tensor, height: int, width: int, dilation: int, implementation: str) -> Tensor:
    return x.new_empty(x.shape[1], 1, height, width)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.options = inputs
    ctx.save_for_backward(x, weight)


def _backward(
    ctx: Any, g: Tensor, convolve: Any = depthwise, weight_gradient: Any = depthwise_weight_gradient
) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias, *_ = ctx.needs_input_grad
    return (
        convolve(g, weight.flip(2, 3), None, *ctx.options) if to_x else None,
        weight_gradient(x, g, *weight.shape[2:], *ctx.options) if to_weight else None,
        g.sum((0, 2, 3)) if to_bias else None,
        None,
        None,
    )


def _keep_both(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, g, _, _, *ctx.options = inputs
    ctx.save_for_backward(x, g)


def _backward_of_gradient(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    x, g = ctx.saved_tensors
    to_x, to_g, *_ = ctx.needs_input_grad
    return (
        depthwise(g, v.flip(2, 3), None, *ctx.options) if to_x else None,
        depthwise(x, v, None, *ctx.options) if to_g else None,
        *[None] * 4,
    )


for _name, _run, _shape, _gradient, _saves in (
    ("depthwise_conv2d", _depthwise, _fake, _backward, _keep),
    ("depthwise_conv2d_weight_gradient", _weight_gradient, _fake_gradient, _backward_of_gradient, _keep_both),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"larkit::{_name}", _shape, lib=_library)
    torch.library.register_autograd(f"larkit::{_name}", _gradient, setup_context=_saves, lib=_library)


class _AtOnce(torch.autograd.Function):
    """The same without operators; a gradient of the gradient goes through them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, implementation: str) -> Tensor:
        _keep(ctx, (x, weight, bias, dilation, implementation), x)
        return _depthwise(x, weight, bias, dilation, implementation)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _backward(ctx, g)
        return _backward(ctx, g, _depthwise, _weight_gradient)


def depthwise_at_once(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, implementation: str) -> Tensor:
    """``larkit::depthwise_conv2d`` for plain tensors in eager mode, where no mode or compiler asks for operators."""
    if not torch.is_grad_enabled():
        return _depthwise(x, weight, bias, dilation, implementation)
    if not onednn(x) and _left_to_pytorch(x, weight, dilation, implementation):
        return convolved(x, weight, bias, dilation)
    y: Tensor = _AtOnce.apply(x, weight, bias, dilation, implementation)
    return y


def _left_to_pytorch(x: Tensor, weight: Tensor, dilation: int, implementation: str) -> bool:
    """Whether PyTorch's kernel for the format of x is chosen in both directions, for a kernel that the map holds."""
    kernel = (weight.shape[2], weight.shape[3])
    if near_kernel(x, kernel, dilation) != kernel:
        return False
    own = IMPLEMENTATIONS["channels_last" if memory_format(x) is torch.channels_last else "contiguous"]
    kinds: tuple[Kind, ...] = ("forward", "weight_gradient")
    return all(choose(implementation, kind, x, kernel, dilation) is own for kind in kinds)


@register_flop_formula(torch.ops.larkit.depthwise_conv2d)
def _flops(x: list[int], weight: list[int], bias: Any, dilation: int, *args: Any, **kwargs: Any) -> int:
    return taps_flops(x, weight[2:], dilation)


@register_flop_formula(torch.ops.larkit.depthwise_conv2d_weight_gradient)
def _flops_of_gradient(
    x: list[int], g: list[int], height: int, width: int, dilation: int, *args: Any, **kwargs: Any
) -> int:
    return taps_flops(x, [height, width], dilation)
