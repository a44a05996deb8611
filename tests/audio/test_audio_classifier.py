"""The audio classifier by itself: losses, metrics, predictions and pictures by their formulas, and what it refuses."""

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

from audio import AudioClassifier
from audio.task import MeanArea, MeanAveragePrecision, SensitivityIndex
from core.errors import InputError
from core.training import DataModule

QUIET: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False},
}
HARD, SOFT = torch.tensor([0, 2, 1, 2]), torch.tensor([[0.7, 0.0, 0.3], [0, 1, 0], [0.5, 0.5, 0], [0, 0.25, 0.75]])


def _plain(num_classes: int = 3, **kwargs: Any) -> AudioClassifier:
    """A classifier whose maps (B, 1, 1, num_classes) are the logits already."""
    return AudioClassifier(nn.Flatten(), num_classes, **kwargs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("y", [HARD, SOFT], ids=["hard", "soft"])
def test_bce_is_a_mean_over_batch_and_classes(y: Tensor, smoothing: float) -> None:
    logits = torch.randn(4, 3)
    target = (torch.eye(3)[y] if y.ndim == 1 else y) * (1 - smoothing) + smoothing / 3
    p = 1 / (1 + torch.exp(-logits))
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum() / 12
    assert_close(_plain().loss(logits, y, smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("y", [HARD, SOFT], ids=["hard", "soft"])
def test_ce_is_a_mean_over_the_batch(y: Tensor, smoothing: float) -> None:
    logits = torch.randn(4, 3)
    target = (torch.eye(3)[y] if y.ndim == 1 else y) * (1 - smoothing) + smoothing / 3
    logarithms = logits - logits.exp().sum(dim=1, keepdim=True).log()
    expected = -(target * logarithms).sum() / 4
    assert_close(_plain(criterion="ce").loss(logits, y, smoothing=smoothing), expected)


def test_only_training_smooths(monkeypatch: pytest.MonkeyPatch) -> None:
    used, loss = set[tuple[bool, float]](), AudioClassifier.loss

    def noted(self: AudioClassifier, logits: Tensor, y: Tensor, *, smoothing: float = 0.0) -> Tensor:
        used.add((self.training, smoothing))
        return loss(self, logits, y, smoothing=smoothing)

    monkeypatch.setattr(AudioClassifier, "loss", noted)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    Trainer(**QUIET, max_epochs=1).fit(AudioClassifier(net, 3, label_smoothing=0.2), _data(torch.randn(4, 3), HARD))
    assert used == {(True, 0.2), (False, 0.0)}
    assert _plain().label_smoothing == 0.0


def _data(logits: Tensor, y: Tensor, classes: int = 3) -> DataModule:
    data = DataModule(batch_size=3, num_workers=0)
    data.classes = [f"c{i}" for i in range(classes)]
    data.val_set = data.test_set = data.train_set = TensorDataset(logits[:, None, None], y)
    return data


def _scores(labels: Tensor) -> Tensor:
    """Fixed logits (N, K) that know something of the labels (N, K)."""
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
        f"{split}_loss": pytest.approx(float(task.loss(logits, y)), rel=1e-5),
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
    for metric, expected in ((MeanAveragePrecision(2), 0.0), (MeanArea(2), 0.5), (SensitivityIndex(2), 0.0)):
        metric.update(torch.rand(4, 2), none)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics says that there is no positive sample
            assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["test_unireplknet", "test_replknet", "test_resnet", "test_convnext", "test_vit"])
def test_named_backbones_take_one_channel(name: str) -> None:
    task = AudioClassifier(name, 5).eval()
    size = 160 if name == "test_vit" else 64
    assert task(torch.randn(2, 1, size, size)).shape == (2, 5)


def test_module_as_backbone_gets_a_classifier_of_the_right_size() -> None:
    task = AudioClassifier(timm.create_model("test_resnet", in_chans=1, num_classes=7), 4)
    assert task(torch.randn(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "ce", "multi_label": True}, r"criterion='ce', multi_label=True; .*several labels need 'bce'"),
        ({"criterion": "mse"}, r"criterion='mse'.*'bce' or 'ce'"),
        ({"mixup_alpha": 0.2}, r"audio mixes waveforms, not maps: set --data\.mixup"),
        ({"cutmix_alpha": 1.0}, r"set --data\.mixup instead of mixup_alpha or cutmix_alpha"),
        ({"num_classes": 1}, "num_classes=1,.*at least 2"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0"),
        ({"backbone_args": {"in_chans": 3}}, r"takes 3 channels; log-mel maps have 1: build it with in_chans=1"),
        ({"backbone": timm.create_model("test_resnet")}, r"takes 3 channels; log-mel maps have 1"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AudioClassifier(**{"backbone": "test_resnet", "num_classes": 3} | options)


def test_data_with_other_classes() -> None:
    with pytest.raises(InputError, match=r"model has 4 classes and the data 3 \(c0, c1, c2\); .*num_classes 3"):
        Trainer(**QUIET).validate(_plain(4), _data(torch.randn(4, 3), HARD), verbose=False)


def test_prediction_is_the_mean_over_the_windows_of_each_recording() -> None:
    logits = torch.tensor([[2.0, -1, 0], [-3, 1, 0], [0.2, 3, -1], [5, 1, 1], [0, 0, 4]])
    batch = (logits[:, None, None], (["a.wav", "b.wav", "c.wav"], torch.tensor([2, 1, 2])))
    for criterion in ("bce", "ce"):
        p = logits.sigmoid() if criterion == "bce" else logits.softmax(dim=1)
        means = torch.stack([p[:2].mean(dim=0), p[2], p[3:].mean(dim=0)])
        rows = _plain(criterion=criterion).predict_step(batch, 0)  # type: ignore[arg-type]
        assert list(rows) == ["file", "class", "probability"]
        assert rows["file"] == ["a.wav", "b.wav", "c.wav"]
        assert rows["class"] == [str(i) for i in means.argmax(dim=1).tolist()]
        assert rows["probability"] == pytest.approx(means.amax(dim=1).tolist(), abs=1e-6)


def test_prediction_of_several_labels_has_a_column_of_them() -> None:
    task = _plain(multi_label=True)
    task.class_names = ["dog", "cat", "rain"]
    logits = torch.tensor([[2.0, 0.1, -0.1], [-0.1, -2, -3]])  # 0.525 and 0.475 lie about the threshold of 0.5
    rows = task.predict_step((logits[:, None, None], (["a", "b"], torch.tensor([1, 1]))), 0)
    assert rows["class"] == ["dog", "dog"]
    assert rows["labels"] == ["dog;cat", ""]


def test_pictures_are_scaled_for_each_map_with_low_frequencies_at_the_bottom() -> None:
    x = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]], [[[-3.0, -3.0], [-3.0, -3.0]]]])
    expected = torch.tensor([[[[0.5, 1.0], [0.0, 0.25]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert_close(_plain().to_pictures(x), expected)


def test_examples_show_the_probabilities_of_predictions() -> None:
    task, logits = _plain(), torch.tensor([[2.0, 1.0, -1.0], [0.5, -1.0, 3.0]])
    rows = task.predict_step((logits[:, None, None], (["a", "b"], torch.tensor([1, 1]))), 0)
    task._keep_examples(logits, (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2])), [1])
    shown = {title for _, title, _ in task.examples.kept}
    assert shown == {f"{c} {p:.2f}" for c, p in zip(rows["class"], rows["probability"], strict=True)}


@pytest.mark.parametrize("multi_label", [True, False])
def test_examples_whose_first_class_is_wrong_are_marked(multi_label: bool) -> None:
    task, logits = _plain(multi_label=multi_label), torch.tensor([[2.0, 1.0, -1.0], [0.5, -1.0, 3.0]])
    y = torch.tensor([[1.0, 0, 1], [1, 1, 0]]) if multi_label else torch.tensor([0, 1])
    task._keep_examples(logits, (torch.zeros(2, 1, 4, 4), y), [1])
    assert {title.split()[0]: wrong for _, title, wrong in task.examples.kept} == {"0": False, "2": True}
