"""The metrics of samples with several labels: means over the classes, each class against the rest."""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAUROC, MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

__all__ = ["MeanAUC", "MeanAveragePrecision", "SensitivityIndex", "tagging_metrics"]


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean average precision over the classes that occur in the split; torchmetrics would count the others as 0.

    ``update`` takes probabilities (B, K) and labels (B, K) of 0 and 1.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean, a scalar in [0, 1]; 0 if no class occurs."""
        precision_K = torch.as_tensor(super().compute())
        occurs_K = dim_zero_cat(self.target).any(dim=0)
        return _mean(precision_K, occurs_K, default=0.0)


class MeanAUC(MultilabelAUROC):
    """Mean area under the ROC curve over the classes that some samples of the split have and others do not.

    ``update`` takes probabilities (B, K) and labels (B, K) of 0 and 1.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean, a scalar in [0, 1]; 0.5 for guessing, and if there is no such class."""
        area_K = torch.as_tensor(super().compute())
        target_BK = dim_zero_cat(self.target)
        separates_K = target_BK.any(dim=0) & ~target_BK.all(dim=0)
        return _mean(area_K, separates_K, default=0.5)


class SensitivityIndex(MeanAUC):
    """Sensitivity index d' = sqrt(2) Z(:class:`MeanAUC`), where Z is the inverse of the standard normal distribution.

    An area of 1 counts as 1 - 1e-7, which gives d' = 7.35.
    """

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return d', a scalar: 0 for guessing, above 2 for good results on AudioSet."""
        area = super().compute().double().clamp(1e-7, 1 - 1e-7)
        return (2**0.5 * torch.special.ndtri(area)).float()


def tagging_metrics(num_classes: int) -> MetricCollection:
    """Return the three metrics by the names under which they are logged: mAP, auc and dprime."""
    return MetricCollection(
        {
            "mAP": MeanAveragePrecision(num_classes),
            "auc": MeanAUC(num_classes),
            "dprime": SensitivityIndex(num_classes),
        },
        compute_groups=False,  # torchmetrics would let the last two share a state, which each of them changes
    )


def _mean(values_K: Tensor, counted_K: Tensor, *, default: float) -> Tensor:
    """Return the mean of the values that count, or the default if none does."""
    return values_K[counted_K].mean() if counted_K.any() else values_K.new_full((), default)
