"""From a cloud of points to views (V, 3, H, W), after the published multi-view variant of P2P (Wang et al., 2022).

    sampled points ──┬── edge features, once a cloud ──────────────────────────┐
                     └── pose ── V fixed views ── pixels of the points ── splat ── image branch ── colours ── V images

Features come from the cloud as it is; the pose decides only where they are drawn, so that no gradient flows through
it. The official code computes the features of a cloud once for each view, with the same result.
"""

from collections.abc import Sequence
from typing import cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError
from pointcloud.fusion import BasicBlock, ViewFusion
from pointcloud.sampling import farthest_points, nearest_neighbors, take
from pointcloud.views import VIEWS, euler_matrices, pixels, splat

__all__ = ["EdgeFeatures", "PointViews", "sample_points", "unit_sphere"]


def unit_sphere(points_N3: Tensor) -> Tensor:
    """Centre a cloud (..., N, 3) on its mean and divide it by its largest radius; equal points all become 0."""
    centered = points_N3 - points_N3.mean(dim=-2, keepdim=True)
    radius = centered.norm(dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
    return centered / torch.where(radius > 0, radius, torch.ones_like(radius))


def sample_points(points_BN3: Tensor, count: int, *, train: bool) -> Tensor:
    """Farthest points of each cloud; in training a random choice among some more of them, the same for the batch.

    The published numbers to choose among are 1200, 2400 and 4800 for 1024, 2048 and 4096 points.

    Args:
        points_BN3: (B, N, 3) float, in random order in training, since the first point is always taken.
        count: M, points to keep.
        train: choose at random.

    Returns:
        (B, M, 3).

    Raises:
        InputError: if there are fewer points than asked, or one is NaN or infinite.
    """
    more = min(points_BN3.shape[1], count * 75 // 64) if train else count
    chosen_BM = farthest_points(points_BN3, max(more, count))
    if train:
        chosen_BM = chosen_BM[:, torch.randperm(chosen_BM.shape[1])[:count].to(chosen_BM.device)]
    return take(points_BN3, chosen_BM)


class EdgeFeatures(nn.Module):
    """Features of points from their neighbourhoods: EdgeConv of DGCNN (Wang et al., 2019, equation 8) and two 1 x 1.

    With f the first features, an edge to neighbour j of point i is W (f_j - f_i, f_i), normalised over all edges of a
    cloud, then LeakyReLU and the largest over the neighbours. With W = (W1, W2) an edge is W1 f_j + (W2 - W1) f_i, a
    sum of two terms of single points. So nothing is computed edge by edge: the moments follow from sums over
    neighbours, and what comes after grows or falls with W1 f_j, so that the largest follows from the largest or
    smallest of these.

    Args:
        dim: channels of f.
        edge_dim: channels of edges and results.
        neighbors: k, the point itself among them.
        groups: of the norm.
    """

    def __init__(self, *, dim: int = 8, edge_dim: int = 64, neighbors: int = 32, groups: int = 4) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.input_trans = nn.Conv1d(3, dim, 1)
        conv = nn.Conv2d(2 * dim, edge_dim, 1, bias=False)
        self.graph_layer = nn.Sequential(conv, nn.GroupNorm(groups, edge_dim), nn.LeakyReLU(0.2))
        self.proj_layer = nn.Conv1d(edge_dim, edge_dim, 1)

    def forward(self, points_BN3: Tensor) -> Tensor:
        """(B, N, 3) float32 to (B, N, edge_dim).

        Raises:
            InputError: if a cloud has fewer points than neighbours are asked for.
        """
        batch, count, _ = points_BN3.shape
        neighbor_BNK = nearest_neighbors(points_BN3, self.neighbors)
        f_BND = F.linear(points_BN3, self.input_trans.weight[..., 0], self.input_trans.bias)
        of_other, of_own = cast(nn.Conv2d, self.graph_layer[0]).weight[..., 0, 0].chunk(2, dim=1)
        other_BNC, own_BNC = F.linear(f_BND, of_other), F.linear(f_BND, of_own - of_other)
        first = torch.arange(batch, device=points_BN3.device)[:, None, None] * count
        edges_BNC = self._largest(other_BNC, own_BNC, (neighbor_BNK + first).flatten(0, 1))
        return F.linear(self.graph_layer[2](edges_BNC), self.proj_layer.weight[..., 0], self.proj_layer.bias)

    def _largest(self, other_BNC: Tensor, own_BNC: Tensor, neighbor_PK: Tensor) -> Tensor:
        """The normalised edge of each point and channel that is largest.

        Args:
            other_BNC: the term of the neighbour.
            own_BNC: the term of the point.
            neighbor_PK: (B * N, k) rows of the points of all clouds.
        """
        norm, k = cast(nn.GroupNorm, self.graph_layer[1]), neighbor_PK.shape[1]

        def over_neighbors(values_BNC: Tensor, mode: str) -> Tensor:
            return F.embedding_bag(neighbor_PK, values_BNC.flatten(0, 1), mode=mode).view_as(values_BNC)

        def over_groups(values_BNC: Tensor) -> Tensor:
            means_BG = values_BNC.unflatten(2, (norm.num_groups, -1)).mean(dim=(1, 3))
            return means_BG.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)[:, None]

        center_B1C = other_BNC.mean(dim=1, keepdim=True)  # both terms lie around 0, so that squares lose nothing
        other_BNC, own_BNC = other_BNC - center_B1C, own_BNC + center_B1C
        mean_BNC = over_neighbors(other_BNC, "sum") / k
        own_BNC = own_BNC - over_groups(mean_BNC + own_BNC)
        square_BNC = over_neighbors(other_BNC.square(), "sum") / k
        variance_B1C = over_groups(square_BNC + 2 * own_BNC * mean_BNC + own_BNC.square()).clamp(min=0)
        sign_C = torch.where(norm.weight < 0, -1.0, 1.0)
        largest_BNC = over_neighbors(other_BNC * sign_C, "max") * sign_C + own_BNC
        return largest_BNC * (norm.weight * (variance_B1C + norm.eps).rsqrt()) + norm.bias


class PointViews(nn.Module):
    """Sampled points to images of V views. Names of tensors are the published ones.

    Args:
        num_views: V, the first of the ten views in :data:`pointcloud.views.VIEWS`.
        obj_size: side of the square that the object is drawn into; even.
        img_size: side of the images; by default ``obj_size``, else zeros are added around the features.
        neighbors: of a point, itself among them.
        trans_dim: channels of a point's first features.
        dim: channels of edges and of the maps.
        fusion: attention over the views; needs an ``img_size`` that 7 divides.
        mean: of the images that the backbone knows.
        std: of these images.

    Raises:
        InputError: if a number is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_views: int = 4,
        obj_size: int = 224,
        img_size: int | None = None,
        neighbors: int = 32,
        trans_dim: int = 8,
        dim: int = 64,
        fusion: bool = True,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        img_size = obj_size if img_size is None else img_size
        if not 1 <= num_views <= len(VIEWS) or obj_size < 4 or obj_size % 2 or (img_size - obj_size) % 2:
            raise InputError(
                f"num_views={num_views}, obj_size={obj_size}, img_size={img_size}; expected 1 to {len(VIEWS)} "
                "views, an even obj_size from 4 on, and an even img_size"
            )
        if img_size < obj_size or (fusion and img_size % 7) or neighbors < 1 or dim % 4 or min(dim, trans_dim) < 1:
            raise InputError(
                f"img_size={img_size}, obj_size={obj_size}, fusion={fusion}, neighbors={neighbors}, dim={dim}, "
                f"trans_dim={trans_dim}; img_size is at least obj_size and, with fusion, a multiple of 7 such as 224; "
                "dim is a multiple of 4, and neighbors and trans_dim are at least 1"
            )
        self.num_views, self.obj_size, self.img_size = num_views, obj_size, img_size
        angles = torch.tensor(VIEWS)
        offset = torch.tensor([0.0, 0.0, -1.4]).expand_as(angles)  # of the published camera; cancels in the projection
        self.views = nn.Parameter(torch.stack([angles, offset], dim=1), requires_grad=False)
        self.enc = _Encoder(trans_dim, dim, neighbors, fusion)
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(self, points_BN3: Tensor, pose_B33: Tensor | None = None, shift_B13: Tensor | None = None) -> Tensor:
        """Points to normalised images.

        Args:
            points_BN3: (B, N, 3) float32, finite.
            pose_B33: matrices that the points are multiplied by for the views, by default none.
            shift_B13: what is then added to them.

        Returns:
            (B * V, 3, img_size, img_size), the views of a cloud after each other.

        Raises:
            InputError: if a cloud has fewer points than neighbours, or a point is NaN or infinite.
        """
        with torch.autocast(points_BN3.device.type, enabled=False):  # coordinates in half precision miss their pixels
            features = self.enc(points_BN3)
            maps = splat(features, self.pixels(points_BN3, pose_B33, shift_B13), self.obj_size)
        margin = (self.img_size - self.obj_size) // 2
        maps = F.pad(maps, (margin,) * 4) if margin else maps
        return (self.enc.colors(maps, self.num_views) - self.mean) / self.std

    @torch.no_grad()
    def pixels(self, points_BN3: Tensor, pose_B33: Tensor | None = None, shift_B13: Tensor | None = None) -> Tensor:
        """Where each point is drawn in each view: (B, V, N, 2) int64, see :func:`pointcloud.views.pixels`.

        Arguments are those of :meth:`forward`.

        Raises:
            InputError: if a point is NaN or infinite.
        """
        if not points_BN3.isfinite().all():
            raise InputError("a cloud holds NaN or infinity; replace it")
        posed = points_BN3 if pose_B33 is None else points_BN3 @ pose_B33.transpose(1, 2)
        posed = posed if shift_B13 is None else posed + shift_B13
        matrices = euler_matrices(self.views[: self.num_views, 0])
        seen = torch.einsum("vij,bnj->bvni", matrices, posed) - self.views[: self.num_views, 1][:, None]
        return pixels(seen.flatten(0, 1), self.obj_size).unflatten(0, seen.shape[:2])


class _Encoder(EdgeFeatures):
    """What has weights: features of points, the image branch, the colour head."""

    def __init__(self, trans_dim: int, dim: int, neighbors: int, fusion: bool) -> None:
        super().__init__(dim=trans_dim, edge_dim=dim, neighbors=neighbors)
        self.img_block = nn.Sequential(BasicBlock(dim), nn.Conv2d(dim, dim, 1))
        self.fusion = ViewFusion(dim) if fusion else None
        self.img_layer = nn.Conv2d(dim, 3, 1)

    def colors(self, x: Tensor, views: int) -> Tensor:
        """Maps (B * views, C, H, W) to images (B * views, 3, H, W) in [0, 1]."""
        x = self.img_block(x)
        x = x if self.fusion is None else self.fusion(x, views)
        return self.img_layer(x).sigmoid()
