"""Image to map: shapes, normalization, which part of the image is seen, and augmentation that stays finite."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import v2
from training.small_runs import picture

from core.errors import InputError
from vision import ImageClassifier
from vision.augment import eval_transform, train_transform
from vision.feature_map import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PixelMap

SIZES = st.tuples(st.integers(1, 150), st.integers(1, 150))


def _seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@settings(max_examples=30)
@given(SIZES, st.sampled_from([32, 33, 64]), st.sampled_from(["auto", "center", "squash"]))
def test_evaluation_maps_any_image_to_a_square(shape: tuple[int, int], size: int, crop: Any) -> None:
    for mode, channels in (("RGB", 3), ("L", 1)):
        x = eval_transform(size, crop=crop)(Image.new(mode, shape))
        assert x.shape == (channels, size, size)
        assert x.dtype == torch.uint8


@settings(max_examples=40)
@given(SIZES, st.integers(0, 1000))
def test_training_maps_any_image_to_a_finite_square(shape: tuple[int, int], seed: int) -> None:
    _seed(seed)
    pixels = train_transform(32, auto_augment=None)(picture(0, seed, shape))
    task = ImageClassifier("test_unireplknet", 3, erasing=1.0)
    x, _ = task.augment_map(task.to_maps(pixels[None]), torch.tensor([0]))
    assert x.shape == (1, 3, 32, 32)
    assert x.dtype == torch.float32
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "rand-m15-n2-mstd0.5", "augmix-m3-w3"])
def test_policies_take_any_image(policy: str) -> None:
    """The default draws a magnitude around 9 for each image, up to the largest, 10: that may not stop a run."""
    transform, image = train_transform(16, auto_augment=policy), picture(0, 0)
    for seed in range(300):
        _seed(seed)
        assert transform(image).shape == (3, 16, 16)


def test_pixels_are_normalized_by_mean_and_std() -> None:
    x = PixelMap()(eval_transform(32)(Image.new("RGB", (40, 50), (255, 0, 51)))[None])[0]
    expected = [
        (v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)
    ]
    assert_close(x, torch.tensor(expected).view(3, 1, 1).expand(3, 32, 32), rtol=1e-5, atol=1e-5)
    gray = eval_transform(32)(Image.new("L", (40, 50), 255))
    assert_close(PixelMap((0.5,), (0.25,))(gray[None]), torch.full((1, 1, 32, 32), 2.0))


def test_floats_in_the_unit_range_give_the_map_of_bytes() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert_close(PixelMap()(pixels / 255), PixelMap()(pixels), rtol=0, atol=1e-6)


def test_statistics_stay_in_float32() -> None:
    """A mean rounded to bfloat16 would shift every map."""
    feature_map = PixelMap().to(torch.bfloat16)
    assert torch.equal(feature_map.mean, torch.tensor(IMAGENET_DEFAULT_MEAN))
    assert feature_map(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).dtype == torch.float32


def _bordered(width: int, height: int, border: int) -> Image.Image:
    """Black, with a white frame of ``border`` pixels."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[border:-border, border:-border] = 0
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "crop", "sees_border"),
    [
        *[(224, "auto", False), (383, "auto", False), (384, "auto", True), (448, "auto", True)],
        *[(384, "center", False), (224, "squash", True)],
    ],
)
def test_crop_rule_below_and_from_384(size: int, crop: Any, sees_border: bool) -> None:
    x = eval_transform(size, crop=crop)(_bordered(400, 400, 20)) / 255
    middle = size // 2
    edges = torch.stack([x[:, 1, middle], x[:, -2, middle], x[:, middle, 1], x[:, middle, -2]])
    assert bool((edges > 0.5).all() if sees_border else (edges < 0.5).all())
    assert x[:, middle, middle].max() < 0.01


def test_center_crop_is_that_of_the_published_evaluation() -> None:
    """Resized to 256 and cut to 224, written with torchvision."""
    image = picture(0, 4, (500, 375))
    published = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor()])
    assert torch.equal(eval_transform(224)(image), published(image))


@pytest.mark.parametrize(("crop", "narrow"), [("center", False), ("squash", True)])
def test_squash_keeps_the_whole_rectangle_and_center_its_shape(crop: Any, narrow: bool) -> None:
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[30:70, 130:170] = 255  # a square in the middle
    x = eval_transform(64, crop=crop)(Image.fromarray(pixels)) / 255
    lit = x[0] > 0.5
    height, width = int(lit[:, 32].sum()), int(lit[32].sum())
    assert height == pytest.approx(64 * 0.4 / (1 if narrow else 0.875), abs=2)
    assert width == pytest.approx(64 * 40 / 300 if narrow else height, abs=2)


def test_training_crops_and_flips_at_random() -> None:
    image = picture(2, 1, (60, 60))
    plain: dict[str, Any] = {"auto_augment": None, "hflip": 0.0, "scale": (1.0, 1.0)}

    def maps(**options: Any) -> list[torch.Tensor]:
        transform = train_transform(32, **plain | options)
        return [(_seed(seed), transform(image))[1] for seed in range(12)]

    def distinct(**options: Any) -> int:
        return len({tuple(x.flatten().tolist()) for x in maps(**options)})

    assert distinct() == 1
    assert distinct(hflip=0.5) == 2
    assert distinct(scale=(0.1, 1.0)) == 12
    assert torch.equal(maps(hflip=1.0)[0], maps()[0].flip(-1))


def test_erased_rectangles_are_noise_in_every_pixel() -> None:
    _seed(0)
    task = ImageClassifier("test_unireplknet", 3, erasing=1.0)
    pixels = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    white = task.to_maps(pixels)
    x, _ = task.augment_map(white.clone(), torch.tensor([0]))
    erased = x[(x - white).abs() > 1e-3]
    assert erased.unique().numel() > 0.9 * erased.numel() > 20
    with pytest.raises(InputError, match=r"erasing=-0\.1; expected a probability"):
        ImageClassifier("test_unireplknet", 3, erasing=-0.1)
