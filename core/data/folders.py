"""Files of one kind below a folder, and class folders: ImageNet's layout, or one folder for each class."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info

from core.data.samples import Splits, hold_out
from core.errors import InputError, MissingError, listed

__all__ = ["ClassFolders", "Labeled", "class_files", "find_files"]

Labeled = list[tuple[Path, int]]
"""Files with their class numbers."""

_OTHER_NAMES = {
    "train": ("train", "training", "trains"),
    "val": ("val", "vali", "valid", "validate", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "tests", "testing", "eval", "evaluation"),
}
"""Names that split folders have elsewhere, in lower case."""


def find_files(path: Path, suffixes: Sequence[str], kind: str) -> list[Path]:
    """The file itself, or all files below a folder that end in one of the suffixes, sorted, without hidden ones.

    Args:
        path: a file or a folder.
        suffixes: in lower case, with the dot.
        kind: the word for the files in messages, as in 'images'.

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
    """All files below a folder; a folder that may not be listed is an error, not an empty folder."""

    def refuse(error: OSError) -> None:
        raise error

    for inner, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(inner) / name for name in names)


def class_files(
    folder: Path,
    find: Callable[[Path], list[Path]],
    *,
    pattern: str = "*",
    classes: Sequence[str] | None = None,
) -> tuple[list[str], Labeled]:
    """Class names and (file, label) pairs below a folder that holds one folder for each class.

    Args:
        folder: holds the class folders.
        find: gives the files of a class folder.
        pattern: the form of a file in messages, as in '*.jpg'.
        classes: the names in the order of their labels; by default the folders' names, sorted.

    Raises:
        MissingError: if there are fewer than two class folders, or one without files.
        InputError: if a folder is none of ``classes``.
    """
    layout = f"{folder}/<class>/{pattern}"
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}; expected {layout}, one folder for each class")

    found = _class_names(folder)
    if len(found) < 2:
        raise MissingError(f"{folder} has {len(found)} class folders; expected at least two: {layout}")

    names = found if classes is None else list(classes)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"{folder} has classes that training has not: {listed(unknown)}; expected {listed(names)}")

    label = {name: i for i, name in enumerate(names)}
    return names, [(file, label[name]) for name in found for file in find(folder / name)]


def _class_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))


@dataclass(frozen=True)
class ClassFolders:
    """Class folders in one of two layouts.

    ::

        root/<split>/<class>/<file>     ImageNet's, with splits train, val and test
        root/<class>/<file>             no splits: all files train, but for a share that is held out

    Without a validation folder a share of each class is held out of the training files. ``root/test`` is the test
    split if it is there, else the validation split is. Without a training folder the other splits serve evaluation,
    and the first of them names the classes. A folder that looks like a split under another name, such as ``valid`` or
    ``Test``, is refused instead of being left out.

    Attributes:
        root: folder of the data; None where a user may still leave it out.
        find: gives the files of a class folder.
        pattern: the form of a file in messages.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class held out, in (0, 1); always the same files.

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

    def has_training(self) -> bool:
        """Whether there are files to train on."""
        return self._is_there(self.train_split) or self._is_flat()

    def check_training(self) -> None:
        """Refuse folders without training files.

        Raises:
            MissingError: naming the folder that was expected.
        """
        if not self.has_training():
            self._files(self.train_split)

    def check(self) -> None:
        """Look at the folder that names the classes.

        Raises:
            MissingError: if it is missing, or a class folder is empty.
            InputError: if a split has another name than the one that is read.
        """
        if self._is_flat():
            self._flat_files()
        else:
            self._files(self._first_split())
            self._refuse_other_names()

    def split(self) -> Splits:
        """List all files.

        Raises:
            MissingError: if a folder is missing or empty.
            InputError: if a split has another name than the one that is read, or classes that training has not, or if
                a class is too small to hold some files out.
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
            _, val = self._files(self.val_split, classes)
        elif train:
            train, val = self._hold_out(classes, train)
        else:
            val = first

        test = self._files("test", classes)[1] if self._is_there("test") else val
        return Splits(classes, train, val, test)

    def _folder(self, split: str) -> Path:
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
        """The split that names the classes."""
        return next(filter(self._is_there, (self.train_split, self.val_split, "test")), self.train_split)

    def _is_flat(self) -> bool:
        """Whether the root holds class folders instead of split folders."""
        root = self._folder(".")
        if not root.is_dir() or any(map(self._is_there, (self.train_split, self.val_split, "test"))):
            return False

        return len(_class_names(root)) >= 2

    def _flat_files(self) -> tuple[list[str], Labeled]:
        """The class names and files of a root without split folders, unless it has some under other names."""
        root = self._folder(".")
        for name in _class_names(root):
            for split, others in _OTHER_NAMES.items():
                if name.lower() in others:
                    option = f"type --data.{split}_split {name}" if split != "test" else "rename it to test"
                    raise InputError(
                        f"{root} has no folder {self.train_split}, and its folder {name} looks like a split and not "
                        f"like a class: {option}, or rename it"
                    )

        return class_files(root, self.find, pattern=self.pattern)

    def _refuse_other_names(self) -> None:
        """Refuse splits that would be left out silently, while a share of the training files takes their place."""
        root = self._folder(".")
        read = (self.train_split, self.val_split, "test")
        for split, wanted in (("val", self.val_split), ("test", "test")):
            if self._is_there(wanted):
                continue
            for folder in sorted(root.iterdir()):
                if folder.name.lower() in _OTHER_NAMES[split] and folder.name not in read and folder.is_dir():
                    option = f"type --data.val_split {folder.name}" if split == "val" else "rename it to test"
                    raise InputError(
                        f"{root} has no folder {wanted}, and {folder.name} would not be read: {option}, or rename it "
                        f"to _{folder.name} to leave it out"
                    )

    def _hold_out(self, classes: Sequence[str], files: Labeled) -> tuple[Labeled, Labeled]:
        labels = [label for _, label in files]
        counts = Counter(labels)
        for label, name in enumerate(classes):
            if counts[label] < 2:
                folder = self._folder(self.val_split)
                raise InputError(f"class {name!r} has one file, too few to hold some out; add files, or {folder}")

        kept, held_out = hold_out(labels, self.val_share)
        rank_zero_info(
            f"{self.root} has no folder {self.val_split}: {len(held_out)} of its {len(files)} files are held out for "
            "validation, the same share of each class and the same files in every run"
        )
        return [files[i] for i in kept], [files[i] for i in held_out]
