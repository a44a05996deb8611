"""Audio data sets: class folders, Speech Commands, ESC-50, and tables in the layout of AudioSet."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from audio.data import AudioDataModule
from core.data.folders import Labeled, class_files
from core.data.labeled import FolderDataModule
from core.data.samples import Splits
from core.data.tables import read_csv, to_target
from core.errors import InputError, MissingError

__all__ = ["ESC50", "WORDS", "AudioFolder", "AudioTable", "SpeechCommands"]

WORDS = (
    *("backward", "follow", "five", "bed", "zero", "on", "learn", "two", "house", "tree", "dog", "stop", "seven"),
    *("eight", "down", "six", "forward", "cat", "right", "visual", "four", "wow", "no", "nine", "off", "three"),
    *("left", "marvin", "yes", "up", "sheila", "happy", "bird", "go", "one"),
)
"""The 35 words of Speech Commands V2 in the order of their published labels."""


class AudioFolder(FolderDataModule, AudioDataModule):
    """Class folders of recordings: ``root/train/<class>/*.wav`` or ``root/<class>/*.wav``.

    See :class:`core.data.labeled.FolderDataModule` for the layouts and their options.
    """

    pattern = "*.wav"


class SpeechCommands(AudioDataModule):
    """Speech Commands V2 as its archive unpacks: ``root/<word>/*.wav``, ``validation_list.txt``, ``testing_list.txt``.

    Recordings that are in neither list are for training, except those in ``_background_noise_``. Labels are the
    published ones, see :data:`WORDS`.

    Args:
        root: folder of the unpacked archive, https://www.tensorflow.org/datasets/catalog/speech_commands.
        kwargs: arguments of :class:`AudioDataModule`.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.words: Sequence[str] = WORDS

    def splits(self) -> Splits:
        """List the recordings of each split.

        Raises:
            MissingError: if a folder, a list or a listed recording is missing.
            InputError: if a folder is not one of the words, or a recording is listed twice.
        """
        _, files = class_files(self.root, self.find, pattern="*.wav", classes=self.words)
        by_name = {f"{path.parent.name}/{path.name}": (path, label) for path, label in files}

        seen: set[str] = set()
        val = self._listed("validation_list.txt", by_name, seen)
        test = self._listed("testing_list.txt", by_name, seen)
        train = [sample for name, sample in by_name.items() if name not in seen]
        return Splits(self.words, train, val, test)

    def _listed(self, file: str, by_name: dict[str, tuple[Path, int]], seen: set[str]) -> Labeled:
        """Return the recordings in a list, and add their names to those that were seen before."""
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
    """ESC-50 as its archive unpacks: ``root/meta/esc50.csv`` and ``root/audio/*.wav``.

    The data set has 2,000 clips of 5 s in five folds.

    Args:
        root: folder of the unpacked archive, https://github.com/karolpiczak/ESC-50.
        fold: test fold, 1 to 5; published results are means over all five.
        val_fold: validation fold, which chooses the checkpoint; by default the one after ``fold``. With the number of
            ``fold``, the test fold chooses the checkpoint and the other four are for training, as in published results.
        kwargs: arguments of :class:`AudioDataModule`.

    Raises:
        InputError: if there is no such fold.
    """

    def __init__(self, root: str, *, fold: int = 1, val_fold: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.fold = fold
        self.val_fold = fold % 5 + 1 if val_fold is None else val_fold
        if not {self.fold, self.val_fold} <= {1, 2, 3, 4, 5}:
            raise InputError(f"fold={fold}, val_fold={val_fold}; ESC-50 has the folds 1 to 5")

    def splits(self) -> Splits:
        """List the recordings of each split.

        Raises:
            MissingError: if the table is missing.
            InputError: if the table is not in UTF-8, or a column or a number is missing.
        """
        table = self.root / "meta" / "esc50.csv"
        rows = read_csv(table, ("filename", "fold", "target", "category"), numbers=("fold", "target"))
        names = {int(row["target"]): row["category"] for row in rows}
        classes = [names[label] for label in sorted(names)]

        def recordings_of(folds: set[int]) -> Labeled:
            chosen = [row for row in rows if int(row["fold"]) in folds]
            return [(self.root / "audio" / row["filename"], int(row["target"])) for row in chosen]

        train_folds = {1, 2, 3, 4, 5} - {self.fold, self.val_fold}
        return Splits(
            classes,
            train=recordings_of(train_folds),
            val=recordings_of({self.val_fold}),
            test=recordings_of({self.fold}),
        )


class AudioTable(AudioDataModule):
    """JSON tables of recordings with a CSV file of classes, in the layout of AudioSet, AST and the official code.

    A table is ``{"data": [{"wav": path, "labels": "/m/a,/m/b"}, ...]}``; its paths are absolute or relative to the
    table. The CSV file has the columns ``index``, ``mid`` and ``display_name``.

    Args:
        train_json: table of the training recordings.
        val_json: table of the validation recordings.
        labels_csv: CSV file of the classes.
        test_json: table of the test recordings; by default the validation table.
        multi_label: whether a recording may have any number of labels; targets are then (K,) float32 of 0 and 1.
        weights_csv: file with one weight in each line, for each training recording. Recordings are then drawn with
            replacement by these weights, as in the balanced sampling of AudioSet.
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
            InputError: if a file does not have the layout, or a label is unknown.
        """
        rows = read_csv(self.labels_csv, ("index", "mid", "display_name"), numbers=("index",))
        rows.sort(key=lambda row: int(row["index"]))
        classes = [row["display_name"] for row in rows]
        label_of = {row["mid"]: i for i, row in enumerate(rows)}

        train = self._read(self.train_json, label_of)
        if self.weights_csv:
            self.train_weights = _read_weights(self.weights_csv, len(train))
        return Splits(
            classes,
            train=train,
            val=self._read(self.val_json, label_of),
            test=self._read(self.test_json, label_of),
        )

    def _read(self, table: Path, label_of: dict[str, int]) -> list[tuple[Path, int | Tensor]]:
        """Read a table of recordings, and return the files with their targets."""
        if not table.is_file():
            raise MissingError(
                f"there is no table {table}; give a JSON file with {{'data': [{{'wav': ..., 'labels': ...}}, ...]}}"
            )

        try:
            rows = json.loads(table.read_text(encoding="utf-8-sig"))["data"]
            entries = [(str(row["wav"]), str(row["labels"])) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{table} is not {{'data': [{{'wav': ..., 'labels': ...}}, ...]}}: {error!r}") from error

        return [(table.parent / wav, self._target(labels, label_of, table)) for wav, labels in entries]

    def _target(self, labels: str, label_of: dict[str, int], table: Path) -> int | Tensor:
        """Turn the labels of a recording into its target: a label or, with ``multi_label``, (K,) float32 of 0 and 1."""
        names = [name.strip() for name in labels.split(",") if name.strip()]
        expected = "any" if self.multi_label else "one"

        unknown = [name for name in names if name not in label_of]
        if unknown:
            raise InputError(
                f"{table} has the labels {labels!r}; expected {expected} of those in {self.labels_csv}, which has no "
                f"{unknown[0]!r}"
            )
        if not self.multi_label and len(names) != 1:
            raise InputError(
                f"{table} has the labels {labels!r}; expected {expected} of those in {self.labels_csv}; or type "
                "--data.multi_label true"
            )

        if not self.multi_label:
            return label_of[names[0]]

        return to_target([label_of[name] for name in names], len(label_of))


def _read_weights(path: Path, count: int) -> list[float]:
    """Read one weight for each training recording."""
    if not path.is_file():
        raise MissingError(f"there is no {path}; give a line with a weight for each of the {count} training recordings")

    try:
        weights = [float(line) for line in path.read_text(encoding="utf-8-sig").split()]
    except ValueError as error:
        raise InputError(f"{path} does not have one number in each line: {error}") from error

    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise InputError(
            f"{path} has {len(weights)} weights for {count} recordings; give a finite one for each, 0 or more and not "
            "all 0"
        )
    return weights
