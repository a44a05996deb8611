"""The measure that results on point clouds are published in, beside the accuracy."""

from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

__all__ = ["MeanClassAccuracy"]


class MeanClassAccuracy(MulticlassStatScores):
    """Mean over the classes of a split of the share of their samples that are classified rightly.

    torchmetrics' macro average takes a class that is not in the split, but was predicted, for one of accuracy 0.

    Args:
        num_classes: number of classes.
        kwargs: arguments of :class:`torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, average="none", **kwargs)

    def compute(self) -> Tensor:
        """Scalar in [0, 1]."""
        right, _, _, _, samples = super().compute().float().unbind(dim=1)
        return (right / samples)[samples > 0].mean()
