"""Augmentation is the same in every frame of a clip, and the crops of evaluation lie where they should."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from core.errors import InputError
from video.augment import TestCrops, TrainCrops, erase, same_for_all


def _still(frames: int = 5, size: tuple[int, int] = (40, 52)) -> Tensor:
    """Return a clip (T, 3, H, W) that repeats one noisy picture."""
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8).expand(frames, -1, -1, -1)


def test_frames_that_are_alike_stay_alike() -> None:
    crops = TrainCrops(32, repeats=3)
    for seed in range(8):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        x = crops(_still())
        assert x.shape == (3, 5, 3, 32, 32)
        assert x.dtype == torch.uint8
        assert torch.equal(x, x[:, :1].expand_as(x))
        assert not torch.equal(x[0], x[1])


def test_policy_fills_with_the_mean_color_of_imagenet() -> None:
    crops = TrainCrops(32, scale=(1, 1), ratio=(1, 1), hflip=0, auto_augment="rand-m10-n1-p1", repeats=80)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    colors = crops(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)).movedim(2, -1).reshape(-1, 3)
    assert {color for color in map(tuple, colors.tolist()) if len(set(color)) > 1} == {(124, 116, 104)}


def test_each_clip_is_augmented_otherwise() -> None:
    crops, still = TrainCrops(32, auto_augment=None, repeats=1), _still()
    assert len({crops(still).numpy().tobytes() for _ in range(10)}) == 10


def test_plain_training_crop_is_the_clip_or_its_mirror() -> None:
    x = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    crops = TrainCrops(24, scale=(1.0, 1.0), ratio=(1.0, 1.0), auto_augment=None, repeats=12)
    found = crops(x)
    mirrored = [torch.equal(clip, x.flip(3)) for clip in found]
    assert all(torch.equal(clip, x.flip(3) if flag else x) for clip, flag in zip(found, mirrored, strict=True))
    assert 0 < sum(mirrored) < 12
    assert torch.equal(
        TrainCrops(24, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0, auto_augment=None, repeats=1)(x)[0], x
    )


def test_policy_sees_every_frame_with_the_same_numbers_and_moves_on() -> None:
    drawn: list[tuple[float, float]] = []

    def change(image: Image.Image) -> Image.Image:
        drawn.append((random.random(), float(np.random.random())))
        return image

    frames = [Image.new("RGB", (2, 2))] * 3
    same_for_all(change, frames)
    same_for_all(change, frames)
    assert len(set(drawn[:3])) == len(set(drawn[3:])) == 1
    assert drawn[0] != drawn[3]


def test_center_crop_after_resizing_the_shorter_side() -> None:
    ramp = torch.arange(0, 240, 4, dtype=torch.uint8).expand(2, 3, 30, 60)
    (x,) = TestCrops(30)(ramp)
    assert_close(x, ramp[..., 15:45])
    assert TestCrops(16)(_still(size=(50, 33))).shape == (1, 5, 3, 16, 16)


def test_three_crops_cover_the_longer_side() -> None:
    wide, tall = torch.rand(2, 4, 3, 20, 50), torch.rand(2, 4, 3, 50, 20)
    for x, axis in ((wide, 4), (tall, 3)):
        x = (x * 255).to(torch.uint8)
        found = TestCrops(20, 3)(x)
        assert found.shape == (3, 2, 4, 3, 20, 20)
        for crop, start in zip(found, (0, 15, 30), strict=True):
            assert torch.equal(crop, x.narrow(axis, start, 20))


MEAN, STD = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([0.25, 0.5, 0.125])


def test_erasing_is_one_rectangle_of_noise_in_all_frames() -> None:
    x = torch.full((6, 4, 3, 20, 30), 0.5)
    erased = erase(x, 1.0, MEAN, STD) != 0.5
    for clip in erased:
        assert torch.equal(clip, clip[:1, :1].expand_as(clip))
        rows, columns = clip[0, 0].any(1).nonzero()[:, 0], clip[0, 0].any(0).nonzero()[:, 0]
        area = len(rows) * len(columns)
        assert clip[0, 0].sum() == area == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.01 * 600 < area < 0.4 * 600
    noise = erase(x, 1.0, MEAN, STD)[0]
    inside = noise[noise != 0.5]
    assert inside.unique().numel() > 0.99 * inside.numel()  # each pixel has its own
    assert erase(x, 0.0, MEAN, STD) is x
    assert torch.equal(x, torch.full_like(x, 0.5))


def test_noise_of_erasing_is_normal_after_normalization() -> None:
    x = torch.full((40, 8, 3, 32, 32), 0.5)
    normalized = (erase(x, 1.0, MEAN, STD) - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)
    kept = ((0.5 - MEAN) / STD).view(-1, 1, 1)
    for channel in range(3):
        noise = normalized[:, :, channel][(normalized[:, :, channel] - kept[channel]).abs() > 1e-5]
        assert noise.numel() > 10_000
        assert float(noise.mean()) == pytest.approx(0, abs=0.03)
        assert float(noise.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("options", [{"size": 0}, {"repeats": 0}, {"hflip": 2.0}])
def test_training_crops_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"size=.*repeats=.*hflip="):
        TrainCrops(**{"size": 8} | options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="test_crops=0; expected 1 or more"):
        TestCrops(8, 0)
