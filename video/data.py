"""What all video data modules share: which frames become clips, and how clips are augmented."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from core.errors import InputError
from core.samples import Samples
from core.training.samples import SampleDataModule, Split
from video.augment import TestCrops, TrainCrops, erase
from video.decoding import Decoder
from video.files import Clips, Source, video_files
from video.sampling import Sampling

__all__ = ["VideoDataModule"]


class VideoDataModule(SampleDataModule):
    """Base of the video data modules: clips of T frames of one size, their augmentation, prediction on any videos.

    Loading processes decode and crop, and give uint8; clips are normalised and erased where the model is. Batches are
    clips (B, T, C, size, size) float with their targets; for test and prediction with more than one view
    (B, views, T, C, size, size).

    Args:
        num_frames: T.
        sampling_rate: frames of a video for each frame of a dense clip.
        sampling: 'dense', a window of num_frames * sampling_rate frames, or 'uniform', over the whole video.
        size: side of a frame of the clip, in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        scale: range of the share of a training frame that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: timm's RandAugment policy in training, or None.
        erasing: probability of erasing a rectangle in training.
        repeats: clips that training makes of one decoded clip; a step then sees batch_size * repeats.
        test_views: clips over the length of a video in test and prediction.
        test_crops: crops over the longer side of each.
        short_side: decoded frames whose shorter side is larger are scaled down to it, as data sets of videos are
            usually kept; None for none.
        decoder: 'pyav', or 'torchcodec' where that is installed.
        kwargs: arguments of :class:`core.training.SampleDataModule`.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        num_frames: int = 16,
        sampling_rate: int = 4,
        sampling: Literal["dense", "uniform"] = "dense",
        size: int = 224,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        auto_augment: str | None = "rand-m7-n4-mstd0.5-inc1",
        erasing: float = 0.25,
        repeats: int = 2,
        test_views: int = 5,
        test_crops: int = 3,
        short_side: int | None = 320,
        decoder: Decoder = "pyav",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if test_views < 1 or not 0 <= erasing <= 1 or (short_side is not None and short_side < size):
            raise InputError(
                f"test_views={test_views}, erasing={erasing}, short_side={short_side}; expected at least 1, a "
                f"probability, and at least size={size} or null"
            )
        self.sampling = Sampling(num_frames, sampling_rate, sampling)
        self.mode, self.mean, self.std, self.erasing = "RGB", tuple(mean), tuple(std), erasing
        self.test_views, self.short_side, self.decoder = test_views, short_side, decoder
        self.train_transform = TrainCrops(size, scale=scale, hflip=hflip, auto_augment=auto_augment, repeats=repeats)
        self.val_transform, self.test_transform = TestCrops(size), TestCrops(size, test_crops)

    def find(self, path: Path) -> list[Source]:
        """The video itself, or all videos below a folder."""
        return list(video_files(path))

    def dataset(self, samples: Samples, split: Split) -> Clips:
        """Clips: random ones to train, the middle one to validate, all views for test and prediction."""
        options: dict[str, Any] = {"decoder": self.decoder, "short_side": self.short_side}
        if split == "train":
            return Clips(samples, self.sampling.random, self.train_transform, replace=True, **options)
        if split == "val":
            return Clips(samples, self.sampling.centre, self.val_transform, **options)
        return Clips(samples, self._views, self.test_transform, **options)

    def _views(self, length: int) -> Any:
        return self.sampling.views(length, self.test_views)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Any], dataloader_idx: int) -> tuple[Tensor, Any]:
        """Clips (B, N, T, C, H, W) uint8 to normalised ones; in training each of the N counts as a sample."""
        x, y = batch
        dtype = self._model_dtype()
        mean_C11, std_C11 = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        x = (x.float() / 255 - mean_C11) / std_C11
        if self.trainer is not None and self.trainer.training:
            y = y.repeat_interleave(x.shape[1])
            x = erase(x.flatten(0, 1), self.erasing)
        elif x.shape[1] == 1:
            x = x[:, 0]
        return x.to(dtype), y
