"""Image to map: shapes, normalisation, which part of the image is seen, and augmentation that stays finite."""

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

from core.images import to_pixels
from vision.feature_map import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, eval_transform, train_transform

SIZES = st.tuples(st.integers(1, 150), st.integers(1, 150))
GREY: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)}
RAW: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@settings(max_examples=30)
@given(SIZES, st.sampled_from([32, 33, 64]), st.sampled_from(["auto", "center", "squash"]))
def test_evaluation_maps_any_image_to_a_square(shape: tuple[int, int], size: int, crop: Any) -> None:
    for mode, options, channels in (("RGB", {}, 3), ("L", GREY, 1)):
        x = eval_transform(size, crop=crop, **options)(Image.new(mode, shape))
        assert x.shape == (channels, size, size)
        assert x.dtype == torch.float32


@settings(max_examples=40)
@given(SIZES, st.integers(0, 1000))
def test_training_maps_any_image_to_a_finite_square(shape: tuple[int, int], seed: int) -> None:
    _seed(seed)
    x = train_transform(32, auto_augment=None, erasing=1.0)(picture(0, seed, shape))
    assert x.shape == (3, 32, 32)
    assert x.dtype == torch.float32
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "rand-m15-n2-mstd0.5", "augmix-m3-w3"])
def test_policies_take_any_image(policy: str) -> None:
    """The default draws a magnitude around 9 for each image, up to the largest, 10: that may not stop a run."""
    transform, image = train_transform(16, auto_augment=policy, erasing=0.0), picture(0, 0)
    for seed in range(300):
        _seed(seed)
        assert transform(image).shape == (3, 16, 16)


def test_pixels_are_normalised_by_mean_and_std() -> None:
    x = eval_transform(32)(Image.new("RGB", (40, 50), (255, 0, 51)))
    expected = [
        (v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)
    ]
    assert_close(x, torch.tensor(expected).view(3, 1, 1).expand(3, 32, 32), rtol=1e-5, atol=1e-5)
    assert_close(eval_transform(32, **GREY)(Image.new("L", (40, 50), 255)), torch.full((1, 32, 32), 2.0))


def test_to_pixels_inverts_the_normalisation_and_clips() -> None:
    image = picture(1, 3, (32, 32))
    x = eval_transform(32, crop="squash")(image)[None]
    pixels = to_pixels(x, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    assert_close(pixels, expected, rtol=0, atol=1e-5)
    wild = to_pixels(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1), **GREY)
    assert wild.flatten().tolist() == [0.0, 1.0]


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
    x = eval_transform(size, crop=crop, **RAW)(_bordered(400, 400, 20))
    middle = size // 2
    edges = torch.stack([x[:, 1, middle], x[:, -2, middle], x[:, middle, 1], x[:, middle, -2]])
    assert bool((edges > 0.5).all() if sees_border else (edges < 0.5).all())
    assert x[:, middle, middle].max() < 0.01


def test_centre_crop_is_that_of_the_published_evaluation() -> None:
    """Resized to 256 and cut to 224, written with torchvision."""
    image = picture(0, 4, (500, 375))
    published = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor()])
    assert_close(eval_transform(224, **RAW)(image), published(image) / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("crop", "narrow"), [("center", False), ("squash", True)])
def test_squash_keeps_the_whole_rectangle_and_centre_its_shape(crop: Any, narrow: bool) -> None:
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[30:70, 130:170] = 255  # a square in the middle
    x = eval_transform(64, crop=crop, **RAW)(Image.fromarray(pixels))
    lit = x[0] > 0.5
    height, width = int(lit[:, 32].sum()), int(lit[32].sum())
    assert height == pytest.approx(64 * 0.4 / (1 if narrow else 0.875), abs=2)
    assert width == pytest.approx(64 * 40 / 300 if narrow else height, abs=2)


def test_training_crops_flips_and_erases_at_random() -> None:
    image = picture(2, 1, (60, 60))
    plain = {"auto_augment": None, "erasing": 0.0, "hflip": 0.0, "scale": (1.0, 1.0)}

    def maps(**options: Any) -> list[torch.Tensor]:
        transform = train_transform(32, **plain | options)
        return [(_seed(seed), transform(image))[1] for seed in range(12)]

    def distinct(**options: Any) -> int:
        return len({tuple(x.flatten().tolist()) for x in maps(**options)})

    assert distinct() == 1
    assert distinct(hflip=0.5) == 2
    assert distinct(scale=(0.1, 1.0)) == 12
    assert distinct(erasing=1.0) == 12
    assert_close(maps(hflip=1.0)[0], maps()[0].flip(-1), rtol=0, atol=1e-5)


def test_what_is_erased_is_noise_in_every_pixel() -> None:
    _seed(0)
    plain: dict[str, Any] = {"auto_augment": None, "hflip": 0.0}
    x = train_transform(32, erasing=1.0, **plain)(Image.new("RGB", (40, 40), (255, 255, 255)))
    white = (1 - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(IMAGENET_DEFAULT_STD)
    erased = x[(x - white.view(3, 1, 1)).abs() > 1e-3]
    assert erased.unique().numel() > 0.9 * erased.numel() > 20
