"""Audio data sets: class folders, Speech Commands, ESC-50, and tables in the layout of AudioSet."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio.data import AudioDataModule
from core.data.folders import Labeled, class_files
from core.data.labeled import FolderDataModule
from core.data.samples import Splits
from core.errors import InputError, MissingError

__all__ = ["ESC50", "WORDS", "AudioFolder", "AudioTable", "SpeechCommands"]

WORDS = (
    *("backward", "follow", "five", "bed", "zero", "on", "learn", "two", "house", "tree", "dog", "stop", "seven"),
    *("eight", "down", "six", "forward", "cat", "right", "visual", "four", "wow", "no", "nine", "off", "three"),
    *("left", "marvin", "yes", "up", "sheila", "happy", "bird", "go", "one"),
)
"""The 35 words of Speech Commands V2 in the order of their published labels."""


class AudioFolder(FolderDataModule, AudioDataModule):
    """Class folders of recordings, ``root/train/<class>/*.wav`` or ``root/<class>/*.wav``.

    The layouts are those of :class:`core.data.labeled.FolderDataModule`.
    """

    pattern = "*.wav"


class SpeechCommands(AudioDataModule):
    """Speech Commands V2 as its archive unpacks: ``root/<word>/*.wav``, ``validation_list.txt``, ``testing_list.txt``.

    Recordings that neither list names are for training. ``_background_noise_`` is left out. Labels are the published
    ones, see :data:`WORDS`.

    Args:
        root: the unpacked archive, https://www.tensorflow.org/datasets/catalog/speech_commands.
        kwargs: arguments of :class:`AudioDataModule`.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.words: Sequence[str] = WORDS

    def splits(self) -> Splits:
        """Return the recordings that each list names, and the others.

        Raises:
            MissingError: if a folder, a list or a recording that it names is missing.
            InputError: if a folder is none of the words, or a recording is named twice.
        """
        _, files = class_files(self.root, self.find, pattern="*.wav", classes=self.words)
        by_name = {f"{path.parent.name}/{path.name}": (path, label) for path, label in files}

        seen: set[str] = set()
        val = self._listed("validation_list.txt", by_name, seen)
        test = self._listed("testing_list.txt", by_name, seen)
        train = [sample for name, sample in by_name.items() if name not in seen]
        return Splits(self.words, train, val, test)

    def _listed(self, file: str, by_name: dict[str, tuple[Path, int]], seen: set[str]) -> Labeled:
        """Return the recordings that a list names. Their names are added to those seen before."""
        path = self.root / file
        if not path.is_file():
            raise MissingError(f"there is no {path}; unpack the whole archive of Speech Commands there")

        samples: Labeled = []
        for name in path.read_text(encoding="utf-8-sig").split():
            if name not in by_name:
                raise MissingError(f"{path} names {name}, which is not there; unpack the archive again")
            if name in seen:
                raise InputError(f"{path} names {name}, which was named before; unpack the archive again")
            seen.add(name)
            samples.append(by_name[name])
        return samples


class ESC50(AudioDataModule):
    """ESC-50 as its archive unpacks, ``root/meta/esc50.csv`` and ``root/audio/*.wav``: 2,000 clips of 5 s, five folds.

    Args:
        root: the unpacked archive, https://github.com/karolpiczak/ESC-50.
        fold: the fold that tests, 1 to 5; the published figure is the mean over all five.
        val_fold: the fold that chooses the checkpoint; by default the next one. Give the number of ``fold`` to choose
            by the test fold and train on the four others, as published figures do.
        kwargs: arguments of :class:`AudioDataModule`.
    """

    def __init__(self, root: str, *, fold: int = 1, val_fold: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.fold = fold
        self.val_fold = fold % 5 + 1 if val_fold is None else val_fold
        if not {self.fold, self.val_fold} <= {1, 2, 3, 4, 5}:
            raise InputError(f"fold={fold}, val_fold={val_fold}; ESC-50 has the folds 1 to 5")

    def splits(self) -> Splits:
        """Return the recordings of the training folds, of the validation fold and of the test fold.

        Raises:
            MissingError: if the table is not there.
            InputError: if it is not in UTF-8, or lacks a column or a number.
        """
        table = self.root / "meta" / "esc50.csv"
        rows = _read_csv(table, ("filename", "fold", "target", "category"), numbers=("fold", "target"))
        names = {int(row["target"]): row["category"] for row in rows}
        classes = [names[label] for label in sorted(names)]

        def part(folds: set[int]) -> Labeled:
            chosen = [row for row in rows if int(row["fold"]) in folds]
            return [(self.root / "audio" / row["filename"], int(row["target"])) for row in chosen]

        train = part({1, 2, 3, 4, 5} - {self.fold, self.val_fold})
        return Splits(classes, train, part({self.val_fold}), part({self.fold}))


class AudioTable(AudioDataModule):
    """JSON tables of recordings with a CSV of labels, the layout of AudioSet, AST and the official code.

    A table is ``{"data": [{"wav": path, "labels": "/m/a,/m/b"}, ...]}``; paths are absolute or relative to the table.
    The CSV has the header ``index,mid,display_name``.

    Args:
        train_json: table of the training recordings.
        val_json: table of the validation recordings.
        labels_csv: the classes.
        test_json: table of the test recordings; by default the validation table.
        multi_label: whether a recording may have any number of labels; targets are then (K,) float32 of 0 and 1.
        weights_csv: one number a line for each training recording. Recordings are then drawn with replacement by these
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
        self.train_json = Path(train_json)
        self.val_json = Path(val_json)
        self.test_json = Path(test_json or val_json)
        self.labels_csv = Path(labels_csv)
        self.weights_csv = Path(weights_csv) if weights_csv else None
        self.multi_label = multi_label

    def splits(self) -> Splits:
        """Read the tables, and the weights of the training recordings.

        Raises:
            MissingError: if a file is missing.
            InputError: if a table, the classes or the weights are not in the layout, or a label is unknown.
        """
        rows = _read_csv(self.labels_csv, ("index", "mid", "display_name"), numbers=("index",))
        rows.sort(key=lambda row: int(row["index"]))
        classes = [row["display_name"] for row in rows]
        label_of = {row["mid"]: i for i, row in enumerate(rows)}

        train = self._read(self.train_json, label_of)
        if self.weights_csv:
            self.train_weights = _read_weights(self.weights_csv, len(train))
        return Splits(classes, train, self._read(self.val_json, label_of), self._read(self.test_json, label_of))

    def _read(self, table: Path, label_of: dict[str, int]) -> list[tuple[Path, int | Tensor]]:
        """Return the recordings of a table with their targets."""
        if not table.is_file():
            raise MissingError(
                f"there is no table {table}; give a JSON file with {{'data': [{{'wav', 'labels'}}, ...]}}"
            )

        try:
            rows = json.loads(table.read_text(encoding="utf-8-sig"))["data"]
            entries = [(str(row["wav"]), str(row["labels"])) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{table} is not {{'data': [{{'wav': ..., 'labels': ...}}, ...]}}: {error!r}") from error

        return [(table.parent / wav, self._target(labels, label_of, table)) for wav, labels in entries]

    def _target(self, labels: str, label_of: dict[str, int], table: Path) -> int | Tensor:
        """Return a label, or (K,) of 0 and 1."""
        names = [name.strip() for name in labels.split(",") if name.strip()]
        unknown = next((name for name in names if name not in label_of), None)
        if unknown or (not self.multi_label and len(names) != 1):
            raise InputError(
                f"{table} has the labels {labels!r}; expected {'any' if self.multi_label else 'one'} of those in "
                f"{self.labels_csv}"
                + (f", which has no {unknown!r}" if unknown else "; or type --data.multi_label true")
            )

        if not self.multi_label:
            return label_of[names[0]]
        target_K = torch.zeros(len(label_of))
        target_K[[label_of[name] for name in names]] = 1
        return target_K


def _read_csv(path: Path, columns: Sequence[str], *, numbers: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table that has these columns, some of which hold whole numbers from 0 on."""
    if not path.is_file():
        raise MissingError(f"there is no {path}; expected a CSV file with the columns {', '.join(columns)}")

    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel puts a mark at the beginning of a file
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
    """One weight for each training recording."""
    if not path.is_file():
        raise MissingError(f"there is no {path}; give one weight a line for each of the {count} training recordings")

    try:
        weights = [float(line) for line in path.read_text(encoding="utf-8-sig").split()]
    except ValueError as error:
        raise InputError(f"{path} is not one number a line: {error}") from error

    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise InputError(f"{path} has {len(weights)} weights for {count} recordings; give one each, 0 or more")
    return weights
