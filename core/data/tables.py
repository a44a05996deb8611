"""Tables in CSV files, and data sets whose labels stand in one."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.data.folders import ClassFolders
from core.data.samples import Sample, Splits
from core.errors import InputError, MissingError, listed

__all__ = ["LabelTable", "read_csv", "to_target"]

_SEPARATOR = ";"
"""What stands between the labels of a file, as in the column ``labels`` of ``predictions.csv``."""


def read_csv(path: Path, columns: Sequence[str], *, numbers: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read the rows of a CSV file, and check its columns, some of which hold whole numbers from 0.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is not in UTF-8, or a column or a number is missing.
    """
    if not path.is_file():
        raise MissingError(f"there is no {path}; expected a CSV file with the columns {', '.join(columns)}")

    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a byte-order mark at the beginning of a file
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not in UTF-8: {error}; save it in that encoding") from error

    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = list(reader.fieldnames or ())
        rows = [{name: value or "" for name, value in row.items() if name is not None} for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV: {error}; correct the file") from error
    if not set(columns) <= set(names):
        raise InputError(f"{path} has the columns {', '.join(names) or 'none'}; expected {', '.join(columns)}")

    for row in rows:
        for name in numbers:
            if not row[name].isdigit():
                raise InputError(f"{path} has {name}={row[name]!r} in the row {row}; expected a whole number from 0")

    return rows


def to_target(labels: Sequence[int], num_classes: int) -> Tensor:
    """Return the target of a sample with several labels or none: (K,) float32 of 0 and 1."""
    target_K = torch.zeros(num_classes)
    target_K[list(labels)] = 1
    return target_K


@dataclass(frozen=True)
class _Row:
    """A row of a table of labels.

    Attributes:
        file: path of the file, as written.
        cell: its labels, as written.
        labels: its labels.
        split: name of its split.
    """

    file: str
    cell: str
    labels: list[str]
    split: str


@dataclass(frozen=True)
class LabelTable:
    """A CSV file with the columns ``file`` and ``labels``, and perhaps ``split``.

    ::

        file,labels,split
        a.jpg,cat,train
        b.jpg,cat;dog,train
        c.jpg,dog,val

    The classes are the sorted labels of the training files. With ``multi_label``, labels are separated by ';', and ';'
    alone says that none applies. Without the column ``split`` all files are training files. As with class folders, a
    share of the training files is held out if there are no validation files, the validation files are the test files if
    there are none, and evaluation needs no training files.

    Attributes:
        path: the CSV file.
        options: names of the splits, share to hold out, and folds. Files are relative to its ``root``, or else to the
            folder of the CSV file, and its ``find`` lists the sources below a path.
        multi_label: whether a file may have any number of labels. Targets are then (K,) float32 of 0 and 1, and
            otherwise labels.
    """

    path: Path
    options: ClassFolders
    multi_label: bool = False

    @property
    def base(self) -> Path:
        """Folder to which the files are relative."""
        return self.path.parent if self.options.root is None else self.options.root

    def check(self) -> None:
        """Check that the file exists.

        Raises:
            MissingError: if it does not.
        """
        if not self.path.is_file():
            raise MissingError(f"there is no {self.path}; give a CSV file with the columns file, labels")

    def check_training(self) -> None:
        """Check that there are files to train on.

        Raises:
            MissingError: if there are none.
            InputError: if a row of the table cannot be used.
        """
        train_split = self.options.train_split
        if not any(row.split == train_split for row in self._rows()):
            raise MissingError(f"{self.path} has no file whose split is {train_split!r}; training needs some")

    def split(self) -> Splits:
        """List the class names and the files of all splits.

        Raises:
            MissingError: if a file is missing.
            InputError: if a row of the table cannot be used.
        """
        rows = self._rows()
        train_split, val_split = self.options.train_split, self.options.val_split
        found = {row.split for row in rows}
        first_split = next(split for split in self._split_names() if split in found)
        first = [row for row in rows if row.split == first_split]
        if self.multi_label and first_split == train_split:
            self._check_separator(first)

        classes = sorted({name for row in first for name in row.labels})
        if len(classes) < 2:
            raise InputError(f"{self.path} has the labels {listed(classes) or 'none'}; expected at least two classes")
        if val_split in found and self.options.folds:
            raise InputError(
                f"--data.folds {self.options.folds} divides the training files, and the {val_split} files of "
                f"{self.path} would not be read; leave folds out, or remove these rows"
            )

        label_of = {name: i for i, name in enumerate(classes)}
        parts = {split: [self._sample(row, label_of) for row in rows if row.split == split] for split in found}
        train = parts.get(train_split, [])
        if val_split in parts:
            val = parts[val_split]
        elif train:
            train, val = self.options.hold_out(
                classes,
                train,
                source=self.path,
                remedy=f"rows whose split is {val_split}",
                reason=f"has no rows whose split is {val_split}",
            )
        else:
            val = parts["test"]
        return Splits(classes, train, val, parts.get("test", val))

    def _split_names(self) -> tuple[str, str, str]:
        """Return the names of the splits in the column ``split``."""
        return self.options.train_split, self.options.val_split, "test"

    def _rows(self) -> list[_Row]:
        """Read and check the rows."""
        cells = read_csv(self.path, ("file", "labels"))
        if not cells:
            raise MissingError(f"{self.path} has no rows; expected a row for each file")

        rows: dict[str, _Row] = {}
        for number, cell in enumerate(cells, start=2):
            file = cell["file"].strip()
            place = f"{self.path}, row {number} ({file})"
            if file in rows:
                raise InputError(
                    f"{place} names a file again; give each file one row, with its labels separated by {_SEPARATOR!r}"
                )

            split = cell.get("split", self.options.train_split).strip()
            if split not in self._split_names():
                raise InputError(f"{place} has the split {split!r}; expected {' or '.join(self._split_names())}")
            rows[file] = _Row(file, cell["labels"], self._names(cell["labels"].strip(), place), split)
        return list(rows.values())

    def _names(self, cell: str, place: str) -> list[str]:
        """Return the labels in a cell."""
        if not cell:
            none = f"; if none applies, write {_SEPARATOR!r}" if self.multi_label else ""
            raise InputError(f"{place} has no label; write one{none}")

        names = [name.strip() for name in cell.split(_SEPARATOR) if name.strip()]
        if not self.multi_label and (len(names) != 1 or _SEPARATOR in cell):
            raise InputError(f"{place} has the labels {cell!r}; expected one label, or type --data.multi_label true")
        return names

    def _check_separator(self, rows: Sequence[_Row]) -> None:
        """Raise an error if no row has a separator: the labels may be separated by something else."""
        if any(_SEPARATOR in row.cell for row in rows):
            return
        longest = max((row.cell for row in rows), key=len)
        raise InputError(
            f"{self.path} has no {_SEPARATOR!r} between labels, as in {longest!r}, and --data.multi_label is true; "
            f"write several labels as a{_SEPARATOR}b, or leave the option out if each file has one label"
        )

    def _sample(self, row: _Row, label_of: dict[str, int]) -> Sample:
        """Return the source of a file and its target."""
        unknown = [name for name in row.labels if name not in label_of]
        if unknown:
            raise InputError(
                f"{self.path} gives {row.file} the label {unknown[0]!r}, which no training file has; expected some of "
                f"{listed(label_of)}"
            )
        labels = [label_of[name] for name in row.labels]
        return self._source(row.file), to_target(labels, len(label_of)) if self.multi_label else labels[0]

    def _source(self, file: str) -> Any:
        """Return the source of a file."""
        path = self.base / file
        if not path.exists():
            raise MissingError(f"there is no {path}, which {self.path} names; files are relative to {self.base}")
        sources = self.options.find(path)
        if len(sources) != 1:
            raise InputError(f"{self.path} names {path}, which holds {len(sources)} samples; name each of them")
        return sources[0]
