"""Nearest centroid on simple features of shape, on the clouds and splits of a configuration, for comparison.

    python benchmarks/shape_baseline.py
    python benchmarks/shape_baseline.py pointcloud/configs/folder.yaml

The features of a cloud in the unit sphere are its extents, the standard deviations and correlations of its coordinates,
and histograms of each coordinate and of the distance from the center (8 bins each), all standardized. Clouds are not
turned, unlike the training clouds of the classifier. Prints accuracies on the validation and test split.
"""

from typing import Any

import numpy as np
from configurations import data_of
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pointcloud
from pointcloud.feature_map import unit_sphere

SETS: dict[str, Any] = {
    f"pointcloud.{name}": getattr(pointcloud, name)
    for name in ("DigitClouds", "ModelNet40", "PointFolder", "ScanObjectNN")
}


def features(points: np.ndarray) -> np.ndarray:
    """Describes a cloud (N, 3) in the unit sphere by 9 numbers and 32 bins: (41,)."""
    radius = np.linalg.norm(points, axis=1)
    histograms = [np.histogram(values, 8, (-1, 1))[0] / len(points) for values in points.T]
    histograms.append(np.histogram(radius, 8, (0, 1))[0] / len(points))
    spread = points.std(axis=0)
    products = [(points[:, i] * points[:, j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.concatenate([np.ptp(points, axis=0), spread, products, *histograms])


def main() -> None:
    """Fit and print."""
    data = data_of(str(__doc__), "pointcloud/configs/cls.yaml", SETS)
    data.setup("fit")

    splits = {}
    for name in ("train", "val", "test"):
        pairs = [(features(unit_sphere(points).numpy()), label) for points, label in getattr(data, f"{name}_set")]
        splits[name] = [np.array(column) for column in zip(*pairs, strict=True)]

    model = make_pipeline(StandardScaler(), NearestCentroid()).fit(*splits["train"])
    print(f"nearest centroid: val_acc {model.score(*splits['val']):.3f}, test_acc {model.score(*splits['test']):.3f}")


if __name__ == "__main__":
    main()
