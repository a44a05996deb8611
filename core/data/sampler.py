"""The order of the training samples, which depends only on the seed and the epoch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler[Any]):
    """A sampler that shuffles by seed and epoch alone, so that a resumed run has the same order of samples.

    Args:
        dataset: dataset with a length.
        replicas: number of processes.
        rank: rank of this process.
        seed: seed, which must be the same in all processes.
        weights: weight of each sample, by which samples are drawn with replacement; None takes each sample once.

    Attributes:
        generator: random generator, seeded anew for each epoch and process. A loader that draws the seeds of its
            workers from it repeats their random augmentation in a resumed run.
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
        """Iterate over the indices of the samples of this process."""
        if self.weights is None:
            return super().__iter__()

        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        drawn = torch.multinomial(self.weights, self.total_size, replacement=True, generator=generator)
        return iter(drawn[self.rank :: self.num_replicas].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from which the order of the samples and the seeds of the workers follow."""
        super().set_epoch(epoch)
        self.generator.manual_seed(hash((self.seed, epoch, self.rank)) % 2**63)
