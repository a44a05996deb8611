"""Makes the frames of a clip as large as the model wants them, and augments them; all frames of a clip alike."""

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
    """Augments a clip several times: RandAugment, a random crop, and a flip.

    Args:
        size: side of the resulting frames, in pixels.
        scale: range of the share of a frame's area that a crop covers.
        ratio: range of a crop's width over its height.
        hflip: probability of a horizontal flip.
        auto_augment: RandAugment policy in timm's notation, or None.
        repeats: clips that are made of one clip; more than one is called repeated augmentation.
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
            raise InputError(f"size={size}, repeats={repeats}, hflip={hflip}; two numbers from 1 on and a probability")

        self.repeats = repeats
        self.policy = _rand_augment(auto_augment) if auto_augment else None
        self.crop = v2.RandomResizedCrop(size, scale, ratio, antialias=True)
        self.flip = v2.RandomHorizontalFlip(hflip)

    def __call__(self, clip: Tensor) -> Tensor:
        """Clip (T, C, H, W) uint8 to clips (repeats, T, C, size, size) uint8."""
        return torch.stack([self._augment(clip) for _ in range(self.repeats)])

    def _augment(self, clip: Tensor) -> Tensor:
        if self.policy is not None:
            # timm's policies change images of PIL.
            frames = [Image.fromarray(frame) for frame in clip.permute(0, 2, 3, 1).contiguous().numpy()]
            changed = same_for_all(self.policy, frames)
            stacked = np.stack([np.asarray(frame) for frame in changed])
            clip = torch.from_numpy(stacked).permute(0, 3, 1, 2)

        return self.flip(self.crop(clip))


def _rand_augment(policy: str) -> Callable[[Image.Image], Image.Image]:
    mean_color = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)
    try:
        return rand_augment_transform(policy, {"img_mean": mean_color, "interpolation": Image.Resampling.BICUBIC})
    except (AssertionError, ValueError) as error:
        raise InputError(f"auto_augment={policy!r}: {error}; expected rand-..., as timm has it") from error


def same_for_all(change: Callable[[Image.Image], Image.Image], frames: list[Image.Image]) -> list[Image.Image]:
    """Apply a random change to every frame with the same random numbers, Python's and NumPy's."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()

    changed = []
    for frame in frames:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        changed.append(change(frame))

    return changed


class TestCrops:
    """Resizes the shorter side of frames to ``size``, and crops squares spread over the longer side.

    Args:
        size: side of the resulting frames, in pixels.
        crops: number of crops; a single one is taken from the center.
    """

    __test__ = False  # pytest would collect a class of this name

    def __init__(self, size: int, crops: int = 1) -> None:
        if size < 1 or crops < 1:
            raise InputError(f"size={size}, test_crops={crops}; give numbers from 1 on")

        self.size = size
        self.crops = crops

    def __call__(self, clips: Tensor) -> Tensor:
        """Clips (..., C, H, W) uint8 to (crops, ..., C, size, size) uint8."""
        frames = clips.flatten(0, -4)
        resized = tv.resize(frames, [self.size], antialias=True)
        resized = resized.unflatten(0, clips.shape[:-3])

        spare_rows = resized.shape[-2] - self.size
        spare_columns = resized.shape[-1] - self.size
        cropped = []
        for place in self._places():
            top = int(spare_rows * place)
            left = int(spare_columns * place)
            cropped.append(resized[..., top : top + self.size, left : left + self.size])

        # A single crop stays a view, since the frames are copied anyway when a batch is made.
        return cropped[0][None] if len(cropped) == 1 else torch.stack(cropped)

    def _places(self) -> list[float]:
        """Where the crops lie on the longer side, from 0 at its beginning to 1 at its end."""
        if self.crops == 1:
            return [0.5]
        return [crop / (self.crops - 1) for crop in range(self.crops)]


def erase(frames: Tensor, probability: float, mean: Tensor, std: Tensor) -> Tensor:
    """Replace a rectangle of a clip by noise, at the same place in all of its frames.

    The noise is normal in normalized pixels, as the recipes have it, so that in pixels it has the mean and the
    standard deviation of the data. Its values may lie outside of [0, 1].

    Args:
        frames: clips (B, T, C, H, W), pixels in [0, 1], float.
        probability: that a clip is changed; its rectangle covers 0.02 to 1/3 of the frame, as in timm.
        mean: of each channel, (C,).
        std: standard deviation of each channel, (C,).

    Returns:
        (B, T, C, H, W), a copy unless ``probability`` is 0.
    """
    if probability == 0:
        return frames

    mean = mean.view(-1, 1, 1)
    std = std.view(-1, 1, 1)
    normalized = (frames - mean) / std
    erasing = RandomErasing(probability, mode="pixel", device=str(frames.device))

    # timm erases images (B, C, H, W), all channels at one place; here the frames of a clip are its channels.
    erased = erasing(normalized.flatten(1, 2)).view_as(frames)
    return erased * std + mean
