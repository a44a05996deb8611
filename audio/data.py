"""What all audio data modules share: recordings become batches of waveforms, and their statistics are measured."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from audio.feature_map import LogMel, pad_waves
from audio.files import audio_files, read_wave
from core.data.labeled import SampleDataModule, Split
from core.data.samples import EmptyBatch, SampleDataset, Samples, collate_found, source_name
from core.data.spec import DataSpec
from core.errors import InputError

__all__ = ["AudioDataModule", "AudioSpec", "Recordings", "Waves"]

_MEASURED = 5_000
"""Recordings on which mean and standard deviation are measured; of a larger set a sample of so many."""


@dataclass(frozen=True)
class AudioSpec(DataSpec):
    """What a model must know of recordings.

    Attributes:
        sample_rate: samples per second.
        num_mels: height of the map, in mel bands.
        frame_length: length of a frame in milliseconds.
        frame_shift: step from one frame to the next in milliseconds.
        target_length: width of the map, in frames.
        mean: of the log-mel values of the training data; None until it was measured.
        std: standard deviation of the log-mel values; None until it was measured.
        multi_label: whether a recording may have any number of labels.
        overlap: share of a window that the next one repeats when a recording is longer than a map, in [0, 1).
    """

    sample_rate: int = 16_000
    num_mels: int = 128
    frame_length: float = 25.0
    frame_shift: float = 10.0
    target_length: int = 128
    mean: float | None = None
    std: float | None = None
    multi_label: bool = False
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap={self.overlap}; give a share in [0, 1)")
        if (self.mean is None) != (self.std is None):
            raise InputError(f"mean={self.mean}, std={self.std}; give both or none")

    def feature_map(self) -> LogMel:
        """Return the module that makes the maps; without statistics it leaves the log-mel values as they are."""
        return LogMel(
            sample_rate=self.sample_rate,
            num_mels=self.num_mels,
            frame_length=self.frame_length,
            frame_shift=self.frame_shift,
            target_length=self.target_length,
            mean=0.0 if self.mean is None else self.mean,
            std=0.5 if self.std is None else self.std,
        )


class Waves(NamedTuple):
    """A raw batch: waveforms (B, T) with zeros beyond their lengths (B,).

    A named tuple, since pinning the memory of a batch turns plain tuples into lists.
    """

    waves: Tensor
    lengths: Tensor


class AudioDataModule(SampleDataModule):
    """Base of the audio data modules: raw waveforms in batches, the map's settings, prediction on any recordings.

    Batches are (:class:`Waves`, targets), with waveforms (B, T) float32 in [-1, 1] at ``sample_rate``. Targets are
    labels (B,) int64, or (B, K) float32 of 0 and 1 where a recording may have several. Batches to predict on are
    (a list of B waveforms, names), since one recording may last a second and the next an hour. The model makes the
    maps, for a whole batch at once.

    Args:
        sample_rate: samples per second; recordings at another rate are resampled.
        num_mels: height of the map, in mel bands.
        frame_length: length of a frame in milliseconds.
        frame_shift: step from one frame to the next in milliseconds.
        target_length: width of the map, in frames.
        mean: of the log-mel values; by default measured on the training recordings and stored in the checkpoint.
        std: standard deviation of the log-mel values; by default measured together with the mean.
        overlap: share of a window that the next one repeats, in a recording that is longer than a map.
        kwargs: arguments of :class:`core.data.labeled.SampleDataModule`.
    """

    spec_only = ("classes", "multi_label")
    multi_label = False

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        num_mels: int = 128,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        target_length: int = 128,
        mean: float | None = None,
        std: float | None = None,
        overlap: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._settings = AudioSpec(
            sample_rate=sample_rate,
            num_mels=num_mels,
            frame_length=frame_length,
            frame_shift=frame_shift,
            target_length=target_length,
            mean=mean,
            std=std,
            overlap=overlap,
        )
        self._feature_map = self._settings.feature_map()
        self._statistics: tuple[float, float] | None = None
        self.collate = _collate

    def settings(self) -> AudioSpec:
        """Return the settings of the map, with mean and standard deviation if they were given."""
        return replace(self._settings, multi_label=self.multi_label)

    def spec(self) -> AudioSpec:
        """Return the settings with the class names, and with mean and standard deviation of the training recordings.

        They are measured at the first call, unless they were given. A trainer that only evaluates takes those of the
        checkpoint: then nothing is measured, and ``mean`` and ``std`` stay None.
        """
        spec = replace(self.settings(), classes=tuple(self.read_splits().classes))
        if spec.mean is not None:
            return spec

        only_evaluates = self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING
        if self._statistics is None and not only_evaluates:
            self.measure()

        if self._statistics is None:
            return spec
        mean, std = self._statistics
        return replace(spec, mean=mean, std=std)

    def know_statistics(self, mean: float, std: float) -> None:
        """Take these for the measured statistics, as a run does that continues from a checkpoint."""
        self._statistics = (mean, std)

    def find(self, path: Path) -> list[Path]:
        """Return the recording itself, or all recordings below a folder."""
        return audio_files(path)

    def dataset(self, samples: Samples, split: Split) -> "Recordings":
        """Waveforms, cut to what one map shows, or whole for prediction."""
        return Recordings(
            samples,
            self._settings.sample_rate,
            shortest=self._feature_map.window,
            longest=None if split == "predict" else self._feature_map.samples(),
            skip_broken=self.skip_broken,
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        """``predict_set`` in order, every recording at its full length."""
        loader = super().predict_dataloader()
        loader.collate_fn = _collate_whole
        return loader

    def measure(self) -> dict[str, float]:
        """Mean and standard deviation of the log-mel values of the training recordings, padding included.

        Of more than 5,000 recordings a sample of so many is measured, the same in every run. The result is kept.

        Returns:
            ``mean`` and ``std``, rounded to six digits after the point.

        Raises:
            InputError: if a recording cannot be used, or all values are the same.
        """
        if self._statistics is None:
            self._statistics = self._measure()
        mean, std = self._statistics
        return {"mean": mean, "std": std}

    def _measure(self) -> tuple[float, float]:
        recordings: Dataset[Any] = self._filled(self.dataset(self.read_splits().train, "train"), "train")
        every = count = len(self.read_splits().train)
        if every > _MEASURED:
            count = _MEASURED
            chosen = np.random.default_rng(0).choice(every, count, replace=False)
            recordings = Subset(recordings, sorted(chosen.tolist()))

        loader = DataLoader(
            recordings,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            generator=torch.Generator(),  # whether something is measured must not change the random numbers of a run
        )
        progress = tqdm(
            loader,
            desc=f"Measuring mean and std on {count} of {every} recordings",
            leave=False,
            disable=bool(getattr(rank_zero_only, "rank", 0)),  # of several processes one shows it
        )

        values = 0
        total = 0.0
        squares = 0.0
        for batch in progress:
            if isinstance(batch, EmptyBatch):
                continue
            raw, _ = batch
            mel_BFT = self._feature_map.filter_bank(*raw).double()
            values += mel_BFT.numel()
            total += mel_BFT.sum().item()
            squares += mel_BFT.square().sum().item()

        if values == 0:
            raise InputError("no recording can be used; check the files named in the warnings")
        mean = total / values
        std = max(0.0, squares / values - mean**2) ** 0.5
        if std == 0:
            raise InputError("the maps of all training recordings are the same; check the recordings")

        rank_zero_info(f"Mean {mean:.6f} and std {std:.6f} of the log-mel values, measured on {count} recordings")
        return round(mean, 6), round(std, 6)


class Recordings(SampleDataset):
    """A dataset of waveforms, each with a target.

    Args:
        samples: (source, target) pairs. A source is a path, or a name with an array (T,) of floats at ``sample_rate``.
        sample_rate: samples per second.
        shortest: samples that each must have at least.
        longest: samples to keep from the start, or None for all.
        skip_broken: leave out recordings that cannot be used, with a warning, instead of stopping.
    """

    def __init__(
        self,
        samples: Samples,
        sample_rate: int,
        *,
        shortest: int = 1,
        longest: int | None = None,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(samples, skip_broken=skip_broken)
        self.sample_rate = sample_rate
        self.shortest = shortest
        self.longest = longest

    def read(self, source: Any) -> Tensor:
        """Return the waveform (T,) float32 of a recording, or its first ``longest`` samples."""
        if isinstance(source, tuple):
            wave = self._checked(source_name(source), source[1])
        else:
            wave = read_wave(source, self.sample_rate, shortest=self.shortest, longest=self.longest)
        return wave[: self.longest]

    def _checked(self, name: str, array: np.ndarray) -> Tensor:
        if array.ndim != 1 or array.dtype.kind != "f" or len(array) < self.shortest:
            raise InputError(
                f"{name} is of shape {array.shape} and {array.dtype}; give a waveform (T,) of floats in [-1, 1] at "
                f"{self.sample_rate} Hz, with at least {self.shortest} samples"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinity; replace it")
        return torch.from_numpy(array.astype(np.float32))


def _stack(recordings: list[tuple[Tensor, Any]]) -> tuple[Waves, Tensor]:
    waves, targets = zip(*recordings, strict=True)
    y = torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets)
    return Waves(*pad_waves(waves)), y


def _keep_whole(recordings: list[tuple[Tensor, str]]) -> tuple[list[Tensor], list[str]]:
    waves, names = zip(*recordings, strict=True)
    return list(waves), list(names)


# Functions of the module, so that they can be sent to data-loading processes.
_collate = partial(collate_found, kind="recording", collate=_stack)
_collate_whole = partial(collate_found, kind="recording", collate=_keep_whole)
