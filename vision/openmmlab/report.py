"""The sections of a detector's or segmentor's report: its classes, and for a segmentor its images.

Shapes: B images of a batch, N images of a split, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from core.training.report import Block, Figures, Section, Table, number
from core.training.results import RESAMPLES, bootstrap_intervals

__all__ = ["class_precisions", "detection_section", "pixel_counts", "segmentation_sections"]

_WORST = 10
"""Number of images that are listed."""


# Detection


def class_precisions(precision: Tensor, classes: Tensor, count: int) -> np.ndarray:
    """Return the average precision of each class over IoU 0.5 to 0.95 and at 0.5, (2, K); NaN without objects.

    Args:
        precision: pycocotools' array (IoU, recall, class, area, detections), in which -1 stands for no object.
        classes: labels of the classes in the array.
        count: K.
    """
    curves = precision[:, :, :, 0, -1]  # objects of any size, and the largest number of detections
    known = curves[0, 0] > -1
    result = np.full((2, count), np.nan)
    labels = classes.reshape(-1)[known].numpy()
    result[0, labels] = curves[:, :, known].mean(dim=(0, 1)).numpy()
    result[1, labels] = curves[0][:, known].mean(dim=0).numpy()
    return result


def detection_section(
    precisions: Mapping[str, np.ndarray],
    names: Sequence[str],
    objects_NK: np.ndarray,
    found_NK: np.ndarray,
    shown_score: float,
) -> Section:
    """Return the section with the average precision of each class.

    Args:
        precisions: values of :func:`class_precisions`, by 'bbox' or 'segm'.
        names: K names.
        objects_NK: true objects of each class in each image.
        found_NK: objects of each class that were found with at least ``shown_score``.
        shown_score: least score of an object that is drawn.
    """
    objects, found = objects_NK.sum(axis=0), found_NK.sum(axis=0)
    return Section("Classes", partial(_detection, dict(precisions), list(names), objects, found, shown_score))


def _detection(
    precisions: Mapping[str, np.ndarray],
    names: Sequence[str],
    objects: np.ndarray,
    found: np.ndarray,
    shown_score: float,
) -> list[Block]:
    words = {"bbox": "boxes", "segm": "masks"}
    head = ["class"]
    columns = []
    for kind, values in precisions.items():
        head += [f"AP of {words[kind]}", "at IoU 0.5"]
        columns += [values[0], values[1]]
    head += ["objects", f"found, score {shown_score:g}"]

    occurs = np.flatnonzero((objects > 0) | (found > 0))
    order = occurs[np.argsort(columns[0][occurs], kind="stable")]
    rows = [[names[i], *(number(values[i]) for values in columns), f"{objects[i]:,}", f"{found[i]:,}"] for i in order]
    note = "Average precision over IoU 0.5 to 0.95, as COCO has it; the classes with the lowest come first."
    return [Table(head, rows, note=note, title="All classes")]


# Segmentation


def pixel_counts(predicted_HW: Tensor, true_HW: Tensor, count: int, ignored: int) -> Tensor:
    """Return the correct, predicted and true pixels of each class in an image, (3, K) int32.

    Args:
        predicted_HW: predicted classes.
        true_HW: true classes; pixels of class ``ignored`` count for nothing.
        count: K.
        ignored: label of the pixels that count for nothing.
    """
    known = true_HW != ignored
    predicted, true = predicted_HW[known], true_HW[known]
    hits = true[predicted == true]
    return torch.stack([torch.bincount(labels, minlength=count) for labels in (hits, predicted, true)]).int()


def segmentation_sections(
    counts_N3K: np.ndarray,
    names: Sequence[str],
    logged: Mapping[str, float],
    file_of: Callable[[int], str],
) -> list[Section]:
    """Return the results with intervals and a baseline, the classes, and the images with the most errors.

    Args:
        counts_N3K: values of :func:`pixel_counts`.
        names: K names.
        logged: metrics that were logged for the split, by name.
        file_of: function from the place of an image in the split to its file.
    """
    return [
        Section("Results", partial(_segmentation_results, counts_N3K, list(names), dict(logged))),
        Section("Classes", partial(_segmentation_classes, counts_N3K, list(names))),
        Section("Worst images", partial(_worst_images, counts_N3K, file_of)),
    ]


def _scores(counts_3K: np.ndarray) -> list[float]:
    """Return the mean over classes of intersection over union, and the share of correct pixels."""
    hits, predicted, true = counts_3K.astype(np.float64)
    union = predicted + true - hits
    occurs = union > 0
    return [float((hits[occurs] / union[occurs]).mean()), float(hits.sum() / true.sum())]


def _segmentation_results(counts_N3K: np.ndarray, names: Sequence[str], logged: Mapping[str, float]) -> list[Block]:
    count, _, classes = counts_N3K.shape
    flat = counts_N3K.reshape(count, -1).astype(np.float64)
    texts = ["mean IoU", "pixel accuracy"]

    def resampled(drawn: np.ndarray) -> list[float]:
        return _scores((np.bincount(drawn, minlength=count) @ flat).reshape(3, classes))

    total = counts_N3K.sum(axis=0, dtype=np.int64)
    model = dict(zip(texts, _scores(total), strict=True))
    intervals = dict(zip(texts, bootstrap_intervals(count, resampled).tolist(), strict=True))

    most_frequent = int(total[2].argmax())
    constant = np.zeros_like(total)
    constant[0, most_frequent] = total[2, most_frequent]
    constant[1, most_frequent] = total[2].sum()
    constant[2] = total[2]
    baseline = dict(zip(texts, _scores(constant), strict=True))

    model |= {name: value for name, value in logged.items() if name.partition("_")[2] not in ("miou", "acc")}
    note = f"{count:,} images. The intervals come from {RESAMPLES:,} draws of these images with replacement."
    return [Figures(model, intervals, {f"always {names[most_frequent]}": baseline}, [note]).table()]


def _segmentation_classes(counts_N3K: np.ndarray, names: Sequence[str]) -> list[Block]:
    hits, predicted, true = counts_N3K.sum(axis=0, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        columns = [hits / (predicted + true - hits), hits / predicted, hits / true]
    occurs = np.flatnonzero(predicted + true > 0)
    order = occurs[np.argsort(columns[0][occurs], kind="stable")]
    share = true / true.sum()
    rows = [[names[i], *(number(values[i]) for values in columns), f"{share[i]:.1%}"] for i in order]
    head = ["class", "IoU", "precision", "recall", "of all pixels"]
    return [Table(head, rows, note="The classes with the lowest IoU come first.", title="All classes")]


def _worst_images(counts_N3K: np.ndarray, file_of: Callable[[int], str]) -> list[Block]:
    hits, _, true = counts_N3K.sum(axis=2, dtype=np.int64).T
    with np.errstate(invalid="ignore"):
        accuracy = hits / true
    known = np.flatnonzero(true > 0)
    order = known[np.argsort(accuracy[known], kind="stable")][:_WORST]
    rows = [[file_of(int(i)), number(accuracy[i])] for i in order]
    return [Table(["image", "pixel accuracy"], rows, note="The images with the lowest share of correct pixels.")]
