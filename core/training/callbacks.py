"""The callbacks of every run of the command: checkpoints, learning curves, predictions, what the terminal shows."""

from __future__ import annotations

import csv
import math
import os
import shlex
import signal
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning_utilities.core.rank_zero import rank_zero_info
from rich.progress import TimeRemainingColumn
from torch import Tensor

from core.data.labeled import SampleDataModule
from core.data.module import attached_data_module
from core.errors import printable
from core.figures import new_figure
from core.io.atomic import atomic_write
from core.training.plots import draw_figure
from core.training.run_folder import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LearningCurves",
    "ModelTable",
    "PredictionWriter",
    "ProgressLine",
    "RunCheckpoint",
    "RunRecord",
    "SigtermCallback",
    "run_summary",
]


# What a run keeps


class _Measured(Callback):
    """Knows whether the current weights are those of the last validation, or have changed since.

    Attributes:
        measured: False from the next training batch after a validation on.
    """

    measured = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that the weights change."""
        self.measured = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the weights were measured."""
        self.measured = True
        super().on_validation_end(trainer, pl_module)


class RunCheckpoint(_Measured, ModelCheckpoint):
    """The checkpoint callback of the command, which saves exactly the weights that validation has measured.

    Validation at the end of an epoch is followed by a checkpoint of the complete epoch. Validation within an epoch is
    followed by a checkpoint at once. An epoch without a validation cannot be the best one, and neither can one whose
    metric or validation loss is not finite.

    Its state is stored under its file name. Lightning makes that name from the moments at which a callback saves, and
    refuses two callbacks with the same ones, so that the user's own ``ModelCheckpoint`` could not stand beside it.

    Args:
        filename: name of the file, without a suffix.
        monitor: metric that chooses the best epoch; None keeps the last epoch. The command takes the task's.
        mode: whether the smallest ('min') or the largest ('max') value is best.
        save_top_k: number of best epochs to keep; with more than one, put {epoch} into the file name. -1 keeps all.
        every_n_epochs: epochs between two checkpoints.
        save_weights_only: leave out the state of the optimizer; such a run cannot be resumed.
        dirpath: folder; by default ``checkpoints`` in the run folder.
    """

    def __init__(
        self,
        filename: str = "best",
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        every_n_epochs: int = 1,
        save_weights_only: bool = False,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            save_weights_only=save_weights_only,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint: file name and metric."""
        return self._generate_state_key(filename=self.filename, monitor=self.monitor)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the epoch, unless the metric is that of earlier weights."""
        if self.measured or not self._needs_validation(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the current weights are among the best; weights that diverged never are."""
        values = [current, trainer.callback_metrics.get("val_loss")]
        finite = all(value is None or bool(value.isfinite().all()) for value in values)
        if not trainer.strategy.reduce_boolean_decision(finite):
            return False
        return super().check_monitor_top_k(trainer, current)

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        """Whether to wait for the end of the epoch, where a resumed run can begin with the next one."""
        is_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return is_end or not self._needs_validation(trainer)

    def _needs_validation(self, trainer: Trainer) -> bool:
        """Whether validation gives the metric by which the checkpoint is chosen."""
        if self.monitor is None or self.monitor.startswith("train_"):
            return False
        return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0


class RunRecord(_Measured):
    """Stores in every checkpoint what one needs to know of its run.

    Checkpoints get the configuration, as ``config``, and what validation measured on exactly the stored weights, as
    ``metrics``; the run folder gets ``config.yaml``.

    Args:
        config: the configuration of the run in YAML.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``."""
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            with atomic_write(folder / "config.yaml") as unfinished:
                unfinished.write_text(self.config, encoding="utf-8")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what validation gave."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking:
            return
        values = trainer.callback_metrics.items()
        self.metrics = {name: float(value) for name, value in values if name.startswith("val_")}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the configuration, and the metrics if they are those of these weights."""
        checkpoint["config"] = self.config
        if self.measured and self.metrics:
            checkpoint["metrics"] = dict(self.metrics)


class LearningCurves(_Measured):
    """Draws every logged metric over the epochs into ``learning_curves.png``; a resumed run continues the curves.

    Attributes:
        history: (epoch, value) pairs of each metric. The end of an epoch has its number, counted from 0; a validation
            within an epoch lies between the ends of two, as 1.4 after 40 percent of epoch 2.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[float, float]]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add what a validation within an epoch gave."""
        super().on_validation_end(trainer, pl_module)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        batches = trainer.num_training_batches
        if trainer.sanity_checking or progress.is_last_batch or math.isinf(batches):
            return
        share = progress.current.ready / batches
        self._add(trainer, round(trainer.current_epoch - 1 + share, 4), only="val_")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the metrics of this epoch and draw the picture again."""
        self._add(trainer, trainer.current_epoch)
        draw_figure(trainer, "learning_curves", self.figure)

    def _add(self, trainer: Trainer, epoch: float, only: str = "") -> None:
        """Add the metrics whose names begin with ``only``, but none of an earlier validation."""
        for name, value in trainer.callback_metrics.items():
            if not name.startswith(only) or (name.startswith("val_") and not self.measured):
                continue
            points = self.history.setdefault(name, [])
            if not points or points[-1][0] < epoch:
                points.append((epoch, float(value)))

    def figure(self) -> Figure:
        """One panel for each metric; training, validation and the baselines of a metric share one."""
        panels: dict[str, list[str]] = {}
        for name in sorted(self.history):
            metric = name.removeprefix("train_").removeprefix("val_")
            # val_mse_last, a baseline, is drawn beside val_mse
            panel = next((known for known in panels if metric.startswith(f"{known}_")), metric)
            panels.setdefault(panel, []).append(name)

        figure = new_figure(4 * len(panels), 3.4)
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, (metric, names) in zip(grid.flat, panels.items(), strict=True):
            for name in names:
                epochs, values = zip(*self.history[name], strict=True)
                axes.plot(epochs, values, marker=".", label=name)
            axes.set(xlabel="epoch", title=metric)
            axes.grid(alpha=0.3)
            axes.legend()
        return figure

    def state_dict(self) -> dict[str, Any]:
        """The history, for the checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the history of a checkpoint."""
        self.history = state_dict["history"]


class PredictionWriter(Callback):
    """Writes the columns that ``predict_step`` returns to ``predictions.csv``, in the order of the data.

    ``predict_step`` returns lists of one length by the name of their column. The first process gathers the rows of
    several processes. The file appears only when it is complete.

    Args:
        path: where to write; by default ``predictions.csv`` in the run folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of one batch."""
        for values in zip(*outputs.values(), strict=True):
            self.rows.append(dict(zip(outputs, values, strict=True)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and write them."""
        rows = self._gathered(trainer.world_size)
        self.rows = []
        if not trainer.is_global_zero or not rows:
            return

        folder = run_folder(trainer) or Path(trainer.default_root_dir)
        path = Path(self.path) if self.path else folder / "predictions.csv"
        with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            for row in rows:
                texts = {key: printable(value) for key, value in row.items() if isinstance(value, str)}
                writer.writerow(row | texts)
        rank_zero_info(f"Wrote {len(rows)} predictions to {path}")

    def _gathered(self, processes: int) -> list[dict[str, Any]]:
        if processes == 1:
            return self.rows

        parts: list[Sequence[dict[str, Any]]] = [[] for _ in range(processes)]
        dist.all_gather_object(parts, self.rows)
        in_order = chain.from_iterable(zip_longest(*parts))  # sample i went to process i mod P
        return [row for row in in_order if row is not None]


class SigtermCallback(Callback):
    """Lets SIGTERM end each of several processes by itself, as it ends a single one.

    Lightning's handler first waits for a message from process 0 to all. Where the signal came in the middle of another
    such message, none of the processes would end. Under SLURM, Lightning's handler stays: it saves and requeues.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)  # the command's, before Lightning sets its own

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the handler, which belongs to this process: a spawned one has no command around it."""
        return self.__dict__ | {"handler": None}

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and "SLURM_JOB_ID" not in os.environ and callable(self.handler):
            signal.signal(signal.SIGTERM, self.handler)

    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _restore


# What the terminal shows


class ModelTable(Callback):
    """Prints the feature map and the parts of the model that have parameters, before training."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return

        parts = [
            (name, type(module).__name__, _count(module))
            for name, module in pl_module.named_children()
            if _count(module) or name == "feature_map"
        ]
        names = max((len(name) for name, _, _ in parts), default=0)
        kinds = max((len(kind) for _, kind, _ in parts), default=0)
        for name, kind, count in parts:
            print(f"  {name:{names}}  {kind:{kinds}}  {count:>13,} parameters")

        frozen = sum(weight.numel() for weight in pl_module.parameters() if not weight.requires_grad)
        if frozen:
            print(f"  {frozen:,} of {_count(pl_module):,} parameters are frozen")


def _count(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


class ProgressLine(RichProgressBar):
    """Lightning's progress bar without the version and the speed, so that a line of 100 columns holds the metrics."""

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Description, a short bar, batches, and the time that remains or, at the end, was taken; metrics follow."""
        description, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = 10
        return [description, bar, batches, TimeRemainingColumn(elapsed_when_finished=True)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics that tasks log with ``prog_bar=True``."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)


def run_summary(trainer: Trainer) -> str:
    """What a finished fit gave: the best epoch beside its baselines, the files of the run, and the next commands."""
    lines = _best_epoch(trainer)

    folder = run_folder(trainer)
    if folder is not None:
        files = sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".csv"))
        lines += [f"Run folder: {_from_here(folder)}", f"  {', '.join(files)}"]

    checkpoint = next((file for file in _checkpoints(trainer) if file.is_file()), None)
    if checkpoint is not None:
        is_in_folder = folder is not None and checkpoint.parent == folder / "checkpoints"
        given = shlex.quote(_from_here(folder if is_in_folder and folder else checkpoint))
        lines += ["Next:", f"  lightning test --ckpt_path {given}"]
        predict = f"  lightning predict --ckpt_path {given}"
        if isinstance(attached_data_module(trainer), SampleDataModule):
            predict += " --data.predict_path FILE_OR_FOLDER"
        lines.append(predict)
        if getattr(trainer.lightning_module, "can_export", False):
            lines.append(f"  lightning export --ckpt_path {given}")

    return "\n".join(lines)


def _best_epoch(trainer: Trainer) -> list[str]:
    """The monitored metric at its best, and what the baselines of the task gave in the same epoch."""
    best = next((c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None)), None)
    callbacks: list[Callback] = cast(Any, trainer).callbacks
    curves = next((c for c in callbacks if isinstance(c, LearningCurves)), None)
    if not isinstance(best, ModelCheckpoint) or curves is None or best.monitor not in curves.history:
        return []

    points = [point for point in curves.history[best.monitor] if math.isfinite(point[1])]
    if not points:
        return []
    choose = max if best.mode == "max" else min
    epoch, value = choose(points, key=lambda point: point[1])
    lines = [f"Best epoch: {epoch:g} (of 0 to {points[-1][0]:g}), {best.monitor} {value:.4g}"]

    baselines = {}
    for baseline in getattr(trainer.lightning_module, "baseline_names", ()):
        values = dict(curves.history.get(f"{best.monitor}_{baseline}", []))
        if epoch in values:
            baselines[f"{best.monitor}_{baseline}"] = values[epoch]
    if baselines:
        lines.append("Baselines: " + ", ".join(f"{name} {value:.4g}" for name, value in baselines.items()))
    return lines


def _from_here(path: Path) -> str:
    """A path as a user in the current folder types it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _checkpoints(trainer: Trainer) -> list[Path]:
    """The best checkpoint, then the last one, of the command's own callbacks."""
    own = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint)]
    return [Path(callback.best_model_path) for callback in own if callback.best_model_path]
