"""What all image data modules share: how images become maps, and their augmentation."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from core.errors import InputError
from core.images import Mode, image_files
from core.samples import Samples, collate_found
from core.training.samples import SampleDataModule, Split
from vision.feature_map import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, eval_transform, train_transform
from vision.files import Images

__all__ = ["ImageDataModule"]


class ImageDataModule(SampleDataModule):
    """Base of the image data modules: the maps' size, their augmentation, and prediction on any files.

    Args:
        size: side of the map, in pixels.
        mode: 'RGB' for three channels or 'L' for one.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        scale: range of the share of a training image that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: timm's policy in training, or None.
        erasing: probability of erasing a rectangle in training.
        crop: 'center', 'squash', or 'auto' for the papers' rule by size.
        skip_broken: leave out files that cannot be decoded, with a warning, instead of stopping.
        kwargs: arguments of :class:`core.training.SampleDataModule`.

    Raises:
        InputError: if ``mean`` and ``std`` do not go with the channels, or an option is unknown or out of range.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        mode: Mode = "RGB",
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        erasing: float = 0.25,
        crop: Literal["auto", "center", "squash"] = "auto",
        skip_broken: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.mode, self.mean, self.std = size, mode, tuple(mean), tuple(std)
        self.skip_broken = skip_broken
        if mode not in ("RGB", "L") or crop not in ("auto", "center", "squash"):
            raise InputError(f"mode={mode!r}, crop={crop!r}; expected 'RGB' or 'L', and 'auto', 'center' or 'squash'")
        channels = len(mode)
        if not len(mean) == len(std) == channels:
            raise InputError(f"mode {mode!r} has {channels} channels, mean {len(mean)} and std {len(std)} values")
        if size < 1 or min(std) <= 0 or not 0 < scale[0] <= scale[1] or not (0 <= hflip <= 1 and 0 <= erasing <= 1):
            raise InputError(
                f"size={size}, std={self.std}, scale={tuple(scale)}, hflip={hflip}, erasing={erasing}; expected a "
                "size and std above 0, a rising range, and probabilities"
            )
        try:
            self.train_transform = train_transform(
                size, mean=mean, std=std, scale=scale, hflip=hflip, auto_augment=auto_augment, erasing=erasing
            )
        except (AssertionError, ValueError) as error:  # timm's
            raise InputError(f"auto_augment={auto_augment!r}: {error}; expected one of timm's policies") from error
        self.eval_transform = eval_transform(size, mean=mean, std=std, crop=crop)
        self.collate = partial(collate_found, kind="image")

    def find(self, path: Path) -> list[Path]:
        """The image itself, or all images below a folder."""
        return image_files(path)

    def dataset(self, samples: Samples, split: Split) -> Images:
        """Images with the transform of the split."""
        transform = self.train_transform if split == "train" else self.eval_transform
        return Images(samples, transform, mode=self.mode, skip_broken=self.skip_broken)
