"""Draws docs/overview.png, the picture at the top of the README.

Run: python docs/overview.py

The kernels are those of the code: the branches of a 13 x 13 Dilated Reparam Block and what they merge into.
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes

from core.figures import new_figure
from core.layers import dilated_branches
from core.reparam import dilated_to_dense, embed_kernel
from vision import Digits

SIZE = 13


def kernels() -> list[tuple[str, torch.Tensor]]:
    """Taps of every branch on the 13 x 13 grid, and their sum."""
    taps = [("13 x 13", torch.ones(SIZE, SIZE))]
    for k, r in dilated_branches(SIZE):
        dense = embed_kernel(dilated_to_dense(torch.ones(1, 1, k, k), r), SIZE)[0, 0]
        taps.append((f"{k} x {k}, dilation {r}" if r > 1 else f"{k} x {k}", dense))
    return [*taps, ("merged 13 x 13", torch.stack([t for _, t in taps]).sum(0))]


def show(axes: Axes, image: torch.Tensor, title: str, colours: str) -> None:
    """One small picture."""
    axes.imshow(image.numpy(), cmap=colours, vmin=0)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def main() -> None:
    """Draw the picture."""
    data = Digits()
    data.setup("fit")
    figure = new_figure(12, 2.3)
    top, bottom = figure.subfigures(2, 1, height_ratios=(0.4, 1.6))
    top.text(
        0.5,
        0.45,
        "signal  →  2D map (C, H, W)  →  large-kernel backbone  →  head  →  metric, prediction, picture",
        ha="center",
        va="center",
        fontsize=13,
    )
    grid = bottom.subplots(1, 8)
    show(grid[0], data.val_set[7][0][0], "a 2D map", "gray_r")
    for axes, (title, taps) in zip(grid[1:], kernels(), strict=True):
        show(axes, taps, title, "magma_r")
    for i, sign in enumerate(["", "+", "+", "+", "+", "+", "="]):
        grid[i + 1].text(-0.16, 0.5, sign, transform=grid[i + 1].transAxes, ha="center", va="center", fontsize=15)
    figure.savefig(Path(__file__).parent / "overview.png", dpi=110)


if __name__ == "__main__":
    main()
