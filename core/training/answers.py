"""Answers of a task to single samples: rows, embeddings, errors, and events of windows in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from core.data.samples import Broken
from core.errors import InputError

if TYPE_CHECKING:
    from core.training.task import Task

__all__ = [
    "Answer",
    "AnswerOptions",
    "EventMerger",
    "Predictions",
    "WindowOutput",
    "check_some_answered",
    "columns_to_rows",
    "significant",
]

TOP_K = 3
"""Number of classes in a row, if there are as many and the user has not chosen another number."""

_TOUCHING = 0.002
"""Seconds between two windows that still count as touching, since their times are rounded to milliseconds."""

_EVENT = ("file", "start", "end", "class", "probability")
"""Columns of a table of events, before ``error``."""


@dataclass(frozen=True)
class AnswerOptions:
    """What a task writes about each sample.

    Attributes:
        top_k: number of the most probable classes; None for 3, or all if there are fewer.
        all: add the probability of every class.
        windows: give a row for each window of a recording or video.
        threshold: probability in [0, 1) above which windows become events; None for no events.
        embeddings: compute the features that the classifier takes.

    Raises:
        InputError: if a number is out of range.
    """

    top_k: int | None = None
    all: bool = False
    windows: bool = False
    threshold: float | None = None
    embeddings: bool = False

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k={self.top_k}; expected a number of classes, 1 or more")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f"threshold={self.threshold}; expected a probability from 0 to less than 1")

    @property
    def reads_windows(self) -> bool:
        """Whether samples are answered window by window."""
        return self.windows or self.threshold is not None

    def check(self, task: Task) -> None:
        """Check that a task can give these answers.

        Raises:
            InputError: if it cannot; the message says which option to leave out.
        """
        name = type(task).__name__
        count = len(task.class_names)
        if (self.top_k is not None or self.all) and not task.answers_classes:
            raise InputError(f"{name} does not answer with one class for each sample; leave top_k and all out")
        if self.top_k is not None and self.top_k > count:
            raise InputError(f"top_k={self.top_k}, and the model has {count} classes; expected 1 to {count}")
        if self.reads_windows and not task.has_windows:
            raise InputError(f"{name} reads samples without a time axis; leave windows and threshold out")
        if not self.embeddings:
            return
        if not task.answers_classes:
            raise InputError(f"{name} has no vector of features for each sample; leave embeddings out")
        if not all_callable(task.backbone, "forward_features", "forward_head"):
            raise InputError(
                f"embeddings need a backbone with timm's methods forward_features and forward_head, which "
                f"{type(task.backbone).__name__} lacks"
            )


def all_callable(module: Any, *names: str) -> bool:
    """Return whether a module has all these methods."""
    return all(callable(getattr(module, name, None)) for name in names)


class WindowOutput(NamedTuple):
    """The output of a task for windows in time.

    Attributes:
        output: output of the model, with an entry for each window.
        names: name of the sample of each window.
        starts: start of each window, in seconds.
        ends: end of each window, in seconds.
        counts: number of windows of each sample of the batch.
    """

    output: Any
    names: list[str]
    starts: list[float]
    ends: list[float]
    counts: list[int]


@dataclass
class Answer:
    """What a task says about one sample.

    Attributes:
        rows: rows of ``predictions.csv``: one, or one for each window or step.
        vectors: embeddings (rows, D) float32; None if they were not asked for, or the sample could not be read.
        above: for each row, the probability of the classes above the threshold; empty without a threshold.
        error: why the sample could not be read; None if it could.
    """

    rows: list[dict[str, Any]]
    vectors: np.ndarray | None = None
    above: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None

    @classmethod
    def of_broken(cls, broken: Broken) -> Answer:
        """Return the answer for a sample that could not be read."""
        return cls([{"file": broken.name, "error": broken.reason}], error=broken.reason)


class Predictions(dict[str, list[Any]]):
    """The predictions for one batch: columns of the same length by name, and the answers that they are made of.

    Args:
        columns: lists of values, by the name of their column.
        answers: the answers, in the order of the samples.
    """

    def __init__(self, columns: Mapping[str, list[Any]], answers: Sequence[Answer] = ()) -> None:
        super().__init__(columns)
        self.answers = list(answers)

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Predictions:
        """Return the predictions that consist of some answers."""
        rows = [row for answer in answers for row in answer.rows]
        # Rows of samples that could not be read have few columns, and must not decide about the order.
        complete = next((row for answer in answers if answer.error is None for row in answer.rows), rows[0])
        return cls({name: [row.get(name) for row in rows] for name in complete}, answers)


def columns_to_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Turn columns of the same length, by name, into rows: a dictionary for each sample."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def significant(value: float) -> float:
    """Round to seven significant digits, as many as float32 has; small probabilities keep their digits."""
    return float(f"{value:.7g}")


def check_some_answered(failed: int, count: int, reason: str | None) -> None:
    """Raise an InputError if there are samples and none of them could be read."""
    if failed and failed == count:
        head = "" if count == 1 else f"none of the {count} samples can be read; the first: "
        raise InputError(f"{head}{reason}")


class EventMerger:
    """Merges neighboring windows of a class to events, one answer after another.

    An event of a class lasts from the start of the first to the end of the last of its windows that touch or overlap
    and are all above the threshold. Its probability is the highest of these windows.
    """

    def __init__(self) -> None:
        self._file: str | None = None
        self._start = 0.0
        self._open: dict[str, dict[str, Any]] = {}
        self._closed: list[dict[str, Any]] = []

    def add(self, answers: Iterable[Answer]) -> list[dict[str, Any]]:
        """Add answers in the order of time, and return the rows of the files that ended, sorted by their start."""
        rows: list[dict[str, Any]] = []
        for answer in answers:
            if answer.error is not None:
                rows += [*self.finish(), {**dict.fromkeys(_EVENT), **answer.rows[0]}]
                continue
            for row, above in zip(answer.rows, answer.above, strict=True):
                if row["file"] != self._file or row["start"] <= self._start:
                    rows += self.finish()
                self._add_window(row, above)
        return rows

    def _add_window(self, row: Mapping[str, Any], above: Mapping[str, float]) -> None:
        self._file = row["file"]
        self._start = row["start"]
        for name in list(self._open):
            if name not in above or row["start"] > self._open[name]["end"] + _TOUCHING:
                self._closed.append(self._open.pop(name))
        for name, probability in above.items():
            values = (row["file"], row["start"], row["end"], name, probability)
            event = self._open.setdefault(name, {**dict(zip(_EVENT, values, strict=True)), "error": None})
            event["end"] = row["end"]
            event["probability"] = max(event["probability"], probability)

    def finish(self) -> list[dict[str, Any]]:
        """Return the rows of the current file."""
        events = [*self._closed, *self._open.values()]
        self._open = {}
        self._closed = []
        self._file = None
        self._start = -1.0
        return sorted(events, key=lambda event: (event["start"], event["end"], event["class"]))
