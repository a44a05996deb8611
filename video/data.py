"""What all video data modules share: videos become clips of raw frames, augmented in training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from core.data.images import PixelSpec
from core.data.labeled import SampleDataModule, Split
from core.data.samples import SampleDataset, Samples, collate_found
from core.errors import InputError
from video.augment import TestCrops, TrainCrops
from video.files import Source, open_video, video_files
from video.sampling import FrameIndices, Sampling, SamplingMode

__all__ = ["Clips", "VideoDataModule", "VideoSpec"]


@dataclass(frozen=True)
class VideoSpec(PixelSpec):
    """What a model must know of its videos: the pixels of their frames, and how clips are made of them.

    Attributes:
        num_frames: T, the number of frames of a clip.
        sampling_rate: video frames for each frame of a dense clip.
        sampling: 'dense' or 'uniform', see :class:`video.sampling.Sampling`.
        test_views: clips over the length of a video, in test and prediction.
        test_crops: crops over the longer side of each of these clips.
        short_side: frames of files whose shorter side has more pixels are scaled down to this; None keeps their size.
    """

    num_frames: int = 16
    sampling_rate: int = 4
    sampling: SamplingMode = "dense"
    test_views: int = 5
    test_crops: int = 3
    short_side: int | None = 320


class VideoDataModule(SampleDataModule):
    """Base of the video data modules: which frames become clips, their size, and their augmentation.

    Batches are raw frames (B, T, C, size, size) uint8 with their targets. Where a video gives N clips they are
    (B, N, T, C, size, size): in training N augmentations of one clip, each of which counts as a sample, in test and
    prediction N views of the video, whose probabilities the task averages.

    Args:
        num_frames: T, the number of frames of a clip.
        sampling_rate: video frames for each frame of a dense clip.
        sampling: 'dense' for a window of num_frames * sampling_rate frames, 'uniform' for frames of the whole video.
        size: side of the frames of a clip, in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        scale: range of the share of a training frame's area that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: RandAugment policy of training in timm's notation, or null.
        repeats: augmented clips that training makes of one decoded clip; a step has batch_size * repeats samples.
        test_views: clips over the length of a video, in test and prediction.
        test_crops: crops over the longer side of each of these clips.
        short_side: frames of files whose shorter side has more pixels are scaled down to this, as data sets of videos
            are usually kept; null keeps their size.
        kwargs: arguments of :class:`core.data.labeled.SampleDataModule`.
    """

    spec_only = ("classes", "mode")

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
        if test_views < 1 or (short_side is not None and short_side < size):
            raise InputError(
                f"test_views={test_views}, short_side={short_side}; expected at least 1, and at least size={size} "
                "or null"
            )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(
                f"mean={list(mean)}, std={list(std)}; expected three numbers each, for red, green and blue, and std "
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
        """Frames of a clip, their size and normalization, and the views of evaluation."""
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
        )

    def find(self, path: Path) -> list[Source]:
        """Return the video itself, or all videos below a folder."""
        return list(video_files(path))

    def dataset(self, samples: Samples, split: Split) -> "Clips":
        """Random clips to train on, the clip in the middle to validate, all views for test and prediction."""
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


class Clips(SampleDataset):
    """A dataset of clips of videos, each with the target of its video.

    Args:
        samples: (video, target) pairs.
        choose: gives for a number of frames the indices of one clip (T,), or of several views (V, T).
        transform: turns frames (T, C, H, W) or (V, T, C, H, W) uint8 into clips (N, ..., T, C, size, size) uint8.
        short_side: frames of files whose shorter side has more pixels are scaled down to this; None keeps their size.
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
        """Return the clip (T, C, size, size) uint8 of a video, or its several clips (N, T, C, size, size)."""
        with open_video(source, short_side=self.short_side) as video:
            indices = self.choose(len(video))

            # Views overlap: each frame is decoded once.
            wanted, places = np.unique(indices, return_inverse=True)
            decoded = np.ascontiguousarray(video.read(wanted))

        frames = torch.from_numpy(decoded).permute(0, 3, 1, 2)
        clips = self.transform(frames[torch.from_numpy(places.reshape(indices.shape))])

        # Crops and views of a video are one axis: (crops, V, T, C, H, W) to (N, T, C, H, W).
        clips = clips.flatten(0, -5)
        return clips[0] if len(clips) == 1 else clips
