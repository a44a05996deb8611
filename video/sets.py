"""Video data sets: lists as Kinetics and Something-Something have them, and class folders."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from core.errors import InputError, MissingError
from core.files import Splits
from core.training.samples import FolderDataModule
from video.data import VideoDataModule
from video.files import FrameFolder, Source

__all__ = ["FrameList", "VideoFolder", "VideoList"]


class VideoFolder(FolderDataModule, VideoDataModule):
    """Class folders of videos, see :class:`core.training.FolderDataModule`: ``root/train/<class>/*.mp4``."""

    pattern = "*.mp4"


class VideoList(VideoDataModule):
    """Lists of video files, ``root/train.csv`` and ``root/val.csv``: a path and a label a line, with a space between.

    The layout of VideoMAE and of UniRepLKNet's code for Kinetics, UCF101, HMDB51, Diving48 and Moments in Time. The
    label is the last word of a line, so that a path may have spaces. ``root/test.csv`` is used for ``test`` if it is
    there, else ``root/val.csv``.

    Args:
        root: folder of the lists; may be left out for ``predict`` alone.
        data_root: folder that the paths are relative to; by default that of the lists.
        num_classes: number of classes; by default one more than the largest label of the training list.
        class_names: file with the name of a class a line, in the order of the labels.
        kwargs: arguments of :class:`VideoDataModule`.

    Raises:
        InputError: if both ``num_classes`` and ``class_names`` are given.
    """

    columns: Sequence[str] = ("path", "label")
    """Words of a line, of which all but the first are numbers."""

    def __init__(
        self,
        root: str | None = None,
        *,
        data_root: str | None = None,
        num_classes: int | None = None,
        class_names: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes is not None and class_names is not None:
            raise InputError("num_classes and class_names both say how many classes there are; give one of them")
        self.root = Path(root) if root else None
        self.data_root = Path(data_root) if data_root else self.root
        self.num_classes, self.class_names = num_classes, Path(class_names) if class_names else None

    def check_data(self) -> None:
        """Read all lists before a run folder is made.

        Raises:
            MissingError: if ``root`` was left out, or a list or the file of names is missing, or a list empty.
            InputError: if a line is not in the layout, or its label out of range.
        """
        self.splits()

    def splits(self) -> Splits:
        """Read the lists.

        Raises:
            MissingError: if ``root`` was left out, or a list or the file of names is missing, or a list empty.
            InputError: if a line is not in the layout, or its label out of range.
        """
        if self.root is None:
            raise MissingError("no lists were given; type --data.root FOLDER, with FOLDER/train.csv and FOLDER/val.csv")
        has_test = (self.root / "test.csv").is_file()
        names = ("train", "val", "test" if has_test else "val")
        lists = [_read_list(self.root / f"{name}.csv", self.columns) for name in names]
        classes = self._names(1 + max(row[-1] for row in lists[0].values()))
        for name, rows in zip(names, lists, strict=True):
            for number, row in rows.items():
                if row[-1] >= len(classes):
                    raise InputError(
                        f"{self.root / name}.csv, line {number}: label {row[-1]} is outside "
                        f"0..{len(classes) - 1}; correct it, or set --data.num_classes"
                    )
        return Splits(classes, *([(self._source(*row[:-1]), row[-1]) for row in rows.values()] for rows in lists))

    def _names(self, labels: int) -> list[str]:
        if self.class_names is None:
            return [str(i) for i in range(self.num_classes or labels)]
        if not self.class_names.is_file():
            raise MissingError(f"there is no {self.class_names}; give a file with the name of a class a line")
        return self.class_names.read_text(encoding="utf-8").splitlines()

    def _source(self, path: str) -> Source:
        return self._path(path)

    def _path(self, path: str) -> Path:
        return (self.data_root or Path()) / path


class FrameList(VideoList):
    """Lists of folders of frames: a folder, its number of frames and a label a line; the layout of Something-Something.

    Args:
        root: folder of the lists.
        template: name of a frame by its number, from 1 on.
        kwargs: arguments of :class:`VideoList`.
    """

    columns = ("folder", "frames", "label")

    def __init__(self, root: str | None = None, *, template: str = "img_{:05}.jpg", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.template = template

    def find(self, path: Path) -> list[Source]:
        """The folder of frames itself, or all such folders below it; frames are counted from the first.

        Raises:
            MissingError: if there is none.
            InputError: if one has a single frame.
        """
        first = self.template.format(1)
        folders = sorted({file.parent for file in path.rglob(first)})
        if not folders:
            raise MissingError(f"{path} has no folder with a frame {first}; give one, or set --data.template")
        return [FrameFolder(folder, self._frames(folder), self.template) for folder in folders]

    def _frames(self, folder: Path) -> int:
        return next(number for number in count(1) if not (folder / self.template.format(number + 1)).is_file())

    def _source(self, path: str, frames: int = 0) -> Source:
        return FrameFolder(self._path(path), frames, self.template)


def _read_list(file: Path, columns: Sequence[str]) -> dict[int, tuple[Any, ...]]:
    """The lines of a list by their numbers: a path and whole numbers."""
    layout = " ".join(columns)
    if not file.is_file():
        raise MissingError(f"there is no list {file}; expected lines of '{layout}', with a space between")
    rows: dict[int, tuple[Any, ...]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.rsplit(maxsplit=len(columns) - 1)
        if not words:
            continue
        if len(words) != len(columns) or not all(word.isdecimal() for word in words[1:]):
            raise InputError(f"{file}, line {number}: got {line!r}; expected '{layout}', with numbers from 0 on")
        rows[number] = (words[0], *map(int, words[1:]))
    if not rows:
        raise MissingError(f"{file} is empty; expected lines of '{layout}'")
    return rows
