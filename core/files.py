"""Files of one kind below a folder, and class folders in ImageNet's layout."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from core.errors import InputError, MissingError, listed
from core.samples import Samples

__all__ = ["ClassFolders", "Labelled", "Splits", "Validation", "class_files", "find_files", "hold_out"]

Labelled = list[tuple[Path, int]]
"""Files with their class numbers."""
_OTHER_NAMES = {
    "val": ("val", "vali", "valid", "validate", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "tests", "testing", "eval", "evaluation"),
}
"""What split folders are called elsewhere, in lower case."""


def find_files(path: Path, suffixes: Sequence[str], kind: str) -> list[Path]:
    """The file itself, or all files below a folder that end in one of the suffixes, sorted; hidden ones are left out.

    Args:
        path: a file or a folder.
        suffixes: in lower case, with the dot.
        kind: what they are called in messages, as in 'images'.

    Raises:
        MissingError: if there is none.
        InputError: if a folder may not be read.
    """
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise MissingError(f"{path} is neither a file nor a folder; give {kind}, or a folder that holds some")
        files = sorted(p for p in _below(path) if p.suffix.lower() in suffixes and not p.name.startswith("."))
    except PermissionError as error:
        raise InputError(f"{error.filename} may not be read; change its permissions, or give other {kind}") from error
    if not files:
        raise MissingError(f"{path} holds no {kind}; expected files ending in {', '.join(suffixes)}")
    return files


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder; one that may not be listed is an error and not an empty one."""

    def refuse(error: OSError) -> None:
        raise error

    for inner, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(inner) / name for name in names)


def class_files(
    folder: Path, find: Callable[[Path], list[Path]], *, pattern: str = "*", classes: Sequence[str] | None = None
) -> tuple[list[str], Labelled]:
    """Class names and (file, label) pairs below a split folder.

    Args:
        folder: holds one folder for each class.
        find: gives the files of a class folder.
        pattern: how a file is written in messages, as in '*.jpg'.
        classes: the names in the order of their labels; by default the folders' names, sorted.

    Raises:
        MissingError: if there are fewer than two class folders, or one without files.
        InputError: if a folder is none of ``classes``.
    """
    layout = f"{folder}/<class>/{pattern}"
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}; expected {layout}, one folder for each class")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
    if len(found) < 2:
        raise MissingError(f"{folder} has {len(found)} class folders; expected at least two: {layout}")
    names = list(classes) if classes is not None else found
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"{folder} has classes that training has not: {listed(unknown)}; expected {listed(names)}")
    label = {name: i for i, name in enumerate(names)}
    return names, [(file, label[name]) for name in found for file in find(folder / name)]


@dataclass(frozen=True)
class Splits:
    """Class names in the order of their labels, and the (source, label) pairs of each split."""

    classes: Sequence[str]
    train: Samples
    val: Samples
    test: Samples


