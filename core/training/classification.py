"""The base of all classification tasks, whose modalities turn their data into 2D maps."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from lightning import Trainer
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from core.backbones.build import input_channels
from core.data.spec import DataSpec, numbered_classes
from core.errors import InputError
from core.training.answers import TOP_K, significant
from core.training.plots import Examples, confusion_figure, draw_figure
from core.training.report import Section, logged_figures, shown_sample
from core.training.report_classification import label_results, label_sections, several_results, several_sections
from core.training.tagging import tagging_metrics
from core.training.task import Backbone, EvaluationSplit, Task, check_class_count

__all__ = ["ClassificationTask", "Confusion", "ConfusionCounts"]

MAX_CLASSES = 1_000_000
"""A larger number is a typing error, and the names of so many classes would fill the memory."""
MAX_CONFUSION_CLASSES = 2000
"""With more classes, no confusion matrix is counted: that of ImageNet-22K would take 4 GB in each process."""


class ClassificationTask(Task):
    """A backbone with a linear classifier, trained by cross entropy with mixup, cutmix and label smoothing.

    Batches for training and evaluation are (raw, y) with y (B,) int64 in [0, num_classes), and batches for prediction
    are (raw, names). Logs ``train_loss``, ``lr``, ``val_loss``, ``val_acc`` and ``val_acc5`` (with ten or more
    classes), and the validation metrics for the test split as well.

    If a sample may have several labels, which the data say (``spec.multi_label``), y is (B, num_classes) float of 0 and
    1, and each class has a binary cross entropy of its own. ``val_mAP``, ``val_auc`` and ``val_dprime``, means over the
    classes, take the place of the accuracies, and ``val_mAP`` chooses the best checkpoint.

    Each evaluation draws ``confusion_matrix.png`` (up to 2000 classes; not for several labels) and, if the modality can
    show its samples, ``examples.png``: samples from the whole split with the predicted class and its probability. Wrong
    predictions are red, with the true class beside them.

    Args:
        backbone: name of a LarKit or timm model, or a module; its classifier gets one output for each class.
        num_classes: number of classes; taken from the data where they are known.
        spec: description of the data; the command passes it.
        criterion: 'ce' for the cross entropy over the classes, or 'bce' for the mean of the binary cross entropies of
            the classes; by default 'bce' for several labels, which need it, and 'ce' otherwise.
        label_smoothing: share of the target that is spread over all classes; for several labels, the target of each
            class moves by this share towards 0.5, as in timm.
        mixup_alpha: a in mixup's distribution Beta(a, a); 0 for no mixup.
        cutmix_alpha: a in cutmix's distribution Beta(a, a); 0 for no cutmix. With both, one is drawn for each batch.
        backbone_args: arguments for ``timm.create_model`` if ``backbone`` is a name.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if an argument is out of range, or contradicts the data.
    """

    monitor: ClassVar[str] = "val_acc"
    monitor_mode: ClassVar[Literal["min", "max"]] = "max"
    answers_classes: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        spec: DataSpec | Mapping[str, Any] | None = None,
        criterion: Literal["bce", "ce"] | None = None,
        label_smoothing: float = 0.1,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        backbone_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= label_smoothing < 1 or min(mixup_alpha, cutmix_alpha) < 0:
            raise InputError(
                f"label_smoothing={label_smoothing}, mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}; "
                "expected a share in [0, 1), and 0 or more for both alphas"
            )

        super().__init__(backbone, spec=spec, backbone_args=backbone_args, **kwargs)

        self.criterion = criterion
        self.label_smoothing = label_smoothing
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha

        self.mixup: Mixup | None = None
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})
        self.scores = nn.ModuleDict()
        self.use_labels()
        self.confusion = Confusion(self.num_classes)
        self.examples = Examples()

    def use_labels(self) -> None:
        """Build what depends on whether a sample may have several labels: mixup and cutmix, and the metrics.

        Raises:
            InputError: if the criterion does not suit several labels.
        """
        several = self.spec.multi_label
        if several and self.criterion == "ce":
            raise InputError("a sample may have several labels (multi_label), which needs criterion='bce', not 'ce'")

        if self.mixup_alpha > 0 or self.cutmix_alpha > 0:
            self.mixup = Mixup(
                self.mixup_alpha,
                self.cutmix_alpha,
                label_smoothing=0.0,  # the loss smooths all targets, mixed or not
                num_classes=self.num_classes,
                multi_label=several,
            )

        scores = self.build_scores().to(self.device)
        self.scores["val"] = scores.clone(prefix="val_")
        self.scores["test"] = scores.clone(prefix="test_")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.spec.classes)

    @property
    def uses_bce(self) -> bool:
        """Whether each class has a probability of its own, and the probabilities need not add up to 1."""
        return self.spec.multi_label or self.criterion == "bce"

    @classmethod
    def chosen_by(cls, args: Mapping[str, Any]) -> tuple[str, str]:
        """Return ``val_acc`` or, for several labels, ``val_mAP``, since there is no accuracy then."""
        return ("val_mAP", "max") if args.get("multi_label") else super().chosen_by(args)

    def complete_spec(self, spec: Any) -> Any:
        """Number the classes if their names are not known.

        Raises:
            InputError: if ``num_classes`` contradicts the data, or the number of classes is not known at all.
        """
        num_classes = self.hparams.get("num_classes")
        if num_classes is not None and not 2 <= num_classes <= MAX_CLASSES:
            raise InputError(f"num_classes={num_classes}; expected a number from 2 to {MAX_CLASSES:,}")
        if not spec.classes:
            if num_classes is None:
                raise InputError("nothing says how many classes there are; give num_classes, or spec=data.spec()")
            spec = replace(spec, classes=numbered_classes(num_classes))

        if num_classes is not None:
            check_class_count(num_classes, spec.classes)
        if len(spec.classes) < 2:
            raise InputError(f"num_classes={len(spec.classes)}; a classifier needs at least 2 classes")
        return spec

    def complete_backbone_args(self, backbone_args: dict[str, Any]) -> dict[str, Any]:
        """Add the number of classes, and the number of channels of the maps unless the user has given ``in_chans``."""
        return {"in_chans": self.map_channels(self.spec), **backbone_args, "num_classes": self.num_classes}

    # A modality implements these

    @classmethod
    def map_channels(cls, spec: Any) -> int:
        """Return the number of channels of the maps; a backbone that is built by name gets it as ``in_chans``."""
        return 3

    def build_feature_map(self, spec: Any) -> nn.Module:
        """Build the modality's feature map, which turns raw batches into normalized maps."""
        raise NotImplementedError

    def show(self, raw: Any) -> Tensor | None:
        """Return N raw samples as pictures (N, C, H, W) in [0, 1] with C = 1 or 3, or None to draw no examples."""
        return None

    # The flow

    def build(self, backbone: nn.Module) -> None:
        """Build the feature map, and give the backbone's classifier one output for each class."""
        super().build(backbone)
        self.feature_map = self.build_feature_map(self.spec)
        if getattr(backbone, "num_classes", self.num_classes) != self.num_classes:
            cast(Any, backbone).reset_classifier(self.num_classes)
        if self.knows_data:
            self.check_channels()

    def check_channels(self) -> None:
        """Check that the backbone takes as many channels as the maps have.

        Raises:
            InputError: if it does not; the message says how to build it.
        """
        wanted = self.map_channels(self.spec)
        channels = input_channels(self.backbone, without=wanted)
        if channels != wanted:
            raise InputError(
                f"the backbone takes {channels} channels and the maps have {wanted}; leave "
                f"--model.backbone_args.in_chans out, or build the module with in_chans={wanted}"
            )

    def use_spec(self, theirs: Any) -> None:
        """Adopt or compare the specification of the data.

        Raises:
            InputError: if the data have other classes, or several labels where the model has one, or the reverse.
        """
        several = theirs.multi_label
        if self.knows_data and theirs.classes and several != self.spec.multi_label:
            raise InputError(
                f"the model was trained with {_how_many(self.spec.multi_label)} for each sample, and the data have "
                f"{_how_many(several)}; type --data.multi_label {str(self.spec.multi_label).lower()}, or start a new "
                "run from its weights with --model.weights CHECKPOINT"
            )
        super().use_spec(theirs)

    def adopt_spec(self, theirs: DataSpec) -> None:
        """Adopt the specification of the data and rebuild the feature map from it.

        The new feature map has the statistics of the data, and all other values, such as trained weights, of the old.
        """
        super().adopt_spec(theirs)
        self.use_labels()

        old = self.feature_map
        statistics = dict(old.named_buffers(recurse=False))
        kept = {name: value for name, value in old.state_dict().items() if name not in statistics}

        self.feature_map = self.build_feature_map(self.spec)
        self.feature_map.to(self.device).train(old.training)
        self.feature_map.load_state_dict(kept, strict=False)
        self.check_channels()

    def augment_map(self, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Apply mixup or cutmix, which turn the labels into targets (B, num_classes) float.

        Samples are mixed in pairs, so the last sample of an odd number is left out.
        """
        if self.mixup is None or len(maps) < 2:
            return maps, target

        even = len(maps) // 2 * 2
        return self.mix(self.mixup, maps[:even], target[:even])

    def mix(self, mixup: Mixup, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix an even number of maps and their targets; return the mixed maps and their targets (B, num_classes)."""
        return mixup(maps, target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the criterion with label smoothing: the mean over the batch and, for 'bce', also over the classes.

        Args:
            output: logits (B, num_classes).
            target: labels (B,) int64, or (B, num_classes) float in [0, 1]; both are smoothed.
        """
        return self.smoothed_loss(output, target, self.label_smoothing)

    def evaluation_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the criterion without smoothing, which is logged as ``val_loss`` and ``test_loss``."""
        return self.smoothed_loss(output, target, 0.0)

    def smoothed_loss(self, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Return the criterion; of the target, the share ``smoothing`` is spread over the classes."""
        if not self.uses_bce:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)

        elsewhere = 0.5 if self.spec.multi_label else 1 / self.num_classes
        target_BK = self.one_hot(target).to(logits)
        target_BK = target_BK * (1 - smoothing) + smoothing * elsewhere
        return F.binary_cross_entropy_with_logits(logits, target_BK)

    def one_hot(self, target: Tensor) -> Tensor:
        """Turn labels (B,) into targets (B, num_classes) of 0 and 1; targets of that shape stay as they are."""
        return F.one_hot(target, self.num_classes) if target.ndim == 1 else target

    def probabilities(self, output: Tensor) -> Tensor:
        """Turn logits (B, num_classes) into probabilities in [0, 1], which add up to 1 only for 'ce'."""
        return output.float().sigmoid() if self.uses_bce else output.float().softmax(dim=1)

    def mean_logits(self, logits: Tensor) -> Tensor:
        """Return the logits (..., K) whose probabilities are the mean over the parts of a sample.

        The mean is computed with logarithms of probabilities, which stay exact near probabilities of 0 and 1.

        Args:
            logits: logits (N, ..., K) of N parts.
        """
        if len(logits) == 1:
            return logits[0]

        logits = logits.float()
        if not self.uses_bce:
            return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))

        # The logit of a probability p is log(p) - log(1 - p), from which the division by N cancels.
        return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)

    def answered_probabilities(self, output: Tensor) -> Tensor:
        """Return the probabilities (B, num_classes) that predictions show; those of exclusive classes add up to 1.

        With 'bce', p_k of each class is divided by their sum: if it says how often class k is right, the sum is near 1.
        """
        if self.uses_bce and not self.spec.multi_label:
            return F.logsigmoid(output.float()).softmax(dim=1)
        return self.probabilities(output)

    # Metrics

    def build_scores(self) -> MetricCollection:
        """Return the metrics of a split: accuracies or, for several labels, means over the classes."""
        return tagging_metrics(self.num_classes) if self.spec.multi_label else accuracies(self.num_classes)

    def update_metrics(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Tensor) -> None:
        """Add one batch to the loss, the scores and the confusion matrix of a split."""
        loss = cast(MeanMetric, self.losses[split])
        loss.update(self.evaluation_loss(output, target), weight=len(target))
        self.update_scores(cast(MetricCollection, self.scores[split]), output, target)

    def update_scores(self, scores: MetricCollection, output: Tensor, target: Tensor) -> None:
        """Add one batch to the scores and, unless there are several labels, to the confusion matrix."""
        if self.spec.multi_label:
            scores.update(self.probabilities(output), target.long())
        else:
            scores.update(output, target)
            self.confusion.update(output, target)

    def log_metrics(self, split: EvaluationSplit) -> None:
        """Log the loss and the scores of a split; the progress bar shows the accuracies or the mAP."""
        self.log(f"{split}_loss", cast(Metric, self.losses[split]), batch_size=1)
        for name, metric in cast(MetricCollection, self.scores[split]).items(copy_state=False):
            is_shown = split == "val" and not name.endswith(("_auc", "_dprime"))
            self.log(name, metric, prog_bar=is_shown, batch_size=1)

    # Pictures

    def keep_examples(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Any) -> None:
        """Keep some samples of a batch with the predicted class and, except in ``predict``, the true class."""
        probability, label = self.answered_probabilities(output).max(dim=1)
        names = [self.class_names[i] for i in label.tolist()]
        titles = [f"{name} {p:.2f}" for name, p in zip(names, probability.tolist(), strict=True)]

        wrong = [False] * len(titles)
        if split != "predict":
            wrong = self.is_wrong(probability, label, target).tolist()
            for i, truth in enumerate(self.truths(target)):
                if wrong[i]:
                    titles[i] += f" ({truth})"

        self.examples.keep(partial(self._show_some, raw), titles, wrong, self.batch_count(split))

    def is_wrong(self, probability: Tensor, label: Tensor, target: Tensor) -> Tensor:
        """Return which predictions are wrong: none of the sample's labels, (B,) bool.

        For a sample without labels, any class whose probability is above 0.5 is wrong.

        Args:
            probability: probability of the most probable class (B,).
            label: the most probable class (B,) int64.
            target: labels (B,) int64 or, if there are several, (B, num_classes) of 0 and 1.
        """
        if not self.spec.multi_label:
            return label != target
        has_label = target.gather(1, label[:, None])[:, 0] > 0.5
        has_none = ~target.any(dim=1)
        return ~has_label & ~(has_none & (probability <= 0.5))

    def truths(self, target: Tensor) -> list[str]:
        """Return the names of the true classes; with several labels none, since a title has no room for them."""
        return [] if self.spec.multi_label else [self.class_names[i] for i in target.tolist()]

    def _show_some(self, raw: Any, chosen: list[int]) -> Tensor | None:
        """Draw the chosen samples of a raw batch."""
        return self.show(_choose(raw, chosen))

    def report(self, split: EvaluationSplit) -> None:
        """Draw the examples and, unless there are several labels, the confusion matrix."""
        self.examples.draw(self.trainer)
        if split != "predict" and not self.spec.multi_label:
            self.confusion.draw(self.trainer, self.class_names)

    def sample_results(self, raw: Any, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return label, prediction and probabilities of each sample, or of each class if there are several labels."""
        if target.ndim == 2:
            return several_results(self.probabilities(output), target)
        return label_results(self.probabilities(output), target)

    def report_sections(self, split: EvaluationSplit, results: Mapping[str, np.ndarray]) -> list[Section]:
        """Return figures beside those of the best constant answer, classes, confusion, mistakes and calibration."""
        if not results:
            return super().report_sections(split, results)
        logged = logged_figures(self.trainer, split)
        show = partial(shown_sample, self, split)
        make = several_sections if "labels" in results else label_sections
        return make(results, self.class_names, logged, show)

    # Prediction

    def rows(self, output: Tensor, names: Any) -> dict[str, list[Any]]:
        """Return the file, the most probable classes and their probabilities for each sample.

        Returns:
            Columns ``file``, ``class``, ``probability``, then ``class_2``, ``probability_2`` and so on, with
            ``answer_options.all`` the probability of every class, such as ``p_cat``, and with several labels
            ``labels``, all above 0.5.
        """
        probabilities = self.answered_probabilities(output).cpu()
        count = min(self.answer_options.top_k or TOP_K, self.num_classes)
        top, labels = probabilities.topk(count, dim=1)

        columns: dict[str, list[Any]] = {"file": list(names)}
        for k in range(count):
            suffix = f"_{k + 1}" if k else ""
            columns[f"class{suffix}"] = [self.class_names[i] for i in labels[:, k].tolist()]
            columns[f"probability{suffix}"] = [significant(p) for p in top[:, k].tolist()]
        if self.answer_options.all:
            for name, values in zip(self.class_names, probabilities.T.tolist(), strict=True):
                columns[f"p_{name}"] = [significant(p) for p in values]
        if self.spec.multi_label:
            is_probable = (probabilities > 0.5).tolist()
            columns["labels"] = [";".join(compress(self.class_names, row)) for row in is_probable]
        return columns

    def classes_above(self, output: Tensor, threshold: float) -> list[dict[str, float]]:
        """Return the classes of each window whose probability is above a threshold, with it."""
        return [
            {name: significant(p) for name, p in zip(self.class_names, row, strict=True) if p > threshold}
            for row in self.answered_probabilities(output).tolist()
        ]


class ConfusionCounts(MulticlassConfusionMatrix):
    """torchmetrics' confusion matrix, which adds its counts in place also in deterministic mode.

    torchmetrics itself then compares each sample with each pair of classes, which would take 59 GiB of memory for one
    image of ADE20K.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions, logits (B, num_classes, ...) or labels (B, ...), with true labels (B, ...)."""
        labels = preds.argmax(1) if preds.ndim > target.ndim else preds
        labels = labels.flatten()
        target = target.flatten()
        if self.ignore_index is not None:
            known = target != self.ignore_index
            labels = labels[known]
            target = target[known]

        pairs = target * self.num_classes + labels
        self.confmat.view(-1).index_add_(0, pairs, torch.ones_like(pairs, dtype=self.confmat.dtype))


class Confusion(nn.Module):
    """A confusion matrix that is counted and drawn, unless there are more than 2000 classes.

    Args:
        num_classes: number of classes.

    Attributes:
        latest: counts (K, K) int64 of the last evaluation, with the true classes in the rows; None before it.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.counts = ConfusionCounts(num_classes) if num_classes <= MAX_CONFUSION_CLASSES else None
        self.latest: Tensor | None = None

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add logits (B, num_classes) with labels (B,)."""
        if self.counts is not None:
            self.counts.update(logits, target)

    def draw(self, trainer: Trainer, class_names: list[str]) -> None:
        """Draw ``confusion_matrix``, except in Lightning's sanity check, and reset the counts."""
        if self.counts is None:
            return

        if not trainer.sanity_checking:
            counts = self.counts.compute().cpu()  # in every process, since compute() synchronizes them
            self.latest = counts
            draw_figure(trainer, "confusion_matrix", partial(confusion_figure, counts, class_names))
        self.counts.reset()


def accuracies(num_classes: int) -> MetricCollection:
    """Return top-1 accuracy and, with ten or more classes, top-5 accuracy."""
    metrics: dict[str, Metric | MetricCollection] = {"acc": MulticlassAccuracy(num_classes, average="micro")}
    if num_classes >= 10:
        metrics["acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return MetricCollection(metrics)


def _how_many(several: bool) -> str:
    return "several labels" if several else "one label"


def _choose(raw: Any, chosen: list[int]) -> Any:
    """Choose samples of a raw batch, which is a tensor, a list, or a tuple of these."""
    if isinstance(raw, tuple):
        return tuple(_choose(part, chosen) for part in raw)
    if isinstance(raw, Tensor):
        return raw[chosen]
    return [raw[i] for i in chosen]
