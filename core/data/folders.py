"""Find files below a folder, and list class folders: in ImageNet's layout, or without splits."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info

from core.data.samples import Sample, Samples, Splits, divide_in_folds, hold_out, labels_of
from core.errors import InputError, MissingError, listed

__all__ = ["ClassFolders", "Labeled", "class_files", "find_files"]

Labeled = list[tuple[Path, int]]
"""Pairs of a file and its class number."""

_OTHER_NAMES = {
    "train": ("train", "training", "trains"),
    "val": ("val", "vali", "valid", "validate", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "tests", "testing", "eval", "evaluation"),
}
"""Other names in use for split folders, in lower case."""


def find_files(path: Path, suffixes: Sequence[str], kind: str) -> list[Path]:
    """Find all files below a folder that have one of the suffixes, sorted; hidden files are skipped.

    Args:
        path: a folder, or a single file, which is returned alone whatever its suffix is.
        suffixes: suffixes in lower case, with the dot.
        kind: the word for such files in messages, such as 'images'.

    Raises:
        MissingError: if the path does not exist, or the folder has no such file.
        InputError: if the user may not read a folder.
    """
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise MissingError(f"{path} is neither a file nor a folder; give {kind}, or a folder that holds some")

        visible = [p for p in _below(path) if not p.name.startswith(".")]
        files = sorted(p for p in visible if p.suffix.lower() in suffixes)
    except PermissionError as error:
        raise InputError(f"{error.filename} may not be read; change its permissions, or give other {kind}") from error

    if not files:
        raise MissingError(f"{path} holds no {kind}; expected files ending in {', '.join(suffixes)}")
    return files


def _below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; one that cannot be listed raises an error instead of counting as empty."""

    def raise_error(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=raise_error):
        for name in names:
            yield Path(parent) / name


def class_files(
    folder: Path,
    find: Callable[[Path], list[Path]],
    *,
    pattern: str = "*",
    classes: Sequence[str] | None = None,
) -> tuple[list[str], Labeled]:
    """List the class names and the (file, label) pairs of a folder that holds one folder for each class.

    Args:
        folder: folder that holds the class folders.
        find: function that lists the files of a class folder.
        pattern: pattern of the file names in messages, such as '*.jpg'.
        classes: class names in the order of their labels; by default the sorted names of the folders.

    Raises:
        MissingError: if there are fewer than two class folders, or one of them has no files.
        InputError: if the name of a folder is not in ``classes``.
    """
    layout = f"{folder}/<class>/{pattern}"
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}; expected {layout}, one folder for each class")

    folder_names = _class_names(folder)
    if len(folder_names) < 2:
        raise MissingError(f"{folder} has {len(folder_names)} class folders; expected at least two: {layout}")

    names = folder_names if classes is None else list(classes)
    unknown = sorted(set(folder_names) - set(names))
    if unknown:
        raise InputError(f"{folder} has classes that training lacks: {listed(unknown)}; expected {listed(names)}")

    label_of = {name: i for i, name in enumerate(names)}
    labeled = [(file, label_of[name]) for name in folder_names for file in find(folder / name)]
    return names, labeled


