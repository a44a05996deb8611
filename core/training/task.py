"""The base of all tasks: feature map, backbone and head, and one way to train, evaluate, predict and draw."""

import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from core.backbones.build import build_backbone
from core.data.module import DataModule, attached_data_module, padding_in_batch, positions_in_batch
from core.data.samples import PartlyBroken
from core.data.spec import DataSpec, numbered_classes
from core.errors import InputError, listed
from core.export import Exported, exported
from core.io.weights import load_weights
from core.training.answers import (
    Answer,
    AnswerOptions,
    EventMerger,
    Predictions,
    WindowOutput,
    check_some_answered,
    columns_to_rows,
)
from core.training.finite import check_gradients, check_loss, check_output
from core.training.hub import TaskHubMixin
from core.training.optim import check_recipe, parameter_groups, run_factor
from core.training.report import Section, default_sections
from core.training.results import SampleResults

__all__ = [
    "FINE_TUNING_LAYER_DECAY",
    "FINE_TUNING_LR",
    "Backbone",
    "EvaluationSplit",
    "Task",
    "check_class_count",
    "explain_batch_norm_error",
    "first_samples",
]

if TYPE_CHECKING:
    Backbone = str | nn.Module
    """The name of a LarKit or timm model, or a module."""
else:
    Backbone = str  # for jsonargparse: with nn.Module, the help would list every imported subclass of it

_LR = 1e-3
"""Learning rate of training from scratch, with AdamW and batches of 32 to 128."""
FINE_TUNING_LR = 2e-4
"""Learning rate of training that starts from weights."""
FINE_TUNING_LAYER_DECAY = 0.8

EvaluationSplit = Literal["val", "test", "predict"]


