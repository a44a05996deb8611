"""A linear model on the same maps and splits as a configuration of the built-in data, for comparison.

    python benchmarks/linear_baseline.py
    python benchmarks/linear_baseline.py audio/configs/cls.yaml
    python benchmarks/linear_baseline.py video/configs/cls.yaml      (the middle frame of each clip alone)

Multinomial logistic regression on the maps without augmentation (scikit-learn), its strength of regularisation chosen
on the validation split. Prints both accuracies; nothing is written.
"""

from typing import Any

import numpy as np
from configurations import data_of
from sklearn.linear_model import LogisticRegression

from audio import SpokenWords
from core.training import DataModule
from video import CameraMoves
from vision import Digits

SETS: dict[str, Any] = {
    "vision.Digits": Digits,
    "audio.SpokenWords": SpokenWords,
    "video.CameraMoves": CameraMoves,
}


def arrays(data: DataModule, split: Any) -> tuple[np.ndarray, np.ndarray]:
    """All maps of a split as rows, and their labels."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data._ordered(split)]
    if isinstance(data, CameraMoves):
        batches = [(x[:, x.shape[1] // 2], y) for x, y in batches]
    return np.concatenate([x.flatten(1) for x, _ in batches]), np.concatenate([y for _, y in batches])


def main() -> None:
    """Fit and print."""
    data = data_of(str(__doc__), "vision/configs/cls.yaml", SETS)
    if isinstance(data, Digits):
        data.train_transform = data.eval_transform  # a linear model gains nothing from crops
    data.setup("fit")
    if isinstance(data, CameraMoves):
        data.train_set = data.dataset(data.train_set.files, "val")  # type: ignore[union-attr]
    train, val, test = (arrays(data, split) for split in (data.train_set, data.val_set, data.test_set))
    models = [LogisticRegression(C=c, max_iter=300).fit(*train) for c in (1e-4, 1e-3, 1e-2, 1e-1)]
    best = max(models, key=lambda model: model.score(*val))
    print(f"logistic regression, C={best.C:g}: val_acc {best.score(*val):.3f}, test_acc {best.score(*test):.3f}")


if __name__ == "__main__":
    main()
