"""The order and the random augmentation of training samples, which depend on nothing but the seed and the epoch."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["EpochSampler", "SeededDataset", "SeededIndex"]


class SeededIndex(int):
    """The index of a sample, with the seed of its random augmentation.

    Attributes:
        seed: an integer in [0, 2^32).
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> "SeededIndex":
        """Make an index that carries a seed."""
        seeded = super().__new__(cls, index)
        seeded.seed = seed
        return seeded

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """Return what makes this index again in a data-loading process."""
        return int(self), self.seed


class SeededDataset(Dataset[Any]):
    """Reads the samples of another dataset, each with the random numbers that its :class:`SeededIndex` fixes.

    The augmentation of a sample is then the same in any number of data-loading processes, and in a run that was
    resumed. The random numbers of the process itself are left as they were.

    Args:
        dataset: the dataset to read from.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return a sample of the dataset."""
        if not isinstance(index, SeededIndex):
            return self.dataset[index]

        with _seeded(index.seed):
            return self.dataset[int(index)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch, and put their states back at the end."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()

    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by (seed, epoch) alone, in one process or many, so that a resumed run keeps the order of the samples.

    It gives a :class:`SeededIndex` for each sample, so that the augmentation depends on the seed and the epoch alone
    as well.

    Args:
        dataset: dataset with a length.
        replicas: number of processes.
        rank: rank of this process.
        seed: seed, which must be the same in all processes.
        weights: weight of each sample, by which samples are drawn with replacement. None takes each sample once.
        passes: how often an epoch goes over the dataset, each time in another order.
        limit: end the epoch after so many samples of this process; None takes all of them.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        passes: int = 1,
        limit: int | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.passes = passes
        self.limit = limit

    def __len__(self) -> int:
        """Return the number of samples of this process in an epoch."""
        count = self.num_samples * self.passes
        return count if self.limit is None else min(count, self.limit)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate over the sample indices of this process."""
        indices = self._shuffled() if self.weights is None else self._drawn(self.weights)
        own = indices[self.rank :: self.num_replicas][: len(self)]
        return (SeededIndex(i, self._sample_seed(place)) for place, i in enumerate(own))

    def _shuffled(self) -> list[int]:
        """Return the order of all processes: a new permutation for each pass, filled up to equal shares."""
        indices: list[int] = []
        for each in range(self.passes):
            order = torch.randperm(len(self.dataset), generator=self._generator(each)).tolist()  # type: ignore[arg-type]
            repeats = -(-self.total_size // len(order))
            indices += (order * repeats)[: self.total_size]
        return indices

    def _drawn(self, weights: torch.Tensor) -> list[int]:
        """Return the samples of all processes, drawn by their weights."""
        count = self.total_size * self.passes
        drawn: list[int] = torch.multinomial(weights, count, replacement=True, generator=self._generator(0)).tolist()
        return drawn

    def _generator(self, each: int) -> torch.Generator:
        return torch.Generator().manual_seed(hash((self.seed, self.epoch, each)) % 2**63)

    def _sample_seed(self, place: int) -> int:
        return hash((self.seed, self.epoch, self.rank, place)) % 2**32
