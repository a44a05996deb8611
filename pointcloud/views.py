"""The geometry of views: rotations, the ten fixed views, and how points are drawn into the pixels of a view.

Suffixes of variable names give shapes: B clouds, N points, V views, C channels.
"""

import math

import torch
from torch import Tensor

__all__ = ["VIEWS", "euler_matrices", "pixels", "pose_matrices", "splat"]

_HALF = math.pi / 2
VIEWS: tuple[tuple[float, float, float], ...] = (
    *((k * _HALF, 0.0, _HALF) for k in range(4)),
    *((5 * math.pi / 4, side * math.pi / 4, _HALF) for side in (-1, 1)),
    *((7 * math.pi / 4, side * math.pi / 4, _HALF) for side in (-1, 1)),
    *((0.0, side * _HALF, _HALF) for side in (-1, 1)),
)
"""Euler angles (a, b, c) of the ten published views: four around the object, four oblique ones and two poles."""


def euler_matrices(angles_V3: Tensor) -> Tensor:
    """Compute rotation matrices Rx(a) Ry(b) Rz(c) of shape (V, 3, 3) from angles (V, 3) in radians."""
    about_x, about_y, about_z = (_rotation(angles_V3[:, axis], axis) for axis in range(3))
    return about_x @ about_y @ about_z


def _rotation(angle_V: Tensor, axis: int) -> Tensor:
    """Compute right-handed rotations (V, 3, 3) about a coordinate axis from angles (V,) in radians."""
    matrix = torch.eye(3, dtype=angle_V.dtype, device=angle_V.device).repeat(len(angle_V), 1, 1)
    i = (axis + 1) % 3
    j = (axis + 2) % 3
    matrix[:, i, i] = angle_V.cos()
    matrix[:, j, j] = angle_V.cos()
    matrix[:, j, i] = angle_V.sin()
    matrix[:, i, j] = -angle_V.sin()
    return matrix


def pose_matrices(theta_B: Tensor, phi_B: Tensor) -> Tensor:
    """Compute the matrices of the published poses: a tilt by -phi about a horizontal axis, then Rz(-theta).

    The axis of the tilt is (sin theta, -cos theta, 0).

    Args:
        theta_B: turns about the vertical axis (B,) in radians.
        phi_B: tilts (B,) in radians.

    Returns:
        Matrices (B, 3, 3).
    """
    zero = torch.zeros_like(theta_B)
    x = theta_B.sin()
    y = -theta_B.cos()

    # Rodrigues' formula for the tilt about (x, y, 0)
    identity = torch.eye(3, dtype=zero.dtype, device=zero.device)
    cross = torch.stack([zero, zero, y, zero, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    sine = (-phi_B).sin()[:, None, None]
    cosine = (-phi_B).cos()[:, None, None]
    tilt = identity + sine * cross + (1 - cosine) * (cross @ cross)

    return _rotation(-theta_B, 2) @ tilt


def pixels(points_BN3: Tensor, size: int) -> Tensor:
    """Compute the central pixel of each point's 3 x 3 splat, in a view along z.

    The object fills the view up to a margin of one pixel: the larger of its extents in x and y is scaled to size - 3
    pixels, and it is centered along the other axis. x is the row and y the column. A cloud without extent is drawn in
    the center.

    Args:
        points_BN3: points (B, N, 3) float.
        size: side of the view, in pixels; even.

    Returns:
        Row and column of each point (B, N, 2) int64 in [1, size - 2].
    """
    xy_BN2 = points_BN3[..., :2]
    low = xy_BN2.amin(dim=1, keepdim=True)
    high = xy_BN2.amax(dim=1, keepdim=True)
    pixel = (high - low).amax(dim=2, keepdim=True) / (size - 3)

    index_BN2 = ((xy_BN2 - low) / pixel.clamp(min=1e-12)).floor().long() + 1
    center = (index_BN2.amax(dim=1, keepdim=True) + index_BN2.amin(dim=1, keepdim=True)) // 2
    return index_BN2 + size // 2 - center - 1


def splat(features_BNC: Tensor, pixels_BVN2: Tensor, size: int) -> Tensor:
    """Draw each point into 3 x 3 pixels of each view. Features in the same pixel are added; the background is 0.

    The order of the additions is fixed on CPUs. On GPUs, it is fixed by ``torch.use_deterministic_algorithms(True)``,
    which the option ``--trainer.deterministic true`` sets.

    Args:
        features_BNC: features (B, N, C) float.
        pixels_BVN2: row and column of each point's central pixel (B, V, N, 2) int64 in [1, size - 2].
        size: side of the views, in pixels.

    Returns:
        Maps (B * V, C, size, size) in channels-last memory format, sorted by cloud.
    """
    batch, views = pixels_BVN2.shape[:2]
    channels = features_BNC.shape[2]

    # Index of each central pixel among the pixels of all views
    first = torch.arange(batch * views, device=pixels_BVN2.device).view(batch, views, 1) * size**2
    center = (first + pixels_BVN2[..., 0] * size + pixels_BVN2[..., 1]).flatten()
    values = features_BNC[:, None].expand(-1, views, -1, -1).reshape(-1, channels)

    maps = values.new_zeros(batch * views * size**2, channels)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            maps.index_add_(0, center + row * size + column, values)

    return maps.view(batch * views, size, size, channels).permute(0, 3, 1, 2)
