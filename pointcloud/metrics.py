"""Mean class accuracy, which is reported for point clouds in addition to the overall accuracy."""

from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

__all__ = ["MeanClassAccuracy"]


class MeanClassAccuracy(MulticlassStatScores):
    """Mean of the accuracies of the classes that occur in a split.

    torchmetrics' macro average also counts classes that are predicted but do not occur, with an accuracy of 0.

    Args:
        num_classes: number of classes.
        kwargs: arguments of :class:`torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, average="none", **kwargs)

    def compute(self) -> Tensor:
        """Return the mean accuracy, a scalar in [0, 1]."""
        correct, _, _, _, samples = super().compute().float().unbind(dim=1)
        return (correct / samples)[samples > 0].mean()
