"""Exact farthest point sampling and nearest neighbors in pure PyTorch, for batches of clouds on any device.

Suffixes of variable names give shapes: B clouds of N points, M of which are sampled, with K neighbors each.
"""

import torch
from torch import Tensor

from core.errors import InputError

__all__ = ["farthest_points", "nearest_neighbors", "take"]

LAZY_FROM = 1024
"""Clouds with more points are sampled lazily on CPUs; for smaller ones, which fit into the cache, a loop is faster."""

ROWS = 128
"""Number of points whose distances to all others are computed at once on CPUs, so that they stay in the cache."""


def take(points_BNC: Tensor, index_BM: Tensor) -> Tensor:
    """Select M rows of each cloud (B, N, C) by their indices (B, M) int64."""
    return points_BNC.gather(1, index_BM[..., None].expand(-1, -1, points_BNC.shape[2]))


def nearest_neighbors(points_BN3: Tensor, count: int) -> Tensor:
    """Find the nearest points of each point in its own cloud, including itself, in no particular order.

    Distances are computed as sums of squared differences. A matrix product would be faster, but inexact for points that
    are close together. Among points at equal distance, any may be the last neighbor.

    Args:
        points_BN3: points (B, N, 3) float.
        count: number of neighbors K, at most N.

    Returns:
        Indices of the neighbors (B, N, K) int64.

    Raises:
        InputError: if the clouds have fewer than ``count`` points.
    """
    total = points_BN3.shape[1]
    if not 1 <= count <= total:
        raise InputError(f"cannot find {count} neighbors in clouds of {total} points; expected 1 to {total}")

    rows = ROWS if points_BN3.device.type == "cpu" else total
    points_BN3 = points_BN3.detach().float()
    return torch.stack([_neighbors_in_cloud(cloud_N3, count, rows) for cloud_N3 in points_BN3])


def _neighbors_in_cloud(cloud_N3: Tensor, count: int, rows: int) -> Tensor:
    """Find the neighbors (N, K) in one cloud, for ``rows`` points at a time."""
    x_3N = cloud_N3.T.contiguous()
    found = []
    for part_3R in x_3N.split(rows, dim=1):
        distance_RN = (part_3R[0, :, None] - x_3N[0]).square_()
        for axis in (1, 2):
            difference_RN = part_3R[axis, :, None] - x_3N[axis]
            distance_RN.addcmul_(difference_RN, difference_RN)
        found.append(distance_RN.topk(count, dim=1, largest=False, sorted=False).indices)

    return torch.cat(found)


def farthest_points(points_BN3: Tensor, count: int) -> Tensor:
    """Sample farthest points: each one has the largest distance to the points that were sampled before it.

    The indices are those of the textbook loop: it begins with point 0 and, among points at equal distance, takes the
    first one. On CPUs, large clouds are sampled lazily, see :class:`LazySampler`.

    Args:
        points_BN3: finite points (B, N, 3) float. No gradient flows through the sampling.
        count: number of points to sample M, at most N.

    Returns:
        Indices of the points (B, M) int64; no point occurs twice unless points coincide.

    Raises:
        InputError: if the clouds have fewer than ``count`` points, or a coordinate is NaN or infinite.
    """
    total = points_BN3.shape[1]
    if not 1 <= count <= total:
        raise InputError(
            f"cannot sample {count} points from clouds of {total}; expected 1 to {total}, or larger clouds"
        )
    if not points_BN3.isfinite().all():
        raise InputError("a cloud holds NaN or infinity; replace it")

    points_BN3 = points_BN3.detach().float()
    if points_BN3.device.type != "cpu":
        return _sample_step_by_step(points_BN3, count)

    # Sampling takes thousands of steps of a few microseconds each, in which further threads would only wait.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if total > LAZY_FROM:
            return LazySampler(points_BN3).sample(count)
        return _sample_step_by_step(points_BN3, count)
    finally:
        torch.set_num_threads(threads)


def _sample_step_by_step(points_BN3: Tensor, count: int) -> Tensor:
    """Sample farthest points by the textbook loop, which updates all distances after each point."""
    x_3BN = points_BN3.permute(2, 0, 1).contiguous()
    batch, total = x_3BN.shape[1:]
    distance_BN = torch.full((batch, total), torch.inf, device=x_3BN.device)
    difference_3BN = torch.empty_like(x_3BN)

    last_B1 = torch.zeros(batch, 1, dtype=torch.long, device=x_3BN.device)
    taken = [last_B1]
    for _ in range(count - 1):
        _update_distances(distance_BN, x_3BN, x_3BN.gather(2, last_B1.expand(3, -1, 1)), difference_3BN)
        last_B1 = distance_BN.argmax(dim=1, keepdim=True)
        taken.append(last_B1)

    return torch.cat(taken, dim=1)


