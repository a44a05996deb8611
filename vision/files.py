"""Image files on disk: found by class folder, decoded, and named when they are broken."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from core.errors import InputError, MissingError
from core.images import Mode, image_files, read_image

__all__ = ["ImageFiles", "class_files", "collate_found"]


class ImageFiles(Dataset[tuple[Tensor, Any] | None]):
    """Image files, each with a target.

    Args:
        files: (path, target) pairs.
        transform: from a PIL image to a (C, H, W) map.
        mode: 'RGB' or 'L' (grey), what a file is converted to.
        skip_broken: leave out files that cannot be decoded, with a warning, instead of stopping.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, Any]],
        transform: Callable[[Image.Image], Tensor],
        *,
        mode: Mode = "RGB",
        skip_broken: bool = False,
    ) -> None:
        self.files, self.transform, self.mode, self.skip_broken = files, transform, mode, skip_broken

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | None:
        """The map and target of one file, or None if it is broken and may be skipped.

        Raises:
            InputError: naming the file that cannot be decoded.
        """
        path, target = self.files[index]
        try:
            return self.transform(read_image(path, self.mode)), target
        except InputError as error:
            if not self.skip_broken:
                raise InputError(f"{error}, or type --data.skip_broken true") from error
            warnings.warn(f"skipped: {error}", stacklevel=2)
            return None


def class_files(folder: Path, classes: Sequence[str] | None = None) -> tuple[list[str], list[tuple[Path, int]]]:
    """Class names and (file, label) pairs below a split folder.

    Args:
        folder: holds one folder for each class.
        classes: the names in the order of their labels; by default the folders' names, sorted.

    Raises:
        MissingError: if there are fewer than two class folders, or one without images.
        InputError: if a folder is none of ``classes``.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}; expected {folder}/<class>/*.jpg, one folder for each class")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(found) < 2:
        raise MissingError(f"{folder} has {len(found)} class folders; expected at least two: {folder}/<class>/*.jpg")
    unknown = sorted(set(found) - set(classes)) if classes is not None else []
    if unknown:
        raise InputError(f"{folder} has classes that training has not: {', '.join(unknown[:5])}; expected {classes}")
    names = list(classes) if classes is not None else found
    return names, [(file, names.index(name)) for name in found for file in image_files(folder / name)]


def collate_found(samples: list[Any]) -> Any:
    """A batch of the samples that could be decoded.

    Raises:
        InputError: if none could.
    """
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise InputError("no image of a whole batch can be decoded; check the files named in the warnings")
    return default_collate(found)
