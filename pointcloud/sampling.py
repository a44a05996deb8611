"""Farthest point sampling and nearest neighbors in PyTorch alone: exact, for batches of clouds on any device.

Suffixes of names are shapes: B clouds of N points, M of which are sampled, with K neighbors each.
"""

import torch
from torch import Tensor

from core.errors import InputError

__all__ = ["farthest_points", "nearest_neighbors", "take"]

LAZY_FROM = 1024
"""Number of points from which a CPU samples lazily. Smaller clouds fit its cache, where the plain loop is faster."""

ROWS = 128
"""Points whose distances to all others a CPU computes at once, so that they stay in its cache."""


def take(points_BNC: Tensor, index_BM: Tensor) -> Tensor:
    """Selects rows of each cloud: (B, N, C) and (B, M) int64 to (B, M, C)."""
    return points_BNC.gather(1, index_BM[..., None].expand(-1, -1, points_BNC.shape[2]))


def nearest_neighbors(points_BN3: Tensor, count: int) -> Tensor:
    """Finds the nearest points of each point in its own cloud, including itself, in no particular order.

    Distances are sums of squared differences. The faster expansion into a matrix product would lose the distances of
    points that lie close together. Among points at equal distance, any may take the last place.

    Args:
        points_BN3: (B, N, 3) float.
        count: K, the number of neighbors, at most N.

    Returns:
        (B, N, K) int64 indices.

    Raises:
        InputError: if the clouds have fewer than ``count`` points.
    """
    total = points_BN3.shape[1]
    if not 1 <= count <= total:
        raise InputError(f"{count} neighbors were asked in clouds of {total} points; ask for 1 to {total}")

    rows = ROWS if points_BN3.device.type == "cpu" else total
    points_BN3 = points_BN3.detach().float()
    return torch.stack([_neighbors_in_cloud(cloud_N3, count, rows) for cloud_N3 in points_BN3])


