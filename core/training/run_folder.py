"""Where a run writes: ``lightning_logs/<task>/version_<n>``, with config, logs, pictures and checkpoints together."""

import csv
import os
from pathlib import Path
from typing import cast

from lightning import Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.environments import SLURMEnvironment

from core.errors import MissingError

__all__ = ["ContinuedCSVLogger", "newest_checkpoint", "run_folder", "run_loggers", "run_version"]

_SHARED = "LARKIT_RUN"  # tells the processes that Lightning starts for a run which folder the first one chose


def newest_checkpoint(runs: Path, name: str) -> Path:
    """The ``best`` or ``last`` checkpoint written last among all runs of a task.

    Raises:
        MissingError: if there is none.
    """
    files = list(runs.glob(f"*/checkpoints/{name}.ckpt"))
    if not files:
        raise MissingError(
            f"no {name}.ckpt below {runs}; train first (lightning fit -c ...), or give the path of a checkpoint"
        )
    return max(files, key=lambda file: file.stat().st_mtime)


def run_version(runs: Path, resumed: Path | None = None) -> str:
    """Name of the run's folder in ``runs``: that of the run it continues, else the next free number.

    Args:
        runs: folder of all runs of a task.
        resumed: checkpoint that the run continues, if any.
    """
    if resumed is not None and resumed.resolve().parent.parent.parent == runs.resolve():
        return resumed.resolve().parent.parent.name
    if SLURMEnvironment.detect():  # all tasks of a step agree on this name, and a requeued job finds its folder again
        return f"job_{os.environ.get('SLURM_JOB_ID')}_step_{os.environ.get('SLURM_STEP_ID', 0)}"
    if "LOCAL_RANK" not in os.environ or _SHARED not in os.environ:
        taken = [int(path.name[8:]) for path in runs.glob("version_*") if path.name[8:].isdigit()]
        os.environ[_SHARED] = f"version_{max(taken, default=-1) + 1}"
    return os.environ[_SHARED]


def run_folder(trainer: Trainer) -> Path | None:
    """Folder of the trainer's run, or None without a logger that writes files.

    ``Trainer.log_dir`` says the same but talks to all processes, so that one of them alone must not ask.
    """
    folders = [getattr(logger, "log_dir", None) for logger in trainer.loggers]
    return next((Path(folder) for folder in folders if folder), None)


def run_loggers(runs: Path, version: str) -> list[Logger]:
    """A CSV and a TensorBoard log in ``runs/version``."""
    return [
        ContinuedCSVLogger(runs.parent, runs.name, version),
        TensorBoardLogger(runs.parent, runs.name, version, default_hp_metric=False),
    ]


class ContinuedCSVLogger(CSVLogger):
    """``CSVLogger`` that adds to the metrics of a resumed run, where Lightning's would delete them."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, on the file as the interrupted run left it."""
        if self._experiment is None:
            file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            before = file.read_text(encoding="utf-8") if file.is_file() else ""
            writer = ExperimentWriter(log_dir=self.log_dir)
            if before:
                file.write_text(before, encoding="utf-8")
                writer.metrics_keys = next(csv.reader(before.splitlines()))
            self._experiment = writer
        return cast(ExperimentWriter, self._experiment)
