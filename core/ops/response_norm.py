"""Global response normalisation with few passes over the map."""

from typing import Any

import torch
from torch import Tensor

from core.ops.modes import eager

__all__ = ["response_norm", "response_scale"]

_IN_CACHE = 2**20  # products, 4 MB in float32
_TINY = 1e-24  # of a sum of squares: a dead channel gets gradient 0, not NaN


def response_norm(x_BHWC: Tensor, gamma_C: Tensor, beta_C: Tensor | None, eps: float) -> Tensor:
    """Y = (gamma * G / (mean_c G + eps) + 1) * x + beta, where G is each channel's L2 norm over the map.

    Norms are taken in float32 at least, because a half-precision square overflows for values above 255.

    Args:
        x_BHWC: (B, H, W, C), any float dtype.
        gamma_C: (C,).
        beta_C: (C,), or None.
        eps: added to the mean norm.

    Returns:
        (B, H, W, C) in the dtype of x.
    """
    if eager() and torch.is_grad_enabled():
        y: Tensor = _ResponseNorm.apply(x_BHWC, gamma_C, beta_C, eps)[0]
        return y
    y = x_BHWC * response_scale(x_BHWC, gamma_C, eps)
    return y if beta_C is None else y + beta_C.to(y.dtype)


def response_scale(x_BHWC: Tensor, gamma_C: Tensor, eps: float) -> Tensor:
    """What each channel is multiplied by: (B, 1, 1, C) in the dtype of x."""
    return _scale(_product_sums(x_BHWC, x_BHWC), gamma_C, eps).to(x_BHWC.dtype)[:, None, None]


def _scale(squares_BC: Tensor, gamma_C: Tensor, eps: float) -> Tensor:
    norm = squares_BC.clamp_min(_TINY).sqrt()
    return gamma_C * norm / (norm.mean(-1, keepdim=True) + eps) + 1


def _product_sums(x_BHWC: Tensor, y_BHWC: Tensor) -> Tensor:
    """(B, C): sums of x * y over the map, in float32 at least."""
    wide = torch.promote_types(x_BHWC.dtype, torch.float32)
    if x_BHWC.device.type != "cpu" or torch.is_grad_enabled() or not eager() or not x_BHWC.numel():
        if y_BHWC is x_BHWC:  # one reduction, which casts as it reads
            return torch.linalg.vector_norm(x_BHWC, dim=(1, 2), dtype=wide).square()
        if x_BHWC.dtype == torch.float16:  # whose products overflow
            x_BHWC, y_BHWC = x_BHWC.to(wide), y_BHWC.to(wide)
        return (x_BHWC * y_BHWC).sum((1, 2), dtype=wide)
    some = max(1, _IN_CACHE // x_BHWC[0].numel())  # samples at a time, whose products stay in the cache
    products = torch.empty((min(some, len(x_BHWC)), *x_BHWC.shape[1:]), dtype=wide)
    sums = torch.empty(x_BHWC.shape[0], x_BHWC.shape[3], dtype=wide)
    for x, y, rows in zip(x_BHWC.split(some), y_BHWC.split(some), sums.split(some), strict=True):
        product = products[: len(x)]
        if x.dtype == wide:
            torch.mul(x, y, out=product)
        else:
            product.copy_(x)
            product.mul_(product if y_BHWC is x_BHWC else y)
        torch.sum(product, (1, 2), out=rows)
    return sums


class _ResponseNorm(torch.autograd.Function):
    """x * scale + beta and the sums of squares; keeps x alone, where composed operators keep four maps of its size."""

    @staticmethod
    def forward(x_BHWC: Tensor, gamma_C: Tensor, beta_C: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        squares = _product_sums(x_BHWC, x_BHWC)
        y = x_BHWC * _scale(squares, gamma_C, eps).to(x_BHWC.dtype)[:, None, None]
        return (y if beta_C is None else y.add_(beta_C.to(y.dtype))), squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x_BHWC, gamma_C, beta_C, ctx.eps = inputs
        ctx.offset = None if beta_C is None else beta_C.dtype
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x_BHWC, gamma_C, output[1])

    @staticmethod
    def backward(ctx: Any, dy_BHWC: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x_BHWC, gamma_C, squares = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient follows x through its norm
            squares = _product_sums(x_BHWC, x_BHWC)
        norm = squares.clamp_min(_TINY).sqrt()
        mean = norm.mean(-1, keepdim=True) + ctx.eps
        to_scale = _product_sums(dy_BHWC, x_BHWC)  # gradient of what each channel is multiplied by
        to_response = gamma_C * to_scale
        to_norm = to_response / mean - (to_response * norm).mean(-1, keepdim=True) / mean**2
        slope = torch.where(squares > _TINY, to_norm / norm, 0).to(x_BHWC.dtype)[:, None, None]
        scale = (gamma_C * norm / mean + 1).to(x_BHWC.dtype)[:, None, None]
        to_x = (dy_BHWC * scale).addcmul_(x_BHWC, slope)
        to_beta = None
        if ctx.offset is not None:
            wide = torch.promote_types(ctx.offset, torch.float32)
            to_beta = dy_BHWC.sum((0, 1, 2), dtype=wide).to(ctx.offset)
        return to_x, (to_scale * norm / mean).sum(0).to(gamma_C.dtype), to_beta, None
