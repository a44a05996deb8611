"""Chooses which frames of a video become a clip: VideoMAE's dense windows, or uniform segments as in TSN.

Frames are chosen by index. In a video of N frames the indices 0 to N - 1 stand for N equal parts of its duration, so
that index i is frame i at a constant frame rate. At a variable rate a frame that stays on the screen for longer has
more than one index, see :func:`displayed_frames`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError

__all__ = ["FrameIndices", "Sampling", "SamplingMode", "displayed_frames"]

FrameIndices = NDArray[np.int64]
SamplingMode = Literal["dense", "uniform"]


@dataclass(frozen=True)
class Sampling:
    """Chooses the frames of clips of T frames each.

    'dense' is VideoMAE's way, which the released code of UniRepLKNet uses: T frames are spread over a window of
    T * rate frames. Where the video is not longer than the window, every ``rate``-th frame is taken and the last one
    is repeated. 'uniform' is TSN's way: the video is divided into T equal segments, and each gives one frame.

    Attributes:
        frames: T, the number of frames of a clip.
        rate: video frames for each frame of a dense clip.
        mode: 'dense' or 'uniform'.
    """

    frames: int = 16
    rate: int = 4
    mode: SamplingMode = "dense"

    def __post_init__(self) -> None:
        if self.frames < 1 or self.rate < 1 or self.mode not in ("dense", "uniform"):
            raise InputError(
                f"num_frames={self.frames}, sampling_rate={self.rate}, sampling={self.mode!r}; "
                "expected at least 1, at least 1, and 'dense' or 'uniform'"
            )

    @property
    def window(self) -> int:
        """Number of video frames that a dense clip spans."""
        return self.frames * self.rate

    def random(self, length: int) -> FrameIndices:
        """Choose a random clip, with NumPy's global generator.

        Args:
            length: number of frames of the video.

        Returns:
            (T,) ascending indices in [0, length).
        """
        if self.mode == "uniform":
            return self._one_per_segment(length, np.random.random(self.frames))

        end = length
        if length > self.window:
            end = np.random.randint(self.window, length)

        return self._dense(length, end)

    def center(self, length: int) -> FrameIndices:
        """Choose the clip in the middle: (T,) ascending indices in [0, length)."""
        if self.mode == "uniform":
            return self._one_per_segment(length, np.full(self.frames, 0.5))

        return self._dense(length, (self.window + length) // 2)

    def views(self, length: int, count: int) -> FrameIndices:
        """Choose several clips over the length of the video.

        The dense clips are windows of every ``rate``-th frame, spread from the first to the last. The uniform clips
        differ in the place within each segment. A single clip is that of :meth:`center`.

        Args:
            length: number of frames of the video.
            count: V, the number of clips.

        Returns:
            (V, T) indices in [0, length), ascending in each clip.
        """
        if count == 1:
            return self.center(length)[None]

        if self.mode == "uniform":
            places = [(view + 0.5) / count for view in range(count)]
            return np.stack([self._one_per_segment(length, np.full(self.frames, place)) for place in places])

        every = np.arange(0, length, self.rate)
        missing = max(0, self.frames - len(every))
        every = np.pad(every, (0, missing), mode="edge")

        step = (len(every) - self.frames) / (count - 1)
        starts = [int(view * step) for view in range(count)]
        return np.stack([every[start : start + self.frames] for start in starts])

    def _dense(self, length: int, end: int) -> FrameIndices:
        """The published rule for a window that ends before ``end``, and for a video that is shorter than the window."""
        if length > self.window:
            start = end - self.window
            return np.linspace(start, end, self.frames).clip(start, end - 1).astype(np.int64)

        spread = np.linspace(0, length, length // self.rate)
        missing = self.frames - len(spread)
        padded = np.pad(spread, (0, missing), constant_values=length)
        return padded.clip(0, length - 1).astype(np.int64)

    def _one_per_segment(self, length: int, places: NDArray[np.float64]) -> FrameIndices:
        """One frame of each of T segments; ``places`` (T,) in [0, 1) say where in the segment it lies."""
        positions = (np.arange(self.frames) + places) * length / self.frames
        return positions.astype(np.int64).clip(0, length - 1)


def displayed_frames(start: NDArray[np.float64], end: float, indices: FrameIndices) -> FrameIndices:
    """Find the frame that is on the screen in the middle of each of N equal parts of a video's duration.

    Args:
        start: (N,) times at which the frames appear, ascending, in any unit.
        end: time at which the last frame disappears, in the same unit.
        indices: parts of the duration in [0, N), of any shape.

    Returns:
        Numbers of the frames, in the shape of ``indices``. With equal durations they are the indices themselves.
    """
    duration = (end - start[0]) / len(start)
    middle = start[0] + (indices + 0.5) * duration
    return np.searchsorted(start, middle, side="right") - 1
