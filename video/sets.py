"""Video data sets: class folders, and the lists in which Kinetics and Something-Something are used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from core.data.labeled import FolderDataModule
from core.data.samples import Sample, Splits
from core.errors import InputError, MissingError
from video.data import VideoDataModule
from video.files import FrameFolder, Source

__all__ = ["FrameList", "VideoFolder", "VideoList"]


class VideoFolder(FolderDataModule, VideoDataModule):
    """Class folders of videos: ``root/train/<class>/*.mp4`` or ``root/<class>/*.mp4``.

    See :class:`core.data.labeled.FolderDataModule` for the layouts and their options.
    """

    pattern = "*.mp4"


class VideoList(VideoDataModule):
    """Lists of video files: ``root/train.csv`` and ``root/val.csv``, with a path, a space and a label in each line.

    The code of VideoMAE and UniRepLKNet uses this layout for Kinetics, UCF101, HMDB51, Diving48 and Moments in Time.
    Labels begin with 0. The label is the last word of a line, so paths may contain spaces. ``root/test.csv`` lists the
    test split; without it, ``root/val.csv`` does.

    Args:
        root: folder of the lists; only ``predict`` works without it.
        data_root: folder to which the paths are relative; by default the folder of the lists.
        num_classes: number of classes; by default one more than the largest label in the training list.
        class_names: file with one class name in each line, in the order of the labels; by default the labels.
        kwargs: arguments of :class:`VideoDataModule`.

    Raises:
        InputError: if both ``num_classes`` and ``class_names`` are given.
    """

    columns: ClassVar[Sequence[str]] = ("path", "label")
    """What the words of a line mean; all but the first are numbers."""

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
            raise InputError("num_classes and class_names both say how many classes there are; give only one of them")

        self.root = Path(root) if root else None
        self.data_root = Path(data_root) if data_root else self.root
        self.num_classes = num_classes
        self.class_names = Path(class_names) if class_names else None

    def splits(self) -> Splits:
        """Read the lists.

        Raises:
            MissingError: if a list or the file of class names is missing, or a list is empty.
            InputError: if a line does not have the layout, or its label is out of range.
        """
        if self.root is None:
            raise MissingError("no lists were given; type --data.root FOLDER, with FOLDER/train.csv and FOLDER/val.csv")

        # Without a test list, the validation list also serves as the test split.
        test_name = "test" if (self.root / "test.csv").is_file() else "val"
        files = {name: self.root / f"{name}.csv" for name in ("train", "val", test_name)}
        rows = {name: _read_list(file, self.columns) for name, file in files.items()}

        largest_label = max(row[-1] for row in rows["train"].values())
        classes = self._read_class_names(labels=largest_label + 1)

        samples = {name: self._samples(file, rows[name], classes) for name, file in files.items()}
        return Splits(
            classes,
            train=samples["train"],
            val=samples["val"],
            test=samples[test_name],
        )

    def _read_class_names(self, labels: int) -> list[str]:
        """Read the class names from their file; without one, the labels are the names."""
        if self.class_names is None:
            return [str(label) for label in range(self.num_classes or labels)]
        if not self.class_names.is_file():
            raise MissingError(f"there is no {self.class_names}; give a file with one class name in each line")

        return self.class_names.read_text(encoding="utf-8-sig").splitlines()

    def _samples(self, file: Path, rows: dict[int, tuple[Any, ...]], classes: Sequence[str]) -> list[Sample]:
        """Return the (source, label) pairs of a list, whose rows are given by their line numbers."""
        samples: list[Sample] = []
        for number, row in rows.items():
            label = row[-1]
            if label >= len(classes):
                raise InputError(
                    f"{file}, line {number}: label {label} is outside 0..{len(classes) - 1}; correct it, or set "
                    "--data.num_classes"
                )
            samples.append((self._source(*row[:-1]), label))
        return samples

    def _source(self, path: str) -> Source:
        """Return the source that a row describes; takes all words of the row but the label."""
        return self._full_path(path)

    def _full_path(self, path: str) -> Path:
        return (self.data_root or Path()) / path


class FrameList(VideoList):
    """Lists of folders of images, with a folder, its number of frames and a label in each line.

    Something-Something is used in this layout.

    Args:
        root: folder of the lists; only ``predict`` works without it.
        template: format of the file names of the images; the first image has number 1.
        kwargs: arguments of :class:`VideoList`.
    """

    columns = ("folder", "frames", "label")

    def __init__(self, root: str | None = None, *, template: str = "img_{:05}.jpg", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.template = template

    def find(self, path: Path) -> list[Source]:
        """Find all folders of images below a folder, sorted; a folder of images gives that folder alone.

        Raises:
            MissingError: if there is none.
            InputError: if a folder has a single image.
        """
        first = self.template.format(1)
        folders = sorted({file.parent for file in path.rglob(first)})
        if not folders:
            raise MissingError(f"{path} has no folder with a frame {first}; give another one, or set --data.template")

        return [FrameFolder(folder, self._count_frames(folder), self.template) for folder in folders]

    def _count_frames(self, folder: Path) -> int:
        """Count the images from number 1 up to the first gap."""
        frames = 0
        while (folder / self.template.format(frames + 1)).is_file():
            frames += 1
        return frames

    def _source(self, path: str, frames: int = 0) -> Source:
        return FrameFolder(self._full_path(path), frames, self.template)


def _read_list(file: Path, columns: Sequence[str]) -> dict[int, tuple[Any, ...]]:
    """Read the lines of a list, each a path and whole numbers, by their line numbers."""
    layout = " ".join(columns)
    if not file.is_file():
        raise MissingError(f"there is no list {file}; expected lines of '{layout}', separated by spaces")

    rows: dict[int, tuple[Any, ...]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.rsplit(maxsplit=len(columns) - 1)
        if not words:
            continue
        if len(words) != len(columns) or not all(word.isdecimal() for word in words[1:]):
            raise InputError(f"{file}, line {number}: got {line!r}; expected '{layout}', with whole numbers from 0")
        rows[number] = (words[0], *map(int, words[1:]))

    if not rows:
        raise MissingError(f"{file} is empty; expected lines of '{layout}'")
    return rows
