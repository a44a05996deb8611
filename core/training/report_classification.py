"""The sections of a classifier's report: figures, classes, mistakes and calibration.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from core.figures import new_figure
from core.training.plots import confusion_figure
from core.training.report import (
    Block,
    Card,
    Cards,
    Figures,
    Picture,
    Section,
    Table,
    Text,
    figure_picture,
    number,
)
from core.training.results import RESAMPLES, bootstrap_intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Shown", "label_results", "label_sections", "reliability_figure", "several_results", "several_sections"]

MISTAKES = 12
"""Number of mistakes in a report."""
PAIRS = 10
"""Number of pairs of classes that are taken for each other."""
BINS = 15
"""Bins of the calibration error, as in Guo et al. (arXiv 1706.04599)."""
DRAWN_CLASSES = 100
"""With more classes, the confusion matrix is left to its own picture, where single cells are still seen."""

_MOST_ROWS = 2000
"""Most classes in a table; of more, the worst ones are shown."""

Shown = Callable[[int], tuple[str, Picture | None]]
"""Function from the position of a sample in the split to its name and picture."""


# One label for each sample


def label_results(probability_NK: Tensor, label_N: Tensor) -> dict[str, Tensor]:
    """Return what a report needs of samples with one label.

    Args:
        probability_NK: predicted probabilities.
        label_N: true labels.

    Returns:
        Columns (N,): the true ``label``, the ``prediction``, its ``probability``, the probability of the true class as
        ``true_probability`` and, with ten or more classes, whether the true class is among the ``top5``.
    """
    probability_N, prediction_N = probability_NK.max(dim=1)
    columns = {
        "label": label_N.int(),
        "prediction": prediction_N.int(),
        "probability": probability_N.float(),
        "true_probability": probability_NK.gather(1, label_N[:, None])[:, 0].float(),
    }
    if probability_NK.shape[1] >= 10:
        columns["top5"] = (probability_NK.topk(5, dim=1).indices == label_N[:, None]).any(dim=1)
    return columns


@dataclass
class ClassFigures:
    """Precision, recall, F1 and support of each class, (K,) each; a class that occurs nowhere has NaN."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def class_figures(label_N: np.ndarray, prediction_N: np.ndarray, classes: int) -> ClassFigures:
    """Return the figures of each class."""
    support = np.bincount(label_N, minlength=classes)
    predicted = np.bincount(prediction_N, minlength=classes)
    hits = np.bincount(label_N[label_N == prediction_N], minlength=classes)
    return _class_figures(hits, predicted, support)


