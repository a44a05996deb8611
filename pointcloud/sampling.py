"""Farthest point sampling and nearest neighbours in PyTorch alone: exact, for batches of clouds on any device."""

import torch
from torch import Tensor

from core.errors import InputError
from pointcloud.lazy_sampling import LazySampler

__all__ = ["farthest_points", "nearest_neighbors", "take"]

_FEW = 1024
"""Points up to which a cloud stays in a processor's cache, so that updating all of them at each step is faster."""
_ROWS = 128
"""Points whose distances to all others are computed at once on a CPU: they stay in its cache."""


def take(points_BNC: Tensor, index_BM: Tensor) -> Tensor:
    """Rows of each cloud: (B, N, C) and (B, M) int64 to (B, M, C)."""
    return points_BNC.gather(1, index_BM[..., None].expand(-1, -1, points_BNC.shape[2]))


def farthest_points(points_BN3: Tensor, count: int) -> Tensor:
    """Farthest point sampling: each next point has the largest distance to all points that were taken before it.

    The result is that of the textbook loop, index by index: it begins with point 0, and of several points that are
    equally far the first one is taken. On a CPU large clouds are sampled lazily (:mod:`pointcloud.lazy_sampling`).

    Args:
        points_BN3: (B, N, 3) float, finite; no gradient flows through the choice.
        count: M, points to take, at most N.

    Returns:
        (B, M) int64 indices, no point twice unless points coincide.

    Raises:
        InputError: if there are fewer points than asked, or one is NaN or infinite.
    """
    total = points_BN3.shape[1]
    if not 1 <= count <= total:
        raise InputError(
            f"{count} points were asked of clouds with {total}; ask for 1 to {total}, or give larger clouds"
        )
    if not points_BN3.isfinite().all():
        raise InputError("a cloud holds NaN or infinity; replace it")
    points_BN3 = points_BN3.detach().float()
    if points_BN3.device.type != "cpu":
        return _step_by_step(points_BN3, count)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of steps of microseconds, which threads only wait for
    try:
        return LazySampler(points_BN3).sample(count) if total > _FEW else _step_by_step(points_BN3, count)
    finally:
        torch.set_num_threads(threads)


def _step_by_step(points_BN3: Tensor, count: int) -> Tensor:
    x_3BN = points_BN3.permute(2, 0, 1).contiguous()
    batch, total = x_3BN.shape[1:]
    distance_BN = torch.full((batch, total), torch.inf, device=x_3BN.device)
    difference_3BN = torch.empty_like(x_3BN)
    last_B1 = torch.zeros(batch, 1, dtype=torch.long, device=x_3BN.device)
    taken = [last_B1]
    for _ in range(count - 1):
        torch.sub(x_3BN, x_3BN.gather(2, last_B1.expand(3, -1, 1)), out=difference_3BN)
        x, y, z = difference_3BN.square_()
        torch.minimum(distance_BN, x.add_(y).add_(z), out=distance_BN)
        last_B1 = distance_BN.argmax(dim=1, keepdim=True)
        taken.append(last_B1)
    return torch.cat(taken, dim=1)


def nearest_neighbors(points_BN3: Tensor, count: int) -> Tensor:
    """The nearest points of each point in its own cloud, itself among them, in no particular order.

    Distances are sums of squared differences, not the expansion by a matrix product, which loses what lies close. Of
    points that are equally far for the last place, any may be taken.

    Args:
        points_BN3: (B, N, 3) float.
        count: k, neighbours, at most N.

    Returns:
        (B, N, k) int64 indices.

    Raises:
        InputError: if there are fewer points than asked.
    """
    total = points_BN3.shape[1]
    if not 1 <= count <= total:
        raise InputError(f"{count} neighbours were asked in clouds of {total} points; ask for 1 to {total}")
    rows = _ROWS if points_BN3.device.type == "cpu" else total
    return torch.stack([_neighbors(cloud_N3.detach().float(), count, rows) for cloud_N3 in points_BN3])


def _neighbors(cloud_N3: Tensor, count: int, rows: int) -> Tensor:
    x_3N = cloud_N3.T.contiguous()
    found = []
    for part_3R in x_3N.split(rows, dim=1):
        distance_RN = (part_3R[0, :, None] - x_3N[0]).square_()
        for axis in (1, 2):
            difference_RN = part_3R[axis, :, None] - x_3N[axis]
            distance_RN.addcmul_(difference_RN, difference_RN)
        found.append(distance_RN.topk(count, dim=1, largest=False, sorted=False).indices)
    return torch.cat(found)
