"""Clouds to views: LarKit against the step-by-step PyTorch that point-cloud projects copy from each other.

    python benchmarks/point_views.py
    python benchmarks/point_views.py --batch 4 --rounds 1

Both get the same clouds and weights and take turns. The step-by-step form samples with a loop over all points, finds
neighbors in the full matrix of distances, and computes the features of a cloud once for each view, edge by edge. Three
parts are measured: the sampling alone; the way from the cloud to the maps (B * V, 64, 224, 224), which the image branch
reads; and the image branch on one cloud. The image branch has the same convolutions and attention on both sides except
for the enlargement by 7.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pointcloud import PointViews
from pointcloud.sampling import farthest_points, take
from pointcloud.views import splat

VIEWS = 4


def sampled_step_by_step(points: Tensor, count: int) -> Tensor:
    """The loop over points: (B, N, 3) to (B, count) indices."""
    batch, total, _ = points.shape
    device = points.device
    chosen = torch.zeros(batch, count, dtype=torch.long, device=device)
    distance = torch.full((batch, total), 1e10, device=device)
    farthest = torch.zeros(batch, dtype=torch.long, device=device)
    rows = torch.arange(batch, device=device)
    for i in range(count):
        chosen[:, i] = farthest
        center = points[rows, farthest].view(batch, 1, 3)
        distance = torch.minimum(distance, ((points - center) ** 2).sum(-1))
        farthest = distance.max(-1)[1]
    return chosen


def features_step_by_step(enc: Any, points: Tensor) -> Tensor:
    """Edge features of clouds (B, N, 3), all edges at once: (B, N, C)."""
    f = enc.input_trans(points.transpose(1, 2)).transpose(1, 2)
    square = (points**2).sum(-1)
    distance = square[:, :, None] - 2 * points @ points.transpose(1, 2) + square[:, None]
    neighbor = distance.topk(enc.neighbors, dim=-1, largest=False)[1]
    rows = torch.arange(len(points), device=points.device)[:, None, None]
    others = f[rows, neighbor]
    own = f[:, :, None].expand_as(others)
    edges = enc.graph_layer(torch.cat([others - own, own], dim=-1).permute(0, 3, 1, 2))
    return enc.proj_layer(edges.max(dim=-1)[0]).transpose(1, 2)


def maps_step_by_step(model: PointViews, points: Tensor, count: int) -> Tensor:
    """Clouds (B, N, 3) to maps (B * V, C, S, S)."""
    chosen = sampled_step_by_step(points, count)
    points = points.gather(1, chosen[..., None].expand(-1, -1, 3))
    pixels = model.pixels(points).flatten(0, 1)
    offsets = torch.tensor([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)], device=points.device)
    size, maps = model.obj_size, []
    for b, cloud in enumerate(points):
        features = features_step_by_step(model.enc, cloud.expand(VIEWS, -1, -1))  # for each view
        spread = (pixels[b * VIEWS : (b + 1) * VIEWS, :, None] + offsets).flatten(1, 2)
        index = spread[..., 0] * size + spread[..., 1]
        values = features.repeat_interleave(9, dim=1)
        flat = values.new_zeros(VIEWS, size**2, values.shape[2])
        flat.scatter_add_(1, index[..., None].expand_as(values), values)
        maps.append(flat.transpose(1, 2).reshape(VIEWS, -1, size, size))
    return torch.cat(maps)


def maps_of_larkit(model: PointViews, points: Tensor, count: int) -> Tensor:
    """The same by LarKit."""
    points = take(points, farthest_points(points, count))
    return splat(model.enc(points), model.pixels(points), model.obj_size)


def image_branch_step_by_step(model: PointViews, maps: Tensor) -> Tensor:
    """Views (B * V, 3, S, S), with the enlargement by 7 in full size."""
    enc: Any = model.enc
    x = enc.img_block(maps)
    fusion = enc.fusion
    tokens = fusion.conv1(x)
    grid = tokens.shape[2:]
    tokens = tokens.flatten(2).transpose(1, 2).reshape(len(x) // VIEWS, -1, tokens.shape[1])
    tokens = fusion.transformer(tokens).view(len(x), -1, tokens.shape[2]).transpose(1, 2).unflatten(2, grid)
    joined = torch.cat([fusion.conv2(F.interpolate(tokens, scale_factor=7)), x], dim=1)
    return enc.img_layer(fusion.conv3(joined)).sigmoid()


def seconds(work: Callable[[], Tensor]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, theirs: Callable[[], Tensor], ours: Callable[[], Tensor], rounds: int) -> None:
    """Take turns and print the medians and the ratio."""
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(rounds)]
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(f"{name}: step by step {slow:.2f} s, LarKit {fast:.2f} s, ", end="")
    print(f"ratio {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = PointViews(num_views=VIEWS).to(device).eval()

    # Points on ellipsoids: surfaces, as scans and meshes give.
    direction = F.normalize(torch.randn(args.batch, args.points, 3, device=device), dim=2)
    points = direction * torch.tensor([1.0, 0.5, 0.3], device=device)

    print(
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {args.batch} clouds of {args.points} points, {args.count} sampled"
    )
    with torch.no_grad():
        same = (sampled_step_by_step(points[:2], args.count) == farthest_points(points[:2], args.count)).all()
        first = maps_step_by_step(model, points[:1], args.count)
        second = maps_of_larkit(model, points[:1], args.count)
        difference = float((first - second).abs().max())
        largest = float(first.abs().max())
        print(f"same points: {bool(same)}; largest difference of the maps: {difference:.1e} of {largest:.1f}")

        compare(
            "farthest point sampling",
            lambda: sampled_step_by_step(points, args.count),
            lambda: farthest_points(points, args.count),
            args.rounds,
        )
        compare(
            "points to maps of views",
            lambda: maps_step_by_step(model, points, args.count),
            lambda: maps_of_larkit(model, points, args.count),
            args.rounds,
        )
        compare(
            "image branch of one cloud",
            lambda: image_branch_step_by_step(model, second),
            lambda: model.enc.colors(second, VIEWS),
            args.rounds,
        )


if __name__ == "__main__":
    main()
