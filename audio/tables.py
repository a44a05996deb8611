"""Audio data sets that are tables: JSON with a CSV of labels, and ESC-50."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio.data import STATS, AudioDataModule
from core.errors import InputError, MissingError
from core.files import Labelled, Splits

__all__ = ["ESC50", "AudioTable"]


class AudioTable(AudioDataModule):
    """JSON tables of recordings with a CSV of labels, the layout of AudioSet, AST and the official code.

    A table is ``{"data": [{"wav": path, "labels": "/m/a,/m/b"}, ...]}``; paths are absolute or relative to the table.
    The CSV has the header ``index,mid,display_name``.

    Args:
        train_json: table of the training recordings.
        val_json: table of the validation recordings.
        labels_csv: the classes.
        test_json: table of the test recordings; by default the validation table.
        multi_label: a recording may have any number of labels; targets are then (K,) of 0 and 1.
        weights_csv: one number a line for each training recording; they are then drawn with replacement by these
            weights, as in the balanced sampling of AudioSet.
        kwargs: arguments of :class:`AudioDataModule`.
    """

    def __init__(
        self,
        train_json: str,
        val_json: str,
        labels_csv: str,
        *,
        test_json: str | None = None,
        multi_label: bool = False,
        weights_csv: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tables = {"train": Path(train_json), "val": Path(val_json), "test": Path(test_json or val_json)}
        self.labels_csv, self.multi_label = Path(labels_csv), multi_label
        self.weights_csv = Path(weights_csv) if weights_csv else None

    def check_data(self) -> None:
        """Read all tables before a run folder is made.

        Raises:
            MissingError: if a file is missing.
            InputError: if a table, the classes or the weights are not in the layout, or a label is unknown.
        """
        self.splits()

    def stats_file(self) -> Path:
        """``log_mel_stats.json`` beside the training table."""
        return self.tables["train"].parent / STATS

    def splits(self) -> Splits:
        """Read the tables, and the weights of the training recordings.

        Raises:
            MissingError: if a file is missing.
            InputError: if a table, the classes or the weights are not in the layout, or a label is unknown.
        """
        rows = _read_csv(self.labels_csv, ("index", "mid", "display_name"), numbers=("index",))
        rows.sort(key=lambda row: int(row["index"]))
        label_of = {row["mid"]: i for i, row in enumerate(rows)}
        files = {name: self._read(table, label_of) for name, table in self.tables.items()}
        if self.weights_csv:
            self.train_weights = _read_weights(self.weights_csv, len(files["train"]))
        return Splits([row["display_name"] for row in rows], **files)

    def _read(self, table: Path, label_of: dict[str, int]) -> list[tuple[Path, int | Tensor]]:
        if not table.is_file():
            raise MissingError(
                f"there is no table {table}; give a JSON file with {{'data': [{{'wav', 'labels'}}, ...]}}"
            )
        try:
            entries = [(str(row["wav"]), str(row["labels"])) for row in json.loads(table.read_text("utf-8"))["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{table} is not {{'data': [{{'wav': ..., 'labels': ...}}, ...]}}: {error!r}") from error
        return [(table.parent / wav, self._target(labels, label_of, table)) for wav, labels in entries]

    def _target(self, labels: str, label_of: dict[str, int], table: Path) -> int | Tensor:
        names = [name.strip() for name in labels.split(",") if name.strip()]
        unknown = next((name for name in names if name not in label_of), None)
        if unknown or (not self.multi_label and len(names) != 1):
            raise InputError(
                f"{table} has the labels {labels!r}; expected {'any' if self.multi_label else 'one'} of those in "
                f"{self.labels_csv}" + (f", which has no {unknown!r}" if unknown else "; or set multi_label")
            )
        if not self.multi_label:
            return label_of[names[0]]
        target = torch.zeros(len(label_of))
        target[[label_of[name] for name in names]] = 1
        return target


class ESC50(AudioDataModule):
    """ESC-50 as its archive unpacks, ``root/meta/esc50.csv`` and ``root/audio/*.wav``: 2,000 clips of 5 s, five folds.

    Args:
        root: the unpacked archive, https://github.com/karolpiczak/ESC-50.
        fold: the fold that tests, 1 to 5; the published figure is the mean over all five.
        val_fold: the fold that chooses the checkpoint; by default the next one. Give that of ``fold`` to choose by the
            test fold and train on the four others, as published figures do.
        kwargs: arguments of :class:`AudioDataModule`.

    Raises:
        InputError: if a fold is none of the five.
    """

    def __init__(self, root: str, *, fold: int = 1, val_fold: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.fold = Path(root), fold
        self.val_fold = fold % 5 + 1 if val_fold is None else val_fold
        if not {fold, self.val_fold} <= {1, 2, 3, 4, 5}:
            raise InputError(f"fold={fold}, val_fold={val_fold}; ESC-50 has the folds 1 to 5")

    def check_data(self) -> None:
        """Read the table before a run folder is made.

        Raises:
            MissingError: if it is not there.
            InputError: if it is not in UTF-8, or lacks a column or a number.
        """
        self.splits()

    def stats_file(self) -> Path:
        """``root/log_mel_stats.json``."""
        return self.root / STATS

    def splits(self) -> Splits:
        """Deal the folds to the splits.

        Raises:
            MissingError: if the table is not there.
            InputError: if it is not in UTF-8, or lacks a column or a number.
        """
        table = self.root / "meta" / "esc50.csv"
        rows = _read_csv(table, ("filename", "fold", "target", "category"), numbers=("fold", "target"))
        held_out = {self.fold, self.val_fold}
        names = {int(row["target"]): row["category"] for row in rows}

        def part(folds: set[int]) -> Labelled:
            chosen = [row for row in rows if int(row["fold"]) in folds]
            return [(self.root / "audio" / row["filename"], int(row["target"])) for row in chosen]

        train, val, test = (part(folds) for folds in ({1, 2, 3, 4, 5} - held_out, {self.val_fold}, {self.fold}))
        return Splits([names[label] for label in sorted(names)], train, val, test)


def _read_csv(path: Path, columns: Sequence[str], *, numbers: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise MissingError(f"there is no {path}; expected a CSV file with the columns {', '.join(columns)}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel begins a file with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not in UTF-8: {error}; save it in that encoding") from error
    reader = csv.DictReader(text.splitlines())
    if not set(columns) <= set(reader.fieldnames or ()):
        raise InputError(f"{path} has the columns {reader.fieldnames}; expected {', '.join(columns)}")
    rows = list(reader)
    for row in rows:
        wrong = next((name for name in numbers if not (row[name] or "").isdigit()), None)
        if wrong:
            raise InputError(f"{path} has {wrong}={row[wrong]!r} in the row {row}; expected a number from 0 on")
    return rows


def _read_weights(path: Path, count: int) -> list[float]:
    if not path.is_file():
        raise MissingError(f"there is no {path}; give one weight a line for each of the {count} training recordings")
    try:
        weights = [float(line) for line in path.read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise InputError(f"{path} is not one number a line: {error}") from error
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise InputError(f"{path} has {len(weights)} weights for {count} recordings; give one each, 0 or more")
    return weights
