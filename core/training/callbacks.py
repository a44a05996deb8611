"""The callbacks that the command adds to every run: checkpoints, learning curves, and its display."""

from __future__ import annotations

import math
import os
import shlex
import signal
from collections.abc import Sized
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from rich.progress import TimeRemainingColumn
from torch import Tensor

from core.data.labeled import SampleDataModule
from core.data.module import attached_data_module
from core.errors import listed
from core.figures import new_figure
from core.io.atomic import atomic_write
from core.io.checkpoint import is_of_split
from core.training.plots import draw_figure
from core.training.report import (
    Block,
    Preformatted,
    Section,
    Table,
    figure_picture,
    render_page,
    takes_page,
    write_page,
)
from core.training.run_folder import from_here, run_folder
from core.training.task import EvaluationSplit, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LearningCurves",
    "ModelTable",
    "ProgressLine",
    "RunCheckpoint",
    "RunRecord",
    "RunReport",
    "SigtermCallback",
    "best_mode",
    "run_summary",
    "saved_checkpoint",
]


_BETTER = 0.02
"""Share by which a model must be better than a baseline: validation, which chose the epoch, flatters it a little."""

_LOWER_IS_BETTER = ("loss", "mse", "mae", "mape", "mase", "error", "pinball", "ece")
"""Parts of the names of metrics whose smallest value is best."""


# What a run saves


class _Measured(Callback):
    """Base of the callbacks that must know whether validation has measured the current weights.

    Attributes:
        measured: True after a validation, False as soon as the next training batch begins.
    """

    measured = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record that the weights are about to change."""
        self.measured = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the weights were measured."""
        self.measured = True
        super().on_validation_end(trainer, pl_module)


