"""What a report needs of each sample of an evaluation, and how sure a figure is that was measured on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["RESAMPLES", "SampleResults", "bootstrap_intervals"]

RESAMPLES = 1000
"""Number of times that the samples of an evaluation are drawn again."""

_MOST_DRAWN = 50_000_000
"""Most samples that are drawn in all for one interval, so that it takes a few seconds at most."""


class SampleResults:
    """Columns with a value, or a few, for each sample of an evaluation. They stay on their device until they are read.

    50,000 samples of ImageNet take less than two megabytes, since no column holds a value for each class.
    """

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.columns: dict[str, list[Tensor]] = {}

    def clear(self) -> None:
        """Forget all samples."""
        self.positions = []
        self.columns = {}

    def add(self, positions: Sequence[int], columns: Mapping[str, Tensor]) -> None:
        """Add the samples of a batch.

        Args:
            positions: position of each sample in the split.
            columns: values (B, ...) by name; the names are the same in every batch.
        """
        if not columns:
            return
        self.positions += positions
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values.detach())

    def gather(self, processes: int) -> dict[str, np.ndarray]:
        """Return the columns of all processes in the order of the split, with the positions as ``position``.

        Every process must call this. Without samples, the result is empty.
        """
        own = {name: torch.cat(parts).cpu().numpy() for name, parts in self.columns.items()}
        own["position"] = np.asarray(self.positions, dtype=np.int64)

        parts: list[dict[str, np.ndarray]] = [own]
        if processes > 1:
            parts = [{} for _ in range(processes)]
            dist.all_gather_object(parts, own)

        filled = [part for part in parts if len(part["position"])]
        if not filled:
            return {}
        columns = {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}
        order = np.argsort(columns["position"], kind="stable")
        return {name: values[order] for name, values in columns.items()}


def bootstrap_intervals(
    count: int, statistic: Callable[[np.ndarray], Any], *, block: int = 1, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return 95 percent intervals of figures that are computed from samples, by the percentile bootstrap.

    The samples are drawn again with replacement, with a fixed seed, and the figures are computed from each draw.
    Windows of a series overlap with their neighbors, so they are drawn in blocks; a block that reaches the end of the
    samples continues at their beginning. scipy's bootstrap draws no blocks.

    Args:
        count: number of samples.
        statistic: function from the indices (count,) of drawn samples to M figures.
        block: number of neighboring samples that are drawn together.
        resamples: number of draws; fewer are made of more than 50,000 samples.

    Returns:
        (M, 2): lower and upper end of each interval. NaN if there are fewer than two blocks of samples.
    """
    resamples = max(100, min(resamples, _MOST_DRAWN // max(1, count)))
    generator = np.random.default_rng(0)
    if count < 2 * block:
        size = np.size(statistic(np.arange(count)))
        return np.full((size, 2), np.nan)

    blocks = -(-count // block)
    figures = []
    for _ in range(resamples):
        first = generator.integers(count, size=blocks)
        drawn = (first[:, None] + np.arange(block)).ravel()[:count] % count
        figures.append(np.atleast_1d(statistic(drawn)))
    return np.nanquantile(np.stack(figures), [0.025, 0.975], axis=0).T
