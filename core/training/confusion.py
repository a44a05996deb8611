"""Which class is taken for which, counted over a split and drawn."""

from functools import partial

import torch
from lightning import Trainer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from core.training.drawing import draw_figure
from core.training.pictures import confusion_figure

__all__ = ["MOST_CLASSES", "Confusion", "PairCounts"]

MOST_CLASSES = 2000
"""Up to which pairs are counted; those of the 21,841 classes of ImageNet-22K would take 4 GB in each process."""


class PairCounts(MulticlassConfusionMatrix):
    """torchmetrics' confusion matrix, counted in place, in deterministic mode too.

    There torchmetrics compares each sample with each of the squared number of classes: 59 GiB for an image of ADE20K.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits (B, num_classes, ...) or labels (B, ...) with labels (B, ...)."""
        found = preds.argmax(1) if preds.ndim > target.ndim else preds
        found, target = found.flatten(), target.flatten()
        if self.ignore_index is not None:
            known = target != self.ignore_index
            found, target = found[known], target[known]
        pairs = target * self.num_classes + found
        self.confmat.view(-1).index_add_(0, pairs, torch.ones_like(pairs, dtype=self.confmat.dtype))


class Confusion(nn.Module):
    """Counts of (true, predicted) classes; of more than :data:`MOST_CLASSES` nothing is counted or drawn.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.counts = PairCounts(num_classes) if num_classes <= MOST_CLASSES else None

    def update(self, logits: Tensor, y: Tensor) -> None:
        """Add logits (B, num_classes) with labels (B,)."""
        if self.counts is not None:
            self.counts.update(logits, y)

    def draw(self, trainer: Trainer, class_names: list[str]) -> None:
        """Draw ``confusion_matrix``, unless Lightning only tries out validation, and begin anew."""
        if self.counts is None:
            return
        if not trainer.sanity_checking:  # in every process, since compute() talks to the others
            counts = self.counts.compute().cpu()
            draw_figure(trainer, "confusion_matrix", partial(confusion_figure, counts, class_names))
        self.counts.reset()