@dataclass(frozen=True)
class ClassFolders:
    """``root/<split>/<class>/<file>``; without a validation folder a share of each class is held out of training.

    ``root/test`` is the test split if it is there, else the validation split is. Without a training folder the other
    splits are for evaluation: the first of them names the classes. A folder that looks like a missing split under
    another name, as ``valid`` or ``Test``, is refused instead of being left out.

    Attributes:
        root: folder of the split folders; None where a user may still leave it out.
        find: gives the files of a class folder.
        pattern: how a file is written in messages.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class held out, in (0, 1); which files is always the same.

    Raises:
        InputError: if ``val_share`` is out of range.
    """

    root: Path | None
    find: Callable[[Path], list[Path]]
    pattern: str
    train_split: str = "train"
    val_split: str = "val"
    val_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise InputError(f"val_share={self.val_share}; give a share between 0 and 1")

    def _folder(self, split: str) -> Path:
        if self.root is None:
            raise MissingError(
                f"no folder was given; type --data.root FOLDER, with FOLDER/train/<class>/{self.pattern}"
            )
        return self.root / split

    def _files(self, split: str, classes: Sequence[str] | None = None) -> tuple[list[str], Labelled]:
        return class_files(self._folder(split), self.find, pattern=self.pattern, classes=classes)

    def _there(self, split: str) -> bool:
        return self._folder(split).is_dir()

    def _first(self) -> str:
        """The split that names the classes."""
        return next(filter(self._there, (self.train_split, self.val_split, "test")), self.train_split)

    def has_training(self) -> bool:
        """Whether there is a training folder; without one the others are for evaluation."""
        return self._there(self.train_split)

    def check(self, *, training: bool = True) -> None:
        """Look at the training folder, or for evaluation alone at the first that is there.

        Raises:
            MissingError: if it is missing, or a class folder is empty.
            InputError: if a split has another name than it is looked for.
        """
        self._files(self.train_split if training else self._first())
        self._refuse_other_names()

    def split(self) -> Splits:
        """List all files.

        Raises:
            MissingError: if a folder is missing or empty.
            InputError: if a split has another name than it is looked for, or classes that training has not, or if a
                class is too small to hold some out.
        """
        classes, first = self._files(self._first())
        self._refuse_other_names()
        train = first if self.has_training() else []
        if self._there(self.val_split):
            val = self._files(self.val_split, classes)[1]
        elif train:
            train, val = self._hold_out(classes, train)
        else:
            val = first
        return Splits(classes, train, val, self._files("test", classes)[1] if self._there("test") else val)

    def _refuse_other_names(self) -> None:
        """Training would go on without them, and a share of its files take their place."""
        root, read = self._folder("."), (self.train_split, self.val_split, "test")
        for split, wanted in (("val", self.val_split), ("test", "test")):
            for folder in () if self._there(wanted) else sorted(root.iterdir()):
                if folder.name.lower() in _OTHER_NAMES[split] and folder.name not in read and folder.is_dir():
                    way = f"type --data.val_split {folder.name}" if split == "val" else "rename it to test"
                    raise InputError(
                        f"{root} has no folder {wanted}, and {folder.name} would not be read: {way}, or rename it to "
                        f"_{folder.name} to leave it out"
                    )

    def _hold_out(self, classes: Sequence[str], files: Labelled) -> tuple[Labelled, Labelled]:
        labels = [label for _, label in files]
        counts = Counter(labels)
        for label, name in enumerate(classes):
            if counts[label] < 2:
                folder = self._folder(self.val_split)
                raise InputError(f"class {name!r} has one file, too few to hold some out; add files, or {folder}")
        kept, held_out = hold_out(labels, self.val_share)
        return [files[i] for i in kept], [files[i] for i in held_out]


def hold_out(labels: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Positions to keep and positions to hold out: a share of each class, always the same ones, in order.

    Args:
        labels: class of each sample.
        share: in (0, 1); of a class at least one sample is held out and one kept, a single one is kept.
    """
    generator = np.random.default_rng(0)
    held_out: set[int] = set()
    found: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        found.setdefault(label, []).append(i)
    for _, members in sorted(found.items()):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out.update(generator.permutation(members)[:count].tolist())
    return [i for i in range(len(labels)) if i not in held_out], sorted(held_out)


@dataclass(frozen=True)
class Validation:
    """What validates in a set that is published as a training and a test split alone.

    Attributes:
        val_split: 'held_out' for a share of each class of the training split, 'test' for the test split.
        val_share: that share, in (0, 1).

    Raises:
        InputError: if ``val_split`` is unknown or ``val_share`` out of range.
    """

    val_split: Literal["held_out", "test"]
    val_share: float

    def __post_init__(self) -> None:
        if self.val_split not in ("held_out", "test") or not 0 < self.val_share < 1:
            raise InputError(
                f"val_split={self.val_split!r}, val_share={self.val_share}; 'held_out' or 'test', a share in (0, 1)"
            )

    def splits(self, classes: Sequence[str], train: Samples, test: Samples) -> Splits:
        """All three splits, of the two that are published."""
        if self.val_split == "test":
            return Splits(classes, train, test, test)
        kept, held_out = hold_out([int(label) for _, label in train], self.val_share)
        return Splits(classes, [train[i] for i in kept], [train[i] for i in held_out], test)
