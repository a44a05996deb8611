"""The poses in which clouds are drawn: random ones in training, fixed lists in evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from pointcloud.views import pose_matrices

__all__ = ["Poses"]


@dataclass(frozen=True)
class Poses:
    """Poses of clouds, with the published values as defaults. Angles are multiples of pi.

    In training, a cloud is turned by an angle theta and tilted by an angle phi, both drawn uniformly from a range; then
    each axis is scaled and shifted. Evaluation averages over all pairs of the listed angles.

    Attributes:
        theta: range of the turn in training.
        phi: range of the tilt in training.
        scale: range of the scale factor of each axis in training; (1, 1) for none.
        shift: largest shift of each axis in training, where the radius of a cloud is 1.
        val_theta: turns in validation and prediction.
        val_phi: tilts in validation and prediction.
        test_theta: turns in testing.
        test_phi: tilts in testing.

    Raises:
        InputError: if a range or a list is empty, a scale is not positive, or the shift is negative.
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
        is_empty = any(low > high for low, high in ranges) or any(len(angles) == 0 for angles in lists)
        if is_empty or self.scale[0] <= 0 or self.shift < 0:
            raise InputError(
                f"{self}; expected ranges from low to high, positive scales, no negative shift, and at least one angle "
                "in each list"
            )

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Draw random poses for training.

        Returns:
            Matrices (B, 3, 3), which include the scales of the axes, and shifts (B, 1, 3).
        """
        theta = torch.empty(batch, dtype=torch.float32).uniform_(*self.theta) * math.pi
        phi = torch.empty(batch, dtype=torch.float32).uniform_(*self.phi) * math.pi
        scale = torch.empty(batch, 3, 1, dtype=torch.float32).uniform_(*self.scale)
        shift = torch.empty(batch, 1, 3, dtype=torch.float32).uniform_(-self.shift, self.shift)
        return scale * pose_matrices(theta, phi), shift

    def grid(self, *, test: bool) -> Tensor:
        """Return the matrices (poses, 3, 3) of all pairs of the listed angles, sorted by turn and then by tilt.

        Args:
            test: use the angles for testing instead of those for validation and prediction.
        """
        turns = self.test_theta if test else self.val_theta
        tilts = self.test_phi if test else self.val_phi
        theta = torch.tensor(turns, dtype=torch.float32) * math.pi
        phi = torch.tensor(tilts, dtype=torch.float32) * math.pi
        theta, phi = torch.cartesian_prod(theta, phi).T
        return pose_matrices(theta, phi)
