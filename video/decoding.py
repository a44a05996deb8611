"""Single frames of video files: an index of all presentation times, then a seek to the keyframe before what is wanted.

packets ─ demux, no decoding ─► times, keyframes ─► ticks to frames ─► seek, decode to the last wanted frame ─► RGB
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter

from core.errors import InputError
from video.frames import Frames, check_file, scaled, undecodable
from video.sampling import Ticks, shown_at
from video.torchcodec_video import TorchcodecVideo

__all__ = ["Decoder", "VideoFile", "open_video"]

Decoder = Literal["pyav", "torchcodec"]
Skip = Literal["DEFAULT", "NONREF"]
_NEAR = 8
"""Frames up to the next keyframe that are rather decoded than sought past: a seek empties the decoder."""
_REORDERED = ("h264", "hevc")
_HELD = 16
"""Decoded frames that wait for their conversion."""


class VideoFile:
    """A video file, read by PyAV; a context manager.

    Ticks divide the time from the first frame to the end of the last into as many parts as there are frames, so that in
    a video of variable frame rate a frame is chosen as often as it is long on the screen.

    Args:
        path: any container and codec that FFmpeg reads.
        short_side: frames whose shorter side is larger are scaled down to it; None for none.
        threads: of the decoder; 0 for as many as there are processors.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is empty, no video, cut off, has sound alone, fewer than two frames, or no duration.
    """

    def __init__(self, path: Path, *, short_side: int | None = None, threads: int = 1) -> None:
        self.path, self.short_side = path, short_side
        self.threads = threads
        self._open()
        try:
            self._index()
        except av.FFmpegError as error:
            self.container.close()
            raise undecodable(path, error) from error
        except InputError:
            self.container.close()
            raise

    def _open(self) -> None:
        self.container = _open(self.path)
        pictures = [s for s in self.container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not pictures:
            kind = "sound and no pictures" if self.container.streams.audio else "no video in it"
            self.container.close()
            raise InputError(f"{self.path} has {kind}; give a video, or take it out of the list")
        self.stream = pictures[0]
        self.stream.codec_context.thread_count = self.threads

    def _index(self) -> None:
        packets = [p for p in self.container.demux(self.stream) if p.size]
        if 0 < len(packets) < self.stream.frames and "mp4" in self.container.format.name:
            raise InputError(f"{self.path} is cut off after {len(packets)} of {self.stream.frames} frames; replace it")
        times = [(p.dts if p.pts is None else p.pts, p) for p in packets if not p.is_discard]
        shown = {time: packet for time, packet in times if time is not None}
        self.pts = np.array(sorted(shown), np.int64)
        keys = [pts for pts in self.pts.tolist() if shown[pts].is_keyframe] or self.pts[:1].tolist()
        # formats with an index are sought by the time of presentation, others by the time of decoding
        by_pts = any(name in self.container.format.name for name in ("mp4", "matroska"))
        self.keys = np.array([(pts, pts if by_pts else shown[pts].dts or pts) for pts in keys], np.int64)
        if len(self.pts) < 2:
            lasting = " and lasts 0 s; replace it" if len(packets) > 1 else "; a clip needs at least two"
            raise InputError(f"{self.path} has {len(packets)} frames{lasting}")
        last = int(shown[int(self.pts[-1])].duration or 0)
        self.end = int(self.pts[-1]) + (last or round((self.pts[-1] - self.pts[0]) / (len(self.pts) - 1)))

    def __enter__(self) -> "VideoFile":
        """Itself; the file is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.container.close()

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.pts)

    def read(self, ticks: Ticks) -> Frames:
        """The frames (N, H, W, 3) uint8, RGB, turned as the file says, of ticks (N,) in any order.

        Raises:
            InputError: if they cannot be decoded.
        """
        shown = self.pts[shown_at(self.pts.astype(np.float64), self.end, ticks)]
        wanted = np.unique(shown)
        try:
            found = self._pictures(self._counted(wanted) if self._untimed() else self._decoded(wanted))
            if len(found) < len(wanted) and not self._untimed():  # seeking did not arrive at the keyframe
                self._rewind()
                found |= self._pictures(self._run(wanted))
        except av.FFmpegError as error:
            raise undecodable(self.path, error) from error
        lost = next((float((pts - self.pts[0]) * self.stream.time_base) for pts in wanted if pts not in found), None)
        if lost is not None:
            raise InputError(f"{self.path} cannot be decoded as a video: no frame at {lost:.2f} s; replace it")
        return np.stack([found[pts] for pts in shown.tolist()])

    def _rewind(self) -> None:
        self.container.close()
        self._open()

    def _untimed(self) -> bool:
        """Whether times of presentation are guessed, and wrongly: AVI has none, and H.264 reorders its frames."""
        context = self.stream.codec_context
        return bool("avi" in self.container.format.name and context.has_b_frames and context.codec.name in _REORDERED)

    def _counted(self, wanted: Ticks) -> Iterator[tuple[int, Any]]:
        """From the beginning, by number."""
        self._rewind()
        left = set(wanted.tolist())
        for time, frame in zip(self.pts.tolist(), self.container.decode(self.stream), strict=False):
            if time in left:
                yield time, frame
            if time >= wanted[-1]:
                return

    def _decoded(self, wanted: Ticks) -> Iterator[tuple[int, Any]]:
        """Presentation times and frames, in runs from a keyframe to a wanted frame with no other near behind."""
        for (pts, sought), run in self._runs(wanted):
            self.container.seek(sought, stream=self.stream)
            yield from self._run(run, pts)

    def _runs(self, wanted: Ticks) -> list[tuple[list[int], Ticks]]:
        """The keyframe of each run, as in ``keys``, and the times wanted of it."""
        keys = self.keys[(np.searchsorted(self.keys[:, 0], wanted, side="right") - 1).clip(0)]
        # frames from a wanted one to the keyframe of the next, which lies before both if they share it
        between = np.searchsorted(self.pts, keys[1:, 0]) - np.searchsorted(self.pts, wanted[:-1])
        starts = np.flatnonzero(between > _NEAR) + 1
        return list(zip(keys[[0, *starts]].tolist(), np.split(wanted, starts), strict=True))

    def _run(self, wanted: Ticks, key: int | None = None) -> Iterator[tuple[int, Any]]:
        """From where the file is; nothing if its next keyframe lies behind ``key``."""
        left, context, skipped = set(wanted.tolist()), self.stream.codec_context, None
        all_needed = context.codec.canonical_name == "av1"  # its decoder asks once what to skip
        for packet in self.container.demux(self.stream):
            if key is not None and (not packet.is_keyframe or packet.pts is None or packet.pts > key):
                if packet.is_keyframe:
                    return
                continue
            key = None
            # what no other frame refers to is decoded only where it is wanted
            skip: Skip = "DEFAULT" if all_needed or packet.pts in left or not packet.size else "NONREF"
            if skip != skipped:
                context.skip_frame = skipped = skip
            for frame in packet.decode():
                time = frame.pts if frame.pts is not None else frame.dts
                if time is not None and time in left:
                    left.remove(time)
                    yield time, frame
                if not left or (time is not None and time > wanted[-1]):
                    return

    def _pictures(self, frames: Iterator[tuple[int, Any]]) -> dict[int, Frames]:
        """RGB by presentation time; several frames are decoded before they are converted, which is faster."""
        reformatter, pictures = VideoReformatter(), dict[int, Frames]()
        while held := list(islice(frames, _HELD)):
            for time, frame in held:
                width, height = scaled(frame.width, frame.height, self.short_side)
                rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA)
                pictures[time] = np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)
        return pictures


def open_video(path: Path, decoder: Decoder = "pyav", *, short_side: int | None = None) -> VideoFile | TorchcodecVideo:
    """A video file, read by the named package.

    Raises:
        MissingError: if there is no such file.
        InputError: if it cannot be read, or the package is unknown or cannot be imported.
    """
    if decoder not in ("pyav", "torchcodec"):
        raise InputError(f"decoder={decoder!r}; expected 'pyav' or 'torchcodec'")
    if decoder == "pyav":
        return VideoFile(path, short_side=short_side)
    return TorchcodecVideo(path, short_side=short_side)


def _open(path: Path) -> InputContainer:
    check_file(path)
    try:
        return av.open(str(path))
    except (av.FFmpegError, ValueError) as error:
        raise undecodable(path, error) from error
