"""Image files as a data set; broken ones are named, or left out on request."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from core.errors import InputError
from core.images import Mode, read_image

__all__ = ["ImageFiles", "collate_found"]


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
            warnings.warn(f"skipped {path}, which cannot be decoded: {error.__cause__}", stacklevel=2)
            return None


def collate_found(samples: list[Any]) -> Any:
    """A batch of the samples that could be decoded.

    Raises:
        InputError: if none could.
    """
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise InputError("no image of a whole batch can be decoded; check the files named in the warnings")
    return default_collate(found)
