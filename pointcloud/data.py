"""What all point-cloud data modules share: batches of clouds, sampled on the device that trains."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from core.errors import InputError
from core.samples import Samples, collate_found
from core.training.samples import SampleDataModule, Split
from pointcloud.feature_map import sample_points
from pointcloud.files import Clouds, cloud_files

__all__ = ["PointDataModule"]


class PointDataModule(SampleDataModule):
    """Base of the point-cloud data modules: how many points, in which frame, and prediction on any files.

    Loading processes read; farthest points are sampled for a whole batch at once, where the model is.

    Args:
        load_points: points read of each cloud, or drawn from each mesh.
        num_points: points that are sampled from these.
        normalise: centre each cloud and scale it into the unit sphere.
        y_up: the second coordinate of the files points up, not the third.
        shots: training clouds of each class, drawn once by a fixed seed; None for all.
        skip_broken: leave out clouds that cannot be used, with a warning, instead of stopping.
        kwargs: arguments of :class:`core.training.SampleDataModule`.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        load_points: int = 8192,
        num_points: int = 4096,
        normalise: bool = True,
        y_up: bool = True,
        shots: int | None = None,
        skip_broken: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 1 <= num_points <= load_points or (shots is not None and shots < 1):
            raise InputError(
                f"load_points={load_points}, num_points={num_points}, shots={shots}; num_points are sampled from "
                "load_points, so there must be 1 to that many; shots is at least 1, or null"
            )
        self.load_points, self.num_points, self.shots = load_points, num_points, shots
        self.options: dict[str, Any] = {"normalise": normalise, "y_up": y_up, "skip_broken": skip_broken}
        self.collate = partial(collate_found, kind="cloud")

    def find(self, path: Path) -> list[Path]:
        """The cloud or mesh itself, or all of them below a folder."""
        return cloud_files(path)

    def dataset(self, samples: Samples, split: Split) -> Clouds:
        """Clouds, in training ``shots`` of each class."""
        train = split == "train"
        return Clouds(self._few(samples) if train else samples, self.load_points, train=train, **self.options)

    def _few(self, clouds: Samples) -> Samples:
        """``shots`` of each class in a fixed order; a class that has fewer is repeated."""
        if self.shots is None:
            return clouds
        generator, few = np.random.default_rng(0), list[Any]()
        for label in sorted({int(target) for _, target in clouds}):
            members = [cloud for cloud in clouds if int(cloud[1]) == label]
            order = generator.permutation(len(members))
            few += [members[order[i % len(members)]] for i in range(self.shots)]
        return few

    def on_after_batch_transfer(self, batch: tuple[Tensor, Any], dataloader_idx: int) -> tuple[Tensor, Any]:
        """Clouds (B, load_points, 3) to their farthest points (B, num_points, 3), see :func:`sample_points`."""
        points_BN3, y = batch
        training = self.trainer is not None and bool(self.trainer.training)
        return sample_points(points_BN3, self.num_points, train=training), y
