"""Training on a few samples: rates of fine-tuning, a frozen backbone, another backbone, and runs that do not learn."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from training.small_runs import command, runs, saved, write_config, write_photos

from core.cli import main
from core.errors import InputError
from core.training.watch import LearningWatch
from vision import ImageClassifier

TINY = "test_unireplknet"


@pytest.fixture(scope="module")
def weights(trained: dict[str, Path]) -> str:
    """A checkpoint to start from."""
    return str(trained["folder"] / "checkpoints" / "best.ckpt")


@pytest.fixture
def no_rates(photos: Path, tmp_path: Path) -> Path:
    """A configuration that leaves the learning rate to the task."""
    config = write_config(tmp_path / "photos.yaml", photos)
    content = yaml.safe_load(config.read_text())
    del content["model"]["init_args"]["lr"]
    config.write_text(yaml.safe_dump(content))
    return config


# Rates


def test_rates_are_lower_for_a_net_that_starts_from_weights(weights: str) -> None:
    scratch = ImageClassifier(TINY, 3)
    assert (scratch.lr, scratch.layer_decay) == (1e-3, 1.0)
    tuned = ImageClassifier(TINY, 3, weights=weights)
    assert (tuned.lr, tuned.layer_decay) == (2e-4, 0.8)
    given = ImageClassifier(TINY, 3, weights=weights, lr=5e-3, layer_decay=0.5)
    assert (given.lr, given.layer_decay) == (5e-3, 0.5)


def test_resumed_run_keeps_the_rates_it_began_with(no_rates: Path, weights: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("fit", no_rates, out, "--model.weights", weights, "--trainer.max_epochs", "1")
    first = saved(runs(out)[0], "last")
    assert first["hyper_parameters"]["lr"] == 2e-4

    command("fit", no_rates, out, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    resumed = saved(runs(out)[0], "last")
    assert resumed["hyper_parameters"]["lr"] == 2e-4
    assert resumed["hyper_parameters"]["layer_decay"] == 0.8
    assert resumed["epoch"] == 1


# A frozen backbone


def test_frozen_backbone_trains_the_classifier_alone(no_rates: Path, weights: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--model.weights", weights, "--model.freeze", "backbone", "--model.lr", "0.05")
    command("fit", no_rates, out, *words, "--trainer.max_epochs", "2")

    before = torch.load(weights, weights_only=True)["state_dict"]
    after = saved(runs(out)[0], "last")["state_dict"]
    changed = {name for name, tensor in after.items() if name in before and not torch.equal(tensor, before[name])}
    assert {name for name in changed if name.startswith("backbone.")} == {"backbone.head.weight", "backbone.head.bias"}


def test_freezing_random_weights_is_refused(no_rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", str(no_rates), "--model.freeze", "backbone"])
    assert "--model.freeze backbone keeps random weights as they are; add --model.pretrained" in str(stopped.value.code)


# Another backbone


def test_peer_trains_with_the_same_configuration(no_rates: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("fit", no_rates, out, "--model.backbone", "resnet10t", "--trainer.max_epochs", "1")
    assert yaml.safe_load((runs(out)[0] / "config.yaml").read_text())["model"]["init_args"]["backbone_args"] is None
    assert "backbone.fc.weight" in saved(runs(out)[0], "last")["state_dict"]


# Runs that do not learn


def _warnings(config: Path, out: Path, *words: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        command("fit", config, out, *words)
    return [str(w.message) for w in caught if "may not learn" in str(w.message)]


def test_few_steps_are_said_and_many_are_not(no_rates: Path, weights: str, tmp_path: Path) -> None:
    [warning] = _warnings(no_rates, tmp_path / "few", "--trainer.max_epochs", "2")
    assert "the run has 6 optimizer steps" in warning
    assert "raise --data.min_epoch_steps" in warning

    enough = ("--data.min_epoch_steps", "200", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
    assert _warnings(no_rates, tmp_path / "many", *enough) == []
    assert _warnings(no_rates, tmp_path / "tuned", "--model.weights", weights, "--trainer.max_epochs", "1") == []


def _watched(losses: list[float], counts: list[list[int]] | None) -> str | None:
    """What the watch says of a run with these training losses and this last confusion matrix."""
    task = ImageClassifier(TINY, 3)
    task.confusion.latest = None if counts is None else torch.tensor(counts)
    watch = LearningWatch()
    watch.losses = losses
    return watch._reason(task)


def test_loss_that_does_not_fall_is_said() -> None:
    said = _watched([1.10, 1.09], [[2, 2, 1], [2, 1, 2], [1, 2, 2]])
    assert said is not None
    assert "the training loss has hardly fallen (1.1 in the first epoch, now 1.09)" in said
    assert "--model.lr 0.0002 or 0.005" in said
    assert _watched([1.10, 0.9], None) is None
    assert _watched([1.10, 1.09], None) is not None


def test_wider_initial_weights_are_the_advice_for_a_unireplknet_that_begins_with_the_published_ones() -> None:
    small = {"depths": (1, 1), "dims": (8, 16), "kernel_sizes": (3, 7)}
    for backbone, backbone_args, is_advised in (
        ("unireplknet_a", small, True),
        ("unireplknet_a", small | {"weight_init": "kaiming"}, False),
        ("resnet10t", None, False),
    ):
        watch = LearningWatch()
        watch.losses = [1.10, 1.09]
        said = watch._reason(ImageClassifier(backbone, 3, backbone_args=backbone_args))
        assert said is not None
        assert ("--model.backbone_args.weight_init kaiming" in said) == is_advised


def test_one_class_for_everything_is_said() -> None:
    said = _watched([1.1, 0.5], [[0, 10, 0], [0, 10, 0], [0, 10, 0]])
    assert said is not None
    assert "nearly all validation samples are taken for '1'" in said


def test_accuracy_at_chance_is_said() -> None:
    said = _watched([1.1, 0.5], [[4, 3, 3], [3, 3, 4], [3, 4, 3]])
    assert said is not None
    assert "the validation accuracy of 0.33 is that of chance" in said
    assert "learns the training samples by heart" in said


def test_learning_is_not_warned_of() -> None:
    for losses in ([1.1, 0.5], [0.1, 0.1]):  # one that began with weights of the same data falls no further
        assert _watched(losses, [[8, 1, 1], [1, 8, 1], [1, 1, 8]]) is None


def test_too_high_a_rate_is_said_while_it_runs(photos: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", write_photos(tmp_path / "photos", train=6, val=3))
    said = _warnings(
        config, tmp_path / "out", "--model.lr", "1e-9", "--model.min_lr", "0", "--trainer.max_epochs", "3",
        "--data.min_epoch_steps", "70", "--trainer.limit_val_batches", "1",
    )  # fmt: skip
    assert len(said) == 1
    assert "the training loss has hardly fallen" in said[0]


def test_frozen_without_weights_in_python_is_up_to_the_user() -> None:
    task = ImageClassifier(TINY, 3, freeze="backbone")
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert trained == {"backbone.head.weight", "backbone.head.bias"}
    task.train()
    assert not task.backbone.training


def test_unknown_part_to_freeze() -> None:
    with pytest.raises(InputError, match="freeze='stem'; expected 'backbone'"):
        ImageClassifier(TINY, 3, freeze="stem")  # type: ignore[arg-type]
