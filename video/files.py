"""Clips of video files and of folders of frames as a data set."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import InputError, MissingError
from core.files import find_files
from core.images import read_image
from core.samples import Samples
from video.decoding import Decoder, open_video
from video.frames import Video
from video.sampling import Ticks

__all__ = ["SUFFIXES", "Clips", "FrameFolder", "Source", "video_files"]

SUFFIXES = (
    ".3gp",
    ".avi",
    ".flv",
    ".gif",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
)
_TRIES = 10
"""Clips drawn in place of one that cannot be decoded."""


def video_files(path: Path) -> list[Path]:
    """The video itself, or all videos below a folder, sorted.

    Raises:
        MissingError: if there is none.
        InputError: if a folder may not be read.
    """
    return find_files(path, SUFFIXES, "videos")


@dataclass(frozen=True)
class FrameFolder:
    """A video as a folder of images with numbers.

    Attributes:
        folder: of the images.
        frames: number of images.
        template: name of an image by its number, the first of which is 1.

    Raises:
        InputError: if there are fewer than two frames.
    """

    folder: Path
    frames: int
    template: str = "img_{:05}.jpg"

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise InputError(f"{self.folder} has {self.frames} frames; a clip needs at least two")

    def __len__(self) -> int:
        """Number of frames."""
        return self.frames

    def __str__(self) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, ticks: Ticks) -> np.ndarray:
        """The frames (N, H, W, 3) uint8, RGB, of ticks (N,).

        Raises:
            MissingError: if an image is missing.
            InputError: if one cannot be decoded, or they differ in size.
        """
        images = {tick: np.asarray(self._read(tick)) for tick in set(ticks.tolist())}
        if len({image.shape for image in images.values()}) > 1:
            raise InputError(f"{self.folder} has images of different sizes; replace them")
        return np.stack([images[tick] for tick in ticks.tolist()])

    def _read(self, tick: int) -> Any:
        file = self.folder / self.template.format(tick + 1)
        if not file.is_file():
            raise MissingError(f"there is no frame {file}, of {self.frames}; correct the list or --data.template")
        return read_image(file)


Source = Path | FrameFolder


class Clips(Dataset[tuple[Tensor, Any]]):
    """Clips of videos, each with a target.

    Args:
        files: (video, target) pairs.
        sample: from a number of ticks to those of one clip (T,), or of several (V, T).
        transform: from frames (T, C, H, W) or (V, T, C, H, W) uint8 to clips (N, ..., T, C, size, size) uint8.
        decoder: package that decodes.
        short_side: decoded frames whose shorter side is larger are scaled down to it; None for none.
        replace: take another clip in place of one that cannot be decoded, with a warning, instead of stopping.
    """

    def __init__(
        self,
        files: Samples,
        sample: Callable[[int], Ticks],
        transform: Callable[[Tensor], Tensor],
        *,
        decoder: Decoder = "pyav",
        short_side: int | None = None,
        replace: bool = False,
    ) -> None:
        self.files, self.sample, self.transform = files, sample, transform
        self.decoder, self.short_side, self.replace = decoder, short_side, replace

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Clips (N, T, C, size, size) uint8 of one video and its target.

        Raises:
            MissingError: if the file is not there.
            InputError: naming the file that cannot be decoded, or if too many in a row cannot.
        """
        if not self.replace:
            return self._clips(index)
        for _ in range(_TRIES):
            try:
                return self._clips(index)
            except MissingError:
                raise
            except InputError as error:
                warnings.warn(f"replaced by another clip: {error}", stacklevel=2)
                index = int(torch.randint(len(self), ()))
        raise InputError(f"{_TRIES} clips in a row cannot be decoded; check the files named in the warnings")

    def _clips(self, index: int) -> tuple[Tensor, Any]:
        source, target = self.files[index]
        with self._open(source) as video:
            ticks = self.sample(len(video))
            wanted, place = np.unique(ticks, return_inverse=True)
            frames = torch.from_numpy(np.ascontiguousarray(video.read(wanted))).permute(0, 3, 1, 2)
        x = self.transform(frames[torch.from_numpy(place.reshape(ticks.shape))])
        return x.flatten(0, x.ndim - 5), target

    def _open(self, source: Source) -> AbstractContextManager[Video]:
        if isinstance(source, FrameFolder):
            return nullcontext(source)
        return open_video(source, self.decoder, short_side=self.short_side)
