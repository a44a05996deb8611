"""Views of a cloud: poses, the ten fixed views, and points drawn into the pixels of a view."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError

__all__ = ["VIEWS", "Poses", "euler_matrices", "pixels", "pose_matrices", "splat"]

_HALF = math.pi / 2
VIEWS: tuple[tuple[float, float, float], ...] = (
    *((k * _HALF, 0.0, _HALF) for k in range(4)),
    *((5 * math.pi / 4, side * math.pi / 4, _HALF) for side in (-1, 1)),
    *((7 * math.pi / 4, side * math.pi / 4, _HALF) for side in (-1, 1)),
    *((0.0, side * _HALF, _HALF) for side in (-1, 1)),
)
"""Angles (a, b, c) of the ten published views: four from around, four from above and below in between, two poles."""


def euler_matrices(angles_V3: Tensor) -> Tensor:
    """Rx(a) Ry(b) Rz(c) for angles (V, 3) in radians: (V, 3, 3)."""
    a, b, c = (_turn(angles_V3[:, axis], axis) for axis in range(3))
    return a @ b @ c


def _turn(angle_V: Tensor, axis: int) -> Tensor:
    """Right-handed rotations about a coordinate axis: (V,) to (V, 3, 3)."""
    matrix = torch.eye(3, dtype=angle_V.dtype, device=angle_V.device).repeat(len(angle_V), 1, 1)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, i, i] = matrix[:, j, j] = angle_V.cos()
    matrix[:, j, i], matrix[:, i, j] = angle_V.sin(), -angle_V.sin()
    return matrix


def pose_matrices(theta_B: Tensor, phi_B: Tensor) -> Tensor:
    """Published poses: a tilt by -phi about the horizontal axis (sin theta, -cos theta, 0), then Rz(-theta).

    Args:
        theta_B: (B,) radians.
        phi_B: (B,) radians.

    Returns:
        (B, 3, 3).
    """
    zero = torch.zeros_like(theta_B)
    x, y = theta_B.sin(), -theta_B.cos()
    cross = torch.stack([zero, zero, y, zero, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    sine, cosine = (-phi_B).sin()[:, None, None], (-phi_B).cos()[:, None, None]
    tilt = (
        torch.eye(3, dtype=zero.dtype, device=zero.device) + sine * cross + (1 - cosine) * (cross @ cross)
    )  # Rodrigues
    return _turn(-theta_B, 2) @ tilt


@dataclass(frozen=True)
class Poses:
    """From where clouds are looked at; angles are multiples of pi, and the defaults are the published ones.

    A training cloud is turned by an angle theta and tilted by phi, both uniform in their range, then each axis is
    scaled and shifted. Evaluation takes the mean over all pairs of the angles listed.

    Attributes:
        theta: range of the turn in training.
        phi: range of the tilt in training.
        scale: range of the factor on each axis in training, (1, 1) for none.
        shift: largest shift of each axis in training.
        val_theta: turns in validation and prediction.
        val_phi: tilts in validation and prediction.
        test_theta: turns in testing.
        test_phi: tilts in testing.

    Raises:
        InputError: if a range is empty or a list has nothing in it.
    """

    theta: tuple[float, float] = (0.04, 1.94)
    phi: tuple[float, float] = (-0.4, -0.2)
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    shift: float = 0.2
    val_theta: Sequence[float] = tuple(0.1 + 1.9 * i / 8 for i in range(8))
    val_phi: Sequence[float] = (-0.35,)
    test_theta: Sequence[float] = tuple(0.2 * i for i in range(10))
    test_phi: Sequence[float] = tuple(-0.4 + 0.2 * i / 3 for i in range(4))

    def __post_init__(self) -> None:
        ranges = (self.theta, self.phi, self.scale)
        lists = (self.val_theta, self.val_phi, self.test_theta, self.test_phi)
        if any(low > high for low, high in ranges) or self.scale[0] <= 0 or self.shift < 0 or not all(map(len, lists)):
            raise InputError(f"{self}: ranges go from low to high, scales are positive, lists have an angle at least")

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Random poses (B, 3, 3), the scales of the axes included, and shifts (B, 1, 3)."""
        theta, phi = (torch.empty(batch).uniform_(*angles) * math.pi for angles in (self.theta, self.phi))
        scale_B31 = torch.empty(batch, 3, 1).uniform_(*self.scale)
        return scale_B31 * pose_matrices(theta, phi), torch.empty(batch, 1, 3).uniform_(-self.shift, self.shift)

    def grid(self, *, test: bool) -> Tensor:
        """All pairs of the angles for testing or validation: (poses, 3, 3), turns outside, tilts inside."""
        turns, tilts = (self.test_theta, self.test_phi) if test else (self.val_theta, self.val_phi)
        theta, phi = torch.cartesian_prod(*(torch.tensor(list(angles)) * math.pi for angles in (turns, tilts))).T
        return pose_matrices(theta, phi)


def pixels(points_BN3: Tensor, size: int) -> Tensor:
    """The pixel that the middle of each point's 3 x 3 splat has, seen along z.

    The object fills the view but for a margin of one pixel: the larger of its extents in x and y becomes size - 3
    pixels, and the other one is centred. x counts rows and y columns. Clouds without extent lie in the middle.

    Args:
        points_BN3: (B, N, 3) float.
        size: side of the view; even.

    Returns:
        (B, N, 2) int64 in [1, size - 2].
    """
    xy_BN2 = points_BN3[..., :2]
    low, high = xy_BN2.amin(dim=1, keepdim=True), xy_BN2.amax(dim=1, keepdim=True)
    pixel = (high - low).amax(dim=2, keepdim=True) / (size - 3)
    index_BN2 = ((xy_BN2 - low) / pixel.clamp(min=1e-12)).floor().long() + 1
    middle = (index_BN2.amax(dim=1, keepdim=True) + index_BN2.amin(dim=1, keepdim=True)) // 2
    return index_BN2 + size // 2 - middle - 1


def splat(features_BNC: Tensor, pixels_BVN2: Tensor, size: int) -> Tensor:
    """Draw each point into 3 x 3 pixels of each view; features that meet in a pixel add up, the background is 0.

    Sums have a fixed order on a CPU, and on a GPU after ``torch.use_deterministic_algorithms(True)``, which is
    ``--trainer.deterministic true``.

    Args:
        features_BNC: (B, N, C) float.
        pixels_BVN2: (B, V, N, 2) int64 in [1, size - 2]: row and column of the middle.
        size: side of the views.

    Returns:
        (B * V, C, size, size), the views of a cloud after each other, in memory with the channels last.
    """
    batch, views = pixels_BVN2.shape[:2]
    channels = features_BNC.shape[2]
    first = torch.arange(batch * views, device=pixels_BVN2.device).view(batch, views, 1) * size**2
    middle = (first + pixels_BVN2[..., 0] * size + pixels_BVN2[..., 1]).flatten()
    values = features_BNC[:, None].expand(-1, views, -1, -1).reshape(-1, channels)
    maps = values.new_zeros(batch * views * size**2, channels)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            maps.index_add_(0, middle + row * size + column, values)
    return maps.view(batch * views, size, size, channels).permute(0, 3, 1, 2)
