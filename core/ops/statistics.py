"""``larkit::depthwise_statistics``: mean and variance of every channel of a depthwise convolution, as an operator.

The batch statistics of a convolution z = w * x are all that a batch norm after it needs of z. Where Triton computes, z
is not written to memory: statistics are those of its float32 sums, where other implementations, and a batch norm, take
them of z rounded to the dtype of x. Nothing but x is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from core.ops.choose import choose
from core.ops.operators import depthwise, depthwise_weight_gradient
from core.ops.taps import near_taps, taps_flops

__all__ = ["statistics"]

_NAME = "depthwise_statistics"
_PLACES = (0, 2, 3)
_library = torch.library.Library("larkit", "FRAGMENT")
_library.define(
    f"{_NAME}(Tensor x, Tensor weight, int dilation, str implementation) -> (Tensor mean, Tensor var)",
    tags=torch.Tag.pt2_compliant_tag,
)
statistics = torch.ops.larkit.depthwise_statistics.default


def _statistics(x: Tensor, weight: Tensor, dilation: int, implementation: str) -> tuple[Tensor, Tensor]:
    """(C,) each, float32 at least."""
    near = near_taps(x, weight, dilation)
    if near.shape[2:] != (1, 1) and x.numel():
        chosen = choose(implementation, "forward", x, (near.shape[2], near.shape[3]), dilation)
        if chosen.statistics is not None:
            return chosen.statistics(x, near, dilation)
    z = depthwise(x, weight, None, dilation, implementation)
    wide = torch.promote_types(z.dtype, torch.float32)
    if z.device.type != "cpu":
        var, mean = torch.var_mean(z.to(wide), _PLACES, correction=0)
        return mean, var
    mean = z.mean(_PLACES, dtype=wide)  # torch.var_mean takes 10 times as long as these passes on a CPU
    return mean, (z - mean.view(-1, 1, 1)).square_().mean(_PLACES)


def _fake(x: Tensor, weight: Tensor, dilation: int, implementation: str) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape[1], dtype=wide), x.new_empty(x.shape[1], dtype=wide)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, *ctx.options = inputs
    ctx.save_for_backward(x, weight, output[0])


def _backward(ctx: Any, to_mean: Tensor, to_var: Tensor) -> tuple[Tensor | None, ...]:
    """Each z has the slope q z + p, with q = 2 dvar / N and p = dmean / N - q mean: a map u, made here from x again."""
    x, weight, mean = ctx.saved_tensors
    values = x.numel() // x.shape[1]
    q = 2 * to_var / values
    p = to_mean / values - q * mean
    u = _slopes(x, weight, q, p, mean, *ctx.options)
    return (
        depthwise(u, weight.flip(2, 3), None, *ctx.options) if ctx.needs_input_grad[0] else None,
        depthwise_weight_gradient(x, u, *weight.shape[2:], *ctx.options) if ctx.needs_input_grad[1] else None,
        None,
        None,
    )


def _slopes(
    x: Tensor, weight: Tensor, q: Tensor, p: Tensor, mean: Tensor, dilation: int, implementation: str
) -> Tensor:
    """Q z + p in the dtype of x.

    In 16 bits z is centred before it is rounded, and multiplied afterwards: q w rounded to bfloat16 would shift the
    mean of all slopes of a channel, and is too small for float16.
    """
    if q.dtype == x.dtype:
        return depthwise(x, q.view(-1, 1, 1, 1) * weight, p, dilation, implementation)
    centre = mean.detach().to(x.dtype)
    z = depthwise(x, weight, -centre, dilation, implementation)
    q, p = q.view(-1, 1, 1), (p + q * centre).view(-1, 1, 1)
    if torch.is_grad_enabled():
        return torch.addcmul(p, z, q).to(x.dtype)
    return torch.addcmul(p, z, q, out=z)  # one pass, computed in float32


_library.impl(_NAME, _statistics, "CompositeExplicitAutograd")
torch.library.register_fake(f"larkit::{_NAME}", _fake, lib=_library)
torch.library.register_autograd(f"larkit::{_NAME}", _backward, setup_context=_keep, lib=_library)


@register_flop_formula(torch.ops.larkit.depthwise_statistics)
def _flops(x: list[int], weight: list[int], dilation: int, *args: Any, **kwargs: Any) -> int:
    return taps_flops(x, weight[2:], dilation)
