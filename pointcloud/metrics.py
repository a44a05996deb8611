"""Mean class accuracy, which results on point clouds are published in beside the overall accuracy."""

from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

__all__ = ["MeanClassAccuracy"]


class MeanClassAccuracy(MulticlassStatScores):
    """Mean of the accuracies of the classes that occur in a split.

    The macro average of torchmetrics counts a class that is predicted but does not occur with an accuracy of 0.

    Args:
        num_classes: number of classes.
        kwargs: arguments of :class:`torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, average="none", **kwargs)

    def compute(self) -> Tensor:
        """Scalar in [0, 1]."""
        correct, _, _, _, samples = super().compute().float().unbind(dim=1)
        return (correct / samples)[samples > 0].mean()
