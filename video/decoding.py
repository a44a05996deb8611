"""Reads single frames of a video file, without decoding the whole file.

    demux ─► times of frames and keyframes ─► seek to a keyframe ─► decode up to the last wanted frame ─► RGB

Demuxing reads the packets of a file without decoding them, which is fast. It gives the time of every frame, so that a
frame can be found whatever the frame rate, and the keyframes, which are the frames that one can seek to.
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
"""Frames (N, H, W, 3), RGB, or a single one (H, W, 3)."""

Times = NDArray[np.int64]
"""Presentation times in the unit of a stream, its ``time_base``."""

SHORTEST_SKIP = 8
"""A seek is worth it if it skips more frames than this; it takes time too, since it empties the decoder."""

CONVERTED_AT_ONCE = 16
"""Frames that are decoded before they are converted to RGB: faster than to alternate between the two."""


class VideoFile:
    """A video file whose frames are read by index, with PyAV; a context manager.

    Indices count equal parts of the duration, as many as there are frames, see :mod:`video.sampling`.

    Args:
        path: a file of any container and codec that FFmpeg reads.
        short_side: frames whose shorter side has more pixels are scaled down to this; None keeps their size.
        threads: threads of the decoder; 0 takes one for each processor.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file has no video, is damaged, or has fewer than two frames.
    """

    def __init__(self, path: Path, *, short_side: int | None = None, threads: int = 1) -> None:
        self.path = path
        self.short_side = short_side
        self.threads = threads
        self._size: tuple[int, int] | None = None

        self._open()
        try:
            self._read_index()
        except InputError:
            self.close()
            raise
        except Exception as error:  # FFmpeg's errors, and those of PyAV, which may be of any type
            self.close()
            raise _undecodable(path, error) from error

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.times)

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
            indices: (N,) in [0, len(self)), in any order.

        Returns:
            (N, H, W, 3) uint8, RGB, rotated as the file says. Where the size changes within the video, all frames are
            scaled to that of the first one that was read.

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

        for time in wanted.tolist():
            if time not in pictures:
                seconds = float((time - self.times[0]) * self.stream.time_base)
                place = f"no frame {time}" if self.times_restart else f"no frame at {seconds:.2f} s"
                raise InputError(f"{self.path} cannot be decoded as a video: {place}; replace it")

        return np.stack([pictures[time] for time in times.tolist()])

    # Opening

    def _open(self) -> None:
        """Open the file at its beginning, with its first video stream that is not a cover picture."""
        self.container = _open_container(self.path)

        streams = self.container.streams
        videos = [video for video in streams.video if not video.disposition & video.disposition.attached_pic]
        if not videos:
            found = "sound and no pictures" if streams.audio else "no video in it"
            self.close()
            raise InputError(f"{self.path} has {found}; give a video, or take it out of the list")

        if videos[0].codec_context is None:
            self.close()
            raise InputError(f"{self.path} has a codec that FFmpeg does not know; convert it, as to H.264 in mp4")

        self.stream = videos[0]
        self.stream.codec_context.thread_count = self.threads

    def _reopen(self) -> None:
        self.close()
        self._open()

    # The index: times of all frames, and of the keyframes

    def _read_index(self) -> None:
        """Read the packets of the file, and keep the times of its frames and keyframes."""
        packets = [packet for packet in self.container.demux(self.stream) if packet.size]
        container = self.container.format.name

        # The header of an mp4 file holds the number of frames, even if the file was not copied to its end.
        if 0 < len(packets) < self.stream.frames and "mp4" in container:
            raise InputError(f"{self.path} is cut off after {len(packets)} of {self.stream.frames} frames; replace it")

        # Packets that an edit list discards are decoded, since others refer to them, but never displayed.
        displayed: dict[int, Packet] = {}
        for packet in packets:
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and not packet.is_discard:
                displayed[time] = packet

        self.times = np.array(sorted(displayed), np.int64)
        if len(self.times) < 2:
            reason = " and lasts 0 s; replace it" if len(packets) > 1 else "; a clip needs at least two"
            raise InputError(f"{self.path} has {len(packets)} frames{reason}")

        # In files that were joined, the times begin anew. Their frames are found by counting, at equal distances.
        decoding_times = [packet.dts for packet in packets if packet.dts is not None]
        self.times_restart = any(later < earlier for earlier, later in pairwise(decoding_times))
        if self.times_restart:
            count = sum(not packet.is_discard for packet in packets)
            self.times = np.arange(count)
            self.end = count
            return

        # Some containers do not store the duration of the last frame.
        first = int(self.times[0])
        last = int(self.times[-1])
        mean_duration = round((last - first) / (len(self.times) - 1))
        self.end = last + int(displayed[last].duration or mean_duration)

        keys = [time for time in self.times.tolist() if displayed[time].is_keyframe] or [first]
        self.key_times = np.array(keys, np.int64)

        # Containers with an index are sought by the time of presentation, others by the time of decoding.
        if "mp4" in container or "matroska" in container:
            self.seek_times = self.key_times
        else:
            self.seek_times = np.array([displayed[time].dts or time for time in keys], np.int64)

    def _has_wrong_times(self) -> bool:
        """Whether FFmpeg guesses the times, and wrongly: AVI stores none, and H.264 and HEVC reorder their frames."""
        context = self.stream.codec_context
        is_avi = "avi" in self.container.format.name
        return is_avi and bool(context.has_b_frames) and context.codec.name in ("h264", "hevc")

    # Decoding

    def _decode(self, wanted: Times) -> dict[int, Frames]:
        """Decode the frames at the wanted times, ascending, to pictures (H, W, 3) by their times."""
        if self.times_restart or self._has_wrong_times():
            return self._to_rgb(self._decode_by_count(wanted))

        pictures = self._to_rgb(self._decode_by_seeking(wanted))
        if len(pictures) < len(wanted):
            # A seek did not arrive at its keyframe. Decoding from the beginning finds every frame.
            self._reopen()
            pictures |= self._to_rgb(self._decode_run(self.container.demux(self.stream), wanted))

        return pictures

    def _decode_by_count(self, wanted: Times) -> Iterator[tuple[int, VideoFrame]]:
        """Decode from the beginning and take the n-th frame for the n-th time."""
        self._reopen()
        missing = set(wanted.tolist())

        for time, frame in zip(self.times.tolist(), self.container.decode(self.stream), strict=False):
            if time in missing:
                missing.remove(time)
                yield time, frame
            if not missing:
                return

    def _decode_by_seeking(self, wanted: Times) -> Iterator[tuple[int, VideoFrame]]:
        """Seek to the keyframe before each run of wanted frames, and decode the run."""
        for key, run in self._split_into_runs(wanted):
            self.container.seek(int(self.seek_times[key]), stream=self.stream)
            packets = self._packets_from_keyframe(int(self.key_times[key]))
            yield from self._decode_run(packets, run)

    def _split_into_runs(self, wanted: Times) -> list[tuple[int, Times]]:
        """Divide the wanted times into runs; a new run begins where a seek skips enough frames.

        Returns:
            For each run the number of the keyframe that it is decoded from, and its times.
        """
        # The last keyframe at or before each wanted frame.
        keys = (np.searchsorted(self.key_times, wanted, side="right") - 1).clip(0)

        # The number of frames between a wanted frame and the keyframe of the next one, which need not be decoded.
        # It is negative where both frames have the same keyframe.
        wanted_numbers = np.searchsorted(self.times, wanted)
        key_numbers = np.searchsorted(self.times, self.key_times[keys])
        skipped = key_numbers[1:] - wanted_numbers[:-1]

        starts = np.flatnonzero(skipped > SHORTEST_SKIP) + 1
        first_keys = keys[[0, *starts]]
        return list(zip(first_keys.tolist(), np.split(wanted, starts), strict=True))

    def _packets_from_keyframe(self, time: int) -> Iterator[Packet]:
        """Yield the packets after a seek, from the first keyframe on; none if the seek went past ``time``."""
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
        """Decode packets up to the last wanted frame."""
        context = self.stream.codec_context
        missing = set(wanted.tolist())
        last = int(wanted[-1])
        skipping: str | None = None

        for packet in packets:
            # Frames that no other frame refers to are decoded only if they are wanted. Nothing is skipped with AV1,
            # whose decoder reads this setting once, nor at the empty packet, which flushes the decoder.
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
        """Convert decoded frames to pictures (H, W, 3) uint8, by their times."""
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
    if not path.is_file():
        raise MissingError(f"there is no video {path}; correct the list that names it")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; replace it")

    try:
        return av.open(str(path))
    except Exception as error:
        raise _undecodable(path, error) from error


def _scale_down(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height in pixels whose shorter one is ``short_side`` at most."""
    if short_side is None or min(width, height) <= short_side:
        return width, height

    scale = short_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _undecodable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that FFmpeg cannot decode, with FFmpeg's reason."""
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return InputError(f"{path} cannot be decoded as a video: {reason}; replace it")