class RunCheckpoint(_Measured, ModelCheckpoint):
    """The checkpoint callback of the command, which saves exactly the weights that validation has measured.

    A validation at the end of an epoch is followed by a checkpoint of the complete epoch, and a validation within an
    epoch by a checkpoint at once. An epoch without validation cannot be the best one, nor can an epoch whose metric or
    validation loss is not finite.

    Args:
        filename: name of the file, without a suffix.
        monitor: metric that chooses the best epoch; None keeps the last epoch. By default the command sets the metric
            of the task.
        mode: whether the smallest ('min') or the largest ('max') value is best; 'auto': 'min' for losses and errors.
        save_top_k: number of best epochs to keep; with more than one, put {epoch} into the file name. -1 keeps all.
        every_n_epochs: epochs from one checkpoint to the next.
        save_weights_only: leave out the state of the optimizer; such a run cannot be resumed.
        dirpath: folder of the file; by default ``checkpoints`` in the run folder.
    """

    def __init__(
        self,
        filename: str = "best",
        monitor: str | None = None,
        mode: Literal["auto", "min", "max"] = "auto",
        save_top_k: int = 1,
        every_n_epochs: int = 1,
        save_weights_only: bool = False,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=best_mode(monitor or "") if mode == "auto" else mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            save_weights_only=save_weights_only,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """The key under which a checkpoint stores the state of this callback: file name and metric.

        Lightning's key has the triggers of saving instead, and two callbacks must not have the same key. With it, users
        could not add a ``ModelCheckpoint`` of their own.
        """
        return self._generate_state_key(filename=self.filename, monitor=self.monitor)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the epoch, unless the metric belongs to earlier weights."""
        if self.measured or not self._needs_validation(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether the current weights are among the best; weights that diverged never are."""
        values = [current, trainer.callback_metrics.get("val_loss")]
        is_finite = all(bool(value.isfinite().all()) for value in values if value is not None)
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            return False
        return super().check_monitor_top_k(trainer, current)

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        """Return whether to save at the end of the epoch, so that a resumed run begins with the next one."""
        is_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return is_end or not self._needs_validation(trainer)

    def _needs_validation(self, trainer: Trainer) -> bool:
        """Return whether the metric that chooses the checkpoint comes from validation."""
        if self.monitor is None or self.monitor.startswith("train_"):
            return False
        return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0


def best_mode(metric: str) -> Literal["min", "max"]:
    """Return whether the smallest ('min') or the largest ('max') value of a metric is best, by its name."""
    return "min" if any(part in metric for part in _LOWER_IS_BETTER) else "max"


class RunRecord(_Measured):
    """Adds the configuration and the validation metrics of the run to every checkpoint.

    A checkpoint gets the configuration as ``config`` and, if validation has measured exactly the stored weights, the
    metrics as ``metrics``. The run folder gets ``config.yaml``, and loggers without a folder the same settings.

    Args:
        config: configuration of the run, as YAML text.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``, and send the configuration to loggers such as those of W&B and MLflow."""
        if not trainer.is_global_zero:
            return

        folder = run_folder(trainer)
        if folder is not None:
            with atomic_write(folder / "config.yaml") as unfinished:
                unfinished.write_text(self.config, encoding="utf-8")
        for logger in trainer.loggers:
            if not getattr(logger, "log_dir", None):
                self._send_config(logger)

    def _send_config(self, logger: Any) -> None:
        """Send the configuration to a logger that has no folder."""
        log_text = getattr(logger.experiment, "log_text", None)
        run_id = getattr(logger, "run_id", None)
        if callable(log_text) and run_id:  # MLflow, whose parameters cannot change when a run is resumed
            log_text(run_id, self.config, "config.yaml")
        else:
            logger.log_hyperparams(yaml.safe_load(self.config))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation metrics."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking:
            return

        values = trainer.callback_metrics.items()
        self.metrics = {name: float(value) for name, value in values if is_of_split(name, "val")}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, and the metrics if they belong to these weights."""
        checkpoint["config"] = self.config
        if self.measured and self.metrics:
            checkpoint["metrics"] = dict(self.metrics)


class LearningCurves(_Measured):
    """Plots every logged metric over the epochs in ``learning_curves.png``; a resumed run continues the curves.

    Attributes:
        history: (epoch, value) pairs of each metric. Values at the end of epoch n, counted from 0, are at n. Values of
            a validation within an epoch lie in between: at 1.4 after 40 percent of epoch 2.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[float, float]]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the metrics of a validation within an epoch."""
        super().on_validation_end(trainer, pl_module)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        batches = trainer.num_training_batches
        if trainer.sanity_checking or progress.is_last_batch or math.isinf(batches):
            return

        share = progress.current.ready / batches
        self._add(trainer, round(trainer.current_epoch - 1 + share, 4), only_validation=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the metrics of this epoch and redraw the picture."""
        self._add(trainer, trainer.current_epoch)
        draw_figure(trainer, "learning_curves", self.figure)

    def _add(self, trainer: Trainer, epoch: float, only_validation: bool = False) -> None:
        """Add the current metrics, or only those of validation, without those of an earlier validation."""
        for name, value in trainer.callback_metrics.items():
            is_validation = is_of_split(name, "val")
            is_outdated = is_validation and not self.measured
            if is_outdated or (only_validation and not is_validation):
                continue

            points = self.history.setdefault(name, [])
            if not points or points[-1][0] < epoch:
                points.append((epoch, float(value)))

    def figure(self) -> Figure:
        """Return a figure with a panel for each metric, which training, validation and the baselines share."""
        panels = self._panels()
        columns = min(len(panels), 3)
        rows = math.ceil(len(panels) / columns)
        figure = new_figure(4 * columns, 3.4 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes, (metric, names) in zip(grid.flat, panels.items(), strict=False):
            for name in names:
                epochs, values = zip(*self.history[name], strict=True)
                axes.plot(epochs, values, marker=".", label=name)
            axes.set(xlabel="epoch", title=metric)
            axes.locator_params(axis="x", integer=True)
            axes.grid(alpha=0.3)
            axes.legend()
        return figure

    def _panels(self) -> dict[str, list[str]]:
        """Return the names of the curves in each panel, by the name of the metric without its split and its member."""
        panels: dict[str, list[str]] = {}
        for name in sorted(self.history, key=lambda name: name.rpartition("/")[::-1]):
            metric = name.rpartition("/")[2].removeprefix("train_").removeprefix("val_")
            # A baseline such as val_mse_last belongs to the panel of val_mse, which comes first in sorted order.
            panel = next((known for known in panels if metric.startswith(f"{known}_")), metric)
            panels.setdefault(panel, []).append(name)
        return panels

    def state_dict(self) -> dict[str, Any]:
        """Return the history, which becomes part of the checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the history of a checkpoint."""
        self.history = state_dict["history"]


@dataclass(frozen=True)
class _Evaluation:
    """The part of a report that one evaluation gives."""

    epoch: int
    sections: list[Section]


class RunReport(Callback):
    """Writes ``report.html``: one file with figures and their intervals, pictures, configuration and commands.

    After ``validate`` and ``test`` it is on that evaluation. At the end of ``fit`` it is on the validation whose
    weights are those of the best checkpoint, as it was measured in training, so that nothing is evaluated again; if no
    checkpoint was chosen, or it was measured before the run was resumed, on the last validation. An epoch costs no
    more than keeping a few numbers of each sample.
    """

    def __init__(self) -> None:
        self.latest: _Evaluation | None = None
        self.best: _Evaluation | None = None
        self.best_score: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the best value so far, which a resumed run already has."""
        self.best_score = _best_score(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the report needs; write it unless the run trains."""
        if not trainer.sanity_checking:
            self._keep(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        self._keep(trainer, pl_module, "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report on the best validation, or else on the last one."""
        self._keep_best(trainer)
        if trainer.is_global_zero:
            self._write(trainer, pl_module, "val", self.best or self.latest)

    def _keep(self, trainer: Trainer, task: Any, split: EvaluationSplit) -> None:
        self._keep_best(trainer)
        if getattr(trainer, "fast_dev_run", False) or not hasattr(task, "report_sections"):
            return

        results = task.evaluated.gather(trainer.world_size)
        task.evaluated.clear()
        if not trainer.is_global_zero or not takes_page(trainer):
            return
        self.latest = _Evaluation(trainer.current_epoch, task.report_sections(split, results))
        if trainer.state.fn != TrainerFn.FITTING:
            self._write(trainer, task, split, self.latest)

    def _keep_best(self, trainer: Trainer) -> None:
        """Keep the last evaluation if a checkpoint of its weights was saved as the best one since."""
        score = _best_score(trainer)
        if self.latest is not None and score != self.best_score:
            self.best = self.latest
            self.best_score = score

    def _write(
        self, trainer: Trainer, task: LightningModule, split: EvaluationSplit, evaluation: _Evaluation | None
    ) -> None:
        """Write the page."""
        if getattr(trainer, "fast_dev_run", False) or not takes_page(trainer):
            return

        fits = trainer.state.fn == TrainerFn.FITTING
        sections = list(evaluation.sections) if evaluation is not None else []
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        curves = next((c for c in callbacks if isinstance(c, LearningCurves)), None)
        if fits and curves is not None and curves.history:
            sections.append(Section("Learning curves", partial(_curves, curves)))
        record = next((c for c in callbacks if isinstance(c, RunRecord)), None)
        sections.append(Section("Run", partial(_run_facts, trainer, task)))
        if record is not None:
            sections.append(Section("Configuration", partial(_text, record.config, "config.yaml")))

        commands = [line for line in _report_commands(trainer, fits) if line.split()[1] != split]
        if commands:
            sections.append(Section("Commands", partial(_text, "\n".join(commands))))

        name = {"val": "validation", "test": "test"}[split]
        title = f"{type(task).__name__}: {name}"
        path = write_page(trainer, render_page(title, self._subtitle(trainer, evaluation, fits), sections))
        if path is not None and not fits:
            rank_zero_info(f"Wrote the report to {from_here(path)}")

    def _subtitle(self, trainer: Trainer, evaluation: _Evaluation | None, fits: bool) -> str:
        """Return which weights were measured."""
        if evaluation is None:
            return "The run has no validation."
        if not fits:
            given = getattr(trainer, "ckpt_path", None)
            return f"Weights: {from_here(Path(given))}" if given else "Weights: as the task was built"

        checkpoint = _monitored(trainer)
        text = f"Epoch {evaluation.epoch}"
        if self.best is None and checkpoint is not None and checkpoint.best_model_path:
            return (
                f"{text}, the last one. The best checkpoint was measured before the run was resumed; for its report, "
                f"type: lightning validate --ckpt_path {shlex.quote(from_here(Path(checkpoint.best_model_path)))}"
            )
        if self.best is None or checkpoint is None:
            return f"{text}, the last one."
        return (
            f"{text}, the best one by {checkpoint.monitor}, as measured in training. Validation chose this epoch, "
            "which flatters its results a little; lightning test measures the test split."
        )


def _curves(curves: LearningCurves) -> list[Block]:
    """Return the learning curves as a picture."""
    return [figure_picture(curves.figure(), "Each metric over the epochs")]


def _text(text: str, title: str = "") -> list[Block]:
    """Return lines to copy."""
    return [Preformatted(text, title)]


def _run_facts(trainer: Trainer, task: Any) -> list[Block]:
    """Return what was run, on what, and with which versions."""
    backbone = task.hparams.get("backbone") or type(getattr(task, "backbone", task)).__name__
    data = attached_data_module(trainer)
    rows = [
        ["backbone", str(task.hparams.get("config") or backbone)],
        ["parameters", f"{_count(task):,}"],
        ["data", "loaders of the user" if data is None else type(data).__name__],
        ["seed", os.environ.get("PL_GLOBAL_SEED", "none")],
        ["processes", f"{trainer.world_size} on {type(trainer.accelerator).__name__.removesuffix('Accelerator')}"],
        ["precision", str(trainer.precision)],
        ["versions", ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "timm"))],
    ]
    if trainer.state.fn == TrainerFn.FITTING:
        rows.insert(3, ["trained", f"{trainer.current_epoch} epochs, {trainer.global_step:,} steps"])
    return [Table(["", ""], rows, texts=2)]


def _report_commands(trainer: Trainer, fits: bool) -> list[str]:
    """Return the commands that go on from the weights of a report."""
    if fits:
        source = _source_of_commands(trainer)
    else:
        given = getattr(trainer, "ckpt_path", None)
        source = Path(given) if given else None
    return [line.strip() for line in _next_commands(trainer, source)[1:]] if source is not None else []


def _monitored(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that chooses the best checkpoint by a metric, if there is one."""
    best = next((c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None)), None)
    return best if isinstance(best, ModelCheckpoint) else None


def _best_score(trainer: Trainer) -> float | None:
    """Return the metric of the best checkpoint so far."""
    checkpoint = _monitored(trainer)
    score = None if checkpoint is None else checkpoint.best_model_score
    return None if score is None else float(score)


class SigtermCallback(Callback):
    """Keeps the command's SIGTERM handler in runs of several processes, so that the signal ends each at once.

    Lightning replaces it by a handler that first waits for a broadcast from process 0. If the signal arrives during
    another collective operation, that wait never ends. Under SLURM, Lightning's handler stays, because it saves a
    checkpoint and requeues the job.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)  # the command's, since Lightning has not set its own yet

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the handler, which a spawned process cannot use: the command does not run there."""
        return self.__dict__ | {"handler": None}

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the command's handler again."""
        if trainer.world_size > 1 and "SLURM_JOB_ID" not in os.environ and callable(self.handler):
            signal.signal(signal.SIGTERM, self.handler)

    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _restore


# What a run prints


class ModelTable(Callback):
    """Prints the parts of the model with their numbers of parameters before training.

    The table has the feature map and every other part that has parameters. Parameters that a part has in common with
    one above it are not counted again.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return

        named = pl_module.parts() if isinstance(pl_module, Task) else dict(pl_module.named_children())
        counted: set[int] = set()
        parts = []
        for name, module in named.items():
            own = {id(weight): weight.numel() for weight in module.parameters() if id(weight) not in counted}
            counted.update(own)
            if own or name == "feature_map":
                parts.append((name, type(module).__name__, sum(own.values())))
        name_width = max((len(name) for name, _, _ in parts), default=0)
        kind_width = max((len(kind) for _, kind, _ in parts), default=0)
        for name, kind, count in parts:
            print(f"  {name:{name_width}}  {kind:{kind_width}}  {count:>13,} parameters")

        frozen = sum(weight.numel() for weight in pl_module.parameters() if not weight.requires_grad)
        if frozen:
            print(f"  {frozen:,} of {_count(pl_module):,} parameters are frozen")


def _count(module: Any) -> int:
    """Return the number of parameters."""
    return sum(weight.numel() for weight in module.parameters())


class ProgressLine(RichProgressBar):
    """Lightning's progress bar without version and speed, so that the metrics fit into a line of 100 columns."""

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return the columns: description, a short bar, batches, and the remaining or, at the end, the total time."""
        description, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = 10
        return [description, bar, batches, TimeRemainingColumn(elapsed_when_finished=True)]

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let the bar count samples, such as files, instead of batches."""
        super().on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if self.progress is not None and self.predict_progress_bar_id is not None and not self.is_disabled:
            self.progress.update(self.predict_progress_bar_id, total=_samples_in(trainer, dataloader_idx))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the bar by the samples of a batch in every process."""
        if not self.is_disabled:
            self._update(self.predict_progress_bar_id, _samples_in(trainer, dataloader_idx, batch_idx + 1))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics that tasks log with ``prog_bar=True``."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)


def _samples_in(trainer: Trainer, dataloader_idx: int, batches: int | None = None) -> int:
    """Return the number of samples that all processes predict in their first batches, by default in all of them."""
    loaders = trainer.predict_dataloaders
    loader = loaders[dataloader_idx] if isinstance(loaders, list | tuple) else loaders
    count = trainer.num_predict_batches[dataloader_idx] if batches is None else batches
    # For prediction, Lightning gives a loader another batch sampler, and its own batch size is then None. It also takes
    # any iterable.
    size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    dataset = getattr(loader, "dataset", None)
    if size is None or not isinstance(dataset, Sized):
        return int(count)
    return int(min(count * size * trainer.world_size, len(dataset)))


def run_summary(trainer: Trainer) -> str:
    """Return the result of a finished fit: best epoch and baselines, files of the run, and commands to type next."""
    lines = _best_epoch(trainer)

    folder = run_folder(trainer)
    if folder is not None:
        files = sorted(path.name for path in folder.iterdir() if path.suffix in (".html", ".png", ".csv"))
        lines += [f"Run folder: {from_here(folder)}", f"  {', '.join(files)}"]

    source = _source_of_commands(trainer)
    if source is not None:
        lines += _next_commands(trainer, source)

    return "\n".join(lines)


def _source_of_commands(trainer: Trainer) -> Path | None:
    """Return the path to type for the best checkpoint: the run folder, which is shorter, or the file; None if none."""
    folder = run_folder(trainer)
    checkpoint = saved_checkpoint(trainer)
    if checkpoint is None or folder is None or checkpoint.parent != folder / "checkpoints":
        return checkpoint
    return folder


def _best_epoch(trainer: Trainer) -> list[str]:
    """Return lines on the best value of the monitored metric, and on the baselines in the same epoch."""
    best = _monitored(trainer)
    callbacks: list[Callback] = cast(Any, trainer).callbacks
    curves = next((c for c in callbacks if isinstance(c, LearningCurves)), None)
    if best is None or best.monitor is None or curves is None or best.monitor not in curves.history:
        return []

    points = [(epoch, value) for epoch, value in curves.history[best.monitor] if math.isfinite(value)]
    if not points:
        return []

    choose = max if best.mode == "max" else min
    epoch, value = choose(points, key=lambda point: point[1])
    lines = [f"Best epoch: {epoch:g} (of 0 to {points[-1][0]:g}), {best.monitor} {value:.4g}"]
    task = trainer.lightning_module
    score = task.chosen()[0] if isinstance(task, Task) else best.monitor
    scores = dict(curves.history.get(score, []))
    if score != best.monitor and epoch in scores:
        lines[0] += f", {score} {scores[epoch]:.4g}"

    baselines: dict[str, float] = {}
    for name in getattr(trainer.lightning_module, "baseline_names", ()):
        values = dict(curves.history.get(f"{best.monitor}_{name}", []))
        if epoch in values:
            baselines[name] = values[epoch]
    if not baselines:
        return lines

    lines.append(f"Baselines: {', '.join(f'{best.monitor}_{name} {known:.4g}' for name, known in baselines.items())}")
    needed = value * (1 + _BETTER) if best.mode == "min" else value / (1 + _BETTER)
    as_good = [name for name, known in baselines.items() if choose(known, needed) == known]
    if as_good:
        lines.append(
            f"The model is no better than {listed(as_good)} on validation: for such series a simple forecast is enough"
        )
    return lines


def saved_checkpoint(trainer: Trainer) -> Path | None:
    """Return the path of the best checkpoint of the command, or else of the last one, if there is any."""
    own = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint)]
    paths = [Path(callback.best_model_path) for callback in own if callback.best_model_path]
    return next((path for path in paths if path.is_file()), None)


def _next_commands(trainer: Trainer, source: Path) -> list[str]:
    """Return the lines on what to do next with a checkpoint or run folder."""
    given = shlex.quote(from_here(source))
    predict = f"  lightning predict --ckpt_path {given}"
    if isinstance(attached_data_module(trainer), SampleDataModule):
        predict += " --data.predict_path FILE_OR_FOLDER"

    lines = ["Next:", f"  lightning test --ckpt_path {given}", predict]
    if getattr(trainer.lightning_module, "can_export", False):
        lines.append(f"  lightning export --ckpt_path {given}")
    return lines
