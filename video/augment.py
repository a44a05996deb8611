"""From the frames of a clip to frames of the map's size: crops, and augmentation that is the same in every frame."""

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
    """Random augmentation of one clip, several times: RandAugment, random crop, flip; each the same for all frames.

    Args:
        size: side of the frames that result, in pixels.
        scale: range of the share of a frame that the crop covers.
        ratio: range of the crop's width over its height.
        hflip: probability of a horizontal flip.
        auto_augment: timm's RandAugment policy, or None.
        repeats: clips that are made of one; repeated augmentation.

    Raises:
        InputError: if a number is out of range, or timm has no such policy.
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
        grey = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)
        options = {"img_mean": grey, "interpolation": Image.Resampling.BICUBIC}
        try:
            self.policy = rand_augment_transform(auto_augment, options) if auto_augment else None
        except (AssertionError, ValueError) as error:  # timm's
            raise InputError(f"auto_augment={auto_augment!r}: {error}; expected rand-..., as timm has it") from error
        crop = v2.RandomResizedCrop(size, scale, ratio, antialias=True)
        self.crop = v2.Compose([crop, v2.RandomHorizontalFlip(hflip)])

    def __call__(self, x_TCHW: Tensor) -> Tensor:
        """A clip (T, C, H, W) uint8 to (repeats, T, C, size, size) uint8."""
        return torch.stack([self.crop(self._policy(x_TCHW)) for _ in range(self.repeats)])

    def _policy(self, x_TCHW: Tensor) -> Tensor:
        if self.policy is None:
            return x_TCHW
        frames = [Image.fromarray(frame) for frame in x_TCHW.permute(0, 2, 3, 1).contiguous().numpy()]
        changed = np.stack([np.asarray(frame) for frame in same_for_all(self.policy, frames)])
        return torch.from_numpy(changed).permute(0, 3, 1, 2)


def same_for_all(change: Callable[[Image.Image], Image.Image], frames: list[Image.Image]) -> list[Image.Image]:
    """Apply a random change to each frame, drawn by the same random numbers (Python's and NumPy's)."""
    states, changed = (random.getstate(), np.random.get_state()), []
    for frame in frames:
        random.setstate(states[0])
        np.random.set_state(states[1])
        changed.append(change(frame))
    return changed


class TestCrops:
    """The shorter side resized to ``size``, and crops spread over the longer one; of one crop, the centre.

    Args:
        size: side of the frames that result, in pixels.
        crops: number of crops.

    Raises:
        InputError: if one is below 1.
    """

    __test__ = False  # a name of the field, not a test

    def __init__(self, size: int, crops: int = 1) -> None:
        if min(size, crops) < 1:
            raise InputError(f"size={size}, test_crops={crops}; give numbers from 1 on")
        self.size, self.crops = size, crops

    def __call__(self, x_TCHW: Tensor) -> Tensor:
        """Clips (..., C, H, W) uint8 to (crops, ..., C, size, size) uint8."""
        x = tv.resize(x_TCHW.flatten(0, -4), [self.size], antialias=True).unflatten(0, x_TCHW.shape[:-3])
        spare = (x.shape[-2] - self.size, x.shape[-1] - self.size)
        places = [0.5] if self.crops == 1 else [i / (self.crops - 1) for i in range(self.crops)]
        corners = [(int(spare[0] * place), int(spare[1] * place)) for place in places]
        found = [x[..., top : top + self.size, left : left + self.size] for top, left in corners]
        return found[0][None] if self.crops == 1 else torch.stack(found)  # a view: what collates clips copies them


def erase(x_BTCHW: Tensor, probability: float) -> Tensor:
    """Replace a rectangle by normal noise with a probability, in place, in all frames of a clip at the same place.

    Args:
        x_BTCHW: normalised clips, float.
        probability: of each clip; the rectangle covers 0.02 to 1/3 of the frame, as in timm.
    """
    frames, channels = x_BTCHW.shape[1:3]
    erasing = RandomErasing(probability, mode="pixel", device=str(x_BTCHW.device))
    return erasing(x_BTCHW.flatten(1, 2)).unflatten(1, (frames, channels))