def _class_names(folder: Path) -> list[str]:
    """List the names of the class folders, sorted; those that begin with a dot or an underscore are left out."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))


@dataclass(frozen=True)
class ClassFolders:
    """Class folders in one of two layouts.

    ::

        root/<split>/<class>/<file>     ImageNet's layout, with the splits train, val and test
        root/<class>/<file>             without splits: all files are training files

    Without a validation folder, a share of each class is held out of the training files. Without ``root/test``, the
    validation split is the test split as well. Without a training folder, the other splits can still be evaluated, and
    the first of them defines the classes. A folder that looks like a split under another name, such as ``valid`` or
    ``Test``, raises an error, since it would otherwise be left out silently.

    Attributes:
        root: folder of the data; None if the user gave none, which is an error only when the files are needed.
        find: function that lists the files of a class folder.
        pattern: pattern of the file names in messages, such as '*.jpg'.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class to hold out, in (0, 1); the same files are held out in every run.
        folds: with 2 or more, hold out one of so many equal parts of the training files instead.
        fold: which part, counted from 0.

    Raises:
        InputError: if ``val_share`` is out of range.
    """

    root: Path | None
    find: Callable[[Path], list[Path]]
    pattern: str
    train_split: str = "train"
    val_split: str = "val"
    val_share: float = 0.1
    folds: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        if self.folds and not (self.folds >= 2 and 0 <= self.fold < self.folds):
            raise InputError(f"folds={self.folds}, fold={self.fold}; expected 2 or more folds, and a fold below that")
        if not 0 < self.val_share < 1:
            raise InputError(f"val_share={self.val_share}; give a share between 0 and 1")

    def has_training(self) -> bool:
        """Return whether there are files to train on."""
        return self._is_there(self.train_split) or self._is_flat()

    def check_training(self) -> None:
        """Check that there are files to train on.

        Raises:
            MissingError: if there are none; the message names the expected folder.
        """
        if not self.has_training():
            self._files(self.train_split)  # raises the MissingError

    def check(self) -> None:
        """Check the folder that defines the classes.

        Raises:
            MissingError: if the folder is missing, or one of its class folders is empty.
            InputError: if a folder looks like a split under another name.
        """
        if self._is_flat():
            self._flat_files()
        else:
            self._files(self._first_split())
            self._refuse_other_names()

    def split(self) -> Splits:
        """List the class names and the files of all splits.

        Raises:
            MissingError: if a folder is missing or empty.
            InputError: if a folder looks like a split under another name, if a split has classes that the training
                split does not have, or if a class has too few files to hold one out.
        """
        if self._is_flat():
            classes, files = self._flat_files()
            rank_zero_info(
                f"{self.root} has no folder {self.train_split}: its folders are the classes {listed(classes)}"
            )
            train, val = self._hold_out(classes, files)
            return Splits(classes, train, val, val)

        classes, first = self._files(self._first_split())
        self._refuse_other_names()

        train = first if self._is_there(self.train_split) else []
        if self._is_there(self.val_split):
            if self.folds:
                raise InputError(
                    f"--data.folds {self.folds} divides the training files, and {self._folder(self.val_split)} would "
                    f"not be read; leave folds out, or rename that folder to _{self.val_split}"
                )
            _, val = self._files(self.val_split, classes)
        elif train:
            train, val = self._hold_out(classes, train)
        else:
            val = first

        test = val
        if self._is_there("test"):
            _, test = self._files("test", classes)

        return Splits(classes, train, val, test)

    def _folder(self, split: str) -> Path:
        """Return the folder of a split; '.' stands for the root."""
        if self.root is None:
            raise MissingError(
                f"no folder was given; type --data.root FOLDER, with FOLDER/train/<class>/{self.pattern} or "
                f"FOLDER/<class>/{self.pattern}"
            )
        return self.root / split

    def _is_there(self, split: str) -> bool:
        return self._folder(split).is_dir()

    def _files(self, split: str, classes: Sequence[str] | None = None) -> tuple[list[str], Labeled]:
        return class_files(self._folder(split), self.find, pattern=self.pattern, classes=classes)

    def _first_split(self) -> str:
        """Return the split that defines the classes: the first one whose folder exists."""
        for split in self._split_names():
            if self._is_there(split):
                return split
        return self.train_split

    def _is_flat(self) -> bool:
        """Return whether the root holds class folders instead of split folders."""
        root = self._folder(".")
        has_splits = any(self._is_there(split) for split in self._split_names())
        return root.is_dir() and not has_splits and len(_class_names(root)) >= 2

    def _split_names(self) -> tuple[str, str, str]:
        """Return the names of the split folders."""
        return self.train_split, self.val_split, "test"

    def _flat_files(self) -> tuple[list[str], Labeled]:
        """List the class names and the files of a root without splits.

        Raises:
            InputError: if a folder looks like a split under another name.
        """
        root = self._folder(".")
        for name in _class_names(root):
            for split, others in _OTHER_NAMES.items():
                if name.lower() in others:
                    advice = "rename it to test" if split == "test" else f"type --data.{split}_split {name}"
                    raise InputError(
                        f"{root} has no folder {self.train_split}, and its folder {name} looks like a split and not "
                        f"like a class: {advice}, or rename it"
                    )

        return class_files(root, self.find, pattern=self.pattern)

    def _refuse_other_names(self) -> None:
        """Raise an error for a split under another name, which would otherwise be left out silently."""
        root = self._folder(".")
        for split, wanted in (("val", self.val_split), ("test", "test")):
            if self._is_there(wanted):
                continue

            for folder in sorted(root.iterdir()):
                is_known = folder.name in self._split_names()
                if folder.name.lower() in _OTHER_NAMES[split] and not is_known and folder.is_dir():
                    advice = "rename it to test" if split == "test" else f"type --data.val_split {folder.name}"
                    raise InputError(
                        f"{root} has no folder {wanted}, and {folder.name} would not be read: {advice}, or rename it "
                        f"to _{folder.name} to leave it out"
                    )

    def hold_out(
        self, classes: Sequence[str], samples: Samples, *, source: Path | None, remedy: str, reason: str
    ) -> tuple[list[Sample], list[Sample]]:
        """Divide training samples into those to train on and those held out for validation, as the options say.

        Args:
            classes: class names in the order of their labels.
            samples: (source, target) pairs of all training files.
            source: the folder or table that lists the files.
            remedy: what the user can add besides files, for messages.
            reason: why samples are held out, for messages.

        Raises:
            InputError: if a class has too few files.
        """
        targets = [target for _, target in samples]
        counts = Counter(label for target in targets for label in labels_of(target))
        for label, name in enumerate(classes):
            if counts[label] < 2:
                raise InputError(
                    f"class {name!r} has one file, too few to hold one out for validation; add files, or {remedy}"
                )

        if self.folds:
            divided = divide_in_folds(targets, self.folds)
            held_out = divided.pop(self.fold)
            rank_zero_info(f"Fold {self.fold} of {self.folds}: {len(held_out)} of {len(samples)} files are held out")
            return [samples[i] for fold in divided for i in fold], [samples[i] for i in held_out]

        kept, held_out = hold_out(targets, self.val_share)
        rank_zero_info(
            f"{source} {reason}: {len(held_out)} of its {len(samples)} files are held out for validation, the same "
            "share of each class and the same files in every run"
        )
        return [samples[i] for i in kept], [samples[i] for i in held_out]

    def _hold_out(self, classes: Sequence[str], files: Samples) -> tuple[list[Sample], list[Sample]]:
        folder = self._folder(self.val_split)
        remedy = f"a folder {folder}"
        return self.hold_out(classes, files, source=self.root, remedy=remedy, reason=f"has no folder {self.val_split}")
