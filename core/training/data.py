"""Data loaders that all modalities share: reproducible shuffling, and evaluation that counts each sample once."""

import os
from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from core.errors import InputError, MissingError
from core.samples import NothingFound
from core.training.epochs import EpochSampler

__all__ = ["DataModule", "padding_in_batch"]


class _LazyLoader(DataLoader[Any]):
    """A loader whose workers start with the first batch, not with the iterator.

    Lightning opens an iterator before it has restored the epoch of a resumed run; workers that started then would
    already hold batches in the order of epoch 0.

    Batches without a sample that can be used are left out. In training the last batch is given again for each of them:
    schedules, validation and the other processes count the steps of an epoch.
    """

    def __iter__(self) -> Any:
        last, nothing = None, list[NothingFound]()
        for batch in super().__iter__():
            if isinstance(batch, NothingFound):
                nothing.append(batch)
                self._check_alone(batch)
            else:
                last = batch
                yield batch
        if nothing and last is None:
            raise InputError(f"no {nothing[0].kind} can be used; check the files named in the warnings")
        if isinstance(self.sampler, EpochSampler):
            yield from [last] * len(nothing)

    def _check_alone(self, batch: NothingFound) -> None:
        """Several processes that evaluate wait for each other at every batch."""
        shared = isinstance(self.sampler, DistributedSampler) and self.sampler.num_replicas > 1
        if shared and not isinstance(self.sampler, EpochSampler | UnrepeatedDistributedSampler):
            raise InputError(
                f"no {batch.kind} of a whole batch can be used; replace the files named in the warnings, or type "
                "--trainer.devices 1, which leaves such a batch out"
            )


class DataModule(LightningDataModule):
    """Base of all data modules: subclasses fill ``train_set``, ``val_set``, ``test_set``, ``predict_set`` in ``setup``.

    Samples with classes have more in common: :class:`core.training.SampleDataModule`.

    Args:
        batch_size: samples a process and step.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch; one of a single sample is always left out, since
            batch norm would take its statistics from that sample alone.

    Attributes:
        classes: names of the classes in the order of their labels; empty where there are none.
        train_weights: draw training samples by these weights with replacement; None for each once an epoch.

    Raises:
        InputError: if ``batch_size`` or ``num_workers`` is out of range.
    """

    def __init__(self, *, batch_size: int = 64, num_workers: int = 2, drop_last: bool = True) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InputError(f"batch_size={batch_size}, num_workers={num_workers}; give at least 1 and at least 0")
        self.batch_size, self.num_workers, self.drop_last = batch_size, num_workers, drop_last
        self.classes: Sequence[str] = ()
        self.train_set: Dataset[Any] | None = None
        self.val_set: Dataset[Any] | None = None
        self.test_set: Dataset[Any] | None = None
        self.predict_set: Dataset[Any] | None = None
        self.train_weights: Sequence[float] | None = None
        self.collate: Callable[[list[Any]], Any] | None = None

    def prepare_data(self) -> None:
        """Check the data before a run folder is made; raises what :meth:`check_data` raises."""
        self.check_data()

    def check_data(self) -> None:
        """Look at the data on disk, or make them; a data set says how.

        Raises:
            MissingError: if they are not there.
            InputError: if they cannot be used.
        """

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of ``train_set``.

        Raises:
            MissingError: if there is none.
            InputError: if a process would have a single sample.
        """
        dataset, (rank, replicas) = self._filled(self.train_set, "train"), self._place()
        options: dict[str, Any] = {"seed": self._seed(), "weights": self.train_weights}
        sampler = EpochSampler(dataset, replicas=replicas, rank=rank, **options)
        if len(sampler) < 2:
            raise InputError(
                "there is one training sample for each process, whatever the batch size, and at least two are needed: "
                "batch norm would take the statistics of all steps from that sample alone"
            )
        drop_last = self.drop_last and len(sampler) >= self.batch_size
        drop_last |= len(sampler) % self.batch_size == 1 and self.batch_size > 1
        return self._loader(dataset, sampler=sampler, generator=sampler.generator, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[Any]:
        """``val_set`` in order.

        Raises:
            MissingError: if there is none.
        """
        return self._ordered(self._filled(self.val_set, "val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """``test_set`` in order.

        Raises:
            MissingError: if there is none.
        """
        return self._ordered(self._filled(self.test_set, "test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """``predict_set`` in order, shared between processes without repetition.

        Raises:
            MissingError: if there is none.
            InputError: if there are fewer samples than processes.
        """
        dataset, (rank, replicas) = self._filled(self.predict_set, "predict"), self._place()
        if isinstance(dataset, Sized) and len(dataset) < replicas:
            raise InputError(f"{len(dataset)} samples for {replicas} processes; type --trainer.devices 1")
        sampler = UnrepeatedDistributedSampler(dataset, num_replicas=replicas, rank=rank, shuffle=False)
        return self._loader(dataset, sampler=sampler)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse class labels outside [0, len(classes)) while they are still on the CPU.

        Raises:
            InputError: naming the label.
        """
        labels = batch[1] if isinstance(batch, list | tuple) else None
        if self.classes and isinstance(labels, Tensor) and labels.dtype == torch.int64 and len(labels):
            wrong = labels[(labels < 0) | (labels >= len(self.classes))]
            if len(wrong):
                raise InputError(f"label {int(wrong[0])} is outside 0..{len(self.classes) - 1}; check the labels")
        return batch

    def measure(self) -> dict[str, float]:
        """Measure the statistics that normalise this kind of data, and store them; the verb ``stats``.

        Raises:
            InputError: if this kind of data is normalised by given numbers.
        """
        raise InputError(
            f"{type(self).__name__} measures no statistics; it is normalised by --data.mean and --data.std"
        )

    def _ordered(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        rank, replicas = self._place()
        return self._loader(dataset, sampler=DistributedSampler(dataset, replicas, rank, shuffle=False))

    def _loader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        pin = torch.cuda.is_available()
        workers, collate = self.num_workers, self.collate
        return _LazyLoader(
            dataset, batch_size=self.batch_size, num_workers=workers, collate_fn=collate, pin_memory=pin, **kwargs
        )

    def _filled(self, dataset: Dataset[Any] | None, split: str) -> Dataset[Any]:
        if dataset is None or (isinstance(dataset, Sized) and len(dataset) == 0):
            raise MissingError(f"{type(self).__name__} has no {split} samples; call setup(), or give it such data")
        return dataset

    def _model_dtype(self) -> torch.dtype:
        """What the maps are cast to, for a model that is not in float32."""
        model = getattr(self.trainer, "lightning_module", None)
        return torch.float32 if model is None else next(model.parameters()).dtype

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @staticmethod
    def _seed() -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0))


def padding_in_batch(loader: Any, batch_idx: int, size: int) -> int:
    """How many samples at the end of a batch only repeat others, to give every process the same number.

    ``DistributedSampler`` deals out sample i to process i mod P and fills the last round from the beginning. Leaving
    those out makes a metric over P processes equal that of one.

    Args:
        loader: the evaluation loader of this process, alone or in a list.
        batch_idx: index of the batch in it.
        size: samples in the batch.
    """
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    sampler = getattr(loader, "sampler", None)  # Lightning takes any iterable
    if not isinstance(sampler, DistributedSampler) or not isinstance(loader.dataset, Sized) or not loader.batch_size:
        return 0
    first = batch_idx * loader.batch_size
    last = min(first + loader.batch_size, len(sampler))  # not first + size: broken files may have been left out
    places = (place * sampler.num_replicas + sampler.rank for place in range(first, last))
    return min(size, sum(place >= len(loader.dataset) for place in places))
