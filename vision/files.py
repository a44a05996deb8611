"""Images of files and of arrays as a data set; broken ones are named, or left out on request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from core.images import Mode, read_image
from core.samples import Samples, read_or_skip

__all__ = ["Images"]


class Images(Dataset[tuple[Tensor, Any] | None]):
    """Images, each with a target.

    Args:
        files: (image, target) pairs; an image is a file, or a name and an array, (H, W) or (H, W, 3) uint8.
        transform: from a PIL image to a (C, H, W) map.
        mode: 'RGB' or 'L' (grey), what an image is converted to.
        skip_broken: leave out files that cannot be decoded, with a warning, instead of stopping.
    """

    def __init__(
        self,
        files: Samples,
        transform: Callable[[Image.Image], Tensor],
        *,
        mode: Mode = "RGB",
        skip_broken: bool = False,
    ) -> None:
        self.files, self.transform, self.mode, self.skip_broken = files, transform, mode, skip_broken

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | None:
        """The map and target of one image, or None if it is broken and may be skipped.

        Raises:
            MissingError: if the file is not there.
            InputError: naming the file that cannot be decoded.
        """
        source, target = self.files[index]
        image = read_or_skip(lambda: self._read(source), skip_broken=self.skip_broken)
        return None if image is None else (self.transform(image), target)

    def _read(self, source: Any) -> Image.Image:
        if isinstance(source, Path):
            return read_image(source, self.mode)
        return Image.fromarray(source[1]).convert(self.mode)