def _class_figures(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> ClassFigures:
    with np.errstate(invalid="ignore"):
        return ClassFigures(hits / predicted, hits / support, 2 * hits / (support + predicted), support)


def _label_scores(
    label_N: np.ndarray, prediction_N: np.ndarray, top5_N: np.ndarray | None, classes: int
) -> dict[str, float]:
    """Return the figures of a whole split by name. Means over classes leave out those that do not occur in it."""
    by_class = class_figures(label_N, prediction_N, classes)
    occurs = by_class.support > 0
    scores = {"accuracy": float((label_N == prediction_N).mean())}
    if top5_N is not None:
        scores["accuracy of the first five"] = float(top5_N.mean())
    scores["mean recall of the classes"] = float(by_class.recall[occurs].mean())
    scores["mean F1 of the classes"] = float(by_class.f1[occurs].mean())
    return scores


def label_sections(
    results: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    logged: Mapping[str, float],
    show: Shown,
) -> list[Section]:
    """Return the sections of a classifier whose samples have one label.

    Args:
        results: columns of :func:`label_results`, with the ``position`` of each sample.
        class_names: K names.
        logged: metrics that were logged for the split, by name.
        show: names and shows a sample.
    """
    names = list(class_names)
    return [
        Section("Results", partial(_label_figures, results, names, dict(logged))),
        Section("Classes", partial(_label_classes, results, names)),
        Section("Confusion", partial(_confusion, results, names)),
        Section("Worst mistakes", partial(_label_mistakes, results, names, show)),
        Section("Calibration", partial(_label_calibration, results)),
    ]


def _label_figures(results: Mapping[str, np.ndarray], names: Sequence[str], logged: Mapping[str, float]) -> list[Block]:
    """Return the table of figures beside the best constant answer, and what it says."""
    label, prediction, top5 = results["label"], results["prediction"], results.get("top5")
    classes, count = len(names), len(label)
    model = _label_scores(label, prediction, top5, classes)

    def resampled(drawn: np.ndarray) -> list[float]:
        drawn_top5 = None if top5 is None else top5[drawn]
        return list(_label_scores(label[drawn], prediction[drawn], drawn_top5, classes).values())

    ends = bootstrap_intervals(count, resampled)
    intervals = {name: tuple(pair) for name, pair in zip(model, ends.tolist(), strict=True)}

    # The constant answer that is right most often.
    support = np.bincount(label, minlength=classes)
    most_frequent = int(support.argmax())
    first_five = None if top5 is None else np.isin(label, np.argsort(-support, kind="stable")[:5])
    constant = _label_scores(label, np.full(count, most_frequent), first_five, classes)

    model["calibration error"] = calibration_error(results["probability"], label == prediction)
    model |= _not_shown_yet(logged)
    baseline = f"always {names[most_frequent]}"
    notes = [
        f"{count:,} samples. The intervals come from {RESAMPLES:,} draws of these samples with replacement: they say "
        "how far a figure may lie from that of many more samples, and not what another seed would give."
    ]
    if model["accuracy"] == 1:
        notes.append(f"Without a mistake in {count:,} samples, up to {min(1.0, 3 / count):.1%} may still be wrong.")
    elif intervals["accuracy"][0] <= constant["accuracy"]:
        notes.append(f"The accuracy is not clearly above that of answering {names[most_frequent]} every time.")
    return [Figures(model, intervals, {baseline: constant}, notes).table()]


def _not_shown_yet(logged: Mapping[str, float]) -> dict[str, float]:
    """Return the logged metrics without those that the table has under a name of its own."""
    return {name: value for name, value in logged.items() if name.partition("_")[2] not in ("acc", "acc5")}


def _label_classes(results: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Block]:
    """Return the table of classes, the worst first."""
    by_class = class_figures(results["label"], results["prediction"], len(names))
    columns = {"precision": by_class.precision, "recall": by_class.recall, "F1": by_class.f1}
    return [_class_table(names, columns, by_class.support, order_by=by_class.f1, first="with the lowest F1")]


def _class_table(
    names: Sequence[str],
    columns: Mapping[str, np.ndarray],
    support: np.ndarray,
    *,
    order_by: np.ndarray,
    first: str,
) -> Table:
    """Return a table with a row for each class that occurs; a smaller value of ``order_by`` comes first."""
    shown = np.flatnonzero((support > 0) | np.isfinite(order_by))
    order = shown[np.argsort(order_by[shown], kind="stable")]
    note = f"The classes {first} come first; support is the number of samples that have the class."
    absent = len(names) - int((support > 0).sum())
    if absent:
        note += f" {absent} of {len(names)} classes have no sample here."
    if len(order) > _MOST_ROWS:
        note += f" Only the first {_MOST_ROWS:,} of {len(order):,} classes are shown."

    rows = [[names[i], *(number(values[i]) for values in columns.values()), f"{support[i]:,}"] for i in order]
    return Table(["class", *columns, "support"], rows[:_MOST_ROWS], note=note, title="All classes")


def _confusion(results: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Block]:
    """Return the confusion matrix as a picture, and the pairs of classes that are confused most often."""
    label, prediction = results["label"].astype(np.int64), results["prediction"].astype(np.int64)
    blocks: list[Block] = []
    if len(names) <= DRAWN_CLASSES:
        counts = np.bincount(label * len(names) + prediction, minlength=len(names) ** 2)
        figure = confusion_figure(torch.from_numpy(counts.reshape(len(names), len(names))), names)
        blocks.append(figure_picture(figure, "Confusion matrix: true classes in rows, predicted classes in columns"))

    wrong = label != prediction
    pairs, often = np.unique(label[wrong] * len(names) + prediction[wrong], return_counts=True)
    support = np.bincount(label, minlength=len(names))
    rows = []
    for i in np.argsort(-often, kind="stable")[:PAIRS]:
        true, predicted = divmod(int(pairs[i]), len(names))
        rows.append([names[true], names[predicted], f"{often[i]:,}", f"{often[i] / support[true]:.1%}"])
    if rows:
        head = ["true", "predicted", "samples", "of the true class"]
        blocks.append(Table(head, rows, texts=2, note="The most frequent confusions."))
    else:
        blocks.append(Text("No sample was taken for another class."))
    return blocks


def _label_mistakes(results: Mapping[str, np.ndarray], names: Sequence[str], show: Shown) -> list[Block]:
    """Return the wrong answers with the highest probabilities."""
    wrong = np.flatnonzero(results["label"] != results["prediction"])
    worst = wrong[np.argsort(-results["probability"][wrong], kind="stable")][:MISTAKES]
    if not len(worst):
        return [Text("There is no mistake.")]

    cards = []
    for i in worst.tolist():
        name, picture = show(int(results["position"][i]))
        predicted = f"{names[results['prediction'][i]]} {results['probability'][i]:.2f}"
        true = f"true: {names[results['label'][i]]} {results['true_probability'][i]:.2f}"
        cards.append(Card(name, [predicted, true], picture))
    text = f"The {len(worst)} of {len(wrong):,} wrong answers of which the model is surest, with the probabilities of "
    return [Text(text + "the predicted and of the true class. Look here first for wrong labels."), Cards(cards)]


def _label_calibration(results: Mapping[str, np.ndarray]) -> list[Block]:
    """Return the reliability diagram, and the error in words."""
    is_right = results["label"] == results["prediction"]
    return _calibration(results["probability"], is_right, "accuracy", "probability of the predicted class")


def calibration_error(probability_N: np.ndarray, is_right_N: np.ndarray) -> float:
    """Return the expected calibration error: the mean distance between probability and accuracy, over bins."""
    probability = torch.from_numpy(np.ascontiguousarray(probability_N, dtype=np.float32)).clamp(0, 1)
    right = torch.from_numpy(is_right_N.astype(np.int64))
    return float(binary_calibration_error(probability, right, n_bins=BINS, norm="l1"))


def _calibration(probability: np.ndarray, is_right: np.ndarray, outcome: str, answer: str) -> list[Block]:
    error = calibration_error(probability, is_right)
    mean, share = float(probability.mean()), float(is_right.mean())
    if error < 0.02:
        verdict = "probabilities can be taken at their word"
    elif abs(mean - share) < error / 2:
        verdict = "probabilities are right on average, and not in each bin"
    elif mean > share:
        verdict = "the model is surer than it is right"
    else:
        verdict = "the model is right more often than it is sure"
    text = (
        f"Expected calibration error {error:.3f} in {BINS} bins: {verdict} (mean probability {mean:.3f}, {outcome} "
        f"{share:.3f})."
    )
    figure = reliability_figure(probability, is_right, outcome, answer)
    alt = f"Reliability diagram: {outcome} by {answer}, and the number of answers"
    return [Text(text), figure_picture(figure, alt)]


def reliability_figure(probability_N: np.ndarray, is_right_N: np.ndarray, outcome: str, answer: str) -> Figure:
    """Draw a reliability diagram: how often answers of each probability are right, and how many there are.

    Args:
        probability_N: probabilities of answers.
        is_right_N: whether each answer is right.
        outcome: name of the share of answers that are right.
        answer: what the probabilities belong to.
    """
    bins = np.clip((probability_N * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(bins, weights=probability_N, minlength=BINS) / counts
        right = np.bincount(bins, weights=is_right_N.astype(float), minlength=BINS) / counts
    edges = np.arange(BINS) / BINS

    figure = new_figure(8, 3.4)
    left, middle = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.5", lw=1, ls="--", label="perfectly calibrated")
    left.bar(edges, np.nan_to_num(right), width=1 / BINS, align="edge", color="tab:blue", alpha=0.25, ec="white")
    left.plot(sure[counts > 0], right[counts > 0], color="tab:blue", marker="o", ms=4, label="measured")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel=answer, ylabel=outcome)
    left.legend(fontsize=8, loc="upper left")

    middle.bar(edges, counts, width=1 / BINS, align="edge", color="0.6", ec="white")
    middle.set(xlim=(0, 1), xlabel=answer, ylabel="number of answers")
    for axes in (left, middle):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


# Any number of labels for each sample


def several_results(probability_NK: Tensor, target_NK: Tensor) -> dict[str, Tensor]:
    """Return what a report needs of samples with any number of labels.

    Args:
        probability_NK: predicted probabilities, one for each class.
        target_NK: labels of 0 and 1.

    Returns:
        Columns (N, K): ``probabilities`` float32 and ``labels`` bool, from which average precision is computed, as
        torchmetrics keeps them too.
    """
    return {"probabilities": probability_NK.float(), "labels": target_NK > 0.5}


def several_sections(
    results: Mapping[str, np.ndarray], class_names: Sequence[str], logged: Mapping[str, float], show: Shown
) -> list[Section]:
    """Return the sections of a classifier whose samples have any number of labels.

    Args:
        results: columns of :func:`several_results`, with the ``position`` of each sample.
        class_names: K names.
        logged: metrics that were logged for the split, by name.
        show: names and shows a sample.
    """
    names = list(class_names)
    return [
        Section("Results", partial(_several_figures, results, names, dict(logged))),
        Section("Classes", partial(_several_classes, results, names)),
        Section("Worst mistakes", partial(_several_mistakes, results, names, show)),
        Section("Calibration", partial(_several_calibration, results)),
    ]


def average_precisions(probability_NK: np.ndarray, label_NK: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from how often each sample was drawn, (N,), to the average precision of each class, (K,).

    Samples of the same probability are one step of the curve, as in torchmetrics. A class without a label has NaN.
    """
    order = np.argsort(-probability_NK, axis=0, kind="stable")
    sorted_NK = np.take_along_axis(probability_NK, order, axis=0)
    labels_NK = np.take_along_axis(label_NK, order, axis=0)
    is_end_NK = np.vstack([sorted_NK[1:] != sorted_NK[:-1], np.ones((1, sorted_NK.shape[1]), dtype=bool)])

    def compute(drawn_N: np.ndarray) -> np.ndarray:
        weights_NK = drawn_N[order].astype(np.float64)
        hits_NK = np.cumsum(weights_NK * labels_NK, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision_NK = np.nan_to_num(hits_NK / np.cumsum(weights_NK, axis=0))
            recall_NK = hits_NK / hits_NK[-1]

        result = np.empty(recall_NK.shape[1])
        for k in range(recall_NK.shape[1]):
            ends = is_end_NK[:, k]
            steps = np.diff(recall_NK[ends, k], prepend=0.0)
            result[k] = (steps * precision_NK[ends, k]).sum()
        return result

    return compute


def _several_figures(
    results: Mapping[str, np.ndarray], names: Sequence[str], logged: Mapping[str, float]
) -> list[Block]:
    """Return the table of figures beside those of guessing."""
    probabilities, labels = results["probabilities"], results["labels"]
    count = len(labels)
    precision = average_precisions(probabilities, labels)

    def mean_precision(drawn: np.ndarray) -> float:
        precisions = precision(np.bincount(drawn, minlength=count))
        return float(precisions[np.isfinite(precisions)].mean()) if np.isfinite(precisions).any() else math.nan

    figures = {"mean average precision": mean_precision(np.arange(count))}

    resamples = min(RESAMPLES, 100_000_000 // labels.size)
    intervals = {}
    if resamples >= 100:
        (ends,) = bootstrap_intervals(count, mean_precision, resamples=resamples).tolist()
        intervals = {"mean average precision": tuple(ends)}

    share = labels.mean(axis=0)
    guessing = {"mean average precision": float(share[share > 0].mean())} if share.any() else {}
    figures["calibration error"] = calibration_error(probabilities.ravel(), labels.ravel())
    figures |= {name: value for name, value in logged.items() if name.partition("_")[2] != "mAP"}
    note = f"{count:,} samples with {labels.sum() / max(count, 1):.2f} labels on average."
    if intervals:
        note += f" The interval comes from {resamples:,} draws of these samples with replacement."
    return [Figures(figures, intervals, {"guessing": guessing}, [note]).table()]


def _several_classes(results: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Block]:
    """Return the table of classes, the worst first."""
    probabilities, labels = results["probabilities"], results["labels"]
    predicted = probabilities > 0.5
    support = labels.sum(axis=0)
    by_class = _class_figures((predicted & labels).sum(axis=0), predicted.sum(axis=0), support)
    precision = average_precisions(probabilities, labels)(np.ones(len(labels)))
    columns = {
        "average precision": precision,
        "precision": by_class.precision,
        "recall": by_class.recall,
        "F1": by_class.f1,
    }
    table = _class_table(names, columns, support, order_by=precision, first="with the lowest average precision")
    return [table, Text("Precision, recall and F1 count probabilities above 0.5 as answers.")]


def _several_mistakes(results: Mapping[str, np.ndarray], names: Sequence[str], show: Shown) -> list[Block]:
    """Return the samples whose worst answer is farthest from the truth."""
    probabilities, labels = results["probabilities"], results["labels"]
    distance = np.abs(probabilities - labels)
    farthest = distance.argmax(axis=1)
    size = distance[np.arange(len(distance)), farthest]
    worst = np.argsort(-size, kind="stable")[:MISTAKES]
    worst = worst[size[worst] > 0.5]
    if not len(worst):
        return [Text("There is no mistake: all probabilities are on the right side of 0.5.")]

    cards = []
    for i in worst.tolist():
        name, picture = show(int(results["position"][i]))
        k = int(farthest[i])
        kind = "missed" if labels[i, k] else "not there"
        true = [names[j] for j in np.flatnonzero(labels[i])[:5]]
        lines = [f"{kind}: {names[k]} {probabilities[i, k]:.2f}", f"true: {', '.join(true) or 'none'}"]
        cards.append(Card(name, lines, picture))
    return [Text("The samples with the label that is farthest from its probability."), Cards(cards)]


def _several_calibration(results: Mapping[str, np.ndarray]) -> list[Block]:
    """Return the reliability diagram over all pairs of a sample and a class."""
    probability, label = results["probabilities"].ravel(), results["labels"].ravel()
    return _calibration(probability, label, "share of true labels", "probability of a label")
