"""The logs of a run: metrics as CSV, which a resumed run continues, and as events of TensorBoard."""

import csv
import io
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from core.stopping import undisturbed
from core.writing import whole_file

__all__ = ["ContinuedCSVLogger", "WholeTensorBoardLogger", "run_loggers"]


def run_loggers(runs: Path, version: str) -> list[Logger]:
    """A CSV and a TensorBoard log in ``runs/version``."""
    return [
        ContinuedCSVLogger(runs.parent, runs.name, version),
        WholeTensorBoardLogger(runs.parent, runs.name, version, default_hp_metric=False),
    ]


class WholeTensorBoardLogger(TensorBoardLogger):
    """``TensorBoardLogger`` that hands over what it was given before Ctrl-C or SIGTERM end the run.

    Its writer waits in another thread. A signal between the steps of handing over would leave that thread without the
    news, and the end of the run waiting for it, for two minutes.
    """

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        with undisturbed():
            super().log_metrics(*args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        with undisturbed():
            super().log_hyperparams(*args, **kwargs)

    def save(self) -> None:
        """As Lightning's."""
        with undisturbed():
            super().save()


class ContinuedCSVLogger(CSVLogger):
    """``CSVLogger`` that adds to the metrics of a resumed run, where Lightning's would delete them."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, on the file as the interrupted run left it."""
        if self._experiment is None:
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Go on after the last whole row; an interrupted run may have left a part of one."""
        file = Path(self.metrics_file_path)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        whole = before[: before.rfind("\n") + 1]
        if whole != before:
            self._replace(whole)
        if whole:
            self.metrics_keys = next(csv.reader(whole.splitlines()))

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
        with whole_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
