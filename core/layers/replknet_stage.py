"""A stage of RepLKNet, and the norms that maps have there in either form."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from core.layers.depthwise import DepthwiseConv2d
from core.reparam import is_batch_norm, norm_affine, require_eval, set_folded

__all__ = ["RepLKNetStage", "affine_layer", "map_norm"]


class RepLKNetStage(nn.Module):
    """Pairs of a RepLK block and a ConvFFN, stored flat, and the norm of the stage's map if there is one.

    Args:
        blocks: the 2 x depth blocks in order.
        norm: the norm, which ``forward`` leaves to the caller; None for none.
    """

    norm: nn.Module

    def __init__(self, blocks: Sequence[nn.Module], norm: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        if norm is not None:
            self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, before the norm."""
        return self.blocks(x)

    def reparameterize(self) -> None:
        """Turn the norm into a scale and a shift, in place; ``core.reparameterize`` folds the blocks.

        Raises:
            RuntimeError: if the stage is in training mode.
        """
        require_eval(self)
        if is_batch_norm(getattr(self, "norm", nn.Identity())):
            self.norm = affine_layer(self.norm)


def map_norm(dim: int, inference_mode: bool) -> nn.Module:
    """The norm of a map with ``dim`` channels: a batch norm, or in inference form the layer that stands for it."""
    return affine_layer(nn.BatchNorm2d(dim, eps=0.0).eval()) if inference_mode else nn.BatchNorm2d(dim)


def affine_layer(norm: nn.Module) -> nn.Module:
    """A batch norm as a depthwise 1x1 convolution, which is a scale and a shift.

    Raises:
        RuntimeError: if the norm is in training mode.
    """
    scale, shift = norm_affine(norm)
    layer = DepthwiseConv2d(len(scale), 1, bias=True).to(cast(Tensor, norm.running_var))
    layer.requires_grad_(all(p.requires_grad for p in norm.parameters()))
    set_folded(layer, scale.view(-1, 1, 1, 1), shift)
    return layer.eval()
