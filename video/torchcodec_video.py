"""Single frames of video files by torchcodec: the same as :class:`video.decoding.VideoFile` gives."""

from pathlib import Path
from types import TracebackType

from torch import Tensor
from torchvision.transforms.v2.functional import resize

from core.errors import InputError
from video.frames import Frames, check_file, scaled, undecodable
from video.sampling import Ticks

__all__ = ["TorchcodecVideo"]


class TorchcodecVideo:
    """The same with torchcodec, an optional package that needs FFmpeg's libraries in the system.

    Args:
        path: a video file.
        short_side: frames whose shorter side is larger are scaled down to it; None for none.

    Raises:
        MissingError: if there is no such file.
        InputError: if torchcodec cannot be imported or cannot read the file, or it has fewer than two frames.
    """

    def __init__(self, path: Path, *, short_side: int | None = None) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"torchcodec cannot be imported ({reason}); install it, or --data.decoder pyav") from error
        check_file(path)
        self.path, self.short_side = path, short_side
        try:
            self.decoder = VideoDecoder(str(path), seek_mode="exact", num_ffmpeg_threads=1)
        except (RuntimeError, ValueError) as error:
            raise undecodable(path, error) from error
        if len(self) < 2:
            raise InputError(f"{path} has {len(self)} frames; a clip needs at least two")

    def __enter__(self) -> "TorchcodecVideo":
        """Itself; the file is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to do; the decoder closes the file when it is collected."""

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.decoder)

    def read(self, ticks: Ticks) -> Frames:
        """The frames (N, H, W, 3) uint8, RGB, of ticks (N,) in any order.

        Raises:
            InputError: if they cannot be decoded.
        """
        meta = self.decoder.metadata
        step = (meta.end_stream_seconds - meta.begin_stream_seconds) / len(self)
        seconds = meta.begin_stream_seconds + (ticks + 0.5) * step
        try:
            frames: Tensor = self.decoder.get_frames_played_at(seconds.tolist()).data
        except (RuntimeError, ValueError, IndexError) as error:
            raise undecodable(self.path, error) from error
        height, width = scaled(frames.shape[2], frames.shape[3], self.short_side)
        if height < frames.shape[2]:
            frames = resize(frames, [height, width])
        return frames.permute(0, 2, 3, 1).numpy()
