"""Choose which frames of a video become a clip: VideoMAE's dense windows, or TSN's uniform segments.

Frames are chosen by index. In a video of N frames, the indices 0 to N - 1 stand for N equal parts of its duration. At a
constant frame rate, index i is frame i. At a variable rate, a frame that stays on the screen longer has several
indices, see :func:`displayed_frames`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError

__all__ = ["FrameIndices", "Sampling", "SamplingMode", "displayed_frames"]

FrameIndices = NDArray[np.int64]
"""Indices of frames, in [0, number of frames)."""

SamplingMode = Literal["dense", "uniform"]


@dataclass(frozen=True)
class Sampling:
    """Chooses the frames of clips of T frames each.

    'dense' is the method of VideoMAE and of UniRepLKNet's released code: T frames are spread over a window of T * rate
    video frames. If the video is not longer than the window, about every ``rate``-th frame is taken and the last one is
    repeated. 'uniform' is TSN's method: the video is divided into T equal segments, and each gives one frame.

    Attributes:
        frames: number of frames T of a clip.
        rate: number of video frames for each frame of a dense clip.
        mode: 'dense' or 'uniform'.

    Raises:
        InputError: if a number is below 1 or the mode is unknown.
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
        """Choose a random clip, drawn from NumPy's global generator.

        Args:
            length: number of frames of the video.

        Returns:
            Ascending indices (T,) in [0, length).
        """
        if self.mode == "uniform":
            return self._one_per_segment(length, np.random.random(self.frames))

        end = length
        if length > self.window:
            end = np.random.randint(self.window, length)

        return self._dense(length, end)

    def center(self, length: int) -> FrameIndices:
        """Choose the clip in the middle of the video.

        Args:
            length: number of frames of the video.

        Returns:
            Ascending indices (T,) in [0, length).
        """
        if self.mode == "uniform":
            return self._one_per_segment(length, np.full(self.frames, 0.5))

        return self._dense(length, (self.window + length) // 2)

    def ending_at(self, length: int, end: int) -> FrameIndices:
        """Choose the dense clip of the window that ends before a frame.

        Args:
            length: number of frames of the video.
            end: number of the frame after the window, at most ``length``.

        Returns:
            Ascending indices (T,) in [0, length).
        """
        return self._dense(length, end)

    def views(self, length: int, count: int) -> FrameIndices:
        """Choose several clips that are spread over the length of the video.

        Of every ``rate``-th frame, each dense clip takes T consecutive ones; the clips are spread from the beginning to
        the end. Uniform clips differ in the position within each segment. A single clip is that of :meth:`center`.

        Args:
            length: number of frames of the video.
            count: number of clips V.

        Returns:
            Indices (V, T) in [0, length), ascending in each clip.
        """
        if count == 1:
            return self.center(length)[None]

        if self.mode == "uniform":
            positions = [(view + 0.5) / count for view in range(count)]
            clips = [self._one_per_segment(length, np.full(self.frames, position)) for position in positions]
            return np.stack(clips)

        every_rate_th = np.arange(0, length, self.rate)
        missing = max(0, self.frames - len(every_rate_th))
        every_rate_th = np.pad(every_rate_th, (0, missing), mode="edge")

        step = (len(every_rate_th) - self.frames) / (count - 1)
        starts = [int(view * step) for view in range(count)]
        return np.stack([every_rate_th[start : start + self.frames] for start in starts])

    def _dense(self, length: int, end: int) -> FrameIndices:
        """Choose the frames of the window that ends before ``end``, or of the whole video if it is no longer than that.

        Both are the rules of the released code.
        """
        if length > self.window:
            start = end - self.window
            return np.linspace(start, end, self.frames).clip(start, end - 1).astype(np.int64)

        spread = np.linspace(0, length, length // self.rate)
        missing = self.frames - len(spread)
        padded = np.pad(spread, (0, missing), constant_values=length)
        return padded.clip(0, length - 1).astype(np.int64)

    def _one_per_segment(self, length: int, positions: NDArray[np.float64]) -> FrameIndices:
        """Choose the frame at a relative position (T,) in [0, 1) within each of T segments."""
        frames = (np.arange(self.frames) + positions) * length / self.frames
        return frames.astype(np.int64).clip(0, length - 1)


def displayed_frames(start: NDArray[np.float64], end: float, indices: FrameIndices) -> FrameIndices:
    """Return the frame that is on the screen in the middle of each of N equal parts of a video's duration.

    Args:
        start: times (N,) at which the frames appear, ascending, in any unit.
        end: time at which the last frame disappears, in the same unit.
        indices: indices of parts of the duration in [0, N), of any shape.

    Returns:
        The numbers of the frames, in the shape of ``indices``. If all durations are equal, they are the indices.
    """
    duration = (end - start[0]) / len(start)
    middle = start[0] + (indices + 0.5) * duration
    return np.searchsorted(start, middle, side="right") - 1
