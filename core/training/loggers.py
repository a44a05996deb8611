"""The logs of a run: metrics as CSV, which a resumed run continues, and as events of TensorBoard."""

import csv
import io
from pathlib import Path
from typing import cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from core.io.atomic import atomic_write

__all__ = ["ResumableCSVLogger", "run_loggers"]


def run_loggers(runs: Path, version: str) -> list[Logger]:
    """A CSV and a TensorBoard log in ``runs/version``."""
    return [
        ResumableCSVLogger(runs.parent, runs.name, version),
        TensorBoardLogger(runs.parent, runs.name, version, default_hp_metric=False),
    ]


class ResumableCSVLogger(CSVLogger):
    """``CSVLogger`` that appends to the metrics of a resumed run, where Lightning's would delete them."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, on the file as the interrupted run left it."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Continue after the last complete row; an interrupted run may have left a part of one."""
        file = Path(self.metrics_file_path)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        complete = before[: before.rfind("\n") + 1]
        if complete != before or file.is_symlink():  # what a link points to is not this run's
            self._replace(complete)
        if complete:
            self.metrics_keys = next(csv.reader(complete.splitlines()))

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))

        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        self._replace(text.getvalue())

    def _replace(self, text: str) -> None:
        file = Path(self.metrics_file_path)
        if not text:
            file.unlink()
            return
        with atomic_write(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
