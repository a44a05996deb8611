"""Data modules for point clouds: raw points from files and arrays, and what a model must know about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from core.data.labeled import SampleDataModule, Split
from core.data.samples import Sample, Samples, collate_found, read_or_skip
from core.data.spec import DataSpec
from core.errors import InputError
from pointcloud.feature_map import choose_points, drop_needless_digits
from pointcloud.files import check_cloud, cloud_files, read_cloud

__all__ = ["Clouds", "PointDataModule", "PointSpec"]


@dataclass(frozen=True)
class PointSpec(DataSpec):
    """What a model must know about point clouds.

    Attributes:
        load_points: number of points read from each cloud, or drawn from each mesh.
        num_points: number of points that the model selects from these by farthest point sampling.
        normalize: whether the model centers each cloud and scales it into the unit sphere.
        y_up: whether the second coordinate is the vertical one; otherwise it is the third.
    """

    load_points: int = 8192
    num_points: int = 4096
    normalize: bool = True
    y_up: bool = True


class PointDataModule(SampleDataModule):
    """Base of the point-cloud data modules.

    Batches are (points (B, load_points, 3) in the unit of the files, labels (B,) int64) or, for prediction, (points,
    names). Points are float32, or float64 if one of the clouds needs more digits.

    Args:
        load_points: number of points read from each cloud, or drawn from each mesh. Of a larger cloud, a random subset
            is read, which in evaluation is always the same.
        num_points: number of points that the model selects from these by farthest point sampling.
        normalize: center each cloud and scale it into the unit sphere.
        y_up: whether the second coordinate is the vertical one; otherwise it is the third.
        shots: train on this number of clouds of each class, drawn once with a fixed seed; by default on all.
        kwargs: arguments of :class:`core.data.labeled.SampleDataModule`.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        load_points: int = 8192,
        num_points: int = 4096,
        normalize: bool = True,
        y_up: bool = True,
        shots: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 1 <= num_points <= load_points or (shots is not None and shots < 1):
            raise InputError(
                f"load_points={load_points}, num_points={num_points}, shots={shots}; num_points are sampled from "
                "load_points, so there must be 1 to that many; shots is at least 1, or null"
            )

        self.load_points = load_points
        self.num_points = num_points
        self.normalize = normalize
        self.y_up = y_up
        self.shots = shots
        self.collate = partial(collate_found, kind="cloud", collate=_collate_clouds)

    def settings(self) -> PointSpec:
        """Return the numbers of points, and how their coordinates are to be read."""
        return PointSpec(
            load_points=self.load_points,
            num_points=self.num_points,
            normalize=self.normalize,
            y_up=self.y_up,
        )

    @classmethod
    def from_spec(cls, spec: PointSpec, *, batch_size: int, num_workers: int) -> Self:
        """Build a data module that reads clouds as a model with this spec needs them."""
        return cls(
            load_points=spec.load_points,
            num_points=spec.num_points,
            normalize=spec.normalize,
            y_up=spec.y_up,
            batch_size=batch_size,
            num_workers=num_workers,
        )

    def find(self, path: Path) -> list[Path]:
        """Find all clouds and meshes below a folder; a path to a file gives that file alone."""
        return cloud_files(path)

    def dataset(self, samples: Samples, split: Split) -> "Clouds":
        """Return the dataset of a split; for training, with only ``shots`` clouds of each class if that is set."""
        is_training = split == "train"
        if is_training and self.shots is not None:
            samples = few_shots(samples, self.shots)
        return Clouds(samples, self.load_points, train=is_training, skip_broken=self.skip_broken)


class Clouds(Dataset[tuple[Tensor, Any] | None]):
    """A dataset of the raw points of clouds, each with a target.

    In training, every access gives other points in random order: new samples of a mesh, or another random subset of a
    larger cloud. Evaluation always reads the same points.

    Args:
        samples: (cloud, target) pairs; a cloud is a file, or a pair of a name and an array (N, 3 or more).
        load_points: number of points to read from each cloud.
        train: whether to read random points.
        skip_broken: leave out clouds that cannot be used, with a warning, instead of stopping.
    """

    def __init__(self, samples: Samples, load_points: int, *, train: bool = False, skip_broken: bool = False) -> None:
        self.samples = samples
        self.load_points = load_points
        self.train = train
        self.skip_broken = skip_broken

    def __len__(self) -> int:
        """Number of clouds."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | None:
        """Return the points (load_points, 3) and the target of a cloud, or None if it is broken and skipped.

        Raises:
            InputError: if the cloud cannot be used; the message names it.
        """
        source, target = self.samples[index]
        points = read_or_skip(lambda: self._read(source), skip_broken=self.skip_broken)
        if points is None:
            return None

        points = drop_needless_digits(points)
        if self.train:
            return points[torch.randperm(len(points))[: self.load_points]], target
        return choose_points(points, self.load_points), target

    def _read(self, source: Path | tuple[str, np.ndarray]) -> Tensor:
        if isinstance(source, Path):
            seed = int(torch.randint(2**31, ())) if self.train else 0
            return torch.from_numpy(read_cloud(source, self.load_points, seed=seed))

        name, array = source
        return torch.from_numpy(check_cloud(array, name, self.load_points))


def few_shots(samples: Samples, shots: int) -> list[Sample]:
    """Draw ``shots`` samples of each class with a fixed seed; a class with fewer samples repeats them."""
    generator = np.random.default_rng(0)
    few: list[Sample] = []
    for label in sorted({int(target) for _, target in samples}):
        members = [sample for sample in samples if int(sample[1]) == label]
        order = generator.permutation(len(members))
        few += [members[order[i % len(members)]] for i in range(shots)]
    return few


def _collate_clouds(samples: Sequence[tuple[Tensor, Any]]) -> Any:
    """Collate clouds; the batch is float64 if one of them is."""
    dtypes = {points.dtype for points, _ in samples}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return default_collate([(points.to(dtype), target) for points, target in samples])
