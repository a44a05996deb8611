"""The sources of clips: video files, folders of numbered images, and arrays of frames."""

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
    """What all sources have in common once they are open: frames that are read by index."""

    @property
    def seconds(self) -> float | None:
        """Duration in seconds; None if it is unknown."""
        ...

    def __len__(self) -> int:
        """Return the number of frames."""
        ...

    def read(self, indices: FrameIndices) -> Frames:
        """Return RGB frames (N, H, W, 3) uint8 at indices (N,) in [0, len(self)), in any order."""
        ...


@dataclass(frozen=True)
class FrameFolder:
    """A video that is stored as a folder of numbered images.

    Attributes:
        folder: the folder.
        frames: number of images.
        template: format of the file names; the first image has number 1.

    Raises:
        InputError: if there are fewer than two images.
    """

    folder: Path
    frames: int
    template: str = "img_{:05}.jpg"

    def __post_init__(self) -> None:
        _check_length(str(self.folder), self.frames)

    @property
    def seconds(self) -> None:
        """None, since the images have no times."""
        return None

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.frames

    def __str__(self) -> str:
        """Return the folder, the name of the video in messages and predictions."""
        return str(self.folder)

    def read(self, indices: FrameIndices) -> Frames:
        """Return RGB frames (N, H, W, 3) uint8 at indices (N,) in [0, len(self)), in any order.

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
        name: name of the video in messages.
        frames: RGB frames (T, H, W, 3) uint8.

    Raises:
        InputError: if the array has another shape or dtype, or fewer than two frames.
    """

    name: str
    frames: Frames

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise InputError(
                f"{self.name} has the shape {shape} and the dtype {self.frames.dtype}; expected RGB frames "
                "(T, H, W, 3) uint8"
            )
        _check_length(self.name, len(self.frames))

    @property
    def seconds(self) -> None:
        """None, since the frames have no times."""
        return None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def read(self, indices: FrameIndices) -> Frames:
        """Return RGB frames (N, H, W, 3) uint8 at indices (N,) in [0, len(self)), in any order."""
        return self.frames[indices]


Source = Path | FrameFolder | tuple[str, np.ndarray]
"""A video file, a folder of images, or a pair of a name and frames (T, H, W, 3) uint8."""


def video_files(path: Path) -> list[Path]:
    """Find all videos below a folder, sorted; a path to a video gives that video alone.

    Raises:
        MissingError: if there is no video.
        InputError: if there is no permission to read a folder.
    """
    return find_files(path, SUFFIXES, "videos")


def open_video(source: Source, *, short_side: int | None = None) -> AbstractContextManager[Video]:
    """Open a source for a ``with`` statement.

    Args:
        source: a video file, a folder of images, or a pair of a name and an array.
        short_side: largest shorter side of a file's frames, in pixels; larger ones are scaled down. None keeps their
            size.

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
    """Raise an error if there are too few frames for a clip."""
    if frames < 2:
        raise InputError(f"{name} has too few frames ({frames}); a clip needs at least two")
