"""A folder of small shapes and a tiny classifier, shared by the point-cloud tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointcloud import PointCloudClassifier

SHAPES = {"ball": (1, 1, 1), "disc": (1, 0.05, 1), "rod": (0.1, 1, 0.1)}
VIEWS: dict[str, Any] = {"num_views": 2, "obj_size": 32, "neighbors": 4, "dim": 8, "fusion": False}
POSES = {"val_theta": [0.1, 0.9], "val_phi": [-0.35], "test_theta": [0.0], "test_phi": [-0.4, -0.2]}


@pytest.fixture
def make_task() -> Callable[..., PointCloudClassifier]:
    """Makes a classifier with a tiny backbone, two small views, and two poses in evaluation."""

    def make(backbone: Any = "test_unireplknet", num_classes: int | None = 3, **kwargs: Any) -> PointCloudClassifier:
        return PointCloudClassifier(backbone, num_classes, **(VIEWS | {"poses": POSES} | kwargs))

    return make


@pytest.fixture
def make_shapes(tmp_path: Path) -> Callable[..., Path]:
    """Writes balls, discs and rods as .npy files of 64 points: ``root/<split>/<class>/<n>.npy``."""

    def make(**splits: int) -> Path:
        root = tmp_path / "shapes"
        generator = np.random.default_rng(0)
        for split, count in splits.items():
            for name, size in SHAPES.items():
                (root / split / name).mkdir(parents=True)
                for i in range(count):
                    direction = generator.standard_normal((64, 3))
                    cloud = direction / np.linalg.norm(direction, axis=1, keepdims=True) * size
                    np.save(root / split / name / f"{i}.npy", cloud)
        return root

    return make
