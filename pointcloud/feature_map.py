"""From the points of clouds to normalized views, as in the multi-view variant of P2P (Wang et al., 2022).

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

Features are computed from the unposed cloud. The pose only decides where they are drawn, and no gradient flows through
it. The official code computes the same features of a cloud once for each view.

Suffixes of variable names give shapes: B clouds of N points with K neighbors each, V views, C channels, T tokens.
"""

from collections.abc import Sequence
from typing import cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

from core.data.memory import check_sample_memory
from core.errors import InputError
from core.layers.feature_map import FeatureMap
from pointcloud.sampling import farthest_points, nearest_neighbors, take
from pointcloud.views import VIEWS, euler_matrices, pixels, splat

__all__ = ["EdgeFeatures", "PointViews", "ViewFusion", "choose_points", "drop_needless_digits", "unit_sphere"]

_TOKEN = 7
"""Side of the patch that becomes a token, in pixels."""


class PointViews(FeatureMap):
    """Draws a cloud of points as V views, which are images. The names of its tensors are the published ones.

    Args:
        load_points: larger clouds are reduced to this number of points, by a random choice with a fixed seed.
        num_points: number of points that are selected from these by farthest point sampling; a smaller cloud keeps all
            its points.
        normalize: center each cloud and scale it into the unit sphere.
        y_up: whether the second coordinate of the points is the vertical one; otherwise it is the third.
        num_views: number of views V; the first ones of :data:`pointcloud.views.VIEWS` are used.
        obj_size: side of the square into which the object is drawn, in pixels; even.
        img_size: side of the images, in pixels; by default ``obj_size``. If it is larger, the object gets a margin of
            zeros.
        neighbors: number of neighbors in the edge features, including the point itself.
        trans_dim: channels of the first features of a point.
        dim: channels of the edge features, and of the maps before they become images.
        fusion: let the views attend to each other; requires an ``img_size`` divisible by 7.
        mean: mean of each color, by which the images are normalized for the backbone.
        std: standard deviation of each color, by which the images are normalized for the backbone.

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
                f"trans_dim={trans_dim}; expected an img_size of at least obj_size (with fusion, a multiple of 7 such "
                "as 224), a dim that is a multiple of 4, and neighbors and trans_dim of at least 1"
            )

        features = num_points * max(neighbors * 2, dim)  # neighbors are indices of 8 bytes
        pictures = num_views * max(dim * obj_size**2, 3 * img_size**2)
        check_sample_memory(
            4 * max(features, pictures),
            f"num_points={num_points}, num_views={num_views}, obj_size={obj_size}, img_size={img_size}, "
            f"neighbors={neighbors}, dim={dim}",
        )

        self.load_points = load_points
        self.num_points = num_points
        self.normalize = normalize
        self.y_up = y_up
        self.num_views = num_views
        self.obj_size = obj_size
        self.img_size = img_size

        # The published camera has this offset, which has no effect on the projection.
        angles = torch.tensor(VIEWS)
        offset = torch.tensor([0.0, 0.0, -1.4]).expand_as(angles)
        self.views = nn.Parameter(torch.stack([angles, offset], dim=1), requires_grad=False)

        self.enc = Encoder(trans_dim=trans_dim, dim=dim, neighbors=neighbors, fusion=fusion)
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, points_BN3: Tensor, pose_B33: Tensor | None = None, shift_B13: Tensor | None = None) -> Tensor:
        """Turn raw points into normalized views in one pose.

        Args:
            points_BN3: points (B, N, 3) with finite coordinates in any unit, float32 or float64.
            pose_B33: matrices by which the points are multiplied before they are drawn; by default none.
            shift_B13: vectors that are then added to the points; by default none.

        Returns:
            Views (B, V * 3, img_size, img_size) float32; those of a cloud are stacked along the channels.

        Raises:
            InputError: if a cloud has fewer points than ``neighbors``, or a coordinate is NaN or infinite.
        """
        points_BN3 = self.sample(points_BN3)
        return self.render(points_BN3, self.enc(points_BN3), pose_B33, shift_B13)

    def prepare(self, points_BN3: Tensor) -> Tensor:
        """Scale raw clouds into the unit sphere, turn them z up, and reduce larger clouds to ``load_points`` points.

        Returns:
            Points (B, N, 3) float32, with N at most ``load_points``.
        """
        points_BN3 = drop_needless_digits(choose_points(points_BN3, self.load_points))
        points_BN3 = (unit_sphere(points_BN3) if self.normalize else points_BN3).float()
        if not self.y_up:
            return points_BN3

        # Poses turn a cloud about its third axis. The order and the signs are those of the published loader.
        x, y, z = points_BN3.unbind(dim=2)
        return torch.stack([-z, -x, y], dim=2)

    def sample(self, points_BN3: Tensor) -> Tensor:
        """Prepare raw clouds and apply farthest point sampling.

        In train mode, somewhat more farthest points are sampled, and ``num_points`` of them are chosen at random, the
        same ones in all clouds of the batch. As published, 1024, 2048 and 4096 points are chosen from 1200, 2400 and
        4800.

        Args:
            points_BN3: raw points (B, N, 3). For training, they must be in random order, since sampling always begins
                with the first one.

        Returns:
            Points (B, num_points, 3) float32.

        Raises:
            InputError: if a coordinate is NaN or infinite.
        """
        points_BN3 = self.prepare(points_BN3)
        total = points_BN3.shape[1]
        count = min(self.num_points, total)
        if not self.training:
            return take(points_BN3, _cycled(farthest_points(points_BN3, count)))

        # 75 / 64 is 1200 / 1024.
        farthest_BM = _cycled(farthest_points(points_BN3, min(count * 75 // 64, total)))
        choice = torch.randperm(farthest_BM.shape[1])[:count]
        return take(points_BN3, farthest_BM[:, choice.to(farthest_BM.device)])

    def render(
        self,
        points_BN3: Tensor,
        features_BNC: Tensor,
        pose_B33: Tensor | None = None,
        shift_B13: Tensor | None = None,
    ) -> Tensor:
        """Draw sampled points with their features as normalized images; see :meth:`forward` for the arguments."""
        maps = splat(features_BNC, self.pixels(points_BN3, pose_B33, shift_B13), self.obj_size)
        margin = (self.img_size - self.obj_size) // 2
        maps = F.pad(maps, (margin,) * 4) if margin else maps

        images = (self.enc.colors(maps, self.num_views).float() - self.mean) / self.std
        return images.unflatten(0, (-1, self.num_views)).flatten(1, 2)

    @torch.no_grad()
    def pixels(self, points_BN3: Tensor, pose_B33: Tensor | None = None, shift_B13: Tensor | None = None) -> Tensor:
        """Compute the pixel in which each sampled point is drawn in each view, see :func:`pointcloud.views.pixels`.

        Returns:
            Row and column of each point (B, V, N, 2) int64.

        Raises:
            InputError: if a coordinate is NaN or infinite.
        """
        if not points_BN3.isfinite().all():
            raise InputError("a cloud holds NaN or infinity; replace it")

        # In half precision, some points would fall into other pixels.
        with torch.autocast(points_BN3.device.type, enabled=False):
            posed = points_BN3
            if pose_B33 is not None:
                posed = posed @ pose_B33.transpose(1, 2)
            if shift_B13 is not None:
                posed = posed + shift_B13

            views = self.views[: self.num_views].float()
            seen = torch.einsum("vij,bnj->bvni", euler_matrices(views[:, 0]), posed) - views[:, 1][:, None]

        return pixels(seen.flatten(0, 1), self.obj_size).unflatten(0, seen.shape[:2])


def _cycled(farthest_BM: Tensor) -> Tensor:
    """Repeat the distinct points of a cloud alike, where the sampling ran out of them and took the first one again.

    Args:
        farthest_BM: result of :func:`pointcloud.sampling.farthest_points`, which begins with 0 and then has 0 only if
            all points left coincide with points of the sample.
    """
    is_first_BM = farthest_BM[:, 1:] == 0
    if not is_first_BM.any():
        return farthest_BM

    place_BM = torch.arange(farthest_BM.shape[1], device=farthest_BM.device).expand_as(farthest_BM)
    ran_out_B = is_first_BM.any(dim=1)
    distinct_B = torch.where(ran_out_B, 1 + is_first_BM.int().argmax(dim=1), farthest_BM.shape[1])
    return farthest_BM.gather(1, place_BM % distinct_B[:, None])


def choose_points(points: Tensor, count: int) -> Tensor:
    """Reduce larger clouds (..., N, 3) to ``count`` points by a random choice with a fixed seed."""
    total = points.shape[-2]
    if total <= count:
        return points

    choice = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]
    return points[..., choice.to(points.device), :]


def drop_needless_digits(points: Tensor) -> Tensor:
    """Round coordinates (..., N, 3) to float32, unless that would change the shape of a cloud.

    A cloud keeps its float64 coordinates if float32 would move a point by more than a millionth of the cloud's extent.
    This happens with map coordinates: with seven digits before the decimal point, float32 has none after it.

    Returns:
        float64 coordinates if one of the clouds keeps them, otherwise float32.
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
    """Center clouds (..., N, 3) at their mean and divide them by their largest radius; equal points become 0.

    The computation is in float64, except on Apple's GPUs, which do not have it. The result therefore does not depend on
    the dtype of the batch, which other clouds in it determine.
    """
    precise = points if points.device.type == "mps" else points.double()
    centered = precise - precise.mean(dim=-2, keepdim=True)
    radius = centered.norm(dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
    return (centered / torch.where(radius > 0, radius, 1.0)).to(points.dtype)


class EdgeFeatures(nn.Module):
    """Features of points from their neighborhoods: EdgeConv of DGCNN (Wang et al., 2019, equation 8).

    A first layer computes features f of the points. The edge from point i to its neighbor j is W (f_j - f_i, f_i),
    normalized by a group norm over all edges of the cloud and followed by LeakyReLU. The feature of a point is the
    maximum over its edges, and a last layer mixes the channels.

    The edges are never computed one by one. With W = (W1, W2), an edge is W1 f_j + (W2 - W1) f_i, the sum of a term of
    the neighbor and a term of the point itself. The mean and the variance over the edges therefore follow from sums
    over the neighbors. The norm and the LeakyReLU are monotonic in W1 f_j, so the maximum over the edges follows from
    the maximum of W1 f_j over the neighbors (or from the minimum, if the weight of the norm is negative).

    Args:
        dim: channels of f.
        edge_dim: channels of the edges and of the result.
        neighbors: K, the number of neighbors, including the point itself.
        groups: number of groups of the norm.
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
        """Compute features (B, N, edge_dim) of points (B, N, 3), always in float32.

        Raises:
            InputError: if a cloud has fewer points than ``neighbors``.
        """
        batch, total, _ = points_BN3.shape
        neighbor_BNK = nearest_neighbors(points_BN3, self.neighbors)

        # Indices of the neighbors among the P = B * N points of all clouds
        first_B11 = torch.arange(batch, device=points_BN3.device)[:, None, None] * total
        row_PK = (neighbor_BNK + first_B11).flatten(0, 1)

        with torch.autocast(points_BN3.device.type, enabled=False):
            f_BND = _pointwise(self.input_trans, points_BN3)
            weight = cast(nn.Conv2d, self.graph_layer[0]).weight[..., 0, 0].float()
            w1, w2 = weight.chunk(2, dim=1)
            other_BNC = F.linear(f_BND, w1)
            own_BNC = F.linear(f_BND, w2 - w1)

            edge_BNC = self._largest_edge(other_BNC, own_BNC, row_PK)
            return _pointwise(self.proj_layer, self.graph_layer[2](edge_BNC))

    def _largest_edge(self, other_BNC: Tensor, own_BNC: Tensor, row_PK: Tensor) -> Tensor:
        """Compute the maximum of the normalized edges for each point and channel.

        Args:
            other_BNC: W1 f_j, the term of the neighbor.
            own_BNC: (W2 - W1) f_i, the term of the point itself.
            row_PK: neighbors of each point, as indices among the points of all clouds.
        """
        norm = cast(nn.GroupNorm, self.graph_layer[1])
        norm_weight = norm.weight.float()
        norm_bias = norm.bias.float()

        # Reductions over the neighbors of each point, without a tensor of all edges
        def over_neighbors(values_BNC: Tensor, mode: str) -> Tensor:
            return F.embedding_bag(row_PK, values_BNC.flatten(0, 1), mode=mode).view_as(values_BNC)

        # Means over the points and channels of each group, repeated for its channels
        def over_groups(values_BNC: Tensor) -> Tensor:
            means_BG = values_BNC.unflatten(2, (norm.num_groups, -1)).mean(dim=(1, 3))
            return means_BG.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)[:, None]

        # Both terms are centered at 0, so that their squares lose no digits.
        center_B1C = other_BNC.mean(dim=1, keepdim=True)
        other_BNC = other_BNC - center_B1C
        own_BNC = own_BNC + center_B1C
        mean_BNC = over_neighbors(other_BNC, "sum") / row_PK.shape[1]
        own_BNC = own_BNC - over_groups(mean_BNC + own_BNC)

        # The mean over the edges is now 0. Their variance is the mean of (a + b)^2 = a^2 + 2 a b + b^2, term by term.
        square_BNC = over_neighbors(other_BNC.square(), "sum") / row_PK.shape[1]
        variance_B1C = over_groups(square_BNC + 2 * own_BNC * mean_BNC + own_BNC.square()).clamp(min=0)

        sign_C = torch.where(norm_weight < 0, -1.0, 1.0)
        largest_BNC = over_neighbors(other_BNC * sign_C, "max") * sign_C + own_BNC
        return largest_BNC * (norm_weight * (variance_B1C + norm.eps).rsqrt()) + norm_bias


def _pointwise(conv: nn.Conv1d, x_BNC: Tensor) -> Tensor:
    """Apply a convolution of kernel size 1 to features with the channels last, in float32."""
    return F.linear(x_BNC, conv.weight[..., 0].float(), cast(Tensor, conv.bias).float())


class Encoder(EdgeFeatures):
    """All layers with trained weights: edge features, the image branch, and the colors.

    Args:
        trans_dim: channels of the first features of a point.
        dim: channels of the edge features and of the maps.
        neighbors: number of neighbors in the edge features, including the point itself.
        fusion: let the views attend to each other.
    """

    def __init__(self, *, trans_dim: int, dim: int, neighbors: int, fusion: bool) -> None:
        super().__init__(dim=trans_dim, edge_dim=dim, neighbors=neighbors)
        self.img_block = nn.Sequential(BasicBlock(dim, dim), nn.Conv2d(dim, dim, 1))
        self.fusion = ViewFusion(dim) if fusion else None
        self.img_layer = nn.Conv2d(dim, 3, 1)

    def colors(self, maps: Tensor, views: int) -> Tensor:
        """Turn maps (B * views, C, H, W) into images (B * views, 3, H, W) in [0, 1]."""
        x = self.img_block(maps.to(self.img_layer.weight.dtype))
        if self.fusion is not None:
            x = self.fusion(x, views)
        return self.img_layer(x).sigmoid()


class ViewFusion(nn.Module):
    """Attention over the views of a cloud: tokens of 7 x 7 pixels attend to each other and join the pixels again.

    ::

        x ─┬─ 7 x 7, stride 7 ── tokens of V views ── transformer ── upsampling by 7 ── 3 x 3, GELU ─┐
           └─────────────────────────────────────────────────────────────── concatenation ── 1 x 1, GELU

    There is no embedding of positions or views. Upsampling copies each token to 7 x 7 pixels, so the 3 x 3 convolution
    after it reads constant values inside a token and other values only across its border. Along each axis, a token thus
    has three kinds of pixels: the first one, those in the middle, and the last one. Only these nine kinds of pixels are
    computed for each token and then copied; the result is the same except for rounding.

    Args:
        dim: channels of the maps.
        heads: number of attention heads, each with as many channels as a token.
    """

    def __init__(self, dim: int, *, heads: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, 2 * dim, _TOKEN, stride=_TOKEN, bias=False)
        self.transformer = _Transformer(2 * dim, heads)
        self.conv2 = nn.Sequential(nn.Conv2d(2 * dim, dim, 3, padding=1), nn.GELU())
        self.conv3 = nn.Sequential(nn.Conv2d(2 * dim, dim, 1), nn.GELU())

    def forward(self, x: Tensor, views: int) -> Tensor:
        """Fuse maps (B * views, C, H, W), sorted by cloud; H and W are multiples of 7."""
        grid_tokens = self.conv1(x)
        channels, *grid = grid_tokens.shape[1:]
        tokens = grid_tokens.flatten(2).transpose(1, 2)
        tokens = self.transformer(tokens.reshape(len(x) // views, -1, channels)).reshape(tokens.shape)
        kinds = self._kinds_of_pixels(tokens.transpose(1, 2).unflatten(2, grid))

        # conv3 of the concatenation is a sum of two parts, and the part of the tokens is computed by kinds of pixels.
        last = cast(nn.Conv2d, self.conv3[0])
        for_tokens, for_pixels = last.weight.chunk(2, dim=1)
        by_kind = F.conv2d(kinds.flatten(0, 1), for_tokens).unflatten(0, (len(x), 3, 3))

        # (B * V, 7, 7, C, H / 7, W / 7) to (B * V, C, H, W)
        kind = torch.tensor([0, *[1] * (_TOKEN - 2), 2], device=x.device)
        copied = by_kind[:, kind][:, :, kind].permute(0, 3, 4, 1, 5, 2)
        return F.gelu(copied.reshape(len(x), -1, *x.shape[2:]) + F.conv2d(x, for_pixels, last.bias))

    def _kinds_of_pixels(self, tokens: Tensor) -> Tensor:
        """Compute GELU of the 3 x 3 convolution after upsampling, for the nine kinds of pixels of each token.

        Along one axis, the kernel has a left, a center and a right tap. For the first pixel of a token, the left tap
        reads the previous token; for the last pixel, the right tap reads the next token; all other taps read the token
        itself. Taps that read the same token are added.

        Args:
            tokens: tokens (B * V, 2 * C, H / 7, W / 7).

        Returns:
            Features (B * V, 9, C, H / 7, W / 7), sorted by row and then by column of the kind of pixel.
        """
        conv = cast(nn.Conv2d, self.conv2[0])
        reads = conv.weight.new_zeros(3, 3, 3)  # (kind of pixel, token, tap): 1 if the tap reads the token
        for kind, token_of_tap in enumerate(((0, 1, 1), (1, 1, 1), (1, 1, 2))):
            for tap, token in enumerate(token_of_tap):
                reads[kind, token, tap] = 1

        # For each kind of pixel, by row (p) and column (q), a 3 x 3 kernel over tokens
        kernels = torch.einsum("ptx,quy,oixy->pqoitu", reads, reads, conv.weight).flatten(0, 2)
        y = F.conv2d(tokens, kernels, padding=1).unflatten(1, (9, -1))
        return F.gelu(y + cast(Tensor, conv.bias)[:, None, None])


class _Transformer(nn.Module):
    """One pre-norm transformer layer, nested so that its tensors have the published names."""

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
        # The identity takes the place of a dropout of 0 in the published code, so that the names of tensors agree.
        self.net = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Identity(), nn.Linear(2 * dim, dim))

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.net(x_BTC)
