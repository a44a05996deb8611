"""From points (B, N, 3) to views (B, V * 3, H, W), after the published multi-view variant of P2P (Wang et al., 2022).

::

    raw points ── unit sphere, z up ── farthest points
                                        │
                 ┌──────────────────────┴───────────────────────┐
          edge features                             pose ── V fixed views
          of each point                                         │
                 │                                      pixels of each point
                 └────────────────────── splat ─────────────────┘
                                           │
                               image branch ── colors ── V images

Features come from the cloud as it is. The pose only decides where they are drawn, so no gradient flows through it. The
official code computes the features of a cloud once for each view, with the same result.

Suffixes of names are shapes: B clouds of N points with K neighbors each, V views, C channels, T tokens.
"""

from collections.abc import Sequence
from typing import cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError
from core.layers.feature_map import FeatureMap
from pointcloud.sampling import farthest_points, nearest_neighbors, take
from pointcloud.views import VIEWS, euler_matrices, pixels, splat

__all__ = ["EdgeFeatures", "PointViews", "ViewFusion", "choose_points", "drop_needless_digits", "unit_sphere"]

_TOKEN = 7
"""Side of the square of pixels that becomes a token."""


class PointViews(FeatureMap):
    """Draws a cloud of points as images of V views. Names of tensors are the published ones.

    Args:
        load_points: larger clouds are reduced to this number of points by a fixed random choice.
        num_points: number of farthest points that are sampled from these; a smaller cloud keeps all its points.
        normalize: center each cloud and scale it into the unit sphere.
        y_up: the second coordinate of the points is the vertical one, not the third.
        num_views: V, the first ones of :data:`pointcloud.views.VIEWS`.
        obj_size: side of the square that the object is drawn into, in pixels; even.
        img_size: side of the images in pixels; by default ``obj_size``. Zeros are added around a smaller object.
        neighbors: number of neighbors in the edge features; the point itself is one of them.
        trans_dim: channels of the first features of a point.
        dim: channels of the edge features and of the maps before they become images.
        fusion: let the views attend to each other; needs an ``img_size`` divisible by 7.
        mean: of the images that the backbone knows, for each color.
        std: of these images.

    Raises:
        InputError: if a number is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        load_points: int = 8192,
        num_points: int = 4096,
        normalize: bool = True,
        y_up: bool = True,
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
                "views, an even obj_size of at least 4, and an even img_size"
            )
        if img_size < obj_size or (fusion and img_size % _TOKEN) or neighbors < 1 or dim % 4 or min(dim, trans_dim) < 1:
            raise InputError(
                f"img_size={img_size}, obj_size={obj_size}, fusion={fusion}, neighbors={neighbors}, dim={dim}, "
                f"trans_dim={trans_dim}; img_size is at least obj_size and, with fusion, a multiple of 7 such as 224; "
                "dim is a multiple of 4, and neighbors and trans_dim are at least 1"
            )

        self.load_points = load_points
        self.num_points = num_points
        self.normalize = normalize
        self.y_up = y_up
        self.num_views = num_views
        self.obj_size = obj_size
        self.img_size = img_size

        # The offset belongs to the published camera; it cancels in the projection.
        angles = torch.tensor(VIEWS)
        offset = torch.tensor([0.0, 0.0, -1.4]).expand_as(angles)
        self.views = nn.Parameter(torch.stack([angles, offset], dim=1), requires_grad=False)

        self.enc = Encoder(trans_dim=trans_dim, dim=dim, neighbors=neighbors, fusion=fusion)
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, points_BN3: Tensor, pose_B33: Tensor | None = None, shift_B13: Tensor | None = None) -> Tensor:
        """Turns raw points into the views of one pose.

        Args:
            points_BN3: (B, N, 3) finite coordinates in any unit, float32 or float64.
            pose_B33: matrices that the points are multiplied by before they are drawn; by default none.
            shift_B13: vectors that are then added to the points; by default none.

        Returns:
            (B, V * 3, img_size, img_size) float32 normalized colors, the views of a cloud along the channels.

        Raises:
            InputError: if a cloud has fewer points than ``neighbors``, or a coordinate is NaN or infinite.
        """
        points_BN3 = self.sample(points_BN3)
        return self.render(points_BN3, self.enc(points_BN3), pose_B33, shift_B13)

    def prepare(self, points_BN3: Tensor) -> Tensor:
        """Moves raw clouds into the unit sphere and turns them z up; of larger clouds, chooses ``load_points`` points.

        Returns:
            (B, N, 3) float32, with N at most ``load_points``.
        """
        points_BN3 = drop_needless_digits(choose_points(points_BN3, self.load_points))
        points_BN3 = (unit_sphere(points_BN3) if self.normalize else points_BN3).float()
        if not self.y_up:
            return points_BN3

        # The poses turn clouds about z. These are the axes of the published loader.
        x, y, z = points_BN3.unbind(dim=2)
        return torch.stack([-z, -x, y], dim=2)

    def sample(self, points_BN3: Tensor) -> Tensor:
        """Prepares raw clouds and samples their farthest points.

        In training mode a random choice is made among somewhat more farthest points, the same for the whole batch.
        The published numbers to choose among are 1200, 2400 and 4800 for 1024, 2048 and 4096 points.

        Args:
            points_BN3: raw points. In training they come in random order, since the first point is always taken.

        Returns:
            (B, num_points, 3) float32.

        Raises:
            InputError: if a coordinate is NaN or infinite.
        """
        points_BN3 = self.prepare(points_BN3)
        total = points_BN3.shape[1]
        count = min(self.num_points, total)
        if not self.training:
            return take(points_BN3, farthest_points(points_BN3, count))

        farthest_BM = farthest_points(points_BN3, min(count * 75 // 64, total))
        choice = torch.randperm(farthest_BM.shape[1])[:count]
        return take(points_BN3, farthest_BM[:, choice.to(farthest_BM.device)])

    def render(
        self,
        points_BN3: Tensor,
        features_BNC: Tensor,
        pose_B33: Tensor | None = None,
        shift_B13: Tensor | None = None,
    ) -> Tensor:
        """Draws sampled points with their features as normalized images, see :meth:`forward`."""
        maps = splat(features_BNC, self.pixels(points_BN3, pose_B33, shift_B13), self.obj_size)
        margin = (self.img_size - self.obj_size) // 2
        maps = F.pad(maps, (margin,) * 4) if margin else maps

        images = (self.enc.colors(maps, self.num_views).float() - self.mean) / self.std
        return images.unflatten(0, (-1, self.num_views)).flatten(1, 2)

    @torch.no_grad()
    def pixels(self, points_BN3: Tensor, pose_B33: Tensor | None = None, shift_B13: Tensor | None = None) -> Tensor:
        """Finds where each sampled point is drawn in each view, see :func:`pointcloud.views.pixels`.

        Returns:
            (B, V, N, 2) int64.

        Raises:
            InputError: if a coordinate is NaN or infinite.
        """
        if not points_BN3.isfinite().all():
            raise InputError("a cloud holds NaN or infinity; replace it")

        # In half precision, points would miss their pixels.
        with torch.autocast(points_BN3.device.type, enabled=False):
            posed = points_BN3 if pose_B33 is None else points_BN3 @ pose_B33.transpose(1, 2)
            posed = posed if shift_B13 is None else posed + shift_B13
            views = self.views[: self.num_views].float()
            seen = torch.einsum("vij,bnj->bvni", euler_matrices(views[:, 0]), posed) - views[:, 1][:, None]

        return pixels(seen.flatten(0, 1), self.obj_size).unflatten(0, seen.shape[:2])


def choose_points(points: Tensor, count: int) -> Tensor:
    """Reduces larger clouds (..., N, 3) to ``count`` points: a random choice that is the same at every call."""
    total = points.shape[-2]
    if total <= count:
        return points

    choice = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]
    return points[..., choice.to(points.device), :]


def drop_needless_digits(points: Tensor) -> Tensor:
    """Rounds coordinates (..., N, 3) to float32 wherever that leaves the shape of the cloud as it is.

    A cloud keeps its float64 coordinates if float32 would move a point by more than a millionth of the cloud's
    extent. Coordinates of a map are such: with seven digits before the decimal point, float32 keeps no fraction.

    Returns:
        float64 if one of the clouds keeps its digits, else float32.
    """
    if points.is_floating_point() and points.dtype != torch.float64:
        return points

    points = points.double()
    rounded = points.float().double()
    error = (rounded - points).abs().amax(dim=(-2, -1), keepdim=True)
    extent = (points.amax(dim=-2) - points.amin(dim=-2)).amax(dim=-1)[..., None, None]
    is_enough = error <= 1e-6 * extent
    return rounded.float() if is_enough.all() else torch.where(is_enough, rounded, points)


def unit_sphere(points: Tensor) -> Tensor:
    """Centers clouds (..., N, 3) on their mean and divides them by their largest radius; equal points become 0.

    The computation is in float64, except on Apple's GPUs, which have none: so a cloud gets the same coordinates beside
    any others in its batch, whatever the dtype of the batch.
    """
    wide = points if points.device.type == "mps" else points.double()
    centered = wide - wide.mean(dim=-2, keepdim=True)
    radius = centered.norm(dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
    return (centered / torch.where(radius > 0, radius, 1.0)).to(points.dtype)


class EdgeFeatures(nn.Module):
    """Features of points from their neighborhoods: EdgeConv of DGCNN (Wang et al., 2019, equation 8).

    With first features f, the edge from point i to its neighbor j is W (f_j - f_i, f_i), normalized over all edges of
    the cloud, then LeakyReLU. The feature of a point is the maximum over its neighbors. A layer before gives f, and a
    layer behind mixes the channels.

    Nothing is computed edge by edge here. With W = (W1, W2) an edge is W1 f_j + (W2 - W1) f_i, a sum of two terms of
    single points. So the mean and the variance over the edges follow from sums over the neighbors. The norm and the
    LeakyReLU are monotonic in W1 f_j, so the maximum over the edges follows from the maximum (or, where the weight of
    the norm is negative, the minimum) of W1 f_j over the neighbors.

    Args:
        dim: channels of f.
        edge_dim: channels of the edges and of the result.
        neighbors: K, the number of neighbors; the point itself is one of them.
        groups: of the norm.
    """

    def __init__(self, *, dim: int = 8, edge_dim: int = 64, neighbors: int = 32, groups: int = 4) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.input_trans = nn.Conv1d(3, dim, 1)
        self.graph_layer = nn.Sequential(
            nn.Conv2d(2 * dim, edge_dim, 1, bias=False),
            nn.GroupNorm(groups, edge_dim),
            nn.LeakyReLU(0.2),
        )
        self.proj_layer = nn.Conv1d(edge_dim, edge_dim, 1)

    def forward(self, points_BN3: Tensor) -> Tensor:
        """Computes a feature of each point, always in float32: (B, N, 3) to (B, N, edge_dim).

        Raises:
            InputError: if a cloud has fewer points than ``neighbors``.
        """
        batch, total, _ = points_BN3.shape
        neighbor_BNK = nearest_neighbors(points_BN3, self.neighbors)
        first = torch.arange(batch, device=points_BN3.device)[:, None, None] * total
        row_PK = (neighbor_BNK + first).flatten(0, 1)  # among the points of all clouds, P = B * N

        with torch.autocast(points_BN3.device.type, enabled=False):
            f_BND = _pointwise(self.input_trans, points_BN3)
            weight = cast(nn.Conv2d, self.graph_layer[0]).weight[..., 0, 0].float()
            of_other, of_own = weight.chunk(2, dim=1)
            other_BNC = F.linear(f_BND, of_other)
            own_BNC = F.linear(f_BND, of_own - of_other)

            edge_BNC = self._largest_edge(other_BNC, own_BNC, row_PK)
            return _pointwise(self.proj_layer, self.graph_layer[2](edge_BNC))

    def _largest_edge(self, other_BNC: Tensor, own_BNC: Tensor, row_PK: Tensor) -> Tensor:
        """The largest normalized edge of each point and channel.

        Args:
            other_BNC: W1 f_j, the term of the neighbor.
            own_BNC: (W2 - W1) f_i, the term of the point itself.
            row_PK: neighbors of each point, as rows of the points of all clouds.
        """
        norm = cast(nn.GroupNorm, self.graph_layer[1])
        norm_weight = norm.weight.float()
        norm_bias = norm.bias.float()

        def over_neighbors(values_BNC: Tensor, mode: str) -> Tensor:
            return F.embedding_bag(row_PK, values_BNC.flatten(0, 1), mode=mode).view_as(values_BNC)

        def over_groups(values_BNC: Tensor) -> Tensor:
            means_BG = values_BNC.unflatten(2, (norm.num_groups, -1)).mean(dim=(1, 3))
            return means_BG.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)[:, None]

        # Both terms are moved to lie around 0, so that their squares lose no digits.
        center_B1C = other_BNC.mean(dim=1, keepdim=True)
        other_BNC = other_BNC - center_B1C
        own_BNC = own_BNC + center_B1C
        mean_BNC = over_neighbors(other_BNC, "sum") / row_PK.shape[1]
        own_BNC = own_BNC - over_groups(mean_BNC + own_BNC)

        # The mean over the edges is now 0, and (a + b)^2 = a^2 + 2 a b + b^2 is averaged term by term.
        square_BNC = over_neighbors(other_BNC.square(), "sum") / row_PK.shape[1]
        variance_B1C = over_groups(square_BNC + 2 * own_BNC * mean_BNC + own_BNC.square()).clamp(min=0)

        sign_C = torch.where(norm_weight < 0, -1.0, 1.0)
        largest_BNC = over_neighbors(other_BNC * sign_C, "max") * sign_C + own_BNC
        return largest_BNC * (norm_weight * (variance_B1C + norm.eps).rsqrt()) + norm_bias


def _pointwise(conv: nn.Conv1d, x_BNC: Tensor) -> Tensor:
    """A convolution of kernel size 1 with the channels last, in float32."""
    return F.linear(x_BNC, conv.weight[..., 0].float(), cast(Tensor, conv.bias).float())


class Encoder(EdgeFeatures):
    """All layers with trained weights: the features of points, the image branch, and the colors.

    Args:
        trans_dim: channels of the first features of a point.
        dim: channels of the edge features and of the maps.
        neighbors: number of neighbors in the edge features.
        fusion: let the views attend to each other.
    """

    def __init__(self, *, trans_dim: int, dim: int, neighbors: int, fusion: bool) -> None:
        super().__init__(dim=trans_dim, edge_dim=dim, neighbors=neighbors)
        self.img_block = nn.Sequential(BasicBlock(dim, dim), nn.Conv2d(dim, dim, 1))
        self.fusion = ViewFusion(dim) if fusion else None
        self.img_layer = nn.Conv2d(dim, 3, 1)

    def colors(self, maps: Tensor, views: int) -> Tensor:
        """Turns maps (B * views, C, H, W) into images (B * views, 3, H, W) in [0, 1]."""
        x = self.img_block(maps.to(self.img_layer.weight.dtype))
        if self.fusion is not None:
            x = self.fusion(x, views)
        return self.img_layer(x).sigmoid()


class ViewFusion(nn.Module):
    """Attention over the views of a cloud: tokens of 7 x 7 pixels attend to each other and join the pixels again.

    ::

        x ─┬─ 7 x 7, stride 7 ── tokens of V views ── transformer ── enlarged by 7 ── 3 x 3, GELU ─┐
           └───────────────────────────────────────────────────────────────── concatenation ── 1 x 1, GELU

    There is no embedding of positions or views. After the enlargement, the 3 x 3 convolution sees the same values
    inside a token and others only at its border. So along each side of a token there are three kinds of pixels: the
    first, the middle ones and the last. Only the nine kinds of pixels of a token are computed, and copied; the result
    is the same except for rounding.

    Args:
        dim: channels of the maps.
        heads: of the attention, each with as many channels as a token.
    """

    def __init__(self, dim: int, *, heads: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, 2 * dim, _TOKEN, stride=_TOKEN, bias=False)
        self.transformer = _Transformer(2 * dim, heads)
        self.conv2 = nn.Sequential(nn.Conv2d(2 * dim, dim, 3, padding=1), nn.GELU())
        self.conv3 = nn.Sequential(nn.Conv2d(2 * dim, dim, 1), nn.GELU())

    def forward(self, x: Tensor, views: int) -> Tensor:
        """Maps (B * views, C, H, W), H and W multiples of 7, views of a cloud after each other, to the same shape."""
        grid_tokens = self.conv1(x)
        channels, *grid = grid_tokens.shape[1:]
        tokens = grid_tokens.flatten(2).transpose(1, 2)
        tokens = self.transformer(tokens.reshape(len(x) // views, -1, channels)).reshape(tokens.shape)
        kinds = self._kinds_of_pixels(tokens.transpose(1, 2).unflatten(2, grid))

        # conv3 of the concatenation is the sum of its parts; the part of the tokens is still computed by kinds.
        last = cast(nn.Conv2d, self.conv3[0])
        for_tokens, for_pixels = last.weight.chunk(2, dim=1)
        by_kind = F.conv2d(kinds.flatten(0, 1), for_tokens).unflatten(0, (len(x), 3, 3))

        # (B * V, 7, 7, C, H / 7, W / 7) to (B * V, C, H, W)
        kind = torch.tensor([0, *[1] * (_TOKEN - 2), 2], device=x.device)
        copied = by_kind[:, kind][:, :, kind].permute(0, 3, 4, 1, 5, 2)
        return F.gelu(copied.reshape(len(x), -1, *x.shape[2:]) + F.conv2d(x, for_pixels, last.bias))

    def _kinds_of_pixels(self, tokens: Tensor) -> Tensor:
        """GELU of the 3 x 3 convolution after the enlargement, for the nine kinds of pixels of each token.

        The taps of the kernel along one axis are left, own and right. For the first pixel of a token, left falls on
        the token before; for the last pixel, right falls on the token after; all others fall on the token itself. Taps
        that fall on the same token are added.

        Args:
            tokens: (B * V, 2 * C, H / 7, W / 7).

        Returns:
            (B * V, 9, C, H / 7, W / 7), by row and then by column of the pixel.
        """
        conv = cast(nn.Conv2d, self.conv2[0])
        falls_on = conv.weight.new_zeros(3, 3, 3)  # (kind of pixel, token, tap)
        for kind, token_of_tap in enumerate(((0, 1, 1), (1, 1, 1), (1, 1, 2))):
            for tap, token in enumerate(token_of_tap):
                falls_on[kind, token, tap] = 1

        kernels = torch.einsum("ptx,quy,oixy->pqoitu", falls_on, falls_on, conv.weight).flatten(0, 2)
        y = F.conv2d(tokens, kernels, padding=1).unflatten(1, (9, -1))
        return F.gelu(y + cast(Tensor, conv.bias)[:, None, None])


class _Transformer(nn.Module):
    """One pre-norm layer, nested as the published names of its tensors are."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        layer = nn.Sequential(_PreNorm(dim, _Attention(dim, heads)), _PreNorm(dim, _FeedForward(dim)))
        self.layers = nn.Sequential(layer)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.layers(x_BTC)


class _PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x_BTC: Tensor) -> Tensor:
        return x_BTC + self.fn(self.norm(x_BTC))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim, dim))

    def forward(self, x_BTC: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x_BTC).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        # The identity stands where the published code has dropout of 0.
        self.net = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Identity(), nn.Linear(2 * dim, dim))

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.net(x_BTC)
