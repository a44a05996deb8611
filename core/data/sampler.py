"""The order of the training samples, which depends on the seed and the epoch alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by (seed, epoch) alone, for one process or many: a resumed run sees the order it would have seen.

    ``generator`` is re-seeded with each epoch too. A loader that draws its workers' seeds from it repeats their random
    augmentation.

    Args:
        dataset: the samples; it has a length.
        replicas: number of processes.
        rank: of this process among them.
        seed: the same in all processes.
        weights: one for each sample; samples are then drawn by them with replacement. None takes each sample once.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)
        self.generator = torch.Generator()
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.set_epoch(0)

    def __iter__(self) -> Iterator[int]:
        """The samples of this process: all of them once, or by weight with replacement."""
        if self.weights is None:
            return super().__iter__()

        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        drawn = torch.multinomial(self.weights, self.total_size, replacement=True, generator=generator)
        return iter(drawn[self.rank :: self.num_replicas].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the worker seeds of the next pass."""
        super().set_epoch(epoch)
        self.generator.manual_seed(hash((self.seed, epoch, self.rank)) % 2**63)