def _update_distances(distance: Tensor, x: Tensor, center: Tensor, buffer: Tensor) -> None:
    """Lower squared distances (...) in place to those between points x (3, ...) and a center (3, ..., 1)."""
    torch.sub(x, center, out=buffer)
    dx, dy, dz = buffer.square_()
    torch.minimum(distance, dx.add_(dy).add_(dz), out=distance)


class LazySampler:
    """Exact farthest point sampling that updates few distances at a time, after QuickFPS (Han et al., TCAD 2023).

    Sampling proceeds in rounds. A round takes points only from the ``CANDIDATES`` farthest points and updates only
    their distances. Distances never increase, so a point that is taken in this way is valid as long as its distance is
    larger than the largest distance of all other points at the beginning of the round.

    After a round, the distances of all other points are updated. For this purpose, the cloud is cut into boxes. A new
    point cannot change the distances in a box if it is farther from the box than every point of the box is from the
    sample, so most boxes are skipped.

    All clouds of a batch go through the same rounds, and each keeps the points of a round that are valid for it.

    Further suffixes of names: X boxes of all clouds together, T boxes of one cloud, S places in a box, P = T * S places
    of a cloud, C candidates.

    Args:
        points_BN3: points (B, N, 3) float32 on the CPU.
    """

    CANDIDATES = 512
    """Number of points from which a round takes its points."""
    STEPS = 32
    """Number of steps between two checks whether a round is over."""
    ROUNDING = 1 - 1e-5
    """Factor on distances to boxes, because rounding must not make them larger than distances to points in the box."""

    def __init__(self, points_BN3: Tensor) -> None:
        batch, total, _ = points_BN3.shape
        order_BTS = _cut_into_boxes(points_BN3)
        self.points_BN3 = points_BN3
        self.boxes = batch * order_BTS.shape[1]
        self.box_size = order_BTS.shape[2]

        # The index of the point at each place. N marks a gap, since boxes may not be full.
        self.index_BP = order_BTS.flatten(1)
        self.is_gap_BP = self.index_BP == total

        padded = torch.cat([points_BN3, points_BN3[:, :1]], dim=1)
        self.x_3BP = take(padded, self.index_BP).permute(2, 0, 1).contiguous()

        # Squared distance of each point to the nearest point of the sample
        self.distance_BP = torch.full_like(self.x_3BP[0], torch.inf).masked_fill_(self.is_gap_BP, -1.0)

        x_3XS = self.x_3BP.view(3, self.boxes, self.box_size)
        self.low_3X = x_3XS.amin(dim=2)
        self.high_3X = x_3XS.amax(dim=2)

    def sample(self, count: int) -> Tensor:
        """Sample ``count`` points of each cloud, and return their indices (B, count) int64, which begin with 0."""
        batch = len(self.points_BN3)
        taken_BM = torch.zeros(batch, count, dtype=torch.long)
        done_B = torch.ones(batch, dtype=torch.long)

        new_BK = taken_BM[:, :1]
        valid_B = done_B  # how many of the new points are valid: they come first
        while int(done_B.min()) < count:
            self._update_boxes(new_BK, valid_B)

            new_BK, is_valid_BK = self._run_round(most=int(count - done_B.min()))
            is_valid_BK &= torch.arange(is_valid_BK.shape[1]) < (count - done_B)[:, None]
            valid_B = is_valid_BK.sum(dim=1)

            row, step = is_valid_BK.nonzero(as_tuple=True)
            taken_BM[row, done_B[row] + step] = new_BK[row, step]
            new_BK = new_BK[:, : int(valid_B.max())]
            done_B = done_B + valid_B

        return taken_BM

    def _run_round(self, most: int) -> tuple[Tensor, Tensor]:
        """Take up to ``most`` candidates.

        Returns:
            Indices of the points (B, K), and which of them are valid (B, K) bool.
        """
        key_BP = _order_key(self.distance_BP, self.index_BP).masked_fill_(self.is_gap_BP, -1)
        candidates = min(self.CANDIDATES, self.points_BN3.shape[1] - 1)
        best_BC, place_BC = key_BP.topk(candidates + 1, dim=1)
        limit_B1 = best_BC[:, -1:]  # the largest key of all points that are not candidates

        # Sort candidates by index, so that the maximum finds the first of several points at equal distance.
        index_BC, order_BC = self.index_BP.gather(1, place_BC[:, :-1]).sort(dim=1)
        place_BC = place_BC.gather(1, order_BC)

        limit_distance_B1 = (limit_B1 >> 32).int().view(torch.float32)
        distance_BK, step_BK = self._sample_candidates(place_BC, limit_distance_B1, most)
        new_BK = index_BC.gather(1, step_BK)
        is_beyond_limit = _order_key(distance_BK, new_BK) > limit_B1
        return new_BK, is_beyond_limit.cummin(dim=1).values  # after an invalid point, no point is valid

    def _sample_candidates(self, place_BC: Tensor, limit_B1: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Sample among the candidates until the distances in every cloud are below the limit.

        Returns:
            Squared distances at which the points were taken (B, K), and their indices among the candidates (B, K).
        """
        distance_BC = self.distance_BP.gather(1, place_BC)
        x_3BC = self.x_3BP.gather(2, place_BC.expand(3, -1, -1))
        difference_3BC = torch.empty_like(x_3BC)
        distances: list[Tensor] = []
        steps: list[Tensor] = []

        while len(steps) < most and (not steps or bool((distances[-1] >= limit_B1).any())):
            for _ in range(min(self.STEPS, most - len(steps))):
                distance_B1, step_B1 = distance_BC.max(dim=1, keepdim=True)
                distances.append(distance_B1)
                steps.append(step_B1)
                _update_distances(distance_BC, x_3BC, x_3BC.gather(2, step_B1.expand(3, -1, 1)), difference_3BC)

        return torch.cat(distances, dim=1), torch.cat(steps, dim=1)

    def _update_boxes(self, new_BK: Tensor, valid_B: Tensor) -> None:
        """Update the distances in all boxes that the first ``valid_B`` new points of each cloud can change."""
        center_3BK = take(self.points_BN3, new_BK).permute(2, 0, 1).contiguous()
        matters_XK = self._can_change(center_3BK, valid_B)

        # Sort boxes by their number of relevant points, so that those with at least j of them are the first rows.
        count_X, box_X = matters_XK.sum(dim=1).sort(descending=True)
        box_X = box_X[count_X > 0]
        which_XJ = matters_XK[box_X].byte().argsort(dim=1, descending=True, stable=True)[:, : int(count_X[0])]
        cloud_X1 = (box_X // (self.boxes // len(new_BK)))[:, None]
        center_3JX = center_3BK[:, cloud_X1, which_XJ].transpose(1, 2).contiguous()

        x_3XS = self.x_3BP.view(3, self.boxes, self.box_size)[:, box_X]
        distances = self.distance_BP.view(self.boxes, self.box_size)
        distance_XS = distances[box_X]
        difference_3XS = torch.empty_like(x_3XS)
        for j in range(center_3JX.shape[1]):
            rows = int((count_X > j).sum())
            center_3R1 = center_3JX[:, j, :rows, None]
            _update_distances(distance_XS[:rows], x_3XS[:, :rows], center_3R1, difference_3XS[:, :rows])

        distances[box_X] = distance_XS

    def _can_change(self, center_3BK: Tensor, valid_B: Tensor) -> Tensor:
        """Return whether a new point is closer to a box than some point of the box is to the sample, (X, K) bool."""
        _, batch, new = center_3BK.shape
        center_3B1K = center_3BK[:, :, None]
        low_3BT1 = self.low_3X.view(3, batch, -1, 1)
        high_3BT1 = self.high_3X.view(3, batch, -1, 1)
        outside_3BTK = torch.maximum(low_3BT1 - center_3B1K, center_3B1K - high_3BT1).clamp_(min=0)
        to_box_BTK = outside_3BTK.square_().sum(dim=0).mul_(self.ROUNDING)

        reach_BT1 = self.distance_BP.view(batch, -1, self.box_size).amax(dim=2, keepdim=True)
        is_valid_B1K = (torch.arange(new) < valid_B[:, None])[:, None]
        return ((to_box_BTK < reach_BT1) & is_valid_B1K).flatten(0, 1)


def _order_key(distance: Tensor, index: Tensor) -> Tensor:
    """Return int64 keys that sort by distance and then by lower index.

    The bits of floats that are not negative sort like integers, so they become the upper half of the key.
    """
    return (distance.contiguous().view(torch.int32).long() << 32) | (2**31 - 1 - index)


def _cut_into_boxes(points_BN3: Tensor, cuts: int = 3) -> Tensor:
    """Cut each cloud along x into ``cuts`` parts with equally many points, then each part along y, then along z.

    Returns:
        Indices of the points in each box (B, T, S); N marks a gap.
    """
    batch, total, _ = points_BN3.shape
    size = -(-total // cuts**3)  # rounded up
    order_BP = torch.arange(cuts**3 * size).clamp_(max=total).expand(batch, -1)
    padded = torch.cat([points_BN3, points_BN3.new_full((batch, 1, 3), torch.inf)], dim=1)

    for axis in range(3):
        rows = order_BP.reshape(batch * cuts**axis, -1)
        value = padded[..., axis].gather(1, order_BP).view_as(rows)
        order_BP = rows.gather(1, value.argsort(dim=1)).view(batch, -1)

    return order_BP.view(batch, cuts**3, size)
