"""The base of all point-cloud data modules, which turn files and arrays into raw points."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from core.data.labeled import SampleDataModule, Split
from core.data.memory import check_sample_memory
from core.data.samples import Sample, SampleDataset, Samples, collate_found, source_name
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
    """Base of the point-cloud data modules: numbers of points, and prediction on any files.

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
                f"load_points={load_points}, num_points={num_points}, shots={shots}; expected num_points from 1 to "
                "load_points, from which they are sampled, and shots of at least 1 or null"
            )

        check_sample_memory(3 * 8 * load_points, f"load_points={load_points}")

        self.load_points = load_points
        self.num_points = num_points
        self.normalize = normalize
        self.y_up = y_up
        self.shots = shots
        self._small_named = shared_flag()
        self.collate = partial(collate_found, kind="cloud", collate=_collate_clouds)

    def settings(self) -> PointSpec:
        """Return the numbers of points, the normalization and the vertical axis."""
        return PointSpec(
            load_points=self.load_points,
            num_points=self.num_points,
            normalize=self.normalize,
            y_up=self.y_up,
            multi_label=self.multi_label,
        )

    def find(self, path: Path) -> list[Path]:
        """Find all clouds and meshes below a folder; a path to a file gives that file alone."""
        return cloud_files(path)

    def dataset(self, samples: Samples, split: Split) -> "Clouds":
        """Return the dataset of a split; for training, it has only ``shots`` clouds of each class if that is set."""
        is_training = split == "train"
        if is_training and self.shots is not None:
            if self.multi_label:
                raise InputError(f"shots={self.shots} counts clouds of one class each; leave it out for several labels")
            samples = few_shots(samples, self.shots)
        return Clouds(
            samples,
            self.load_points,
            train=is_training,
            skip_broken=self.skip_broken,
            small_named=self._small_named,
        )


class Clouds(SampleDataset):
    """A dataset of raw points from files and arrays, each cloud with a target.

    In training, every access gives other points in random order: new points of a mesh, or another random subset of a
    larger cloud. Evaluation always reads the same points. The points of a cloud that has too few are repeated, each as
    often as the others or once more; a warning names the first such cloud.

    Args:
        samples: (cloud, target) pairs; a cloud is a file, or a pair of a name and an array (N, 3 or more).
        load_points: number of points to read from each cloud.
        train: read random points.
        skip_broken: leave out clouds that cannot be used, with a warning, instead of stopping.
        small_named: flag (1,) bool in shared memory, which says whether a cloud with too few points was named; datasets
            with the same flag name one in all.
    """

    def __init__(
        self,
        samples: Samples,
        load_points: int,
        *,
        train: bool = False,
        skip_broken: bool = False,
        small_named: Tensor | None = None,
    ) -> None:
        super().__init__(samples, skip_broken=skip_broken)
        self.load_points = load_points
        self.train = train
        self.small_named = shared_flag() if small_named is None else small_named

    def read(self, source: Path | tuple[str, np.ndarray]) -> Tensor:
        """Return the points of a cloud (load_points, 3)."""
        if isinstance(source, Path):
            seed = int(torch.randint(2**31, ())) if self.train else 0
            array = read_cloud(source, self.load_points, seed=seed)
        else:
            name, array = source
            array = check_cloud(array, name)

        points = drop_needless_digits(torch.from_numpy(array))
        if len(points) < self.load_points:
            self._name_small(source_name(source), len(points))
            points = repeat_points(points, self.load_points)
        if self.train:
            return points[torch.randperm(len(points))[: self.load_points]]
        return choose_points(points, self.load_points)

    def _name_small(self, name: str, count: int) -> None:
        """Warn of a cloud with too few points, unless one was named before, by any process that loads data."""
        if not self.small_named:
            self.small_named.fill_(True)
            warnings.warn(
                f"{name} has {count} points, and --data.load_points is {self.load_points}: clouds with fewer points "
                "are drawn with repetition",
                stacklevel=4,
            )


def shared_flag() -> Tensor:
    """Return a flag (1,) bool, False at first, which all processes that load data share."""
    return torch.zeros(1, dtype=torch.bool).share_memory_()


def repeat_points(points: Tensor, count: int) -> Tensor:
    """Repeat the points of a smaller cloud (N, 3) in order, until there are ``count``."""
    return points[torch.arange(count) % len(points)]


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
    """Make a batch of clouds, which is float64 if one of them is."""
    dtypes = {points.dtype for points, _ in samples}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return default_collate([(points.to(dtype), target) for points, target in samples])
