"""Exact farthest point sampling that looks at a few points at a time.

The point taken next is one of those that are farthest now. So a round takes as many points as it can among the K
farthest ones, updating the distances of these alone: that is right as long as the best of them is better than the best
of all others was at the beginning of the round, since distances only become smaller. After the round the points it has
taken are brought to all others, where they can matter: the cloud is cut into boxes, and a box whose nearest corner is
farther from a new point than each of its points is from the sample keeps its distances. Boxes with lazy updates are
the idea of QuickFPS (Han et al., TCAD 2023).

All clouds of a batch go through the same rounds; each takes as many points of a round as are right for it.
"""

import torch
from torch import Tensor

__all__ = ["LazySampler"]

_CANDIDATES = 512
_STEPS = 32  # between two looks whether the round is over
_CUTS = 3  # along each axis
_ROUNDING = 1 - 1e-5  # distances to a box are compared with distances to points, each with rounding errors of its own


def _key(distance: Tensor, index: Tensor) -> Tensor:
    """An int64 that orders by distance, then the lower index first; positive floats sort as ints."""
    return (distance.contiguous().view(torch.int32).long() << 32) | (2**31 - 1 - index)


class LazySampler:
    """The state of one sampling: D, the squared distance of each point to the points taken so far, by boxes.

    Args:
        points_BN3: (B, N, 3) float32 on the CPU.
    """

    def __init__(self, points_BN3: Tensor) -> None:
        self.points_BN3 = points_BN3
        batch, total, _ = points_BN3.shape
        order_BTS = _boxes(points_BN3)
        self.index_BP = order_BTS.flatten(1)  # place in the boxes to number of the point, N where a box has a gap
        self.gap_BP = self.index_BP == total
        padded = torch.cat([points_BN3, points_BN3[:, :1]], dim=1)
        places = padded.gather(1, self.index_BP[..., None].expand(-1, -1, 3))
        self.x_3BP = places.permute(2, 0, 1).contiguous()
        self.distance_BP = torch.full_like(self.x_3BP[0], torch.inf).masked_fill_(self.gap_BP, -1.0)
        self.boxes, self.size = batch * order_BTS.shape[1], order_BTS.shape[2]
        x_3XS = self.x_3BP.view(3, self.boxes, self.size)
        self.low_3X, self.high_3X = x_3XS.amin(dim=2), x_3XS.amax(dim=2)

    def sample(self, count: int) -> Tensor:
        """(B, count) int64 indices, beginning with 0."""
        batch = len(self.points_BN3)
        taken_BM = torch.zeros(batch, count, dtype=torch.long)
        done_B = torch.ones(batch, dtype=torch.long)
        new_BK, fresh_B = taken_BM[:, :1], done_B
        while int(done_B.min()) < count:
            self._update(new_BK, fresh_B)
            new_BK, right_BK = self._round(int(count - done_B.min()))
            right_BK &= torch.arange(right_BK.shape[1]) < (count - done_B)[:, None]
            fresh_B = right_BK.sum(dim=1)
            row, step = right_BK.nonzero(as_tuple=True)
            taken_BM[row, done_B[row] + step] = new_BK[row, step]
            new_BK, done_B = new_BK[:, : int(fresh_B.max())], done_B + fresh_B
        return taken_BM

    def _round(self, most: int) -> tuple[Tensor, Tensor]:
        """Points taken among the candidates (B, K), at most so many, and which of them are right."""
        key_BP = _key(self.distance_BP, self.index_BP).masked_fill_(self.gap_BP, -1)
        best_BC, place_BC = key_BP.topk(min(_CANDIDATES, self.points_BN3.shape[1] - 1) + 1, dim=1)
        limit_B1 = best_BC[:, -1:]
        index_BC, order_BC = self.index_BP.gather(1, place_BC[:, :-1]).sort(dim=1)  # of equals max takes the first
        place_BC = place_BC.gather(1, order_BC)
        distance_BC = self.distance_BP.gather(1, place_BC)
        values, steps = self._race(place_BC, distance_BC, most, (limit_B1 >> 32).int().view(torch.float32))
        new_BK = index_BC.gather(1, steps)
        return new_BK, (_key(values, new_BK) > limit_B1).cummin(dim=1).values

    def _race(self, place_BC: Tensor, distance_BC: Tensor, most: int, limit_B1: Tensor) -> tuple[Tensor, Tensor]:
        """Sample among the candidates until none of any cloud is above the limit.

        Returns:
            (B, K) distances at which points were taken, and their places among the candidates.
        """
        x_3BC = self.x_3BP.gather(2, place_BC.expand(3, -1, -1))
        difference_3BC = torch.empty_like(x_3BC)
        values, steps = list[Tensor](), list[Tensor]()
        while len(values) < most and (not values or bool((values[-1] >= limit_B1).any())):
            for _ in range(min(_STEPS, most - len(values))):
                value_B1, step_B1 = distance_BC.max(dim=1, keepdim=True)
                values.append(value_B1)
                steps.append(step_B1)
                torch.sub(x_3BC, x_3BC.gather(2, step_B1.expand(3, -1, 1)), out=difference_3BC)
                x, y, z = difference_3BC.square_()
                torch.minimum(distance_BC, x.add_(y).add_(z), out=distance_BC)
        return torch.cat(values, dim=1), torch.cat(steps, dim=1)

    def _update(self, new_BK: Tensor, fresh_B: Tensor) -> None:
        """Bring the first ``fresh_B`` of the new points of each cloud to the boxes that they can matter to."""
        near_XK, center_3BK = self._near(new_BK, fresh_B)
        count_X = near_XK.sum(dim=1)
        count_X, box_X = count_X.sort(descending=True)  # so that those with a j-th point come first
        box_X = box_X[count_X > 0]
        which_XJ = near_XK[box_X].byte().argsort(dim=1, descending=True, stable=True)[:, : int(count_X[0])]
        cloud_X1 = (box_X // (self.boxes // len(new_BK)))[:, None]
        center_3JX = center_3BK[:, cloud_X1, which_XJ].transpose(1, 2).contiguous()
        x_3XS = self.x_3BP.view(3, self.boxes, self.size)[:, box_X]
        distances = self.distance_BP.view(self.boxes, self.size)
        distance_XS, difference_3XS = distances[box_X], torch.empty_like(x_3XS)
        for j in range(center_3JX.shape[1]):
            rows = int((count_X > j).sum())
            part_3RS = torch.sub(x_3XS[:, :rows], center_3JX[:, j, :rows, None], out=difference_3XS[:, :rows])
            x, y, z = part_3RS.square_()
            torch.minimum(distance_XS[:rows], x.add_(y).add_(z), out=distance_XS[:rows])
        distances[box_X] = distance_XS

    def _near(self, new_BK: Tensor, fresh_B: Tensor) -> tuple[Tensor, Tensor]:
        """(X, K), whether a new point is nearer to a box than all of the box's points are to the sample; (3, B, K)."""
        batch, size = new_BK.shape
        center_3BK = self.points_BN3.gather(1, new_BK[..., None].expand(-1, -1, 3)).permute(2, 0, 1).contiguous()
        center_3B1K = center_3BK[:, :, None]
        low, high = (corner_3X.view(3, batch, -1, 1) for corner_3X in (self.low_3X, self.high_3X))
        outside = torch.maximum(low - center_3B1K, center_3B1K - high).clamp_(min=0)
        to_box_BTK = outside.square_().sum(dim=0).mul_(_ROUNDING)
        reach_BT1 = self.distance_BP.view(batch, -1, self.size).amax(dim=2, keepdim=True)
        fresh_B1K = (torch.arange(size) < fresh_B[:, None])[:, None]
        return ((to_box_BTK < reach_BT1) & fresh_B1K).flatten(0, 1), center_3BK


def _boxes(points_BN3: Tensor) -> Tensor:
    """Numbers of the points (B, boxes, S), in boxes of equally many, cut along x, then y, then z; gaps are N."""
    batch, total, _ = points_BN3.shape
    size = -(-total // _CUTS**3)
    order_BP = torch.arange(_CUTS**3 * size).clamp_(max=total).expand(batch, -1)
    padded_BP3 = torch.cat([points_BN3, points_BN3.new_full((batch, 1, 3), torch.inf)], dim=1)
    for axis in range(3):
        rows = order_BP.reshape(batch * _CUTS**axis, -1)
        value = padded_BP3[..., axis].gather(1, order_BP).view_as(rows)
        order_BP = rows.gather(1, value.argsort(dim=1)).view(batch, -1)
    return order_BP.view(batch, _CUTS**3, size)
