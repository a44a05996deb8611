"""What a clip is read from: a video file, a folder of numbered images, or an array of frames."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from core.data.folders import find_files
from core.data.images import read_image
from core.errors import InputError, MissingError
from video.decoding import Frames, VideoFile
from video.sampling import FrameIndices

__all__ = ["SUFFIXES", "FrameArray", "FrameFolder", "Source", "Video", "open_video", "video_files"]

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


class Video(Protocol):
    """Frames that are read by index."""

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def read(self, indices: FrameIndices) -> Frames:
        """Return the frames (N, H, W, 3) uint8, RGB, at (N,) indices in [0, len(self)), in any order."""
        ...


@dataclass(frozen=True)
class FrameFolder:
    """A video that is a folder of numbered images.

    Attributes:
        folder: the folder.
        frames: number of images.
        template: name of an image by its number, which begins with 1.
    """

    folder: Path
    frames: int
    template: str = "img_{:05}.jpg"

    def __post_init__(self) -> None:
        _check_length(str(self.folder), self.frames)

    def __len__(self) -> int:
        """Number of frames."""
        return self.frames

    def __str__(self) -> str:
        """Return the folder, which names the video in messages and predictions."""
        return str(self.folder)

    def read(self, indices: FrameIndices) -> Frames:
        """Return the frames (N, H, W, 3) uint8, RGB, at (N,) indices in [0, len(self)).

        Raises:
            MissingError: if an image is missing.
            InputError: if an image cannot be decoded, or images differ in size.
        """
        images = {index: self._read_image(index) for index in set(indices.tolist())}
        sizes = {image.shape for image in images.values()}
        if len(sizes) > 1:
            raise InputError(f"{self.folder} has images of different sizes; replace them")

        return np.stack([images[index] for index in indices.tolist()])

    def _read_image(self, index: int) -> Frames:
        file = self.folder / self.template.format(index + 1)
        if not file.is_file():
            raise MissingError(f"there is no frame {file}, of {self.frames}; correct the list or --data.template")
        return np.asarray(read_image(file))


@dataclass(frozen=True)
class FrameArray:
    """A video that is an array in memory.

    Attributes:
        name: what the video is called in messages.
        frames: (T, H, W, 3) uint8, RGB.
    """

    name: str
    frames: Frames

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise InputError(
                f"{self.name} has the shape {shape} and the type {self.frames.dtype}; expected frames (T, H, W, 3) "
                "of uint8, RGB"
            )
        _check_length(self.name, len(self.frames))

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def read(self, indices: FrameIndices) -> Frames:
        """Return the frames (N, H, W, 3) uint8 at (N,) indices in [0, len(self))."""
        return self.frames[indices]


Source = Path | FrameFolder | tuple[str, np.ndarray]
"""A video file, a folder of images, or a name and frames (T, H, W, 3) uint8."""


def video_files(path: Path) -> list[Path]:
    """Return the video itself, or all videos below a folder, sorted.

    Raises:
        MissingError: if there is none.
    """
    return find_files(path, SUFFIXES, "videos")


def open_video(source: Source, *, short_side: int | None = None) -> AbstractContextManager[Video]:
    """Open a source, to be used in a ``with`` statement.

    Args:
        source: a video file, a folder of images, or a name and an array.
        short_side: frames of a file whose shorter side has more pixels are scaled down to this; None keeps them.

    Raises:
        MissingError: if there is no such file.
        InputError: if it cannot be used as a video.
    """
    if isinstance(source, FrameFolder):
        return nullcontext(source)
    if isinstance(source, tuple):
        return nullcontext(FrameArray(*source))
    return VideoFile(source, short_side=short_side)


def _check_length(name: str, frames: int) -> None:
    if frames < 2:
        raise InputError(f"{name} has {frames} frames; a clip needs at least two")
