"""Global response normalisation (ConvNeXt V2, section 3), with the parameter names of UniRepLKNet."""

import torch
from torch import Tensor, nn

from core.ops import response_norm

__all__ = ["GlobalResponseNorm"]


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
        beta = None if self.beta is None else self.beta.flatten()
        return response_norm(x_BHWC, self.gamma.flatten(), beta, self.eps)
