"""The audio classifier: losses, metrics, predictions and pictures by their formulas, and arguments that do not fit."""

import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning import Trainer
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from audio import AudioClassifier, AudioSpec, LogMel
from core.data.module import DataModule
from core.errors import InputError
from core.training.tagging import MeanAUC, MeanAveragePrecision, SensitivityIndex

QUIET: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False},
}
HARD, SOFT = torch.tensor([0, 2, 1, 2]), torch.tensor([[0.7, 0.0, 0.3], [0, 1, 0], [0.5, 0.5, 0], [0, 0.25, 0.75]])


class _Given(LogMel):
    """A feature map that returns the raw batch as maps."""

    def forward(self, x: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        return x


class _Flat(nn.Module):
    """A backbone that returns the maps as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.weight


class _Logits(AudioClassifier):
    """A classifier whose raw batches (B, 1, 1, num_classes) are already the logits."""

    def build_feature_map(self, spec: AudioSpec) -> LogMel:
        return _Given()


class _Data(DataModule):
    """A data module whose raw batches are logits."""

    def __init__(self, logits: Tensor, y: Tensor, spec: AudioSpec) -> None:
        super().__init__(batch_size=3, num_workers=0)
        self.own = spec
        self.val_set = self.test_set = self.train_set = TensorDataset(logits[:, None, None], y)

    def spec(self) -> AudioSpec:
        return self.own


def _spec(classes: int = 3, *, multi_label: bool = False) -> AudioSpec:
    return AudioSpec(classes=tuple(f"c{i}" for i in range(classes)), mean=0.0, std=1.0, multi_label=multi_label)


def _plain(classes: int = 3, *, multi_label: bool = False, **kwargs: Any) -> AudioClassifier:
    """Return a classifier whose raw batches (B, 1, 1, num_classes) are already the logits."""
    return _Logits(_Flat(), spec=_spec(classes, multi_label=multi_label), **kwargs)


def _data(logits: Tensor, y: Tensor, classes: int = 3) -> DataModule:
    return _Data(logits, y, _spec(classes, multi_label=y.ndim == 2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("y", [HARD, SOFT], ids=["hard", "soft"])
def test_bce_is_a_mean_over_batch_and_classes(y: Tensor, smoothing: float) -> None:
    logits = torch.randn(4, 3)
    target = (torch.eye(3)[y] if y.ndim == 1 else y) * (1 - smoothing) + smoothing / 3
    task = _plain(label_smoothing=smoothing)
    p = 1 / (1 + torch.exp(-logits))
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum() / 12
    assert_close(task.loss(logits, y), expected)
    assert_close(task.evaluation_loss(logits, y), _plain().loss(logits, y))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("y", [HARD, SOFT], ids=["hard", "soft"])
def test_ce_is_a_mean_over_the_batch(y: Tensor, smoothing: float) -> None:
    logits = torch.randn(4, 3)
    target = (torch.eye(3)[y] if y.ndim == 1 else y) * (1 - smoothing) + smoothing / 3
    logarithms = logits - logits.exp().sum(dim=1, keepdim=True).log()
    expected = -(target * logarithms).sum() / 4
    task = _plain(criterion="ce", label_smoothing=smoothing)
    assert_close(task.loss(logits, y), expected)
    assert_close(task.evaluation_loss(logits, y), _plain(criterion="ce").loss(logits, y))


def test_only_training_smooths(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set[tuple[str, bool]]()
    for name in ("loss", "evaluation_loss"):
        original = getattr(AudioClassifier, name)

        def noted(self: Any, output: Tensor, target: Tensor, *, name: str = name, original: Any = original) -> Tensor:
            used.add((name, self.training))
            return original(self, output, target)

        monkeypatch.setattr(AudioClassifier, name, noted)
    net = nn.Sequential(_Flat(), nn.Linear(3, 3))
    off = {"mixup": 0.0, "frequency_mask": 0, "time_mask": 0, "noise": 0.0, "roll": 0}
    task = _Soft(net, spec=_spec(), label_smoothing=0.2, **off)
    Trainer(**QUIET, max_epochs=1).fit(task, _data(torch.randn(4, 3), HARD))
    assert used == {("loss", True), ("evaluation_loss", False)}
    assert _plain().label_smoothing == 0.0


class _Soft(_Logits):
    """A classifier that does not mix, since its batches are not waveforms."""

    def augment_batch(self, raw: Any, target: Tensor) -> Any:
        return raw, target


def _scores(labels: Tensor) -> Tensor:
    """Return fixed logits (N, K) that are better than chance for labels (N, K)."""
    generator = torch.Generator().manual_seed(1)
    return 1.5 * labels + torch.randn(labels.shape, generator=generator)


def _expected(labels: Tensor, probabilities: Tensor, split: str) -> dict[str, float]:
    truth, scores = labels.numpy().astype(int), probabilities.double().numpy()
    area = float(np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]))
    precision = float(np.mean([average_precision_score(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]))
    return {f"{split}_auc": area, f"{split}_mAP": precision, f"{split}_dprime": 2**0.5 * float(norm.ppf(area))}


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("criterion", ["bce", "ce"])
def test_metrics_of_one_label(criterion: Any, split: str) -> None:
    y = torch.arange(50) % 4
    logits = _scores(torch.eye(4)[y])
    probabilities = logits.sigmoid() if criterion == "bce" else logits.softmax(dim=1)
    trainer, task = Trainer(**QUIET), _plain(4, criterion=criterion)
    run = trainer.validate if split == "val" else trainer.test
    (found,) = run(task, _data(logits, y, 4), verbose=False)
    expected = _expected(torch.eye(4)[y], probabilities, split)
    assert found == {
        **{name: pytest.approx(value, abs=1e-5) for name, value in expected.items()},
        f"{split}_acc": pytest.approx(float((logits.argmax(dim=1) == y).float().mean())),
        f"{split}_loss": pytest.approx(float(task.evaluation_loss(logits, y)), rel=1e-5),
    }
    assert 0.5 < expected[f"{split}_auc"] < 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_of_several_labels(split: str) -> None:
    labels = (torch.rand(40, 3) > 0.6).float()
    logits, trainer, task = _scores(labels), Trainer(**QUIET), _plain(multi_label=True)
    run = trainer.validate if split == "val" else trainer.test
    (found,) = run(task, _data(logits, labels), verbose=False)
    expected = _expected(labels, logits.sigmoid(), split)
    loss = F.binary_cross_entropy_with_logits(logits, labels)
    assert found == {
        **{name: pytest.approx(value, abs=1e-5) for name, value in expected.items()},
        f"{split}_loss": pytest.approx(float(loss), rel=1e-5),
    }


def test_class_without_recordings_in_a_split_is_left_out_of_the_means() -> None:
    labels = (torch.rand(40, 3) > 0.6).float()
    labels[:, 2] = 0
    logits = _scores(labels)
    (found,) = Trainer(**QUIET).validate(_plain(multi_label=True), _data(logits, labels), verbose=False)
    expected = _expected(labels[:, :2], logits[:, :2].sigmoid(), "val")
    assert found == pytest.approx(found | expected, abs=1e-5)


def test_class_of_every_recording_has_a_precision_and_no_area() -> None:
    labels = (torch.rand(40, 3) > 0.6).float()
    labels[:, 2] = 1
    logits = _scores(labels)
    (found,) = Trainer(**QUIET).validate(_plain(multi_label=True), _data(logits, labels), verbose=False)
    expected = _expected(labels[:, :2], logits[:, :2].sigmoid(), "val")
    assert found["val_auc"] == pytest.approx(expected["val_auc"], abs=1e-5)
    assert found["val_mAP"] == pytest.approx((2 * expected["val_mAP"] + 1) / 3, abs=1e-5)


def test_sensitivity_of_guessing_and_of_perfect_tagging_is_finite() -> None:
    metric = SensitivityIndex(2)
    labels = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]])
    metric.update(labels.float(), labels)
    assert float(metric.compute()) == pytest.approx(2**0.5 * norm.ppf(1 - 1e-7), rel=1e-4)
    metric.reset()
    metric.update(torch.full((4, 2), 0.5), labels)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-6)


def test_split_without_any_label_counts_as_guessing() -> None:
    none = torch.zeros(4, 2, dtype=torch.int64)
    for metric, expected in ((MeanAveragePrecision(2), 0.0), (MeanAUC(2), 0.5), (SensitivityIndex(2), 0.0)):
        metric.update(torch.rand(4, 2), none)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics says that there is no positive sample
            assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["test_unireplknet", "test_replknet", "test_resnet", "test_convnext", "test_vit"])
def test_named_backbones_take_one_channel(name: str) -> None:
    size = 160 if name == "test_vit" else 64
    task = AudioClassifier(name, spec=AudioSpec(classes=tuple("abcde"), num_mels=size, target_length=size)).eval()
    assert task(torch.randn(2, 16_000)).shape == (2, 5)
    assert task.read(torch.randn(2, 1, size, size)).shape == (2, 5)


def test_module_as_backbone_gets_a_classifier_of_the_right_size() -> None:
    task = AudioClassifier(timm.create_model("test_resnet", in_chans=1, num_classes=7), 4)
    assert task(torch.randn(2, 16_000)).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "ce", "spec": _spec(multi_label=True)}, r"several labels \(multi_label\).*'bce', not 'ce'"),
        ({"mixup_alpha": 0.2}, r"audio mixes waveforms, not maps; set --model\.mixup"),
        ({"cutmix_alpha": 1.0}, r"set --model\.mixup instead of mixup_alpha or cutmix_alpha"),
        ({"num_classes": 1}, "num_classes=1; expected a number from 2 to"),
        ({"num_classes": None}, r"nothing says how many classes there are; give num_classes, or spec=data\.spec\(\)"),
        ({"num_classes": 4, "spec": _spec()}, "model has 4 classes and the data 3"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0"),
        ({"backbone_args": {"in_chans": 3}, "spec": _spec()}, r"takes 3 channels and the maps have 1"),
        ({"backbone": timm.create_model("test_resnet"), "spec": _spec()}, r"takes 3 channels and the maps have 1"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AudioClassifier(**{"backbone": "test_resnet", "num_classes": 3} | options)


def test_data_with_other_classes() -> None:
    with pytest.raises(InputError, match=r"model has 4 classes and the data 3 \(c0, c1, c2\); .*num_classes"):
        Trainer(**QUIET).validate(_plain(4), _data(torch.randn(4, 3), HARD), verbose=False)


def test_several_labels_of_the_data_need_bce() -> None:
    task = _Logits(_Flat(), 3, criterion="ce")
    with pytest.raises(InputError, match=r"several labels \(multi_label\), which needs criterion='bce'"):
        Trainer(**QUIET).validate(task, _data(torch.randn(4, 3), torch.ones(4, 3)), verbose=False)


def test_metric_that_chooses_the_checkpoint() -> None:
    assert AudioClassifier.chosen_by({}) == ("val_acc", "max")
    assert AudioClassifier.chosen_by({"multi_label": False}) == ("val_acc", "max")
    assert AudioClassifier.chosen_by({"multi_label": True}) == ("val_mAP", "max")


@pytest.mark.parametrize("criterion", ["bce", "ce"])
def test_rows_name_the_most_probable_class(criterion: Any) -> None:
    logits = torch.tensor([[2.0, -1, 0], [-3, 1, 0], [0.2, 3, -1]])
    p = logits.sigmoid() / logits.sigmoid().sum(dim=1, keepdim=True) if criterion == "bce" else logits.softmax(dim=1)
    rows = _plain(criterion=criterion).rows(logits, ["a.wav", "b.wav", "c.wav"])
    top = ["class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert list(rows) == ["file", *top]
    assert rows["file"] == ["a.wav", "b.wav", "c.wav"]
    assert rows["class"] == ["c0", "c1", "c1"]
    assert rows["probability"] == pytest.approx(p.amax(dim=1).tolist(), abs=1e-6)


def test_prediction_of_several_labels_has_a_column_of_them() -> None:
    spec = AudioSpec(classes=("dog", "cat", "rain"), multi_label=True)
    logits = torch.tensor([[2.0, 0.1, -0.1], [-0.1, -2, -3]])  # 0.525 and 0.475 lie about the threshold of 0.5
    rows = _Logits(_Flat(), spec=spec).rows(logits, ["a", "b"])
    assert rows["class"] == ["dog", "dog"]
    assert rows["labels"] == ["dog;cat", ""]


def test_pictures_are_scaled_for_each_map_with_low_frequencies_at_the_bottom() -> None:
    x = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]], [[[-3.0, -3.0], [-3.0, -3.0]]]])
    expected = torch.tensor([[[[0.5, 1.0], [0.0, 0.25]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert_close(_plain().show(x), expected)


def test_pictures_of_waveforms_are_those_of_their_first_windows() -> None:
    task = AudioClassifier("test_unireplknet", spec=_spec()).eval()
    waves = [torch.randn(2_000), torch.randn(50_000)]
    pictures = task.show(waves)
    assert pictures.shape == (2, 1, 128, 128)
    assert_close(pictures[1:], task.show((waves[1][None], torch.tensor([50_000]))), rtol=0, atol=1e-4)
    assert float(pictures.min()) == 0
    assert float(pictures.max()) == 1


def _kept(task: AudioClassifier, split: Any, logits: Tensor, target: Any) -> dict[str, bool]:
    """Return the titles of the examples of two samples, and whether they are marked as wrong."""
    task.batch_count = lambda split: 1  # type: ignore[method-assign]
    task.keep_examples(split, torch.zeros(2, 1, 4, 4), logits, target)
    return {title: wrong for _, title, wrong in task.examples.kept}


def test_examples_show_the_probabilities_of_predictions() -> None:
    task, logits = _plain(), torch.tensor([[2.0, 1.0, -1.0], [0.5, -1.0, 3.0]])
    rows = task.rows(logits, ["a", "b"])
    titles = {f"{c} {p:.2f}" for c, p in zip(rows["class"], rows["probability"], strict=True)}
    assert set(_kept(task, "val", logits, torch.tensor([0, 2]))) == titles
    assert set(_kept(_plain(), "predict", logits, ["a", "b"])) == titles


@pytest.mark.parametrize("multi_label", [True, False])
def test_examples_whose_first_class_is_wrong_are_marked(multi_label: bool) -> None:
    task, logits = _plain(multi_label=multi_label), torch.tensor([[2.0, 1.0, -1.0], [0.5, -1.0, 3.0]])
    y = torch.tensor([[1.0, 0, 1], [1, 1, 0]]) if multi_label else torch.tensor([0, 1])
    kept = _kept(task, "val", logits, y)
    assert {title.split()[0]: wrong for title, wrong in kept.items()} == {"c0": False, "c2": True}
    assert any("(c1)" in title for title in kept) == (not multi_label)
