"""The base of all data modules: reproducible shuffling, and evaluation that counts each sample once."""

import math
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, default_collate

from core.data.sampler import EpochSampler, SeededDataset
from core.data.samples import EmptyBatch
from core.data.spec import DataSpec
from core.errors import InputError, MissingError

__all__ = ["DataModule", "PlacedDataset", "attached_data_module", "padding_in_batch", "positions_in_batch"]

_MOST = 1_000_000
"""A larger batch, or a larger number of steps in an epoch, is a typing error."""
_MOST_WORKERS = 1_000
"""A larger number of processes that load data is a typing error."""


class DataModule(LightningDataModule):
    """Base of all data modules.

    Subclasses set ``train_set``, ``val_set``, ``test_set`` and ``predict_set`` to datasets of raw samples in ``setup``,
    and describe in ``settings`` and ``spec`` what a model must know about the data. Data modules of labeled samples
    derive from :class:`core.data.labeled.SampleDataModule`.

    Args:
        batch_size: samples for each process and step.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch. A batch of a single sample is always left out, since
            batch norm would take its statistics from that sample alone.
        min_epoch_steps: an epoch goes over a small training set several times, until it has this many steps.

    Attributes:
        classes: class names in the order of their labels; empty if there are no classes.
        train_weights: weights by which training samples are drawn with replacement; None takes each sample once an
            epoch.
        collate: function that makes a batch of samples; None for torch's default.
        evaluation_collate: the same for validation, test and prediction; None for ``collate``.

    Raises:
        InputError: if ``batch_size`` or ``num_workers`` is out of range.
    """

    runs_files: ClassVar[tuple[str, ...]] = ()
    """Arguments that name files whose code is executed; an untrusted checkpoint must not choose them."""
    holds: ClassVar[tuple[str, ...]] = ()
    """Arguments that hold other data modules by name, each with ``class_path`` and ``init_args``."""
    from_task: ClassVar[tuple[str, ...]] = ()
    """Arguments for which the command passes those of the task, unless they are given."""

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 2,
        drop_last: bool = True,
        min_epoch_steps: int = 1,
    ) -> None:
        super().__init__()
        if not 1 <= batch_size <= _MOST or not 0 <= num_workers <= _MOST_WORKERS or not 1 <= min_epoch_steps <= _MOST:
            raise InputError(
                f"batch_size={batch_size}, num_workers={num_workers}, min_epoch_steps={min_epoch_steps}; expected 1 to "
                f"{_MOST:,} samples, 0 to {_MOST_WORKERS:,} workers, and 1 to {_MOST:,} steps"
            )

        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.min_epoch_steps = min_epoch_steps

        self.classes: Sequence[str] = ()
        self.train_set: Dataset[Any] | None = None
        self.val_set: Dataset[Any] | None = None
        self.test_set: Dataset[Any] | None = None
        self.predict_set: Dataset[Any] | None = None
        self.train_weights: Sequence[float] | None = None
        self.collate: Callable[[list[Any]], Any] | None = None
        self.evaluation_collate: Callable[[list[Any]], Any] | None = None

    # What a model must know about the data

    def settings(self) -> DataSpec:
        """Return the options of this data module that a model must agree with, without reading the data."""
        return DataSpec(classes=tuple(self.classes))

    def spec(self) -> DataSpec:
        """Return the settings together with what is read from the data, such as class names and statistics.

        Subclasses read the data once and keep the result.

        Raises:
            MissingError: if the data are missing.
            InputError: if the data cannot be used.
        """
        return self.settings()

    @property
    def predicts_files(self) -> bool:
        """Whether the trainer predicts on files that the user named, for which no data set is needed."""
        return False

    def measure(self) -> dict[str, float]:
        """Measure statistics of the training data, for the command ``lightning stats``.

        Raises:
            InputError: if there is nothing to measure.
        """
        raise InputError(
            f"{type(self).__name__} measures no statistics; its data are normalized by --data.mean and --data.std"
        )

    @classmethod
    def trusts_file(cls, name: str, value: Any) -> bool:
        """Return whether a checkpoint may set this argument of ``runs_files`` to this value; by default never."""
        return False

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Check the data before the run starts, see :meth:`check_data`."""
        self.check_data()

    def check_data(self) -> None:
        """Check that the data exist on disk, or create them; by default there is nothing to check.

        Raises:
            MissingError: if the data are missing.
            InputError: if the data cannot be used.
        """

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of shuffled batches of ``train_set``.

        Raises:
            MissingError: if there is no training set.
            InputError: if a process would get a single sample.
        """
        passes = self._passes(self.min_epoch_steps, self.batch_size) if self.min_epoch_steps > 1 else 1
        loader = self._shuffled_loader(self.batch_size, passes)
        if passes > 1:
            rank_zero_info(
                f"{self.count_training_samples()} training samples: an epoch goes over them {passes} times, for "
                f"{len(loader)} steps of {self.batch_size} (--data.min_epoch_steps {self.min_epoch_steps})"
            )
        return loader

    def count_training_samples(self) -> int:
        """Return the number of training samples of all processes.

        Raises:
            MissingError: if there is no training set.
        """
        return len(self._filled(self.train_set, "train"))  # type: ignore[arg-type]

    def loader_of_steps(self, steps: int, batch_size: int) -> DataLoader[Any]:
        """Return a loader of exactly so many shuffled training batches in an epoch.

        An epoch goes over a small training set several times, and over a part of a large one.

        Raises:
            MissingError: if there is no training set.
            InputError: if a process would get a single sample.
        """
        return self._shuffled_loader(batch_size, self._passes(steps, batch_size), limit=steps * batch_size)

    def _shuffled_loader(self, batch_size: int, passes: int, limit: int | None = None) -> DataLoader[Any]:
        """Return a loader of shuffled training batches, as :class:`EpochSampler` orders them."""
        dataset = self._filled(self.train_set, "train")
        rank, replicas = self._rank_and_replicas()
        sampler = EpochSampler(
            dataset,
            replicas=replicas,
            rank=rank,
            seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
            weights=self.train_weights,
            passes=passes,
            limit=limit,
        )
        if sampler.num_samples < 2:
            raise InputError(
                "there is one training sample for each process, and at least two are needed, whatever the batch size: "
                "batch norm would take its statistics from that sample alone"
            )

        # A data set that is smaller than one batch is always used, and a last batch of a single sample never.
        drop_last = self.drop_last and len(sampler) >= batch_size
        if len(sampler) % batch_size == 1 and batch_size > 1:
            drop_last = True
        return self._loader(SeededDataset(dataset), sampler, batch_size=batch_size, drop_last=drop_last)

    def _passes(self, steps: int, batch_size: int) -> int:
        """Return how often an epoch goes over the training set, so that it has so many steps."""
        dataset = self._filled(self.train_set, "train")
        _, replicas = self._rank_and_replicas()
        return math.ceil(steps * batch_size * replicas / len(dataset)) if isinstance(dataset, Sized) else 1

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of ``val_set`` in order.

        Raises:
            MissingError: if there is no validation set.
        """
        return self.ordered_loader(self._filled(self.val_set, "val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader of ``test_set`` in order.

        Raises:
            MissingError: if there is no test set.
        """
        return self.ordered_loader(self._filled(self.test_set, "test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return a loader of ``predict_set`` in order, divided among the processes without repetition.

        Raises:
            MissingError: if there is nothing to predict on.
            InputError: if there are fewer samples than processes.
        """
        dataset = self._filled(self.predict_set, "predict")
        rank, replicas = self._rank_and_replicas()
        if isinstance(dataset, Sized) and len(dataset) < replicas:
            raise InputError(f"predict has {len(dataset)} samples for {replicas} processes; type --trainer.devices 1")

        sampler = UnrepeatedDistributedSampler(dataset, num_replicas=replicas, rank=rank, shuffle=False)
        return self._loader(dataset, sampler)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check that class labels are in [0, len(classes)), while they are still on the CPU.

        Raises:
            InputError: if a label is outside; the message names it.
        """
        labels = batch[1] if isinstance(batch, list | tuple) else None
        if self.classes and isinstance(labels, Tensor) and labels.dtype == torch.int64 and len(labels):
            wrong = labels[(labels < 0) | (labels >= len(self.classes))]
            if len(wrong):
                raise InputError(f"label {int(wrong[0])} is outside 0..{len(self.classes) - 1}; check the labels")

        return batch

    # Loaders

    def ordered_loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Return a loader of this process's share of a dataset, in order.

        Every process gets the same number of samples, so the last ones may repeat the first samples of the dataset.
        """
        rank, replicas = self._rank_and_replicas()
        sampler: Sampler[Any] = DistributedSampler(dataset, replicas, rank, shuffle=False)
        collate = _PlacedCollate(self.evaluation_collate or self.collate or default_collate)
        return self._loader(PlacedDataset(dataset), sampler, collate=collate)

    def _loader(
        self,
        dataset: Dataset[Any],
        sampler: Sampler[Any],
        *,
        batch_size: int | None = None,
        drop_last: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> DataLoader[Any]:
        trains = isinstance(sampler, EpochSampler)
        return _LazyLoader(
            dataset,
            batch_size=batch_size or self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate or (self.collate if trains else self.evaluation_collate or self.collate),
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
            generator=torch.Generator(),  # a loader draws a number, which would change those of the training
            # Starting processes anew for every epoch would make the trainer copy its memory, page by page, again.
            persistent_workers=self.num_workers > 0,
        )

    def _filled(self, dataset: Dataset[Any] | None, split: str) -> Dataset[Any]:
        """Return the dataset of a split, and raise an error if it has no samples."""
        if dataset is None or (isinstance(dataset, Sized) and len(dataset) == 0):
            raise MissingError(f"{type(self).__name__} has no {split} samples; call setup(), or give it such data")
        return dataset

    def _rank_and_replicas(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


class PlacedDataset(Dataset[tuple[int, Any]]):
    """Gives each sample of another dataset with its position there, so that a report can name it.

    Args:
        dataset: the dataset to read from.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """Return the position and the sample."""
        return index, self.dataset[index]


class _PlacedCollate:
    """Makes a batch of samples with their positions: the batch of another function, and the positions of its samples.

    A sample that is None was left out, since it is broken.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, placed: list[tuple[int, Any]]) -> tuple[Any, list[int]]:
        """Return the batch, and the positions of the samples in it."""
        batch = self.collate([sample for _, sample in placed])
        return batch, [position for position, sample in placed if sample is not None]


class _LazyLoader(DataLoader[Any]):
    """A loader whose workers start when the first batch is asked for, and which leaves out empty batches.

    Lightning creates the iterator before it restores the epoch of a resumed run. Workers that started at that point
    would already hold batches in the order of epoch 0.

    A batch is empty if every one of its samples is broken. In training, the last good batch is repeated once for each
    empty one, because schedules, validation and other processes rely on the number of steps in an epoch.

    Attributes:
        positions: positions in the dataset of the samples of each evaluation batch, by the number of the batch among
            those that were given out.
    """

    positions: dict[int, list[int]]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # This method is a generator, so nothing happens before the first batch is asked for.
        self.positions = {}
        given = 0
        last = None
        empty: list[EmptyBatch] = []
        for batch in super().__iter__():
            positions = None
            if isinstance(self.collate_fn, _PlacedCollate):
                batch, positions = batch

            if isinstance(batch, EmptyBatch):
                empty.append(batch)
                self._check_may_leave_out(batch)
            else:
                if positions is not None:
                    self.positions[given] = positions
                given += 1
                last = batch
                yield batch

        if empty and last is None:
            raise InputError(f"no {empty[0].kind} can be used; check the files named in the warnings")
        if isinstance(self.sampler, EpochSampler):
            for _ in empty:
                yield last

    def _check_may_leave_out(self, batch: EmptyBatch) -> None:
        """Raise an error if several processes evaluate: they wait for each other, so none may leave out a batch."""
        is_shared = isinstance(self.sampler, DistributedSampler) and self.sampler.num_replicas > 1
        trains_or_predicts = isinstance(self.sampler, EpochSampler | UnrepeatedDistributedSampler)
        if is_shared and not trains_or_predicts:
            raise InputError(
                f"no {batch.kind} in a whole batch can be used; replace the files named in the warnings, or type "
                "--trainer.devices 1, with which such a batch is left out"
            )


def attached_data_module(trainer: Trainer) -> DataModule | None:
    """Return the data module of a trainer, or None if it has none or one that is not a LarKit data module."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, DataModule) else None


def positions_in_batch(loader: Any, batch_idx: int) -> list[int] | None:
    """Return the positions in the dataset of the samples of an evaluation batch, or None if they are not known.

    Args:
        loader: evaluation loader of this process, alone or in a list.
        batch_idx: index of the batch, which was just given out.
    """
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    positions: dict[int, list[int]] = getattr(loader, "positions", {})
    return positions.pop(batch_idx, None)


def padding_in_batch(loader: Any, batch_idx: int, size: int) -> int:
    """Count the samples at the end of a batch that only repeat other samples.

    ``DistributedSampler`` gives sample i to process i mod P, and repeats the first samples at the end, so that every
    process has the same number of samples. If the repetitions are left out, a metric over P processes equals that of
    one process.

    Args:
        loader: evaluation loader of this process, alone or in a list.
        batch_idx: index of the batch in the loader.
        size: number of samples in the batch.
    """
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    sampler = getattr(loader, "sampler", None)  # Lightning takes any iterable
    if not isinstance(sampler, DistributedSampler) or not isinstance(loader.dataset, Sized) or not loader.batch_size:
        return 0

    # The batch may have fewer samples than these indices, because broken files were left out.
    first = batch_idx * loader.batch_size
    last = min(first + loader.batch_size, len(sampler))
    in_dataset = [i * sampler.num_replicas + sampler.rank for i in range(first, last)]
    repeated = sum(index >= len(loader.dataset) for index in in_dataset)
    return min(size, repeated)
