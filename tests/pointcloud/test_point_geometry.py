"""Poses, views, pixels and splats against their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from core.errors import InputError
from pointcloud.augment import Poses
from pointcloud.views import VIEWS, euler_matrices, pixels, pose_matrices, splat


def _rx(a: float) -> np.ndarray:
    return np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])


def _ry(a: float) -> np.ndarray:
    return np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])


def _rz(a: float) -> np.ndarray:
    return np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])


def test_ten_views_are_the_published_ones() -> None:
    quarter, half = math.pi / 4, math.pi / 2
    assert np.allclose(VIEWS[:4], [[k * half, 0, half] for k in range(4)])
    assert np.allclose(VIEWS[4:8], [[n * quarter, s * quarter, half] for n in (5, 7) for s in (-1, 1)])
    assert np.allclose(VIEWS[8:], [[0, -half, half], [0, half, half]])
    for (a, b, c), matrix in zip(VIEWS, euler_matrices(torch.tensor(VIEWS, dtype=torch.float64)), strict=True):
        assert np.allclose(matrix, _rx(a) @ _ry(b) @ _rz(c), atol=1e-12)


@settings(max_examples=40)
@given(st.floats(0, 2 * math.pi), st.floats(-math.pi, math.pi))
def test_pose_is_a_tilt_then_a_turn(theta: float, phi: float) -> None:
    matrix = pose_matrices(*torch.tensor([[theta], [phi]], dtype=torch.float64))[0].numpy()
    v = np.array([math.sin(theta), -math.cos(theta), 0])
    p = np.array([0.3, -1.2, 0.7])
    tilted = p * math.cos(-phi) + np.cross(v, p) * math.sin(-phi) + v * (v @ p) * (1 - math.cos(-phi))
    assert np.allclose(matrix @ p, _rz(-theta) @ tilted)


def test_published_poses() -> None:
    poses = Poses()
    assert poses.grid(test=False).shape == (8, 3, 3)
    assert poses.grid(test=True).shape == (40, 3, 3)
    theta = torch.tensor(np.linspace(0, 2, 11)[:10].repeat(4) * math.pi)
    phi = torch.tensor(np.tile(np.linspace(-0.4, -0.2, 4), 10) * math.pi)
    assert_close(poses.grid(test=True).double(), pose_matrices(theta, phi), rtol=0, atol=1e-6)
    theta = torch.tensor(np.linspace(0.1, 2, 9)[:8] * math.pi)
    tilted = pose_matrices(theta, torch.full((8,), -0.35 * math.pi).double())
    assert_close(poses.grid(test=False).double(), tilted, rtol=0, atol=1e-6)
    whole = Poses(val_theta=[0, 1], val_phi=[-0.5]).grid(test=False)  # numbers as a configuration may have them
    assert_close(whole, Poses(val_theta=[0.0, 1.0], val_phi=[-0.5]).grid(test=False))
    matrix, shift = poses.draw(500)
    scale = matrix.norm(dim=2)
    assert 0.66 < float(scale.min()) < 0.7 < 1.4 < float(scale.max()) < 1.51
    assert 0.19 < float(shift.abs().max()) <= 0.2
    drawn = np.corrcoef(np.concatenate([scale.numpy(), shift[:, 0].numpy()], axis=1).T)
    assert np.abs(drawn - np.eye(6)).max() < 0.25  # each axis has a scale and a shift of its own
    up = (matrix / scale[..., None])[:, 2, 2]  # cos of the tilt
    assert math.cos(0.4 * math.pi) - 1e-5 <= float(up.min()) < float(up.max()) <= math.cos(0.2 * math.pi) + 1e-5


@pytest.mark.parametrize("wrong", [{"theta": (1, 0)}, {"scale": (0, 1)}, {"shift": -1}, {"val_phi": ()}])
def test_poses_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected ranges from low to high"):
        Poses(**wrong)  # type: ignore[arg-type]


def _plain_splat_pixels(cloud: Tensor, size: int) -> Tensor:
    """Return pixels (N, 9, 2) in the published order of steps: index, nine neighbors, then the shift to the center."""
    low, high = cloud[:, :2].min(0)[0], cloud[:, :2].max(0)[0]
    cell = max(float(high[0] - low[0]), float(high[1] - low[1])) / (size - 3)
    index = torch.floor((cloud[:, :2] - low) / cell).long()
    spread = torch.stack([index + torch.tensor([i, j]) + 1 for i in (-1, 0, 1) for j in (-1, 0, 1)], dim=1)
    center = torch.floor((spread.amax((0, 1)) + spread.amin((0, 1))) / 2).long()
    return spread + size // 2 - center - 1


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(2, 30), st.floats(0.01, 100), st.integers(0, 10**6))
def test_splat_equals_the_published_order(count: int, half: int, stretch: float, seed: int) -> None:
    torch.manual_seed(seed)
    size, cloud = 2 * half, torch.randn(count, 3) * torch.tensor([stretch, 1.0, 1.0])
    spread = _plain_splat_pixels(cloud, size)
    middle = pixels(cloud[None], size)
    assert torch.equal(spread[:, 4], middle[0])
    assert 1 <= int(middle.min()) <= int(middle.max()) <= size - 2
    features = torch.randn(1, count, 3)
    expected = torch.zeros(size, size, 3)
    for n in range(count):
        for row, column in spread[n].tolist():
            expected[row, column] += features[0, n]
    assert_close(splat(features, middle[None], size)[0], expected.permute(2, 0, 1), rtol=1e-4, atol=1e-4)


def test_views_of_a_cloud_follow_each_other() -> None:
    features, places = torch.randn(2, 5, 4), torch.randint(1, 7, (2, 3, 5, 2))
    maps = splat(features, places, 8)
    assert maps.shape == (6, 4, 8, 8)
    for b in range(2):
        for v in range(3):
            assert_close(maps[3 * b + v], splat(features[b : b + 1], places[b : b + 1, v : v + 1], 8)[0])


def test_gradient_and_order_of_a_splat() -> None:
    features, places = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True), torch.randint(1, 5, (2, 2, 6, 2))
    assert torch.autograd.gradcheck(lambda f: splat(f, places, 6), features)
    torch.use_deterministic_algorithms(True)
    try:
        many, where = torch.randn(1, 5_000, 8), torch.randint(1, 9, (1, 1, 5_000, 2))
        assert torch.equal(splat(many, where, 10), splat(many, where, 10))
    finally:
        torch.use_deterministic_algorithms(False)


def test_equal_points_lie_in_the_middle_and_lines_stay_lines() -> None:
    assert pixels(torch.full((1, 5, 3), 0.4), 10).tolist() == [[[4, 4]] * 5]
    line = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0, 0])
    assert pixels(line[None], 10)[0].tolist() == [[i + 1, 4] for i in range(8)]
    assert len(set(map(tuple, pixels(line[None, :, [2, 1, 0]], 10)[0].tolist()))) == 1  # seen along itself
