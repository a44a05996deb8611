"""From decoded frames to clips of the model's size: training augmentation and test crops, alike in all frames."""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from core.errors import InputError

__all__ = ["TestCrops", "TrainCrops", "erase", "same_for_all"]


class TrainCrops:
    """The training augmentation: RandAugment, a random crop, and a random flip.

    Args:
        size: side of the resulting frames, in pixels.
        scale: range of the share of a frame that the crop covers.
        ratio: range of the aspect ratio of the crop, width over height.
        hflip: probability of a horizontal flip.
        auto_augment: timm's RandAugment policy, or None.
        repeats: number of augmented clips to make of one clip (repeated augmentation).

    Raises:
        InputError: if a number is out of range, or the policy is unknown.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        auto_augment: str | None = "rand-m7-n4-mstd0.5-inc1",
        repeats: int = 2,
    ) -> None:
        if size < 1 or repeats < 1 or not 0 <= hflip <= 1:
            raise InputError(
                f"size={size}, repeats={repeats}, hflip={hflip}; expected 1 or more, twice, and a probability"
            )

        self.repeats = repeats
        self.policy = _rand_augment(auto_augment) if auto_augment else None
        self.crop = v2.RandomResizedCrop(size, scale, ratio, antialias=True)
        self.flip = v2.RandomHorizontalFlip(hflip)

    def __call__(self, clip: Tensor) -> Tensor:
        """Turn a clip (T, C, H, W) uint8 into clips (repeats, T, C, size, size) uint8."""
        return torch.stack([self._augment(clip) for _ in range(self.repeats)])

    def _augment(self, clip: Tensor) -> Tensor:
        if self.policy is not None:
            # timm's policies take PIL images.
            frames = [Image.fromarray(frame) for frame in clip.permute(0, 2, 3, 1).contiguous().numpy()]
            augmented = same_for_all(self.policy, frames)
            stacked = np.stack([np.asarray(frame) for frame in augmented])
            clip = torch.from_numpy(stacked).permute(0, 3, 1, 2)

        return self.flip(self.crop(clip))


def _rand_augment(policy: str) -> Callable[[Image.Image], Image.Image]:
    """Build timm's policy; empty corners are filled with the mean color of ImageNet."""
    mean_color = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)
    try:
        return rand_augment_transform(policy, {"img_mean": mean_color, "interpolation": Image.Resampling.BICUBIC})
    except (AssertionError, ValueError) as error:  # timm's, for an unknown policy
        raise InputError(f"auto_augment={policy!r}: {error}; expected one of timm's rand-... policies") from error


def same_for_all(change: Callable[[Image.Image], Image.Image], frames: list[Image.Image]) -> list[Image.Image]:
    """Apply a random change to all frames, with the same numbers from the generators of Python and NumPy for each."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()

    changed = []
    for frame in frames:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        changed.append(change(frame))

    return changed


class TestCrops:
    """Resizes the shorter side of the frames to ``size``, and takes square crops that are spread over the longer side.

    Args:
        size: side of the resulting frames, in pixels.
        crops: number of crops; a single one is taken from the center.

    Raises:
        InputError: if a number is below 1.
    """

    __test__ = False  # pytest collects classes whose names begin with Test

    def __init__(self, size: int, crops: int = 1) -> None:
        if size < 1 or crops < 1:
            raise InputError(f"size={size}, test_crops={crops}; expected 1 or more")

        self.size = size
        self.crops = crops

    def __call__(self, clips: Tensor) -> Tensor:
        """Turn clips (..., C, H, W) uint8 into crops (crops, ..., C, size, size) uint8."""
        frames = clips.flatten(0, -4)
        resized = tv.resize(frames, [self.size], antialias=True)
        resized = resized.unflatten(0, clips.shape[:-3])

        spare_rows = resized.shape[-2] - self.size
        spare_columns = resized.shape[-1] - self.size
        cropped = []
        for position in self._positions():
            top = int(spare_rows * position)
            left = int(spare_columns * position)
            cropped.append(resized[..., top : top + self.size, left : left + self.size])

        if self.crops == 1:
            return cropped[0][None]  # a view; collating the batch copies the frames anyway
        return torch.stack(cropped)

    def _positions(self) -> list[float]:
        """Return the positions of the crops on the longer side, from 0 at its beginning to 1 at its end."""
        if self.crops == 1:
            return [0.5]
        return [crop / (self.crops - 1) for crop in range(self.crops)]


def erase(frames: Tensor, probability: float, mean: Tensor, std: Tensor) -> Tensor:
    """Replace a rectangle of a clip by noise, at the same place in all of its frames.

    The noise is drawn from a standard normal distribution for normalized pixels, as in the recipes. In raw pixels, it
    therefore has the mean and the standard deviation of the data, and its values may lie outside [0, 1].

    Args:
        frames: clips (B, T, C, H, W) float in [0, 1].
        probability: probability that a clip is changed. The rectangle covers 0.02 to 1/3 of the frame, as in timm.
        mean: mean of each channel (C,).
        std: standard deviation of each channel (C,).

    Returns:
        Clips (B, T, C, H, W); a copy, unless ``probability`` is 0.
    """
    if probability == 0:
        return frames

    mean = mean.view(-1, 1, 1)
    std = std.view(-1, 1, 1)
    normalized = (frames - mean) / std
    erasing = RandomErasing(probability, mode="pixel", device=str(frames.device))

    # timm erases the same rectangle in all channels of an image (B, C, H, W), so the frames become channels.
    erased = erasing(normalized.flatten(1, 2)).view_as(frames)
    return erased * std + mean
