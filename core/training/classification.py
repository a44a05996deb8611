"""Classification of anything that has become a 2D map."""

from typing import Any, ClassVar, Literal, cast

from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from core.errors import InputError, listed
from core.training.confusion import Confusion
from core.training.data import padding_in_batch
from core.training.drawing import draw_figure
from core.training.examples import Examples
from core.training.run_folder import run_folder
from core.training.task import Task

__all__ = ["ClassificationTask"]


class ClassificationTask(Task):
    """A backbone with a linear classifier: cross entropy with mixup, cutmix and label smoothing; top-1 and top-5.

    Batches for training and evaluation are (x, y): x (B, C, H, W) float, y (B,) int64 in [0, num_classes). Batches for
    prediction are (x, names). Logged are ``train_loss``, ``lr``, ``val_loss``, ``val_acc``, ``val_acc5`` (from ten
    classes on) and the same for test. After each evaluation the run folder holds ``confusion_matrix.png``, up to 2000
    classes, and, of maps that :meth:`to_pictures` can show, ``examples.png``: maps spread over the split with the class
    that the model gives and its probability, in red with the true class where it is wrong.

    Args:
        backbone: name of a LarKit or timm model, or a module; its classifier is set to ``num_classes``.
        num_classes: number of classes.
        label_smoothing: share of the target spread over all classes.
        mixup_alpha: Beta(a, a) of mixup, 0 for none.
        cutmix_alpha: Beta(a, a) of cutmix, 0 for none; with both, one is drawn for each batch.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        kwargs: the other arguments of :class:`core.training.Task`.

    Attributes:
        class_names: in the order of the labels; numbers until the data or a checkpoint say them.
        normalisation: ``mean`` and ``std`` of the training data's maps, once a checkpoint has said them.

    Raises:
        InputError: if an argument is out of range or the data have other classes.
    """

    monitor: ClassVar[str] = "val_acc"
    monitor_mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.1,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        backbone_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if num_classes < 2 or not 0 <= label_smoothing < 1 or min(mixup_alpha, cutmix_alpha) < 0:
            raise InputError(
                f"num_classes={num_classes}, label_smoothing={label_smoothing}, mixup_alpha={mixup_alpha}, "
                f"cutmix_alpha={cutmix_alpha}; expected at least 2, a share in [0, 1), and 0 or more"
            )
        if isinstance(backbone, str):
            backbone_args = {**(backbone_args or {}), "num_classes": num_classes}
        super().__init__(backbone, backbone_args=backbone_args, **kwargs)
        if getattr(self.backbone, "num_classes", num_classes) != num_classes:
            cast(Any, self.backbone).reset_classifier(num_classes)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.class_names = [str(i) for i in range(num_classes)]
        self.normalisation: dict[str, list[float]] = {}
        self.mixup: Mixup | None = None
        if mixup_alpha > 0 or cutmix_alpha > 0:
            self.mixup = Mixup(mixup_alpha, cutmix_alpha, label_smoothing=label_smoothing, num_classes=num_classes)
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.use_metrics(_accuracies(num_classes))
        self.confusion = Confusion(num_classes)
        self.examples = Examples()

    def use_metrics(self, scores: MetricCollection) -> None:
        """Measure these on the validation and test split; each is updated with (logits, y)."""
        self.val_scores, self.test_scores = scores.clone(prefix="val_"), scores.clone(prefix="test_")

    def setup(self, stage: str) -> None:
        """Take the class names from the data and refuse data with other classes.

        Raises:
            InputError: if the data's classes are not as many as the model's.
        """
        data = getattr(self.trainer, "datamodule", None)
        names = list(getattr(data, "classes", ()))
        if names and len(names) != self.num_classes:
            raise InputError(
                f"the model has {self.num_classes} classes and the data {len(names)} ({listed(names)}); set "
                f"--model.num_classes {len(names)}"
            )
        self.class_names = names or self.class_names

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.backbone(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        x, y = batch
        smoothing = self.label_smoothing
        if self.mixup and len(x) > 1:
            even = len(x) // 2 * 2  # it mixes pairs; the odd one of an incomplete batch is left out
            (x, y), smoothing = self.mix(self.mixup, x[:even], y[:even]), 0.0  # and smooths the targets itself
        loss = self.loss(self(x), y, smoothing=smoothing)
        self.log_training(loss, len(x))
        return loss

    def mix(self, mixup: Mixup, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed samples and their targets (B, num_classes), of an even number of samples with labels (B,)."""
        return mixup(x, y)

    def loss(self, logits: Tensor, y: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross entropy.

        Args:
            logits: (B, num_classes).
            y: (B,) int64 labels, or (B, num_classes) float probabilities.
            smoothing: share of the target spread over all classes.
        """
        return F.cross_entropy(logits, y, label_smoothing=smoothing)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, num_classes) in [0, 1]."""
        return logits.float().softmax(dim=1)

    def to_examples(self, x: Tensor) -> Tensor:
        """What to keep of samples until :meth:`to_pictures` shows them; by default they are maps, kept as they are."""
        return x

    def to_pictures(self, x: Tensor) -> Tensor | None:
        """Maps (N, C, H, W) as pictures of 1 or 3 channels in [0, 1]; None, as here, for no sheet of examples."""
        return None

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add one batch to the validation metrics; gives its logits."""
        logits = self._evaluate(batch, batch_idx, self.trainer.val_dataloaders, self.val_loss, self.val_scores)
        self.log("val_loss", self.val_loss, batch_size=len(logits))
        self.log_dict(self.val_scores, prog_bar=True, batch_size=len(logits))
        return logits

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add one batch to the test metrics; gives its logits."""
        logits = self._evaluate(batch, batch_idx, self.trainer.test_dataloaders, self.test_loss, self.test_scores)
        self.log("test_loss", self.test_loss, batch_size=len(logits))
        self.log_dict(self.test_scores, batch_size=len(logits))
        return logits

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, loader: Any, loss: MeanMetric, scores: MetricCollection
    ) -> Tensor:
        x, y = batch
        logits: Tensor = self(x)
        own = len(y) - padding_in_batch(loader, batch_idx, len(y))
        if own:
            loss.update(self.loss(logits[:own], y[:own]), weight=own)
            self.update_metrics(scores, logits[:own], y[:own])
        return logits

    def update_metrics(self, scores: MetricCollection, logits: Tensor, y: Tensor) -> None:
        """Add one batch to the metrics of a split."""
        scores.update(logits, y)
        self.confusion.update(logits, y)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep some examples of the batch."""
        self._keep_examples(outputs, batch, self.trainer.num_val_batches)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep some examples of the batch."""
        self._keep_examples(outputs, batch, self.trainer.num_test_batches)

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep some examples of the batch, titled with their predicted class."""
        titles = [f"{c} {p:.2f}" for c, p in zip(outputs["class"], outputs["probability"], strict=True)]
        self.examples.keep(self.to_examples(batch[0]), titles, [False] * len(titles), self.trainer.num_predict_batches)

    def _keep_examples(self, logits: Tensor, batch: Any, batches: list[int | float]) -> None:
        x, y = batch
        probability, label = self.probabilities(logits).max(dim=1)
        titles, wrong, truths = list[str](), (label != y).tolist(), y.tolist()
        for i, (p, c) in enumerate(zip(probability.tolist(), label.tolist(), strict=True)):
            truth = f" ({self.class_names[truths[i]]})" if wrong[i] else ""
            titles.append(f"{self.class_names[c]} {p:.2f}{truth}")
        self.examples.keep(self.to_examples(x), titles, wrong, batches)

    def on_validation_epoch_end(self) -> None:
        """Draw the examples and the confusion matrix."""
        self._draw()

    def on_test_epoch_end(self) -> None:
        """Draw the examples and the confusion matrix."""
        self._draw()

    def on_predict_epoch_end(self) -> None:
        """Draw the examples."""
        self._draw_examples()

    def _draw(self) -> None:
        self._draw_examples()
        self.confusion.draw(self.trainer, self.class_names)

    def _draw_examples(self) -> None:
        if self.trainer.sanity_checking or run_folder(self.trainer) is None:
            self.examples.clear()
            return
        sheet = self.examples.take(self.to_pictures)
        if sheet is not None:
            draw_figure(self.trainer, "examples", sheet)

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> dict[str, Any]:
        """Names, winning class and its probability for one batch, as the prediction writer wants them."""
        x, names = batch
        probability, label = self.probabilities(self(x)).max(dim=1)
        classes = [self.class_names[i] for i in label.tolist()]
        return {"file": list(names), "class": classes, "probability": [round(p, 6) for p in probability.tolist()]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class names and the normalisation, which are not known without the training data."""
        checkpoint["class_names"] = list(self.class_names)
        data = getattr(self.trainer, "datamodule", None) if self._trainer is not None else None
        for name in ("mean", "std"):  # how the maps were normalised, for who reads the backbone alone
            if isinstance(getattr(data, name, None), tuple | list):
                self.normalisation[name] = list(getattr(data, name))
        checkpoint |= self.normalisation

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the class names and the normalisation.

        Raises:
            InputError: if the data have other classes.
        """
        names, numbers = checkpoint.get("class_names", self.class_names), [str(i) for i in range(self.num_classes)]
        if names != self.class_names and numbers not in (names, self.class_names):
            differing = [f"{a} there, {b} here" for a, b in zip(names, self.class_names, strict=False) if a != b]
            raise InputError(
                f"the model was trained on other classes than the data have: {listed(differing)}; give data "
                "with its classes, or start a new run from its weights with --model.weights CHECKPOINT"
            )
        self.class_names = names
        self.normalisation = {name: checkpoint[name] for name in ("mean", "std") if name in checkpoint}


def _accuracies(num_classes: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {"acc": MulticlassAccuracy(num_classes, average="micro")}
    if num_classes >= 10:
        metrics["acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return MetricCollection(metrics)
