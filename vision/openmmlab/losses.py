"""A cross entropy of pixels with weights of classes, in MMSegmentation's registry."""

from collections.abc import Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PixelCrossEntropy"]


@MODELS.register_module()
class PixelCrossEntropy(nn.Module):
    """Cross entropy, averaged over the pixels that are not ignored, each with the weight of its class.

    MMSegmentation's own fails if there are both weights and pixels to ignore.

    Args:
        class_weight: weight of each class; None for equal weights.
        loss_name: name of the loss in logs.
    """

    def __init__(self, class_weight: Sequence[float] | None = None, loss_name: str = "loss_ce") -> None:
        super().__init__()
        self.class_weight = class_weight
        self.loss_name = loss_name

    def forward(
        self, logits_BCHW: Tensor, labels_BHW: Tensor, weight: Any = None, *, ignore_index: int = 255, **kwargs: Any
    ) -> Tensor:
        """Return the loss, a scalar; 0 if all pixels are ignored."""
        weights = None if self.class_weight is None else logits_BCHW.new_tensor(self.class_weight)
        losses_BHW = F.cross_entropy(logits_BCHW, labels_BHW, weights, ignore_index=ignore_index, reduction="none")

        counted = (labels_BHW != ignore_index).sum().clamp(min=1)
        return losses_BHW.sum() / counted
