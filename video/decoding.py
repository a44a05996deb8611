"""Reads single frames of a video file, without decoding the whole file.

    demux ─► times of frames and keyframes ─► seek to a keyframe ─► decode up to the last wanted frame ─► RGB

Demuxing reads the packets of a file without decoding them, which is fast. It gives the presentation time of every
frame, by which frames are found at any frame rate, and the keyframes, which are the frames that one can seek to.
"""

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from core.errors import InputError, MissingError
from video.sampling import FrameIndices, displayed_frames

__all__ = ["Frames", "VideoFile"]

Frames = NDArray[np.uint8]
"""RGB frames (N, H, W, 3) uint8, or a single one (H, W, 3)."""

Times = NDArray[np.int64]
"""Presentation times in the unit of their stream, its ``time_base``."""

SHORTEST_SKIP = 8
"""Number of frames that a seek must exceed to save time; the seek itself takes time, since it empties the decoder."""

CONVERTED_AT_ONCE = 16
"""Number of frames to decode before they are converted to RGB, which is faster than alternating between the two."""


class VideoFile:
    """A video file whose frames are read by index with PyAV, and a context manager that closes it.

    Indices number equal parts of the duration, as many as there are frames, see :mod:`video.sampling`.

    Args:
        path: a file in any container and codec that FFmpeg reads.
        short_side: largest shorter side of a frame, in pixels; larger frames are scaled down. None keeps their size.
        threads: number of decoder threads; 0 for one on each processor.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file has no video, is damaged, or has fewer than two frames.
    """

    def __init__(self, path: Path, *, short_side: int | None = None, threads: int = 1) -> None:
        self.path = path
        self.short_side = short_side
        self.threads = threads
        self._size: tuple[int, int] | None = None  # width and height of the first decoded frame

        self._open()
        try:
            self._read_index()
        except InputError:
            self.close()
            raise
        except Exception as error:  # FFmpeg and PyAV raise errors of any type
            self.close()
            raise _undecodable(path, error) from error

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.times)

    @property
    def seconds(self) -> float | None:
        """Duration in seconds; None if it is unknown."""
        unit = self.stream.time_base
        if not self.times_restart and unit is not None:
            return float((self.end - int(self.times[0])) * unit)
        rate = self.stream.average_rate
        return float(len(self) / rate) if rate else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def read(self, indices: FrameIndices) -> Frames:
        """Decode some frames.

        Args:
            indices: indices (N,) in [0, len(self)), in any order.

        Returns:
            RGB frames (N, H, W, 3) uint8, rotated as the file says. If the frame size changes within the video, all
            frames are scaled to the size of the first one that was decoded.

        Raises:
            InputError: if a frame cannot be decoded.
        """
        times = self.times[displayed_frames(self.times.astype(np.float64), self.end, indices)]
        wanted = np.unique(times)
        try:
            pictures = self._decode(wanted)
        except InputError:
            raise
        except Exception as error:
            raise _undecodable(self.path, error) from error

        missing = [time for time in wanted.tolist() if time not in pictures]
        if missing:
            raise InputError(
                f"{self.path} cannot be decoded as a video: no frame {self._place(missing[0])}; replace it"
            )

        return np.stack([pictures[time] for time in times.tolist()])

    def _place(self, time: int) -> str:
        """Return where a frame lies in the video, for messages: in seconds or, if the times restart, by its number."""
        if self.times_restart:
            return str(time)

        seconds = float((time - self.times[0]) * self.stream.time_base)
        return f"at {seconds:.2f} s"

    # Opening

    def _open(self) -> None:
        """Open the file, and choose its first video stream that is not a cover picture."""
        self.container = _open_container(self.path)

        streams = self.container.streams
        videos = [video for video in streams.video if not video.disposition & video.disposition.attached_pic]
        if not videos:
            found = "sound and no pictures" if streams.audio else "no video"
            self.close()
            raise InputError(f"{self.path} has {found}; give a video, or take it out of the list")

        if videos[0].codec_context is None:
            self.close()
            raise InputError(
                f"{self.path} has a codec that FFmpeg does not know; convert it, for example to H.264 in mp4"
            )

        self.stream = videos[0]
        self.stream.codec_context.thread_count = self.threads

    def _reopen(self) -> None:
        """Open the file again, which resets the decoder and the position."""
        self.close()
        self._open()

    # The index: the times of all frames and of the keyframes

    def _read_index(self) -> None:
        """Read the packets of the file, and store the times of its frames and keyframes."""
        packets = [packet for packet in self.container.demux(self.stream) if packet.size]
        container = self.container.format.name

        # The header of an mp4 file gives the number of frames, even if the end of the file is missing.
        if 0 < len(packets) < self.stream.frames and "mp4" in container:
            raise InputError(f"{self.path} is cut off after {len(packets)} of {self.stream.frames} frames; replace it")

        # Packets that an edit list discards are decoded, since other frames refer to them, but never displayed.
        displayed: dict[int, Packet] = {}
        for packet in packets:
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and not packet.is_discard:
                displayed[time] = packet

        self.times = np.array(sorted(displayed), np.int64)
        if len(self.times) < 2:
            if len(packets) > 1:  # all with the same time
                raise InputError(f"{self.path} has {len(packets)} frames and lasts 0 s; replace it")
            raise InputError(f"{self.path} has too few frames ({len(packets)}); a clip needs at least two")

        # In files that were joined, the times restart. Their frames are found by counting, as if equally spaced.
        decoding_times = [packet.dts for packet in packets if packet.dts is not None]
        self.times_restart = any(later < earlier for earlier, later in pairwise(decoding_times))
        if self.times_restart:
            count = sum(not packet.is_discard for packet in packets)
            self.times = np.arange(count)
            self.end = count
            return

        # Some containers do not store the duration of the last frame; it then gets the mean duration of the others.
        first = int(self.times[0])
        last = int(self.times[-1])
        mean_duration = round((last - first) / (len(self.times) - 1))
        self.end = last + int(displayed[last].duration or mean_duration)

        keys = [time for time in self.times.tolist() if displayed[time].is_keyframe] or [first]
        self.key_times = np.array(keys, np.int64)

        # FFmpeg seeks by presentation time in containers that have an index, and by decoding time in the others.
        if "mp4" in container or "matroska" in container:
            self.seek_times = self.key_times
        else:
            self.seek_times = np.array([displayed[time].dts or time for time in keys], np.int64)

    def _has_wrong_times(self) -> bool:
        """Return whether the times are wrong: AVI stores none, and FFmpeg's guess fails if frames are reordered."""
        context = self.stream.codec_context
        is_avi = "avi" in self.container.format.name
        return is_avi and bool(context.has_b_frames) and context.codec.name in ("h264", "hevc")

    # Decoding

    def _decode(self, wanted: Times) -> dict[int, Frames]:
        """Decode the frames at the wanted times, which are ascending.

        Returns:
            The picture (H, W, 3) uint8 of each time; those that cannot be found are missing.
        """
        if self.times_restart or self._has_wrong_times():
            return self._to_rgb(self._decode_by_count(wanted))

        pictures = self._to_rgb(self._decode_by_seeking(wanted))
        if len(pictures) < len(wanted):
            # A seek missed its keyframe. Decoding from the beginning finds every frame.
            self._reopen()
            pictures |= self._to_rgb(self._decode_run(self.container.demux(self.stream), wanted))

        return pictures

    def _decode_by_count(self, wanted: Times) -> Iterator[tuple[int, VideoFrame]]:
        """Decode from the beginning, and take the n-th frame for the n-th time."""
        self._reopen()
        missing = set(wanted.tolist())

        for time, frame in zip(self.times.tolist(), self.container.decode(self.stream), strict=False):
            if time in missing:
                missing.remove(time)
                yield time, frame
            if not missing:
                return

    def _decode_by_seeking(self, wanted: Times) -> Iterator[tuple[int, VideoFrame]]:
        """Seek to the keyframe of each run of wanted frames, and decode the run."""
        for key, run in self._split_into_runs(wanted):
            self.container.seek(int(self.seek_times[key]), stream=self.stream)
            packets = self._packets_from_keyframe(int(self.key_times[key]))
            yield from self._decode_run(packets, run)

    def _split_into_runs(self, wanted: Times) -> list[tuple[int, Times]]:
        """Divide the wanted times into runs; a new run begins where a seek skips enough frames.

        Returns:
            For each run, the index of the keyframe at which its decoding begins, and its times.
        """
        # The index of the last keyframe at or before each wanted frame.
        keys = (np.searchsorted(self.key_times, wanted, side="right") - 1).clip(0)

        # The number of frames from a wanted frame to the keyframe of the next one, which a seek would skip. It is zero
        # or negative if both have the same keyframe.
        wanted_numbers = np.searchsorted(self.times, wanted)
        key_numbers = np.searchsorted(self.times, self.key_times[keys])
        skipped = key_numbers[1:] - wanted_numbers[:-1]

        starts = np.flatnonzero(skipped > SHORTEST_SKIP) + 1
        first_keys = keys[[0, *starts]]
        return list(zip(first_keys.tolist(), np.split(wanted, starts), strict=True))

    def _packets_from_keyframe(self, time: int) -> Iterator[Packet]:
        """Yield the packets after a seek, from the first keyframe on; none if that keyframe comes after ``time``."""
        packets = self.container.demux(self.stream)
        for packet in packets:
            if not packet.is_keyframe:
                continue
            if packet.pts is None or packet.pts > time:
                return
            yield packet
            break

        yield from packets

    def _decode_run(self, packets: Iterator[Packet], wanted: Times) -> Iterator[tuple[int, VideoFrame]]:
        """Decode packets up to the last wanted frame, and yield each wanted frame with its time."""
        context = self.stream.codec_context
        missing = set(wanted.tolist())
        last = int(wanted[-1])
        skipping: str | None = None

        for packet in packets:
            # Frames that no other frame refers to are decoded only if they are wanted. With AV1, all frames are, since
            # its decoder reads this setting only once. The empty packet at the end flushes the decoder.
            skip: Literal["DEFAULT", "NONREF"] = "NONREF"
            if packet.pts in missing or not packet.size or context.codec.canonical_name == "av1":
                skip = "DEFAULT"
            if skip != skipping:
                context.skip_frame = skip
                skipping = skip

            for frame in packet.decode():
                time = frame.dts if frame.pts is None else frame.pts
                if time is None:
                    continue
                if time in missing:
                    missing.remove(time)
                    yield time, frame
                if not missing or time > last:
                    return

    def _to_rgb(self, frames: Iterator[tuple[int, VideoFrame]]) -> dict[int, Frames]:
        """Convert decoded frames to pictures (H, W, 3) uint8 by their times."""
        reformatter = VideoReformatter()
        pictures: dict[int, Frames] = {}

        while decoded := list(islice(frames, CONVERTED_AT_ONCE)):
            for time, frame in decoded:
                self._size = self._size or (frame.width, frame.height)
                width, height = _scale_down(*self._size, self.short_side)
                rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA)
                quarter_turns = round(frame.rotation / 90) % 4
                pictures[time] = np.rot90(rgb.to_ndarray(), quarter_turns)

        return pictures


def _open_container(path: Path) -> InputContainer:
    """Open a file with FFmpeg, and raise an error that names the file if that fails."""
    if not path.is_file():
        raise MissingError(f"there is no video {path}; correct the list that names it")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; replace it")

    try:
        return av.open(str(path))
    except Exception as error:
        raise _undecodable(path, error) from error


def _scale_down(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return a width and height in pixels of the same ratio, the shorter of which is at most ``short_side``."""
    if short_side is None or min(width, height) <= short_side:
        return width, height

    scale = short_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _undecodable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that FFmpeg cannot decode, with FFmpeg's reason."""
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return InputError(f"{path} cannot be decoded as a video: {reason}; replace it")
