"""A run that was interrupted and resumed ends as one that was not, in one run folder."""

from pathlib import Path

import pytest
from torch.testing import assert_close
from training.small_runs import (
    Interrupt,
    command,
    interrupted_and_resumed,
    metric,
    runs,
    saved,
    table,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_pictures")

RANDOM = [
    *["--model.backbone_args", "{layer_scale_init_value: 0.5, drop_path_rate: 0.3, drop_rate: 0.1}"],
    *["--model.mixup_alpha", "0.4", "--model.cutmix_alpha", "1.0", "--model.warmup_epochs", "1"],
    *["--data.scale", "[0.3,1.0]", "--data.auto_augment", "null", "--model.erasing", "0.5"],
    *["--trainer.max_epochs", "3"],
    *["--trainer.callbacks+", "core.training.EMA", "--trainer.callbacks.decay", "0.9"],
    *["--trainer.callbacks.start_step", "2"],
]
"""Everything that draws random numbers, and an average that starts in the first epoch."""


def _resumed(config: Path, out: Path, stop: Interrupt, *words: str) -> Path:
    interrupted_and_resumed(config, out, stop, *words)
    (run,) = runs(out)
    return run


def _same(run: Path, expected: Path) -> None:
    got, wanted = saved(run), saved(expected)
    assert set(got) == set(wanted)
    for part in ("epoch", "global_step", "lr_schedulers", "averaging_state", "state_dict", "current_model_state"):
        assert_close(got[part], wanted[part], rtol=0, atol=0)
    assert_close(got["optimizer_states"], wanted["optimizer_states"], rtol=0, atol=0)
    assert got["epoch"] == 2
    assert got["global_step"] == 9
    assert_close(got["callbacks"]["LearningCurves"], wanted["callbacks"]["LearningCurves"], rtol=0, atol=0)
    for name in ("best", "last"):
        assert_close(saved(run, name)["state_dict"], saved(expected, name)["state_dict"], rtol=0, atol=0)


@pytest.fixture(scope="module")
def straight(photos: Path, no_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    command("fit", write_config(out / "photos.yaml", photos), out, *RANDOM)
    return runs(out)[0]


@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_run_equals_an_uninterrupted_one(epoch: int, photos: Path, straight: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", photos)
    run = _resumed(config, tmp_path, Interrupt(epoch), *RANDOM)
    _same(run, straight)
    assert table(run / "metrics.csv") == table(straight / "metrics.csv")


def test_interrupted_within_an_epoch(photos: Path, straight: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", photos)
    run = _resumed(config, tmp_path, Interrupt(1, after_a_batch=True), *RANDOM)
    _same(run, straight)
    for name in ("train_loss", "val_loss"):
        assert metric(run, name) == metric(straight, name)


def test_with_data_loading_processes(photos: Path, tmp_path: Path) -> None:
    words = [*RANDOM, "--data.num_workers", "2", "--trainer.limit_val_batches", "1"]
    config = write_config(tmp_path / "photos.yaml", photos)
    command("fit", config, tmp_path / "straight", *words)
    run = _resumed(config, tmp_path / "resumed", Interrupt(1), *words)
    _same(run, runs(tmp_path / "straight")[0])


@pytest.mark.parametrize(
    "words",
    [
        "--model.plateau_patience 0 --model.norm_eval true --model.lr 1e-8 --model.min_lr 0",
        "--model.layer_decay 0.5 --trainer.accumulate_grad_batches 2 --trainer.callbacks+ core.training.EMA",
    ],
)
def test_resumed_run_with_other_options(words: str, photos: Path, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "3", *words.split()]
    config = write_config(tmp_path / "photos.yaml", photos)
    command("fit", config, tmp_path / "straight", *options)
    got = saved(_resumed(config, tmp_path / "resumed", Interrupt(2), *options))
    expected = saved(runs(tmp_path / "straight")[0])
    assert got["lr_schedulers"] == expected["lr_schedulers"]
    for part in ("epoch", "global_step", "optimizer_states", "state_dict"):
        assert_close(got[part], expected[part], rtol=0, atol=0)


def test_the_randomness_is_on(photos: Path, straight: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", photos)
    command("fit", config, tmp_path, *RANDOM, "--seed_everything", "1", "--trainer.limit_val_batches", "0")
    assert metric(runs(tmp_path)[0], "train_loss") != metric(straight, "train_loss")


def test_last_checkpoint_is_of_the_last_epoch_also_when_it_was_not_the_best(trained: dict[str, Path]) -> None:
    accuracy = metric(trained["folder"], "val_acc")
    assert len(accuracy) == 6
    assert accuracy[-1] <= max(accuracy[:-1])
    assert saved(trained["folder"], "last")["epoch"] == 5
    assert saved(trained["folder"], "best")["epoch"] == accuracy.index(max(accuracy))


def test_finished_run_goes_on_with_more_epochs(photos: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", photos, auto_augment=None)
    command("fit", config, tmp_path)
    before = table(runs(tmp_path)[0] / "metrics.csv")
    command("fit", config, tmp_path, "--ckpt_path", "last", "--trainer.max_epochs", "3")
    (run,) = runs(tmp_path)
    rows = table(run / "metrics.csv")
    assert [{key: row[key] for key in before[0]} for row in rows[: len(before)]] == before
    assert len(metric(run, "val_acc")) == 3
    assert len(saved(run)["callbacks"]["LearningCurves"]["history"]["val_acc"]) == 3
    assert saved(run)["epoch"] == 2


@pytest.mark.parametrize("key", ["lr", "opt"])
def test_resuming_otherwise_than_trained_refuses(
    key: str, trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    value, stored = {"lr": ("0.5", "0.02"), "opt": ("sgd", "adamw")}[key]
    words = ["--ckpt_path", "last", "--trainer.max_epochs", "7", f"--model.{key}", value]
    with pytest.raises(SystemExit) as stopped:
        command("fit", trained["config"], trained["out"], *words)
    message = str(stopped.value)
    assert f"{key} is" in message
    assert value in message
    assert stored in message
    assert "--model.weights" in message
    assert "Traceback" not in message + capsys.readouterr().err
    assert len(runs(trained["out"])) == 1


def test_resuming_from_another_folder_starts_a_run_of_its_own(trained: dict[str, Path], tmp_path: Path) -> None:
    last = str(trained["folder"] / "checkpoints" / "last.ckpt")
    before = sorted(p.name for p in trained["folder"].iterdir())
    command("fit", trained["config"], tmp_path, "--ckpt_path", last, "--trainer.max_epochs", "7")
    assert len(metric(runs(tmp_path)[0], "val_acc")) == 1
    assert sorted(p.name for p in trained["folder"].iterdir()) == before


def test_checkpoints_of_ones_own_beside_best_and_last(photos: Path, tmp_path: Path) -> None:
    """Also such that save at the very same moments, in a run that is resumed."""
    words = ["--trainer.limit_val_batches", "1", "--trainer.callbacks+", "ModelCheckpoint"]
    words += ["--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "every-{epoch}"]
    words += ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "val_acc"]
    words += ["--trainer.callbacks.mode", "max", "--trainer.callbacks.filename", "mine"]
    words += ["--trainer.callbacks.save_on_train_epoch_end", "true"]
    config = write_config(tmp_path / "photos.yaml", photos, auto_augment=None)
    command("fit", config, tmp_path, *words)
    command("fit", config, tmp_path, *words, "--ckpt_path", "last", "--trainer.max_epochs", "3")
    (run,) = runs(tmp_path)
    names = {file.name for file in (run / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "mine.ckpt", *(f"every-epoch={epoch}.ckpt" for epoch in range(3))}
    assert saved(run)["epoch"] == 2
    assert saved(run, "best")["epoch"] == saved(run, "mine")["epoch"]
