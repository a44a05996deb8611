"""The callback that writes predictions, embeddings and events as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from core.data.labeled import SampleDataModule
from core.data.module import attached_data_module
from core.errors import InputError
from core.io.atomic import atomic_write
from core.io.writers import ARRAYS, TABLES, ArrayWriter, TableWriter, check_ending, open_array, open_table
from core.training.answers import (
    Answer,
    AnswerOptions,
    EventMerger,
    Predictions,
    check_some_answered,
    columns_to_rows,
)
from core.training.run_folder import run_folder
from core.training.task import Task

__all__ = ["PredictionWriter"]

_BESIDE_VECTORS = ("file", "start", "end")
"""Columns that an .npz or Parquet file has beside the embeddings."""


class PredictionWriter(Callback):
    """Predictions: what is written, and where.

    Rows are written batch by batch, in the order of the files, by the first process for all. The files get their names
    when they are complete; a prediction that is stopped leaves none. A file that cannot be read is a row with the
    reason in the column ``error``.

    Args:
        output: file to write, ending in .csv, .jsonl or .parquet; by default predictions.csv in the run folder.
        top_k: number of the most probable classes in a row; by default 3, or all if there are fewer.
        all: add the probability of every class, in columns such as p_cat.
        embeddings: file for the features that the classifier takes, ending in .npy, .npz or .parquet; its row i belongs
            to row i of the predictions, and is NaN for a file that cannot be read.
        windows: write a row for each window of a recording or video, with its start and end in seconds.
        threshold: also write events, beside the output: neighboring windows of a class whose probability is above
            this number. Turns windows on.

    Raises:
        InputError: if a number is out of range, or a file cannot be written by its ending.
    """

    def __init__(
        self,
        output: str | None = None,
        top_k: int | None = None,
        all: bool = False,
        embeddings: str | None = None,
        windows: bool = False,
        threshold: float | None = None,
    ) -> None:
        self.output = Path(output) if output else None
        self.embeddings = Path(embeddings) if embeddings else None
        self.options = AnswerOptions(
            top_k=top_k,
            all=all,
            windows=windows,
            threshold=threshold,
            embeddings=embeddings is not None,
        )
        if self.output is not None:
            check_ending(self.output, TABLES, "--predict.output")
        if self.embeddings is not None:
            check_ending(self.embeddings, ARRAYS, "--predict.embeddings")
        if self.output is not None and self.output == self.embeddings:
            raise InputError(f"--predict.output and --predict.embeddings are both {self.output}; name two files")

        self._files = ExitStack()
        self._table: _GrowingTable | None = None
        self._events: _GrowingTable | None = None
        self._vectors: _GrowingArray | None = None
        self._merger = EventMerger()
        self._file: str | None = None
        self._file_failed = False
        self._count = 0
        self._failed = 0
        self._first_reason: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the options, and pass them to the task and the data."""
        if stage != "predict" or not isinstance(pl_module, Task):
            return

        self.options.check(pl_module)
        pl_module.answer_options = self.options
        data = attached_data_module(trainer)
        if self.options.reads_windows and isinstance(data, SampleDataModule):
            data.use_windows()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the files, so that a folder which cannot be written shows before the model runs."""
        self._files = ExitStack()
        self._merger = EventMerger()
        self._file = None
        self._file_failed = False
        self._count = 0
        self._failed = 0
        self._first_reason = None
        if not trainer.is_global_zero:
            return

        folder = run_folder(trainer) or Path(trainer.default_root_dir)
        path = self.output or folder / "predictions.csv"
        self._table = _GrowingTable(path, "predictions", self._files)
        if self.options.threshold is not None:
            self._events = _GrowingTable(path.with_stem(f"{path.stem}_events"), "events", self._files)
        if self.embeddings is not None:
            self._vectors = _GrowingArray(self.embeddings, self._files)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the answers to one batch of each process."""
        if isinstance(outputs, Predictions):
            answers = outputs.answers
        else:
            answers = [Answer([row]) for row in columns_to_rows(outputs)]
        for part in self._of_all_processes(trainer, answers):
            self._write(part)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last answers of the other processes, give the files their names, and say what was written."""
        if trainer.world_size > 1:
            while parts := list(self._of_all_processes(trainer, None)):
                for part in parts:
                    self._write(part)
        if self._table is None:
            return

        check_some_answered(self._failed, self._count, self._first_reason)
        if self._events is not None:
            self._events.write(self._merger.finish())
        written = [writer for writer in (self._table, self._events, self._vectors) if writer is not None]
        for writer in written:
            writer.close()
        self._files.close()
        for writer in written:
            rank_zero_info(f"Wrote {writer.count} {writer.kind} to {writer.path}")
        if self._failed:
            rank_zero_info(f"{self._failed} of {self._count} files could not be read; the column 'error' says why")
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the unfinished files."""
        self._files.__exit__(type(exception), exception, exception.__traceback__)
        self._forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the task predict as before."""
        if stage == "predict" and isinstance(pl_module, Task):
            pl_module.answer_options = AnswerOptions()

    def _forget(self) -> None:
        self._files = ExitStack()
        self._table = None
        self._events = None
        self._vectors = None

    def _write(self, answers: Sequence[Answer]) -> None:
        """Write answers that are in the order of the files."""
        if self._table is None:  # not the first process
            return

        for answer in answers:
            file = answer.rows[0].get("file")
            is_next = file is None or file != self._file  # the windows of a video are answers of their own
            self._file = file
            self._count += is_next
            if answer.error is not None and (is_next or not self._file_failed):
                self._failed += 1
                self._first_reason = self._first_reason or answer.error
            self._file_failed = answer.error is not None or (self._file_failed and not is_next)
        self._table.write([row for answer in answers for row in answer.rows])
        if self._events is not None:
            self._events.write(self._merger.add(answers))
        if self._vectors is not None:
            for answer in answers:
                self._vectors.write(answer)

    @staticmethod
    def _of_all_processes(trainer: Trainer, answers: list[Answer] | None) -> Iterator[list[Answer]]:
        """Yield the answers to a batch of each process, in the order of the data; nothing once all have ended.

        Every process calls this once for each of its batches, and with None until all processes have no more.
        """
        if trainer.world_size == 1:
            yield answers or []
            return

        parts: list[list[Answer] | None] = [None] * trainer.world_size
        dist.all_gather_object(parts, answers)
        if all(part is None for part in parts):
            return

        # Process p has samples p, p + P, p + 2P, ..., so take one answer of each process in turn.
        in_order = chain.from_iterable(zip_longest(*[part or [] for part in parts]))
        yield [answer for answer in in_order if answer is not None]


class _GrowingTable:
    """A table whose columns are those of the first row without an error; earlier rows wait for it.

    Args:
        path: file that appears when the stack is closed.
        kind: the word for the rows in messages.
        files: stack that holds the unfinished file.
    """

    def __init__(self, path: Path, kind: str, files: ExitStack) -> None:
        self.path = path
        self.kind = kind
        self.count = 0
        self._unfinished = files.enter_context(atomic_write(path))
        self._unfinished.touch()
        self._writer: TableWriter | None = None
        self._waiting: list[dict[str, Any]] = []

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows."""
        self.count += sum(row.get("error") is None for row in rows)
        if self._writer is None:
            example = next((row for row in rows if row.get("error") is None), None)
            if example is None:
                self._waiting += rows
                return
            self._open(example)
        if self._writer is not None:
            self._writer.write(rows)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is None:
            self._open({"file": None, "start": None, "end": None, "class": None, "probability": None, "error": None})
        if self._writer is not None:
            self._writer.close()

    def _open(self, example: dict[str, Any]) -> None:
        self._writer = open_table(self._unfinished, self.path.suffix.lower(), example)
        self._writer.write(self._waiting)
        self._waiting = []


