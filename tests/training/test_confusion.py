"""Pairs of true and predicted classes, counted as torchmetrics counts them, in deterministic mode too."""

from collections.abc import Iterator

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from core.training.classification import MAX_CONFUSION_CLASSES, Confusion, ConfusionCounts


@pytest.fixture(params=[False, True], ids=["as usual", "deterministic"])
def _mode(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_mode")
@pytest.mark.parametrize("ignored", [None, 255, 1])
def test_counts_are_torchmetrics(ignored: int | None) -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(50, 4, 3), torch.randint(0, 4, (50, 3))
    if ignored is not None:
        y[::7] = ignored
    ours, theirs = ConfusionCounts(4, ignore_index=ignored), MulticlassConfusionMatrix(4, ignore_index=ignored)
    for some, truth in zip(logits.split(20), y.split(20), strict=True):
        ours.update(some, truth)
        theirs.update(some.argmax(1), truth)
    assert_close(ours.compute(), theirs.compute(), rtol=0, atol=0)
    ours.reset()
    assert ours.confmat.sum() == 0


@pytest.mark.usefixtures("_mode")
def test_intersection_over_union_of_label_maps() -> None:
    from vision.openmmlab.segmenter import MeanIoU

    torch.manual_seed(0)
    found, truth = torch.randint(0, 5, (2, 1, 20, 30)), torch.randint(0, 4, (2, 1, 20, 30))  # class 4 is in no truth
    truth[:, :, :5] = 255
    ours, theirs = MeanIoU(6, ignore_index=255), MulticlassJaccardIndex(6, ignore_index=255)
    for one, labels in zip(found, truth, strict=True):
        ours.update(one, labels)
        theirs.update(one, labels)
    assert_close(ours.compute(), theirs.compute())


def test_many_classes_in_deterministic_mode_take_one_matrix() -> None:
    """A batch of 64 images and 2000 classes: torchmetrics' own way compares 64 x 2000 x 2000 numbers, 2 GB."""
    torch.use_deterministic_algorithms(True)
    try:
        counts = Confusion(MAX_CONFUSION_CLASSES)
        with torch.profiler.profile(profile_memory=True) as seen:
            counts.update(torch.randn(64, MAX_CONFUSION_CLASSES), torch.arange(64))
    finally:
        torch.use_deterministic_algorithms(False)
    assert counts.counts is not None
    assert counts.counts.confmat.sum() == 64
    assert max(event.self_cpu_memory_usage for event in seen.events()) < 10 * 2**20
