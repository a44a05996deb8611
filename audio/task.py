"""Audio classification and tagging as a LightningModule."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAUROC, MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from core.backbones.build import input_channels
from core.errors import InputError
from core.training.classification import ClassificationTask

__all__ = ["AudioClassifier", "MeanArea", "MeanAveragePrecision", "SensitivityIndex"]


_WINDOWS = 64  # that go through the net at once in predict


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean average precision over the classes that the split holds; torchmetrics counts the others as 0."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]
        """A scalar in [0, 1]; 0 if no class occurs."""
        return _mean(torch.as_tensor(super().compute()), dim_zero_cat(self.target).any(dim=0), none=0.0)


class MeanArea(MultilabelAUROC):
    """Mean area under the ROC curve over the classes that some recordings of the split have and some have not."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]
        """A scalar in [0, 1], 0.5 for guessing and if there is no such class."""
        target = dim_zero_cat(self.target)
        return _mean(torch.as_tensor(super().compute()), target.any(dim=0) & ~target.all(dim=0), none=0.5)


class SensitivityIndex(MeanArea):
    """d' = sqrt(2) * inverse normal of :class:`MeanArea`; an area of 1 counts as 1 - 1e-7, which is 7.35."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """A scalar: 0 for guessing, above 2 for a good tagger of AudioSet."""
        area = super().compute().double().clamp(1e-7, 1 - 1e-7)
        return (2**0.5 * torch.special.ndtri(area)).float()


def _mean(values_K: Tensor, counted_K: Tensor, *, none: float) -> Tensor:
    return values_K[counted_K].mean() if counted_K.any() else values_K.new_full((), none)


class AudioClassifier(ClassificationTask):
    """:class:`core.training.ClassificationTask` for log-mel maps with one channel.

    Batches are (x, y) as :class:`audio.AudioDataModule` makes them: x (B, 1, F, T), y (B,) int64, or (B, num_classes)
    of probabilities in training and of 0 and 1 for several labels. Logged are ``val_acc`` (not for several labels),
    ``val_mAP``, ``val_auc`` and ``val_dprime``, means over classes, each class against the rest, and the same for test.

    Args:
        backbone: name of a LarKit or timm model, or a module; a named one is built for one channel.
        num_classes: number of classes.
        criterion: 'bce', binary cross entropy for each class as published, or 'ce', cross entropy over the classes.
        multi_label: a recording may have any number of labels; needs 'bce'.
        label_smoothing: share of the target spread over all classes.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if the arguments do not fit together; waveforms are mixed by the data (``--data.mixup``), not maps.
    """

    pipeline_tag: ClassVar[str | None] = "audio-classification"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        criterion: Literal["bce", "ce"] = "bce",
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        backbone_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if criterion not in ("bce", "ce") or (multi_label and criterion == "ce"):
            raise InputError(
                f"criterion={criterion!r}, multi_label={multi_label}; 'bce' or 'ce', several labels need 'bce'"
            )
        if kwargs.get("mixup_alpha") or kwargs.get("cutmix_alpha"):
            raise InputError("audio mixes waveforms, not maps: set --data.mixup instead of mixup_alpha or cutmix_alpha")
        if isinstance(backbone, str):
            backbone_args = {"in_chans": 1, **(backbone_args or {})}
        super().__init__(backbone, num_classes, label_smoothing=label_smoothing, backbone_args=backbone_args, **kwargs)
        self.criterion, self.multi_label = criterion, multi_label
        channels = input_channels(self.backbone, without=1)
        if channels != 1:
            raise InputError(f"the model takes {channels} channels; log-mel maps have 1: build it with in_chans=1")
        self.use_metrics(_one_against_rest(num_classes))
        self.val_top1, self.test_top1 = (MulticlassAccuracy(num_classes, average="micro") for _ in range(2))

    @classmethod
    def chosen_by(cls, args: Mapping[str, Any]) -> tuple[str, str]:
        """Several labels have no accuracy: then it is ``val_mAP``."""
        return ("val_mAP", "max") if args.get("multi_label") else super().chosen_by(args)

    def loss(self, logits: Tensor, y: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """The criterion, a mean over the batch and for 'bce' over the classes too; y as for the class."""
        if self.criterion == "ce":
            return F.cross_entropy(logits, y, label_smoothing=smoothing)
        target = self._several(y).to(logits)
        return F.binary_cross_entropy_with_logits(logits, target * (1 - smoothing) + smoothing / self.num_classes)

    def _several(self, y: Tensor) -> Tensor:
        """(B,) labels as (B, num_classes) of 0 and 1; others as they are."""
        return F.one_hot(y, self.num_classes) if y.ndim == 1 else y

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, num_classes) in [0, 1]: of each class by itself for 'bce', adding up to 1 for 'ce'."""
        return logits.float().sigmoid() if self.criterion == "bce" else logits.float().softmax(dim=1)

    def update_metrics(self, scores: MetricCollection, logits: Tensor, y: Tensor) -> None:
        """Add one batch to the metrics of a split."""
        scores.update(self.probabilities(logits), self._several(y).long())
        if not self.multi_label:
            top1 = self.val_top1 if scores is self.val_scores else self.test_top1
            top1.update(logits, y)
            self.confusion.update(logits, y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add one batch to the validation metrics; gives its logits."""
        logits = super().validation_step(batch, batch_idx)
        if not self.multi_label:
            self.log("val_acc", self.val_top1, prog_bar=True, batch_size=len(logits))
        return logits

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add one batch to the test metrics; gives its logits."""
        logits = super().test_step(batch, batch_idx)
        if not self.multi_label:
            self.log("test_acc", self.test_top1, batch_size=len(logits))
        return logits

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Names, winning class and its probability, the mean over the windows of a recording.

        With several labels there is also a column of all classes above 0.5.

        Args:
            batch: the windows (N, 1, F, T) of some recordings, and (their names, windows of each (R,)).
            batch_idx: not used.
        """
        x, (names, counts) = batch
        every = torch.cat([self.probabilities(self(part)) for part in x.split(_WINDOWS)])  # an hour has thousands
        windows = every.split(counts.tolist())
        means = torch.stack([part.mean(dim=0) for part in windows])
        probability, label = means.max(dim=1)
        rows: dict[str, Any] = {
            "file": list(names),
            "class": [self.class_names[i] for i in label.tolist()],
            "probability": [round(p, 6) for p in probability.tolist()],
        }
        if self.multi_label:
            rows["labels"] = [
                ";".join(n for n, p in zip(self.class_names, r, strict=True) if p > 0.5) for r in means.tolist()
            ]
        return rows

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep some examples of the batch: the first window of a recording."""
        x, (names, counts) = batch
        first = counts.cumsum(0) - counts
        super().on_predict_batch_end(outputs, (x[first.to(x.device)], names), batch_idx)

    def _keep_examples(self, logits: Tensor, batch: Any, batches: list[int | float]) -> None:
        if not self.multi_label:
            super()._keep_examples(logits, batch, batches)
            return
        x, y = batch
        probability, label = self.probabilities(logits).max(dim=1)
        wrong = (y.gather(1, label[:, None])[:, 0] < 0.5).tolist()
        titles = [f"{self.class_names[c]} {p:.2f}" for c, p in zip(label.tolist(), probability.tolist(), strict=True)]
        self.examples.keep(x, titles, wrong, batches)

    def _draw(self) -> None:
        if self.multi_label:
            self._draw_examples()  # one recording may belong to several rows of a confusion matrix
        else:
            super()._draw()

    def to_pictures(self, x: Tensor) -> Tensor:
        """Maps (N, 1, F, T) from their lowest to their highest value as [0, 1], low frequencies at the bottom."""
        low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        return ((x - low) / (high - low).clamp(min=1e-6)).flip(2)


def _one_against_rest(num_classes: int) -> MetricCollection:
    return MetricCollection(
        {
            "mAP": MeanAveragePrecision(num_classes),
            "auc": MeanArea(num_classes),
            "dprime": SensitivityIndex(num_classes),
        },
        compute_groups=False,  # two of them compute from the same states in place
    )
