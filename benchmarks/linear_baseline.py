"""A linear model on the same images and split as vision/configs/cls.yaml, for comparison.

Run: python benchmarks/linear_baseline.py

Multinomial logistic regression on the pixels (scikit-learn), its strength of regularisation chosen on the validation
split. Prints both accuracies; nothing is written.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import Dataset

from vision import Digits


def arrays(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """All maps of a data set as rows, and their labels."""
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(images).flatten(1).numpy(), np.array(labels)


def main() -> None:
    """Fit and print."""
    data = Digits()
    data.train_transform = data.eval_transform  # a linear model gains nothing from crops
    data.setup("fit")
    train, val, test = (arrays(split) for split in (data.train_set, data.val_set, data.test_set))
    models = [LogisticRegression(C=c, max_iter=300).fit(*train) for c in (1e-4, 1e-3, 1e-2, 1e-1)]
    best = max(models, key=lambda model: model.score(*val))
    print(f"logistic regression, C={best.C:g}: val_acc {best.score(*val):.3f}, test_acc {best.score(*test):.3f}")


if __name__ == "__main__":
    main()
