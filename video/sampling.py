"""Which frames of a video become a clip: the published dense windows, and uniform segments.

A video of N frames has N ticks of equal length in time; sampling chooses ticks, and reading shows the frame of a tick.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError

__all__ = ["Sampling", "Ticks", "shown_at"]

Ticks = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """Clips of a fixed number of frames.

    'dense' is VideoMAE's, which UniRepLKNet's code uses: T ticks spread over a window of T * rate. In a video that is
    not longer than the window, one tick for each ``rate``, spread over the whole, and the last one repeated. 'uniform'
    is TSN's: the video in T equal segments, one tick of each.

    Attributes:
        frames: T.
        rate: ticks of the window for each frame of a dense clip.
        mode: 'dense' or 'uniform'.

    Raises:
        InputError: if a number is below 1 or the mode is unknown.
    """

    frames: int = 16
    rate: int = 4
    mode: Literal["dense", "uniform"] = "dense"

    def __post_init__(self) -> None:
        if min(self.frames, self.rate) < 1 or self.mode not in ("dense", "uniform"):
            raise InputError(
                f"num_frames={self.frames}, sampling_rate={self.rate}, sampling={self.mode!r}; "
                "expected at least 1, at least 1, and 'dense' or 'uniform'"
            )

    def random(self, length: int) -> Ticks:
        """(T,) of a random clip of a video with ``length`` ticks, by NumPy's global generator."""
        if self.mode == "uniform":
            return self._segments(length, np.random.random(self.frames))
        window = self.frames * self.rate
        return self._dense(length, np.random.randint(window, length) if length > window else length)

    def centre(self, length: int) -> Ticks:
        """(T,) of the clip in the middle."""
        if self.mode == "uniform":
            return self._segments(length, np.full(self.frames, 0.5))
        return self._dense(length, (self.frames * self.rate + length) // 2)

    def views(self, length: int, count: int) -> Ticks:
        """(count, T) of clips spread over the whole video; one is :meth:`centre`.

        Dense views are windows of every ``rate``-th tick, from the first to the last; uniform ones take other places in
        each segment.
        """
        if count == 1:
            return self.centre(length)[None]
        if self.mode == "uniform":
            return np.stack([self._segments(length, np.full(self.frames, (v + 0.5) / count)) for v in range(count)])
        ticks = np.arange(0, length, self.rate)
        ticks = np.pad(ticks, (0, max(0, self.frames - len(ticks))), mode="edge")
        step = (len(ticks) - self.frames) / (count - 1)
        return np.stack([ticks[int(v * step) :][: self.frames] for v in range(count)])

    def _dense(self, length: int, end: int) -> Ticks:
        window = self.frames * self.rate
        if length > window:
            return np.linspace(end - window, end, self.frames).clip(end - window, end - 1).astype(np.int64)
        spread = np.linspace(0, length, length // self.rate)
        ticks = np.pad(spread, (0, self.frames - len(spread)), constant_values=length)
        return ticks.clip(0, length - 1).astype(np.int64)

    def _segments(self, length: int, place: NDArray[np.float64]) -> Ticks:
        return ((np.arange(self.frames) + place) * length / self.frames).astype(np.int64).clip(0, length - 1)


def shown_at(start: NDArray[np.float64], end: float, ticks: Ticks) -> Ticks:
    """Which frame is on the screen in the middle of each tick: with equal durations the frame of the tick's number.

    Args:
        start: (N,) times at which each frame appears, ascending, in any unit.
        end: when the last one disappears, in the same unit.
        ticks: any shape, in [0, N).
    """
    middle = start[0] + (ticks + 0.5) * ((end - start[0]) / len(start))
    return np.searchsorted(start, middle, side="right") - 1