class Task(LightningModule, TaskHubMixin):
    """A feature map, a backbone and a head, with the papers' optimizer and schedule.

    ::

        raw batch ── feature_map ── maps (B, C, H, W) ── backbone ── head ── output

    ``task(*raw)`` takes a raw batch (pixels, waveforms, points, series or frames) and returns the output. The task
    reads the :class:`~core.data.spec.DataSpec` of its data once, builds the feature map and the head from it, and
    stores it in every checkpoint. A saved, shared or exported task therefore needs nothing from its training data.

    A modality implements only the parts that differ: the feature map, ``read`` (backbone and head), ``loss``,
    ``update_metrics``, ``keep_examples``, ``report`` and ``rows``, and for more than the logged figures in
    ``report.html`` also ``sample_results`` and ``report_sections``. This class implements the steps of training,
    evaluation and prediction.

    Optimization follows the papers (UniRepLKNet, appendix A): AdamW, no weight decay on norms and biases, layer-wise
    decay of the learning rate for fine-tuning, a linear warm-up and a cosine schedule, both by step.

    Args:
        backbone: name of a LarKit or timm model, or a module.
        spec: description of the data, from a data module's ``spec()`` or a checkpoint; the command passes it.
        backbone_args: arguments for ``timm.create_model`` if ``backbone`` is a name.
        pretrained: load the published weights of the named model.
        weights: file or Hub repository for :func:`core.load_weights`, instead of the published weights. Class names
            and statistics stay those of the data. To resume a run, pass its checkpoint as ``--ckpt_path`` instead.
        opt: name of a timm optimizer.
        lr: learning rate after the warm-up, with ``lr_batch`` that for a global batch of this size; by default 1e-3, or
            2e-4 to fine-tune, with ``pretrained`` or ``weights``.
        lr_batch: multiply ``lr`` by the actual global batch size (samples x processes x accumulation) divided by this
            number.
        min_lr: learning rate at the end of the cosine, scaled like ``lr``.
        weight_decay: weight decay of parameters with two or more dimensions.
        layer_decay: factor on the learning rate from each layer group to the one before it; by default 1, or 0.8 to
            fine-tune.
        warmup_epochs: length of the linear warm-up.
        opt_args: further arguments of the optimizer, such as ``betas``.
        decay_rate: multiply the learning rate by this factor after each epoch from ``decay_start`` on, instead of the
            cosine.
        decay_start: last epoch at the full learning rate, counted from 1; used with ``decay_rate`` only.
        plateau_patience: divide the learning rate by ten after more than so many validations without a better value of
            the metric that chooses the best checkpoint, instead of the cosine.
        norm_eval: keep batch norms in eval mode during training, for small batches; their weights are still trained.
        freeze: 'backbone' trains the head alone, on features of the backbone in eval mode.

    Raises:
        InputError: if a name is unknown or a number is out of range.
    """

    monitor: ClassVar[str] = "val_loss"
    """The metric that chooses the best checkpoint."""
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    baseline_names: ClassVar[tuple[str, ...]] = ()
    """Simple models to which the task is compared; their metrics end in these names, such as ``val_mse_last``."""
    pictures: ClassVar[Mapping[str, str]] = {"examples": "Examples"}
    """Pictures of an evaluation that its report shows: title by file name."""
    can_export: ClassVar[bool] = True
    """Whether ``lightning export`` can write the model."""
    spec_class: ClassVar[type[DataSpec]] = DataSpec
    """The modality's subclass of ``DataSpec``."""
    data_class: ClassVar[type[DataModule]] = DataModule
    """The modality's data module, which reads files for :meth:`predict`."""
    answers_classes: ClassVar[bool] = False
    """Whether the answer to a sample is one row with a class, to which an embedding belongs."""
    has_windows: ClassVar[bool] = False
    """Whether samples have a time axis, so that windows of them can be answered."""
    holds: ClassVar[tuple[str, ...]] = ()
    """Arguments that hold other tasks by name, each with ``class_path`` and ``init_args``."""
    runs_files: ClassVar[tuple[str, ...]] = ()
    """Arguments that name files whose code is executed; an untrusted checkpoint must not choose them."""
    pipeline_tag: ClassVar[str | None] = None
    """The Hugging Face Hub's name for this kind of task, if it has one."""

    feature_map: nn.Module
    backbone: nn.Module
    spec: DataSpec
    knows_data: bool
    """Whether ``spec`` describes actual data; otherwise it holds default values until data are attached."""
    answer_options: AnswerOptions = AnswerOptions()
    """What predictions contain; :meth:`predict` and the command set it for the time that they predict."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        spec: DataSpec | Mapping[str, Any] | None = None,
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        opt: str = "adamw",
        lr: float | None = None,
        lr_batch: int | None = None,
        min_lr: float = 1e-6,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        warmup_epochs: float = 0.0,
        opt_args: dict[str, Any] | None = None,
        decay_rate: float | None = None,
        decay_start: int = 1,
        plateau_patience: int | None = None,
        norm_eval: bool = False,
        freeze: Literal["backbone"] | None = None,
    ) -> None:
        super().__init__()

        # store_spec adds the specification. A module is no plain value and cannot be stored.
        not_stored = ["spec", "backbone"] if isinstance(backbone, nn.Module) else ["spec"]
        self.save_hyperparameters(ignore=not_stored)

        fine_tunes = pretrained or weights is not None
        lr = (FINE_TUNING_LR if fine_tunes else _LR) if lr is None else lr
        layer_decay = (FINE_TUNING_LAYER_DECAY if fine_tunes else 1.0) if layer_decay is None else layer_decay
        self.hparams["lr"] = lr  # a resumed run does not load the weights again that decided about them
        self.hparams["layer_decay"] = layer_decay
        check_recipe(opt, lr, min_lr, weight_decay, layer_decay, warmup_epochs)
        if decay_rate is not None and (not 0 < decay_rate <= 1 or decay_start < 1):
            raise InputError(
                f"decay_rate={decay_rate}, decay_start={decay_start}; expected a factor in (0, 1], and an epoch of 1 "
                "or more"
            )
        if plateau_patience is not None:
            if plateau_patience < 0:
                raise InputError(f"plateau_patience={plateau_patience}; expected a number of validations, 0 or more")
            if decay_rate is not None or warmup_epochs:
                raise InputError(
                    f"plateau_patience={plateau_patience} comes with decay_rate={decay_rate} and "
                    f"warmup_epochs={warmup_epochs}; choose one schedule, and leave the others out"
                )

        if freeze not in (None, "backbone"):
            raise InputError(f"freeze={freeze!r}; expected 'backbone' or None")

        self.opt = opt
        self.lr = lr
        self.lr_batch = lr_batch
        self.min_lr = min_lr
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.warmup_epochs = warmup_epochs
        self.opt_args = opt_args or {}
        self.decay_rate = decay_rate
        self.decay_start = decay_start
        self.plateau_patience = plateau_patience
        self.norm_eval = norm_eval
        self.freeze_part = freeze
        self._planned: tuple[float, ...] | None = None  # see _plan
        self.evaluated = SampleResults()
        self._kept_features: list[Tensor] | None = None  # see read

        self.knows_data = spec is not None
        self.store_spec(self.complete_spec(self.to_spec(spec)))

        if isinstance(backbone, str):
            backbone_args = self.complete_backbone_args(backbone_args or {})
            backbone = self.create_backbone(backbone, backbone_args, pretrained=pretrained and weights is None)
        elif backbone_args or pretrained:
            raise InputError("backbone_args and pretrained need the name of a model; a module is already built")
        self.build(backbone)

        if weights is not None:
            self.load(weights)
        if freeze == "backbone":
            self._freeze_backbone()
        self.train()  # a backbone may come in eval mode, and Lightning keeps the modes that it finds

    def create_backbone(self, name: str, backbone_args: dict[str, Any], *, pretrained: bool) -> nn.Module:
        """Create the backbone of this name; ``pretrained`` loads its published weights."""
        return build_backbone(name, pretrained=pretrained, **backbone_args)

    def build(self, backbone: nn.Module) -> None:
        """Store the backbone; subclasses also build the feature map and the head from ``self.spec``."""
        self.backbone = backbone

    def load(self, source: str) -> None:
        """Load weights from a file or the Hub; the statistics in the feature map stay those of the specification."""
        load_weights(self, source)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a task as Lightning does, but execute no code from the file.

        The pretrained weights with which the task was first built are not loaded again, since the weights of the
        checkpoint replace them.
        """
        options = {"pretrained": False, "weights": None, "weights_only": True} | kwargs
        return super().load_from_checkpoint(checkpoint_path, *args, **options)

    # What the task knows about its data

    @classmethod
    def to_spec(cls, spec: DataSpec | Mapping[str, Any] | None) -> Any:
        """Return a specification as it is, or build one from the dictionary in a checkpoint or from defaults."""
        if isinstance(spec, DataSpec):
            return spec
        return cls.spec_class.from_dict(spec or {})

    def complete_spec(self, spec: Any) -> Any:
        """Complete the specification from the task's own arguments, such as the number of classes."""
        return spec

    def complete_backbone_args(self, backbone_args: dict[str, Any]) -> dict[str, Any]:
        """Complete the arguments of a backbone that is built by name from the specification."""
        return backbone_args

    def store_spec(self, spec: DataSpec) -> None:
        """Store the specification in the task and in its hyperparameters, which are part of every checkpoint."""
        self.spec = spec
        self.hparams["spec"] = spec.to_dict()

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their labels; numbers as long as the data are not known."""
        return list(self.spec.classes)

    def setup(self, stage: str) -> None:
        """Read the specification of the attached data module, in the one place where the task looks at its data.

        Raises:
            InputError: if the data contradict the model.
        """
        data = attached_data_module(self.trainer)
        if data is None:
            return

        theirs = self.read_spec(data)
        if isinstance(theirs, self.spec_class):
            self.use_spec(theirs)
        else:  # a user's own data module may describe only its classes
            self.use_classes(theirs.classes)
        self.use_data(data, stage)

    def read_spec(self, data: DataModule) -> DataSpec:
        """Return the specification of the data, or only its settings if files are predicted without a data set."""
        return data.settings() if data.predicts_files else data.spec()

    def use_spec(self, theirs: Any) -> None:
        """Adopt the specification of the data if the task has none, and check that it does not contradict the task.

        Args:
            theirs: specification of the data, of type ``spec_class``.

        Raises:
            InputError: if the data have other classes.
        """
        self.use_classes(theirs.classes)
        if not self.knows_data:
            self.adopt_spec(replace(theirs, classes=self.spec.classes))

    def use_classes(self, theirs: tuple[str, ...]) -> None:
        """Adopt the class names of the data if only their number was known, and check that the classes agree.

        Raises:
            InputError: if the data have other classes; the message names them.
        """
        own = self.spec.classes
        if not own or not theirs or own == theirs:
            return
        check_class_count(len(own), theirs)
        _refuse_other_names(trained=own, given=theirs)
        if own == numbered_classes(len(own)):
            self.store_spec(replace(self.spec, classes=theirs))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the classes are those with which the checkpoint was trained.

        Raises:
            InputError: if the data have other classes; the message names them.
        """
        stored = checkpoint.get("hyper_parameters", {}).get("spec") or {}
        trained = tuple(stored.get("classes", ()))
        if len(trained) == len(self.spec.classes):
            _refuse_other_names(trained=trained, given=self.spec.classes)

    def adopt_spec(self, theirs: DataSpec) -> None:
        """Adopt the specification of the data; subclasses rebuild the parts that depend on it."""
        self.store_spec(theirs)
        self.knows_data = True

    def use_data(self, data: DataModule, stage: str) -> None:
        """Take what a specification cannot hold from the data module, such as a baseline; by default nothing."""

    # The flow

    def read(self, maps: Tensor) -> Any:
        """Apply backbone and head to maps (B, C, H, W). The classifier of a timm backbone counts as the head.

        While embeddings are computed, the features that the classifier takes are kept.
        """
        if self._kept_features is None:
            return self.backbone(maps)

        backbone: Any = self.backbone
        last_map = backbone.forward_features(maps)
        self._kept_features.append(backbone.forward_head(last_map, pre_logits=True).flatten(1).float())
        return backbone.forward_head(last_map)

    def to_maps(self, raw: Any) -> Tensor:
        """Turn a raw batch into maps (B, C, H, W), in the dtype of the backbone."""
        maps: Tensor = self.feature_map(*_arguments(raw))
        return maps.to(next(self.backbone.parameters()).dtype)

    def forward(self, *raw: Any) -> Any:
        """Return the output of the model for a raw batch."""
        return self.read(self.to_maps(raw))

    def augment_batch(self, raw: Any, target: Any) -> tuple[Any, Any]:
        """Augment a raw training batch; by default it stays as it is."""
        return raw, target

    def augment_map(self, maps: Tensor, target: Any) -> tuple[Tensor, Any]:
        """Augment training maps (B, C, H, W); by default they stay as they are."""
        return maps, target

    def training_output(self, raw: Any, target: Any) -> tuple[Any, Any]:
        """Augment a training batch, and return its output and its targets."""
        raw, target = self.augment_batch(raw, target)
        maps, target = self.augment_map(self.to_maps(raw), target)
        return self.read(maps), target

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the training loss, a scalar."""
        raise NotImplementedError

    def training_loss(self, raw: Any, target: Any) -> Tensor:
        """Return the loss of one raw training batch."""
        output, target = self.training_output(raw, target)
        return self.loss(output, target)

    def unpack(self, batch: Any) -> tuple[Any, Any]:
        """Split a batch into its raw part and its targets, or, in prediction, the names of its samples.

        The raw part is the argument of ``task(raw)``, or a tuple of arguments.
        """
        raw, target = batch
        return raw, target

    def batch_length(self, raw: Any) -> int:
        """Return the number of samples in a raw batch."""
        return len(_arguments(raw)[0])

    # Training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch, and log ``train_loss`` and ``lr``."""
        raw, target = self.unpack(batch)
        with explain_batch_norm_error():
            loss = self.training_loss(raw, target)

        check_loss(loss, self.global_step, self, lambda: self.training_output(raw, target))
        self.log_training(loss, self.batch_length(raw))
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop before a gradient that is not finite reaches the weights; a gradient scaler skips such steps itself."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            check_gradients(self.parameters(), self.global_step)

    def log_training(self, loss: Tensor, samples: int) -> None:
        """Log ``train_loss`` as a mean over the epoch, and ``lr`` at each step."""
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=samples, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True, on_epoch=False)

    # Evaluation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch to the validation metrics."""
        self._evaluate("val", batch, batch_idx, self.trainer.val_dataloaders)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch to the test metrics."""
        self._evaluate("test", batch, batch_idx, self.trainer.test_dataloaders)

    def _evaluate(self, split: EvaluationSplit, batch: Any, batch_idx: int, loader: Any) -> None:
        """Add one batch to the metrics, the examples and the results of a split."""
        if batch_idx == 0:
            self.evaluated.clear()
        raw, target = self.unpack(batch)
        output = self._checked_output(raw)

        # Every process gets the same number of samples, so the last ones may repeat samples of other processes.
        length = self.batch_length(raw)
        unique = length - padding_in_batch(loader, batch_idx, length)
        if unique < length:
            raw = first_samples(raw, unique)
            output = first_samples(output, unique)
            target = first_samples(target, unique)

        if unique:
            self.update_metrics(split, raw, output, target)
            self.keep_examples(split, raw, output, target)
        if unique and not self.trainer.sanity_checking:
            positions = positions_in_batch(loader, batch_idx) or self._counted(unique)
            self.evaluated.add(positions[:unique], self.sample_results(raw, output, target))
        self.log_metrics(split)

    def _counted(self, samples: int) -> list[int]:
        """Return the positions of samples that a loader of the user gives in order, divided among the processes."""
        first = len(self.evaluated.positions)
        return [(first + i) * self.trainer.world_size + self.global_rank for i in range(samples)]

    def _checked_output(self, raw: Any) -> Any:
        """Return the output for a raw batch; stop the run if it holds NaN."""
        run = partial(self, *_arguments(raw))
        output = run()
        check_output(output, self, run)
        return output

    def on_validation_epoch_end(self) -> None:
        """Log and draw the results of the validation split."""
        self.report("val")

    def on_test_epoch_end(self) -> None:
        """Log and draw the results of the test split."""
        self.report("test")

    def on_predict_epoch_end(self) -> None:
        """Draw some of the predictions."""
        self.report("predict")

    def update_metrics(self, split: EvaluationSplit, raw: Any, output: Any, target: Any) -> None:
        """Add one batch to the metrics of a split; repeated samples have been removed."""

    def log_metrics(self, split: EvaluationSplit) -> None:
        """Log the metric objects of a split; called after every batch, in every process."""

    def keep_examples(self, split: EvaluationSplit, raw: Any, output: Any, target: Any) -> None:
        """Keep some samples of a batch for the pictures; in ``predict``, ``target`` holds the names of the samples."""

    def report(self, split: EvaluationSplit) -> None:
        """Log the results of a split, draw its pictures, and reset both; called at the end of the split."""

    def sample_results(self, raw: Any, output: Any, target: Any) -> dict[str, Tensor]:
        """Return what the report needs of each sample of a batch: columns (B, ...) by name; by default none."""
        return {}

    def report_sections(self, split: EvaluationSplit, results: Mapping[str, np.ndarray]) -> list[Section]:
        """Return the sections on an evaluation in ``report.html``, by default the logged figures and the pictures.

        It is called after each evaluation whose report may be written, in the first process only. The content of the
        sections is made at the end of the run, from the values that they were given here.

        Args:
            split: the split.
            results: columns of :meth:`sample_results`, in the order of the split, with the ``position`` of each sample;
                empty if there are none.
        """
        return default_sections(self.trainer, split, self.baseline_names, self.pictures)

    def batch_count(self, split: EvaluationSplit) -> int:
        """Return the number of batches of a split, which is smaller in Lightning's sanity check."""
        trainer = self.trainer
        counts = {
            "val": trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches,
            "test": trainer.num_test_batches,
            "predict": trainer.num_predict_batches,
        }
        return int(sum(counts[split]))

    # Prediction

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list[Any]]:
        """Return the columns of ``predictions.csv`` for one batch."""
        return Predictions.of(self._answers_to(batch, keeps_examples=True))

    def _answers_to(self, batch: Any, *, keeps_examples: bool = False) -> list[Answer]:
        """Return an answer for each sample of a batch, in their order, with those that could not be read."""
        found, broken = batch if isinstance(batch, PartlyBroken) else (batch, [])
        answers = [] if found is None else self._answers_to_found(*self.unpack(found), keeps_examples=keeps_examples)
        for place, sample in broken:  # in rising order
            answers.insert(place, Answer.of_broken(sample))
        return answers

    def _answers_to_found(self, raw: Any, names: Any, *, keeps_examples: bool) -> list[Answer]:
        """Return an answer for each sample of a raw batch."""
        options = self.answer_options
        self._kept_features = [] if options.embeddings else None
        try:
            if options.reads_windows:
                windows = self.window_output(raw, names)
                check_output(windows.output, self, partial(self.window_output, raw, names))
                output, counts = windows.output, windows.counts
                rows = _with_times(self.rows(output, windows.names), windows)
            else:
                output = self._checked_output(raw)
                rows = columns_to_rows(self.rows(output, names))
                length = self.batch_length(raw)
                counts = [len(rows) // length] * length  # a forecast has a row for each step
                if keeps_examples:
                    self.keep_examples("predict", raw, output, names)
            vectors = None
            if self._kept_features is not None:
                vectors = self.pool_features(self._kept_features, raw).cpu().numpy()
        finally:
            self._kept_features = None

        above = [] if options.threshold is None else self.classes_above(output, options.threshold)
        if self.answers_classes:
            rows = [{**row, "error": None} for row in rows]

        answers: list[Answer] = []
        first = 0
        for count in counts:
            part = slice(first, first + count)
            answers.append(Answer(rows[part], None if vectors is None else vectors[part], above[part]))
            first += count
        return answers

    def window_output(self, raw: Any, names: Any) -> WindowOutput:
        """Return the output for each window of the samples of a raw batch; for tasks with ``has_windows``."""
        raise NotImplementedError

    def classes_above(self, output: Any, threshold: float) -> list[dict[str, float]]:
        """Return the classes of each window whose probability is above a threshold, with it."""
        raise NotImplementedError

    def pool_features(self, features: list[Tensor], raw: Any) -> Tensor:
        """Turn the features (B, D) of each call of :meth:`read` into one vector for each row: their mean.

        Args:
            features: features (B, D) float32 of the views of the samples.
            raw: the raw batch.
        """
        return torch.stack(features).mean(dim=0)

    def rows(self, output: Any, names: Any) -> dict[str, list[Any]]:
        """Return the columns of ``predictions.csv`` for one batch: a list of values, one for each sample, by name.

        Args:
            output: output of the model.
            names: names of the samples.
        """
        raise NotImplementedError

    def predict(
        self,
        source: Any,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
        top_k: int | None = None,
        all: bool = False,
        windows: bool = False,
        threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Predict on files or arrays, as ``lightning predict`` does, without a trainer.

        Args:
            source: a file, a folder, an array of one sample in the form that ``task(raw)`` takes, or a list of these.
            batch_size: number of samples in a batch.
            num_workers: processes that read files; 0 reads in this process.
            top_k: number of the most probable classes in a row; by default 3, or all if there are fewer.
            all: add the probability of every class, in columns such as ``p_cat``.
            windows: return a row for each window of a recording or video, with its start and end in seconds.
            threshold: return events instead: neighboring windows of a class whose probability is above this number.

        Returns:
            The rows of ``predictions.csv``, as dictionaries, or of events. A file that cannot be read is a row with the
            reason as ``error``, which is None in all other rows.

        Raises:
            MissingError: if there is no such file.
            InputError: if no file can be read, the task does not know the data that it was trained on, or an option
                does not suit it.
        """
        options = AnswerOptions(top_k=top_k, all=all, windows=windows, threshold=threshold)
        events = EventMerger()
        rows: list[dict[str, Any]] = []
        for answers in self._answer_batches(source, options, batch_size, num_workers):
            if threshold is None:
                rows += [row for answer in answers for row in answer.rows]
            else:
                rows += events.add(answers)

        rows += events.finish()
        if threshold is not None:
            return rows
        names = next((list(row) for row in rows if row.get("error") is None), [])
        return [{name: row.get(name) for name in names} for row in rows] if self.answers_classes else rows

    def embed(self, source: Any, *, batch_size: int = 32, num_workers: int = 0) -> Tensor:
        """Return the embeddings of files or arrays: the features that the classifier takes.

        For one image, they are ``backbone.forward_head(backbone.forward_features(map), pre_logits=True)``, as timm has
        them. Those of the windows of a recording, or of the views of a video or cloud, are averaged.

        Args:
            source: a file, a folder, an array of one sample in the form that ``task(raw)`` takes, or a list of these.
            batch_size: number of samples in a batch.
            num_workers: processes that read files; 0 reads in this process.

        Returns:
            Features (N, D) float32 on the CPU, in the order of the files.

        Raises:
            MissingError: if there is no such file.
            InputError: if a file cannot be read, or the task has no such features.
        """
        vectors: list[np.ndarray] = []
        for answers in self._answer_batches(source, AnswerOptions(embeddings=True), batch_size, num_workers):
            for answer in answers:
                if answer.vectors is None:
                    raise InputError(answer.error or "there are no features")
                vectors.append(answer.vectors)
        return torch.from_numpy(np.concatenate(vectors))

    @torch.no_grad()
    def _answer_batches(
        self, source: Any, options: AnswerOptions, batch_size: int, num_workers: int
    ) -> Iterator[list[Answer]]:
        """Yield the answers to the samples of one batch after another; raise an error if none could be read."""
        options.check(self)
        data = self.prediction_data(batch_size=batch_size, num_workers=num_workers)
        data.use_sources(source)
        if options.reads_windows:
            data.use_windows()

        was_training = self.training
        before = self.answer_options
        self.eval()
        self.answer_options = options
        reasons: list[str | None] = []
        try:
            for batch in data.predict_dataloader():
                answers = self._answers_to(move_data_to_device(batch, self.device))
                reasons += [answer.error for answer in answers]
                yield answers
        finally:
            self.train(was_training)
            self.answer_options = before

        failed = [reason for reason in reasons if reason is not None]
        check_some_answered(len(failed), len(reasons), failed[0] if failed else None)

    def prediction_data(self, *, batch_size: int, num_workers: int) -> Any:
        """Build a data module that reads files and arrays as this task needs them."""
        data_class: Any = self.data_class
        return data_class.from_spec(self.spec, batch_size=batch_size, num_workers=num_workers)

    def backtest(self, data: DataModule, folder: Path, *, stride: int | None = None) -> None:
        """Forecast from many origins, and write the errors; tasks that forecast implement this.

        Args:
            data: data module with the series.
            folder: folder for the results.
            stride: number of steps from one origin to the next.

        Raises:
            InputError: if this task does not forecast.
        """
        raise InputError(f"{type(self).__name__} forecasts no series; backtest is for tasks that do")

    # Export

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Return the module that ``lightning export`` writes, and inputs on which its outputs are verified.

        Args:
            raw: up to four validation samples, as the arguments of ``task(*raw)``.
            source: whether the input of the exported module is a raw batch or its maps.

        Raises:
            InputError: if this task cannot be exported.
        """
        return exported(self, raw, source)

    @classmethod
    def trusts_file(cls, name: str, value: Any) -> bool:
        """Return whether a checkpoint may set this argument of ``runs_files`` to this value; by default never."""
        return False

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts of the model by name, which the command lists with their parameters."""
        return dict(self.named_children())

    # Modes, seeds and the optimizer

    @classmethod
    def chosen_by(cls, args: Mapping[str, Any]) -> tuple[str, str]:
        """Return the metric that chooses the best checkpoint, and its mode, 'min' or 'max'.

        Args:
            args: arguments of the data module and of the task.
        """
        return cls.monitor, cls.monitor_mode

    def chosen(self) -> tuple[str, str]:
        """Return the metric that chooses the best checkpoint of this task, and its mode."""
        return self.chosen_by({**self.spec.to_dict(), **self.hparams})

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; batch norms stay in eval mode with ``norm_eval``, and so does a frozen backbone."""
        super().train(mode)
        if self.freeze_part == "backbone":
            self.backbone.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_backbone(self) -> None:
        """Freeze all parameters of the backbone but those of its classifier."""
        self.backbone.requires_grad_(False)
        classifier = getattr(self.backbone, "get_classifier", lambda: None)()
        if isinstance(classifier, nn.Module):
            classifier.requires_grad_(True)

    def on_train_epoch_start(self) -> None:
        """Seed drop path, mixing and augmentation by (seed, epoch, process), so that a resumed run repeats them."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            epoch_seed = hash((int(seed), self.current_epoch, self.global_rank)) % 2**32
            random.seed(epoch_seed)
            np.random.seed(epoch_seed)
            torch.manual_seed(epoch_seed)

    def on_fit_start(self) -> None:
        """Set up the optimizer again if a callback such as ``LearningRateFinder`` has changed the plan."""
        if self._planned is not None and self._planned != self._plan():
            self.trainer.strategy.setup_optimizers(self.trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer with its parameter groups, and the schedule of the learning rate.

        Raises:
            InputError: if the optimizer does not take ``opt_args``, a callback would add parameters to it later, or the
                trainer does not suit the schedule.
        """
        self._refuse_unfreezing()
        self._planned = self._plan()
        lr = self.lr * self._batch_scale()

        groups = self.parameter_groups(lr)
        try:
            optimizer = create_optimizer_v2(groups, opt=self.opt, lr=lr, weight_decay=0.0, **self.opt_args)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.opt} does not take opt_args={self.opt_args}: {error}; lr and weight_decay are set elsewhere"
            ) from error

        if self.plateau_patience is not None:
            return {"optimizer": optimizer, "lr_scheduler": self._plateau(optimizer, self.plateau_patience)}
        schedule = LambdaLR(optimizer, self._schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimizer, each with its learning rate and weight decay."""
        return parameter_groups(self, lr=lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)

    def _plateau(self, optimizer: Optimizer, patience: int) -> LRSchedulerConfigType:
        """Return a scheduler that lowers the learning rate when validation stops getting better.

        It takes a step right after each validation. Lightning's interval 'epoch' would take it after the checkpoint of
        the epoch, and a resumed run would lack it.
        """
        trainer = self.trainer
        monitor, mode = self.chosen()
        checkpoint: Any = next((c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None)), None)
        if checkpoint is not None:
            monitor, mode = checkpoint.monitor, checkpoint.mode
        every = trainer.check_val_every_n_epoch
        batches = trainer.val_check_batch or math.inf  # from one validation to the next
        validates = every == 1 and trainer.enable_validation and not math.isinf(batches)
        if not validates or monitor.startswith("train_"):
            raise InputError(
                "plateau_patience needs a validation in each epoch and a metric of validation; here "
                f"check_val_every_n_epoch is {every}, limit_val_batches {trainer.limit_val_batches}, and the metric "
                f"{monitor}"
            )

        schedule = ReduceLROnPlateau(
            optimizer,
            mode=cast(Literal["min", "max"], mode),
            patience=patience,
            min_lr=[self.min_lr / self.lr * group["lr"] for group in optimizer.param_groups],
            eps=0.0,  # by default torch keeps rates below 1e-8, which early layers have with a layer decay
        )
        return {
            "scheduler": schedule,
            "monitor": monitor,
            "interval": "step",
            "frequency": int(batches),
        }

    def _refuse_unfreezing(self) -> None:
        """Raise an error for callbacks that unfreeze parameters during training."""
        for callback in getattr(self.trainer, "callbacks", ()):
            if isinstance(callback, BaseFinetuning):
                raise InputError(
                    f"{type(callback).__name__} adds parameters to the optimizer during training, and the schedule has "
                    "no rates for them. Freeze parameters with requires_grad_(False) before fit, and train all of them "
                    "in a second run from those weights (--model.weights FILE), or use --model.layer_decay"
                )

    def _schedule(self) -> Callable[[int], float]:
        """Return the factor on the learning rate as a function of the step: a partial, since these can be pickled."""
        steps, epoch = self._steps()
        if math.isinf(epoch) and (self.warmup_epochs or self.decay_rate is not None):
            raise InputError(
                "warmup_epochs and decay_rate count epochs, and the training data have no length; set "
                "--trainer.limit_train_batches, or leave both out and set --trainer.max_steps"
            )
        if math.isinf(steps) and self.decay_rate is None:
            limit = "max_epochs" if math.isfinite(epoch) else "limit_train_batches (the training data have no length)"
            raise InputError(f"the cosine schedule needs an end; set --trainer.max_steps or --trainer.{limit}")

        total = int(min(steps, sys.maxsize))  # the largest integer stands for no end
        warmup = round(self.warmup_epochs * epoch) if self.warmup_epochs else 0
        if warmup > steps >= 0 and not getattr(self.trainer, "fast_dev_run", False):
            rank_zero_warn(
                f"The warm-up of {self.warmup_epochs} epochs takes {warmup} steps and the run {total}: the run ends "
                "before the learning rate reaches lr. Train longer, or set fewer warmup_epochs"
            )

        return partial(
            run_factor,
            epoch=int(max(1, min(epoch, sys.maxsize))),
            decay_rate=self.decay_rate,
            decay_start=self.decay_start,
            warmup=warmup,
            total=total,
            floor=min(1.0, self.min_lr / self.lr),
        )

    def _plan(self) -> tuple[float, ...]:
        """Return the numbers from which the optimizer is built and which a callback may change before training."""
        return self.lr, self._batch_scale(), *self._steps()

    def _steps(self) -> tuple[float, float]:
        """Return the number of optimizer steps in the run and that in an epoch; infinite if they are unknown."""
        trainer = self.trainer
        trainer.fit_loop.setup_data()  # if only max_steps limits the run, Lightning has not counted the batches yet
        batches = trainer.num_training_batches if trainer.limit_train_batches else 0
        if math.isinf(batches):
            # If the data have no length, only max_steps limits the run; -1 stands for no limit.
            steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
            return steps, math.inf

        return trainer.estimated_stepping_batches, math.ceil(batches / trainer.accumulate_grad_batches)

    def _batch_scale(self) -> float:
        """Return the actual global batch size divided by ``lr_batch``, by which the learning rate is multiplied."""
        if self.lr_batch is None:
            return 1.0

        data = attached_data_module(self.trainer)
        if data is None:
            raise InputError(
                "lr_batch needs a core.data.module.DataModule, which knows the batch size; leave it out, and scale lr "
                "yourself"
            )
        return data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches / self.lr_batch


def check_class_count(count: int, classes: Sequence[str]) -> None:
    """Raise an InputError if a model does not have as many classes as the data."""
    if count != len(classes):
        raise InputError(
            f"the model has {count} classes and the data {len(classes)} ({listed(classes)}); leave "
            f"--model.num_classes out, or set it to {len(classes)}"
        )


def _refuse_other_names(*, trained: tuple[str, ...], given: tuple[str, ...]) -> None:
    """Raise an error if equally many classes have other names, unless one side has numbers instead of names."""
    unnamed = numbered_classes(len(trained))
    if trained == given or unnamed in (trained, given):
        return

    pairs = zip(trained, given, strict=True)
    differing = [f"{own} where the data have {theirs}" for own, theirs in pairs if own != theirs]
    raise InputError(
        f"the model was trained on other classes than those of the data: {listed(differing)}; give data with its "
        "classes, or start a new run from its weights with --model.weights CHECKPOINT"
    )


@contextmanager
def explain_batch_norm_error() -> Iterator[None]:
    """Replace torch's error for a batch norm with one value for each channel by an error that says what to type."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a batch norm needs more than one value for each channel, and here the batch is one sample whose map is "
            "one pixel. Set --data.batch_size 2 or more, give larger samples, or set --model.norm_eval true, which "
            "keeps the statistics of the batch norms as they are"
        ) from error


def _arguments(raw: Any) -> tuple[Any, ...]:
    """Return the arguments of ``task(...)``: a tuple as it is, anything else as the only argument."""
    return raw if isinstance(raw, tuple) else (raw,)


def _with_times(columns: Mapping[str, Sequence[Any]], windows: WindowOutput) -> list[dict[str, Any]]:
    """Return rows with the start and the end of their windows after the probability."""
    full: dict[str, Sequence[Any]] = {}
    for name, values in columns.items():
        full[name] = values
        if name == "probability":
            full["start"] = [round(start, 3) for start in windows.starts]
            full["end"] = [round(end, 3) for end in windows.ends]
    return columns_to_rows(full)


def first_samples(values: Any, count: int) -> Any:
    """Return the first samples of a batch, which is a tensor, a list, or a tuple or dictionary of these."""
    if isinstance(values, tuple):
        return tuple(first_samples(value, count) for value in values)
    if isinstance(values, dict):
        return {name: first_samples(value, count) for name, value in values.items()}
    return values[:count]
