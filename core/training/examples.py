"""A sheet of examples: some maps of an evaluation, spread over the whole split, with what the model says of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.training.pictures import image_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Examples"]


class Examples:
    """Keeps a share of each batch until there are enough for a sheet.

    Args:
        size: maps on a sheet.
        columns: maps a row.
        width: of a map on the sheet, in inches.
    """

    def __init__(self, size: int = 32, columns: int = 8, width: float = 1.5) -> None:
        self.size, self.columns, self.width = size, columns, width
        self.seen = 0
        self.kept: list[tuple[Tensor, str, bool]] = []

    def keep(self, x_BCHW: Tensor, titles: list[str], wrong: list[bool], batches: list[int | float]) -> None:
        """Choose from one batch, by a seed of its own.

        Args:
            x_BCHW: maps.
            titles: B lines of text.
            wrong: B flags; marked ones are drawn in red.
            batches: number of batches of each loader, to spread the choice.
        """
        self.seen += 1
        share = -(-self.size * self.seen // max(1, int(sum(batches)))) - len(self.kept)
        generator = torch.Generator().manual_seed(len(self.kept))
        chosen = torch.randperm(len(x_BCHW), generator=generator)[: max(0, share)].tolist()
        maps = x_BCHW[chosen].to("cpu", torch.float32)  # a copy: a slice would keep the whole batch
        kept = zip(maps.unbind(), [titles[i] for i in chosen], [wrong[i] for i in chosen], strict=True)
        self.kept += list(kept)[: self.size - len(self.kept)]

    def clear(self) -> None:
        """Forget what was kept."""
        self.kept, self.seen = [], 0

    def take(self, to_pictures: Callable[[Tensor], Tensor | None]) -> Callable[[], Figure] | None:
        """What draws the sheet, or None if there is nothing to show; and an empty list again.

        Args:
            to_pictures: turns maps (N, C, H, W) into pictures of 1 or 3 channels in [0, 1], or None.
        """
        kept = self.kept
        self.clear()
        if not kept:
            return None
        maps, titles, wrong = zip(*kept, strict=True)
        pictures = to_pictures(torch.stack(maps))
        if pictures is None:
            return None
        return partial(image_sheet, pictures, list(titles), list(wrong), self.columns, self.width)
