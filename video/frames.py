"""What readers of videos have in common: frames by tick, their size, and messages about files."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, MissingError
from video.sampling import Ticks

__all__ = ["Frames", "Video", "check_file", "scaled", "undecodable"]

Frames = NDArray[np.uint8]


class Video(Protocol):
    """What a clip is read from: so many ticks of equal length, and the frame that is shown in each."""

    def __len__(self) -> int:
        """Number of ticks."""
        ...

    def read(self, ticks: Ticks) -> Frames:
        """The frames (N, H, W, 3) uint8, RGB, of ticks (N,) in any order."""
        ...


def check_file(path: Path) -> None:
    """Raise for a file that is missing or empty.

    Raises:
        MissingError: if there is none.
        InputError: if it is empty.
    """
    if not path.is_file():
        raise MissingError(f"there is no video {path}; correct the list that names it")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; replace it")


def scaled(first: int, second: int, short_side: int | None) -> tuple[int, int]:
    """Two sides in pixels, scaled down so that the shorter one is ``short_side`` at most; None leaves them."""
    scale = min(1.0, (short_side or np.inf) / min(first, second))
    return max(1, round(first * scale)), max(1, round(second * scale))


def undecodable(path: Path, error: Exception) -> InputError:
    """What to raise when a library cannot decode a file, with the library's reason."""
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return InputError(f"{path} cannot be decoded as a video: {reason}; replace it")
