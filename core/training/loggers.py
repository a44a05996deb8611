"""The logs of a run: metrics in a CSV file, which a resumed run continues, and in TensorBoard's event files."""

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
    """Return a CSV and a TensorBoard logger for the folder ``runs/version``."""
    return [
        ResumableCSVLogger(runs.parent, runs.name, version),
        TensorBoardLogger(runs.parent, runs.name, version, default_hp_metric=False),
    ]


class ResumableCSVLogger(CSVLogger):
    """A ``CSVLogger`` that appends to the metrics of a resumed run; Lightning's would delete them."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, which continues the file that the interrupted run left."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)


class _AppendingWriter(ExperimentWriter):
    """Lightning's writer of CSV files, which keeps the rows of an existing file and replaces it atomically."""

    def _check_log_dir_exists(self) -> None:
        """Continue after the last complete row, since an interrupted run may have left a part of a row."""
        file = Path(self.metrics_file_path)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        complete = before[: before.rfind("\n") + 1]
        if complete != before or file.is_symlink():  # the file behind a link is not part of this run
            self._replace(complete)
        if complete:
            self.metrics_keys = next(csv.reader(complete.splitlines()))

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write all rows again under a header with more columns."""
        with Path(self.metrics_file_path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))

        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        self._replace(text.getvalue())

    def _replace(self, text: str) -> None:
        """Replace the content of the file; without any content, delete the file."""
        file = Path(self.metrics_file_path)
        if not text:
            file.unlink()
            return

        with atomic_write(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
