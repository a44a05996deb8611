"""Global response normalisation (ConvNeXt V2, section 3), with the parameter names of UniRepLKNet."""

import torch
from torch import Tensor, nn

__all__ = ["GlobalResponseNorm"]

_TINY = 1e-24  # keeps the square root differentiable at zero: a dead channel gets gradient 0, not NaN


class GlobalResponseNorm(nn.Module):
    """y = (gamma * G / (mean_c G + eps) + 1) * x + beta, where G is each channel's L2 norm over the map.

    Equal to ConvNeXt V2's layer; ``timm.layers.GlobalResponseNorm`` computes the same under other tensor names. The
    norm is taken in float32 at least, because a half-precision square overflows for values above 255.

    Args:
        dim: channels, the last dimension of the input.
        use_bias: keep ``beta``; the inference form has it folded into the next linear layer.
        eps: added to the mean norm.
    """

    beta: nn.Parameter | None

    def __init__(self, dim: int, use_bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim)) if use_bias else None

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape and dtype."""
        wide = x_BHWC.to(torch.promote_types(x_BHWC.dtype, torch.float32))
        norm_B11C = wide.square().sum(dim=(1, 2), keepdim=True).clamp_min(_TINY).sqrt()
        response = (norm_B11C / (norm_B11C.mean(dim=-1, keepdim=True) + self.eps)).to(x_BHWC.dtype)
        y = (self.gamma * response + 1) * x_BHWC
        return y if self.beta is None else y + self.beta