def _neighbors_in_cloud(cloud_N3: Tensor, count: int, rows: int) -> Tensor:
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
    """Samples farthest points: each next point has the largest distance to all points that were taken before it.

    The result equals that of the textbook loop, index by index: point 0 comes first, and among points that are
    equally far the first one is taken. On a CPU large clouds are sampled lazily, see :class:`LazySampler`.

    Args:
        points_BN3: (B, N, 3) float, finite. No gradient flows through the choice.
        count: M, the number of points to take, at most N.

    Returns:
        (B, M) int64 indices; no point occurs twice unless points coincide.

    Raises:
        InputError: if the clouds have fewer than ``count`` points, or a coordinate is NaN or infinite.
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
        return _sample_step_by_step(points_BN3, count)

    # Sampling takes thousands of steps of a few microseconds each, in which more threads only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if total > LAZY_FROM:
            return LazySampler(points_BN3).sample(count)
        return _sample_step_by_step(points_BN3, count)
    finally:
        torch.set_num_threads(threads)


def _sample_step_by_step(points_BN3: Tensor, count: int) -> Tensor:
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
    """Lowers squared distances (...) in place to those from points x (3, ...) to a center (3, ..., 1)."""
    torch.sub(x, center, out=buffer)
    dx, dy, dz = buffer.square_()
    torch.minimum(distance, dx.add_(dy).add_(dz), out=distance)


class LazySampler:
    """Exact farthest point sampling that looks at a few points at a time, after QuickFPS (Han et al., TCAD 2023).

    Sampling goes in rounds. The next point is always among those that are farthest now, so a round takes points from
    the ``CANDIDATES`` farthest ones alone and updates only their distances. That is right as long as the best
    candidate is farther than the best of all other points was at the beginning of the round, because distances only
    ever decrease.

    After a round the new points are brought to all other points that they can matter to. For this the cloud is cut
    into boxes: a box keeps its distances if its nearest corner is farther from a new point than each of its points is
    from the sample.

    All clouds of a batch go through the same rounds; each keeps the points of a round that are right for it.
    Suffixes of names: X boxes of all clouds together, T boxes of one cloud, S places in a box, P = T * S places of a
    cloud, C candidates.

    Args:
        points_BN3: (B, N, 3) float32 on the CPU.
    """

    CANDIDATES = 512
    STEPS = 32
    """Steps between two looks whether the round is over."""
    ROUNDING = 1 - 1e-5
    """Distances to a box are compared with distances to points; both have rounding errors of their own."""

    def __init__(self, points_BN3: Tensor) -> None:
        batch, total, _ = points_BN3.shape
        order_BTS = _cut_into_boxes(points_BN3)
        self.points_BN3 = points_BN3
        self.boxes = batch * order_BTS.shape[1]
        self.box_size = order_BTS.shape[2]

        # The number of the point at each place; N marks a gap, since the last box may not be full.
        self.index_BP = order_BTS.flatten(1)
        self.is_gap_BP = self.index_BP == total

        padded = torch.cat([points_BN3, points_BN3[:, :1]], dim=1)
        self.x_3BP = take(padded, self.index_BP).permute(2, 0, 1).contiguous()

        # Squared distance of each point to the sample so far.
        self.distance_BP = torch.full_like(self.x_3BP[0], torch.inf).masked_fill_(self.is_gap_BP, -1.0)

        x_3XS = self.x_3BP.view(3, self.boxes, self.box_size)
        self.low_3X = x_3XS.amin(dim=2)
        self.high_3X = x_3XS.amax(dim=2)

    def sample(self, count: int) -> Tensor:
        """Samples ``count`` points of each cloud: (B, count) int64 indices that begin with 0."""
        batch = len(self.points_BN3)
        taken_BM = torch.zeros(batch, count, dtype=torch.long)
        done_B = torch.ones(batch, dtype=torch.long)

        new_BK = taken_BM[:, :1]
        fresh_B = done_B  # how many of the new points are right
        while int(done_B.min()) < count:
            self._bring_to_boxes(new_BK, fresh_B)

            new_BK, is_right_BK = self._run_round(most=int(count - done_B.min()))
            is_right_BK &= torch.arange(is_right_BK.shape[1]) < (count - done_B)[:, None]
            fresh_B = is_right_BK.sum(dim=1)

            row, step = is_right_BK.nonzero(as_tuple=True)
            taken_BM[row, done_B[row] + step] = new_BK[row, step]
            new_BK = new_BK[:, : int(fresh_B.max())]
            done_B = done_B + fresh_B

        return taken_BM

    def _run_round(self, most: int) -> tuple[Tensor, Tensor]:
        """Takes up to ``most`` points of the candidates: their indices (B, K), and which of them are right."""
        key_BP = _order_key(self.distance_BP, self.index_BP).masked_fill_(self.is_gap_BP, -1)
        candidates = min(self.CANDIDATES, self.points_BN3.shape[1] - 1)
        best_BC, place_BC = key_BP.topk(candidates + 1, dim=1)
        limit_B1 = best_BC[:, -1:]  # the best of all points that are no candidates

        # In the order of their indices, so that among equally far points the maximum is the first one.
        index_BC, order_BC = self.index_BP.gather(1, place_BC[:, :-1]).sort(dim=1)
        place_BC = place_BC.gather(1, order_BC)

        limit_distance_B1 = (limit_B1 >> 32).int().view(torch.float32)
        distance_BK, step_BK = self._sample_candidates(place_BC, limit_distance_B1, most)
        new_BK = index_BC.gather(1, step_BK)
        return new_BK, (_order_key(distance_BK, new_BK) > limit_B1).cummin(dim=1).values

    def _sample_candidates(self, place_BC: Tensor, limit_B1: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Samples among the candidates until none of any cloud is beyond the limit.

        Returns:
            (B, K) squared distances at which points were taken, and (B, K) which candidates they are.
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

    def _bring_to_boxes(self, new_BK: Tensor, fresh_B: Tensor) -> None:
        """Updates the distances in all boxes that the first ``fresh_B`` new points of each cloud can matter to."""
        center_3BK = take(self.points_BN3, new_BK).permute(2, 0, 1).contiguous()
        matters_XK = self._can_matter(center_3BK, fresh_B)

        # Boxes with the most new points come first, so that those with a j-th new point are the first rows.
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

    def _can_matter(self, center_3BK: Tensor, fresh_B: Tensor) -> Tensor:
        """(X, K): whether a new point is nearer to a box than all points of the box are to the sample."""
        _, batch, new = center_3BK.shape
        center_3B1K = center_3BK[:, :, None]
        low_3BT1 = self.low_3X.view(3, batch, -1, 1)
        high_3BT1 = self.high_3X.view(3, batch, -1, 1)
        outside_3BTK = torch.maximum(low_3BT1 - center_3B1K, center_3B1K - high_3BT1).clamp_(min=0)
        to_box_BTK = outside_3BTK.square_().sum(dim=0).mul_(self.ROUNDING)

        reach_BT1 = self.distance_BP.view(batch, -1, self.box_size).amax(dim=2, keepdim=True)
        is_fresh_B1K = (torch.arange(new) < fresh_B[:, None])[:, None]
        return ((to_box_BTK < reach_BT1) & is_fresh_B1K).flatten(0, 1)


def _order_key(distance: Tensor, index: Tensor) -> Tensor:
    """An int64 key that orders by distance, then by lower index: the bits of positive floats sort as integers."""
    return (distance.contiguous().view(torch.int32).long() << 32) | (2**31 - 1 - index)


def _cut_into_boxes(points_BN3: Tensor, cuts: int = 3) -> Tensor:
    """Cuts each cloud into ``cuts`` parts of equally many points along x, each of these along y, then along z.

    Returns:
        (B, T, S) the numbers of the points in each box; N where a box has a gap.
    """
    batch, total, _ = points_BN3.shape
    size = -(-total // cuts**3)
    order_BP = torch.arange(cuts**3 * size).clamp_(max=total).expand(batch, -1)
    padded = torch.cat([points_BN3, points_BN3.new_full((batch, 1, 3), torch.inf)], dim=1)

    for axis in range(3):
        rows = order_BP.reshape(batch * cuts**axis, -1)
        value = padded[..., axis].gather(1, order_BP).view_as(rows)
        order_BP = rows.gather(1, value.argsort(dim=1)).view(batch, -1)

    return order_BP.view(batch, cuts**3, size)