class _GrowingArray:
    """Embeddings whose size is that of the first one; earlier rows without any wait for it.

    Args:
        path: file that appears when the stack is closed.
        files: stack that holds the unfinished file.
    """

    kind = "embeddings"

    def __init__(self, path: Path, files: ExitStack) -> None:
        self.path = path
        self.count = 0
        self._unfinished = files.enter_context(atomic_write(path))
        self._unfinished.touch()
        self._writer: ArrayWriter | None = None
        self._waiting: list[dict[str, Any]] = []
        self._size = 0

    def write(self, answer: Answer) -> None:
        """Add the embeddings of one answer, or NaN if it has none."""
        self.count += 0 if answer.vectors is None else len(answer.rows)
        rows = [{name: row.get(name) for name in _BESIDE_VECTORS if name in row} for row in answer.rows]
        if answer.vectors is None and self._writer is None:
            self._waiting += rows
            return
        if self._writer is None and answer.vectors is not None:
            self._size = answer.vectors.shape[1]
            ending = self.path.suffix.lower()
            self._writer = open_array(self._unfinished, ending, self._size, rows[0], "embedding")
            self._write(self._nothing(len(self._waiting)), self._waiting)
            self._waiting = []
        self._write(self._nothing(len(rows)) if answer.vectors is None else answer.vectors, rows)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()

    def _nothing(self, count: int) -> np.ndarray:
        return np.full((count, self._size), np.nan, np.float32)

    def _write(self, vectors: np.ndarray, rows: Sequence[dict[str, Any]]) -> None:
        if self._writer is not None and rows:
            self._writer.write(vectors, rows)
