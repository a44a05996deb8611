"""Nearest centroid on simple features of shape, on the same clouds and splits as a configuration, for comparison.

    python benchmarks/shape_baseline.py
    python benchmarks/shape_baseline.py pointcloud/configs/furniture.yaml

Features of a cloud are its extents, the standard deviations and correlations of its coordinates, histograms of each
coordinate and of the distance from the middle (8 bins each), all standardised. Clouds are not turned, which the
classifier's training clouds are. Prints accuracies on the validation and test split; nothing is written.
"""

from typing import Any

import numpy as np
from configurations import data_of
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pointcloud

SETS: dict[str, Any] = {
    f"pointcloud.{name}": getattr(pointcloud, name)
    for name in ("DigitClouds", "Furniture", "ModelNet40", "PointFolder", "ScanObjectNN")
}


def features(points: np.ndarray) -> np.ndarray:
    """(N, 3) to (41,): 9 numbers and 32 bins."""
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
        pairs = [(features(points.numpy()), label) for points, label in getattr(data, f"{name}_set")]
        splits[name] = [np.array(column) for column in zip(*pairs, strict=True)]
    model = make_pipeline(StandardScaler(), NearestCentroid()).fit(*splits["train"])
    print(f"nearest centroid: val_acc {model.score(*splits['val']):.3f}, test_acc {model.score(*splits['test']):.3f}")


if __name__ == "__main__":
    main()
