"""The base of all video data modules, which turn videos into clips of raw frames and augment them in training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from tqdm import tqdm

from core.data.images import PixelSpec, check_size
from core.data.labeled import SampleDataModule, Split
from core.data.memory import check_sample_memory
from core.data.samples import Broken, SampleDataset, Samples, collate_found, source_name
from core.data.windows import window_starts
from core.errors import InputError
from video.augment import TestCrops, TrainCrops
from video.files import Source, Video, open_video, video_files
from video.sampling import FrameIndices, Sampling, SamplingMode

__all__ = ["Clips", "VideoDataModule", "VideoSpec", "Window", "WindowClips"]


@dataclass(frozen=True)
class VideoSpec(PixelSpec):
    """What a model must know about videos: the pixels of their frames, and how clips are made of them.

    Attributes:
        num_frames: number of frames T of a clip.
        sampling_rate: number of video frames for each frame of a dense clip.
        sampling: 'dense' or 'uniform', see :class:`video.sampling.Sampling`.
        test_views: number of clips over the length of a video, in test and prediction.
        test_crops: number of crops over the longer side of each of these clips.
        short_side: largest shorter side of a file's frames, in pixels; larger frames are scaled down. None keeps their
            size.
    """

    num_frames: int = 16
    sampling_rate: int = 4
    sampling: SamplingMode = "dense"
    test_views: int = 5
    test_crops: int = 3
    short_side: int | None = 320


class VideoDataModule(SampleDataModule):
    """Base of the video data modules: sampling, size and augmentation of the clips, and prediction on any files.

    Batches are (clips (B, T, C, size, size) uint8, labels (B,) int64) or, for prediction, (clips, names). If a video
    gives N clips, they are (B, N, T, C, size, size). In training, these are N augmentations of one clip, each of which
    counts as a sample. In test and prediction, they are N views of the video, whose probabilities the task averages.

    Args:
        num_frames: number of frames T of a clip.
        sampling_rate: number of video frames for each frame of a dense clip.
        sampling: 'dense' for a window of num_frames * sampling_rate frames, 'uniform' for frames of the whole video.
        size: side of a frame of a clip, in pixels.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        scale: range of the share of a training frame that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: timm's RandAugment policy in training, or None.
        repeats: number of augmented clips that training makes of one decoded clip. A step has batch_size * repeats
            samples.
        test_views: number of clips over the length of a video, in test and prediction.
        test_crops: number of crops over the longer side of each of these clips.
        short_side: largest shorter side of a file's frames, in pixels; larger frames are scaled down, as copies of
            large data sets usually are. None keeps their size.
        kwargs: arguments of :class:`core.data.labeled.SampleDataModule`.

    Raises:
        InputError: if ``mean`` or ``std`` do not have one value for each channel, or an option is out of range.
    """

    spec_only = ("classes", "multi_label", "mode")

    def __init__(
        self,
        *,
        num_frames: int = 16,
        sampling_rate: int = 4,
        sampling: SamplingMode = "dense",
        size: int = 224,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        auto_augment: str | None = "rand-m7-n4-mstd0.5-inc1",
        repeats: int = 2,
        test_views: int = 5,
        test_crops: int = 3,
        short_side: int | None = 320,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_size(size)
        frame = 3 * size**2
        check_sample_memory(
            num_frames * frame * max(4, repeats, test_views * test_crops),  # a map has 4 bytes a number, raw clips 1
            f"num_frames={num_frames}, size={size}, repeats={repeats}, test_views={test_views}, "
            f"test_crops={test_crops}",
        )
        if test_views < 1 or (short_side is not None and short_side < size):
            raise InputError(
                f"test_views={test_views}, short_side={short_side}; expected 1 or more, and null or at least the size "
                f"{size}"
            )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(
                f"mean={list(mean)}, std={list(std)}; expected three numbers each, for red, green and blue, and a std "
                "above 0"
            )

        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.test_views = test_views
        self.test_crops = test_crops
        self.short_side = short_side

        self.sampling = Sampling(num_frames, sampling_rate, sampling)
        self.train_transform = TrainCrops(
            size,
            scale=scale,
            hflip=hflip,
            auto_augment=auto_augment,
            repeats=repeats,
        )
        self.val_transform = TestCrops(size)
        self.test_transform = TestCrops(size, test_crops)
        self.collate = partial(collate_found, kind="video")

    def settings(self) -> VideoSpec:
        """Return the sampling of clips, the size and statistics of their frames, and the views of evaluation."""
        return VideoSpec(
            num_frames=self.sampling.frames,
            sampling_rate=self.sampling.rate,
            sampling=self.sampling.mode,
            size=self.size,
            mean=self.mean,
            std=self.std,
            test_views=self.test_views,
            test_crops=self.test_crops,
            short_side=self.short_side,
            multi_label=self.multi_label,
        )

    def find(self, path: Path) -> list[Source]:
        """Find all videos below a folder; a path to a video gives that video alone."""
        return list(video_files(path))

    def dataset(self, samples: Samples, split: Split) -> "Clips":
        """Return the dataset of a split.

        Training takes a random clip of each video, validation the clip in the middle, and test and prediction all
        views.
        """
        choose: Callable[[int], FrameIndices]
        transform: Callable[[Tensor], Tensor]
        if split == "train":
            choose = self.sampling.random
            transform = self.train_transform
        elif split == "val":
            choose = self.sampling.center
            transform = self.val_transform
        else:
            choose = partial(self.sampling.views, count=self.test_views)
            transform = self.test_transform

        return Clips(
            samples,
            choose,
            transform,
            short_side=self.short_side,
            skip_broken=self.skip_broken,
        )

    def use_windows(self) -> None:
        """Predict a clip of each window of the videos, one after another; their lengths are read at once.

        Raises:
            InputError: if a clip is spread over the whole video, so that there are no windows.
        """
        if self.sampling.mode == "uniform":
            raise InputError(
                "sampling='uniform' spreads a clip over the whole video, so that there are no windows; leave "
                "--predict.windows and --predict.threshold out"
            )
        if isinstance(self.predict_set, Clips):
            self.predict_set = WindowClips(self.predict_set, self.sampling, self.val_transform)
            self.evaluation_collate = _collate_windows


class Clips(SampleDataset):
    """A dataset of clips of videos, each with the target of its video.

    Args:
        samples: (video, target) pairs; a video is a :data:`video.files.Source`.
        choose: function from the number of frames of a video to the indices of one clip (T,) or of V clips (V, T).
        transform: function from frames (T, C, H, W) or (V, T, C, H, W) uint8 to clips (N, T, C, size, size) or
            (N, V, T, C, size, size) uint8.
        short_side: largest shorter side of a file's frames, in pixels; larger frames are scaled down. None keeps their
            size.
        skip_broken: leave out videos that cannot be used, with a warning, instead of stopping.
    """

    def __init__(
        self,
        samples: Samples,
        choose: Callable[[int], FrameIndices],
        transform: Callable[[Tensor], Tensor],
        *,
        short_side: int | None = None,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(samples, skip_broken=skip_broken)
        self.choose = choose
        self.transform = transform
        self.short_side = short_side

    def read(self, source: Source) -> Tensor:
        """Return the clip of a video (T, C, size, size) uint8 or, if there are several, (N, T, C, size, size)."""
        with open_video(source, short_side=self.short_side) as video:
            indices = self.choose(len(video))

            # Each frame is decoded once, although views may overlap.
            wanted, positions = np.unique(indices, return_inverse=True)
            decoded = np.ascontiguousarray(video.read(wanted))

        frames = torch.from_numpy(decoded).permute(0, 3, 1, 2)
        chosen = frames[torch.from_numpy(positions.reshape(indices.shape))]

        # The crops and the views of a video become one axis: (crops, V, T, C, H, W) to (N, T, C, H, W).
        clips = self.transform(chosen).flatten(0, -5)
        return clips[0] if len(clips) == 1 else clips


class Window(NamedTuple):
    """A part of a video.

    Attributes:
        name: name of the video.
        start: start in seconds.
        end: end in seconds.
    """

    name: str
    start: float
    end: float


class WindowClips(SampleDataset):
    """A dataset of the windows of videos, one after another; the target of a clip is its :class:`Window`.

    A window has the length of a dense clip, and the next one begins where it ends; the last one ends with the video. A
    video that cannot be read has a single sample, which is :class:`core.data.samples.Broken`.

    Args:
        videos: the videos, with their names as targets.
        sampling: choice of the frames of a clip.
        transform: function from frames (T, C, H, W) uint8 to clips (1, T, C, size, size) uint8.
    """

    def __init__(self, videos: Clips, sampling: Sampling, transform: Callable[[Tensor], Tensor]) -> None:
        self.sampling = sampling
        self.transform = transform
        self.short_side = videos.short_side
        self._opened: tuple[Source, AbstractContextManager[Video], Video] | None = None

        hidden = bool(getattr(rank_zero_only, "rank", 0))
        progress = tqdm(videos.samples, desc="Reading the lengths of the videos", leave=False, disable=hidden)
        super().__init__([window for source, _ in progress for window in self._windows_of(source)])

    def _windows_of(self, source: Source) -> list[tuple[Any, Any]]:
        """Return a sample for each window: the video and the end of the window in frames, and the window."""
        name = source_name(source)
        try:
            with open_video(source) as video:
                length, seconds = len(video), video.seconds
            if seconds is None:
                raise InputError(
                    f"{name} has frames without times, so its windows have no start and end in seconds; give a video "
                    "file"
                )
        except InputError as error:
            return [(None, Broken(name, str(error)))]

        size = min(self.sampling.window, length)
        starts = window_starts(length, size, size)
        second = seconds / length
        return [((source, start + size), Window(name, start * second, (start + size) * second)) for start in starts]

    def __getitem__(self, index: int) -> tuple[Tensor, Window] | Broken:
        """Return the clip of a window (T, C, size, size) uint8 and the window, or the reason why there is none."""
        source, window = self.samples[index]
        if isinstance(window, Broken):
            return window
        try:
            return self.read(source), window
        except InputError as error:
            return Broken(window.name, str(error))

    def read(self, source: tuple[Source, int]) -> Tensor:
        """Return the clip of the window of a video that ends before a frame."""
        path, end = source
        video = self._open(path)
        length = len(video)
        indices = self.sampling.ending_at(length, end)
        frames = torch.from_numpy(np.ascontiguousarray(video.read(indices))).permute(0, 3, 1, 2)
        return self.transform(frames).flatten(0, -5)[0]

    def _open(self, source: Source) -> Video:
        """Return the open video; it stays open for its next window."""
        if self._opened is None or self._opened[0] is not source:
            if self._opened is not None:
                self._opened[1].__exit__(None, None, None)
                self._opened = None
            context = open_video(source, short_side=self.short_side)
            self._opened = (source, context, context.__enter__())
        return self._opened[2]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open video, which another process cannot use."""
        return self.__dict__ | {"_opened": None}


def _stack_windows(samples: list[tuple[Tensor, Window]]) -> tuple[Tensor, list[Window]]:
    """Make a batch of clips (B, T, C, size, size) and their windows."""
    clips, windows = zip(*samples, strict=True)
    return torch.stack(clips), list(windows)


_collate_windows = partial(collate_found, kind="video", collate=_stack_windows)
