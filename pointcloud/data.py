"""What all point-cloud data modules share: batches of clouds, sampled on the device that trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from core.errors import InputError
from core.training.data import DataModule
from pointcloud.feature_map import sample_points
from pointcloud.files import Clouds, cloud_files

__all__ = ["Cloud", "PointDataModule"]

Cloud = tuple[Path | tuple[str, np.ndarray], Any]
"""A file, or a name and an array, and the target."""


class PointDataModule(DataModule):
    """Base of the point-cloud data modules: how many points, in which frame, and prediction on any files.

    Loading processes read; farthest points are sampled for a whole batch at once, where the model is.

    Args:
        load_points: points read of each cloud, or drawn from each mesh.
        num_points: points that are sampled from these.
        normalise: centre each cloud and scale it into the unit sphere.
        y_up: the second coordinate of the files points up, not the third.
        shots: training clouds of each class, drawn once by a fixed seed; None for all.
        predict_path: a cloud, a mesh or a folder of them for ``predict``.
        skip_broken: leave out clouds that cannot be used, with a warning, instead of stopping.
        kwargs: arguments of :class:`core.training.DataModule`.

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
        predict_path: str | None = None,
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
        self.predict_path = Path(predict_path) if predict_path else None
        self.collate = _collate_found

    def prepare_data(self) -> None:
        """Check the paths before a run folder is made.

        Raises:
            MissingError: if there is nothing to read.
        """
        if self.predict_path and self.trainer and self.trainer.predicting:
            cloud_files(self.predict_path)
        else:
            self.check_data()

    def check_data(self) -> None:
        """Look at the data on disk, or make them; subclasses say how, and raise what ``prepare_data`` raises."""

    def fill(self, train: Sequence[Cloud], val: Sequence[Cloud], test: Sequence[Cloud]) -> None:
        """Set all splits; what is predicted without a path is the test split."""
        self.train_set = Clouds(self._few(train), self.load_points, train=True, **self.options)
        self.val_set, self.test_set = (Clouds(part, self.load_points, **self.options) for part in (val, test))
        named = [(cloud, str(cloud) if isinstance(cloud, Path) else cloud[0]) for cloud, _ in test]
        self.predict_set = Clouds(named, self.load_points, **self.options)

    def predict_files(self) -> None:
        """Set what ``predict_path`` names."""
        files = [(path, str(path)) for path in cloud_files(self.predict_path or Path())]
        self.predict_set = Clouds(files, self.load_points, **self.options)

    def _few(self, clouds: Sequence[Cloud]) -> Sequence[Cloud]:
        """``shots`` of each class in a fixed order; a class that has fewer is repeated."""
        if self.shots is None:
            return clouds
        generator, few = np.random.default_rng(0), list[Cloud]()
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


def _collate_found(samples: list[Any]) -> Any:
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise InputError("no cloud of a whole batch can be used; check the files named in the warnings")
    return default_collate(found)
