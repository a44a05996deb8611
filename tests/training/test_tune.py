"""The search of settings: its table, the configuration that it writes, its limits, and what it refuses."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Callback, LightningModule, Trainer
from training.small_runs import QUIET, add_callbacks, command, metric, nothing_drawn, runs, table, write_config

import core.training.tune
from core.cli import main
from core.training.tune import _clock, _duration, _scaled, _with_config

LAYER_SCALES = {1e-6, 0.1, 0.5, 1.0}


def tune(config: Path, out: Path, *words: str, trials: int = 3) -> Path:
    """A search below ``out``; its folder."""
    count = ["--trials", str(trials), "--minutes", "30"]
    main(["tune", "-c", str(config), *count, *QUIET, "--trainer.default_root_dir", str(out), *words])
    return newest(out)


def newest(out: Path) -> Path:
    """The folder of the last search below ``out``."""
    return sorted((out / "lightning_logs" / "tune").iterdir())[-1]


def contents(folder: Path) -> list[dict[str, Any]]:
    """The settings of all trials of a search."""
    files = sorted(folder.glob("trial_*.yaml"))
    return [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]


def refusal(*words: str) -> str:
    """The message with which a search is refused, in one line."""
    with pytest.raises(SystemExit) as stopped:
        main(["tune", *words])
    message = str(stopped.value.code)
    assert message.startswith("lightning: error: ")
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def _no_pictures_and_one_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs draw nothing, and a test that changes the clock of the search does so for itself alone."""
    monkeypatch.setattr(core.training.tune, "monotonic", core.training.tune.monotonic)
    with nothing_drawn():
        yield


@pytest.fixture(scope="module")
def config(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with one epoch."""
    path = write_config(tmp_path_factory.mktemp("tune") / "photos.yaml", photos, auto_augment=None)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["trainer"]["max_epochs"] = 1
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_table_and_configuration_to_go_on_with(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tune(config, tmp_path)
    printed = capsys.readouterr().out

    head = re.search(r"^trial +lr +layer scale +augmentation +size +epochs +val_acc +time *$", printed, re.MULTILINE)
    assert head is not None
    rows = [line.split() for line in printed[head.end() :].splitlines()[2:5]]
    assert sorted(row[0] for row in rows) == ["1", "2", "3"]
    assert {row[5] for row in rows} == {"1"}  # epochs
    values = [float(row[6]) for row in rows]
    assert values == sorted(values, reverse=True)

    # The first trial is the configuration, and the values of the table are those that the runs logged.
    first, *others = contents(folder)
    assert first["model"]["init_args"]["lr"] == 0.02
    assert first["model"]["init_args"]["backbone_args"] == {"layer_scale_init_value": 0.5}
    assert first["data"]["init_args"] == {"size": 32, "scale": [0.08, 1.0]}
    for content in others:
        assert 0.002 <= content["model"]["init_args"]["lr"] <= 0.2
        assert content["model"]["init_args"]["backbone_args"]["layer_scale_init_value"] in LAYER_SCALES
        assert content["data"]["init_args"]["size"] in (32, 64)
    for row in rows:
        (logged,) = metric(folder / f"trial_{row[0]}" / "version_0", "val_acc")
        assert float(row[6]) == pytest.approx(logged, rel=1e-3)
    assert not list(folder.rglob("*.ckpt"))

    # The best trial is written, and the printed command trains with it.
    tuned = folder / "tuned.yaml"
    assert tuned.read_text(encoding="utf-8").startswith(f"# Trial {rows[0][0]} of lightning tune: val_acc ")
    assert yaml.safe_load(tuned.read_text(encoding="utf-8")) == contents(folder)[int(rows[0][0]) - 1]
    (typed,) = re.findall(r"^  lightning (fit .*)$", printed, re.MULTILINE)
    assert typed.startswith(f"fit -c {config} -c {tuned} --trainer.")
    main(typed.split())
    written = yaml.safe_load((runs(tmp_path)[0] / "config.yaml").read_text(encoding="utf-8"))
    for section, content in yaml.safe_load(tuned.read_text(encoding="utf-8")).items():
        assert content["init_args"].items() <= written[section]["init_args"].items()

    # With the same seed, it is the same run as the trial.
    assert metric(runs(tmp_path)[0], "val_acc") == [pytest.approx(values[0], rel=1e-3)]


def test_search_is_deterministic_and_leaves_typed_settings(config: Path, tmp_path: Path) -> None:
    words = ["--data.size", "32", "--model.backbone_args.layer_scale_init_value", "0.1", "--data.scale", "[0.5, 1]"]
    first = tune(config, tmp_path / "a", *words, trials=2)
    second = tune(config, tmp_path / "b", *words, trials=2)
    assert contents(first) == contents(second)
    assert [set(content) for content in contents(first)] == [{"model"}] * 2
    assert [set(content["model"]["init_args"]) for content in contents(first)] == [{"lr"}] * 2
    for folder in (first, second):
        rows = table(folder / "trial_2" / "version_0" / "metrics.csv")
        assert [row["val_loss"] for row in rows if row["val_loss"]]
    assert metric(first / "trial_2/version_0", "val_loss") == metric(second / "trial_2/version_0", "val_loss")


def test_trainer_is_asked_for_the_time_that_is_left(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock that jumps: of ten minutes, the first trial takes nine and a half, and a second one is not begun."""
    now = [0.0]
    monkeypatch.setattr("core.training.tune.monotonic", lambda: now[0])

    class Slow(Callback):
        """Each training takes 20 seconds, and the first trial, the second run, nine and a half minutes."""

        def __init__(self) -> None:
            self.limits: list[Any] = []

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.limits.append(next(c._duration for c in trainer.callbacks if type(c).__name__ == "Timer"))
            now[0] += 20 if len(self.limits) == 1 else 570

    slow = Slow()
    add_callbacks(monkeypatch, slow)
    tune_words = ["--minutes", "10"]
    main(["tune", "-c", str(config), *tune_words, *QUIET, "--trainer.default_root_dir", str(tmp_path)])
    assert slow.limits == [600.0, 580.0]
    assert "One epoch takes 20 s; a trial has 1 of 1 epochs" in capsys.readouterr().out
    assert len(contents(newest(tmp_path))) == 1


def test_trial_is_stopped_at_the_limit(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock of the search is real; that of the trial's timer runs out after its first batch."""
    trainers = add_callbacks(monkeypatch, _Late())
    folder = tune(config, tmp_path, "--trainer.max_epochs", "50", "--minutes", "5")
    assert trainers[1].fit_loop.epoch_loop.batch_progress.total.completed == 1
    assert metric(folder / "trial_1" / "version_0", "val_acc")  # what was trained is measured
    assert (folder / "tuned.yaml").is_file()
    assert re.search(r"^1 .* 0 +\S+ +5 min \d+ s +out of time$", capsys.readouterr().out, re.MULTILINE)


class _Late(Callback):
    """The last minutes pass in the first batch of the second run."""

    def __init__(self) -> None:
        self.runs = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.runs += 1

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self.runs == 2:
            timer: Any = next(c for c in trainer.callbacks if type(c).__name__ == "Timer")
            timer._offset = timer._duration
            passed = core.training.tune.monotonic() + 300
            core.training.tune.monotonic = lambda: passed


def test_trials_that_fall_behind_are_pruned(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the fourth trial on, a run whose loss is replaced by a large one ends after its first validation."""

    class Worse(Callback):
        def __init__(self) -> None:
            self.runs = -1

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.runs += 1

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if self.runs == 4:
                for weight in pl_module.parameters():
                    weight.data.fill_(0.1)

    add_callbacks(monkeypatch, Worse())
    words = ["--checkpoint.monitor", "val_loss", "--checkpoint.mode", "min", "--trainer.max_epochs", "3"]
    tune(config, tmp_path, *words, "--model.lr", "1e-3", "--data.size", "32", trials=4)
    printed = capsys.readouterr().out
    assert re.search(r"^4 .* 1 +\S+ +\S+ +\S+ s +pruned$", printed, re.MULTILINE)
    assert re.search(r"^trial .* val_loss +val_acc +time", printed, re.MULTILINE)


def test_trial_that_diverges_does_not_end_the_search(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Diverges(Callback):
        def __init__(self) -> None:
            self.runs = -1

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.runs += 1
            if self.runs == 1:
                next(pl_module.parameters()).data.fill_(float("nan"))

    add_callbacks(monkeypatch, Diverges())
    folder = tune(config, tmp_path, "--trainer.num_sanity_val_steps", "0", trials=2)
    printed = capsys.readouterr().out
    assert re.search(r"^Trial 1 failed: the loss of step 0 is nan: .*--model\.lr", printed, re.MULTILINE)
    assert re.search(r"^1 .* s +failed$", printed, re.MULTILINE)
    assert "# Trial 2 of" in (folder / "tuned.yaml").read_text(encoding="utf-8")


def test_ctrl_c_ends_the_search_with_the_trials_so_far(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Callback):
        def __init__(self) -> None:
            self.runs = 0

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.runs += 1
            if self.runs == 3:
                raise KeyboardInterrupt

    add_callbacks(monkeypatch, Stop())
    with pytest.raises(SystemExit) as stopped:
        tune(config, tmp_path)
    assert stopped.value.code == 130
    assert "# Trial 1 of" in (newest(tmp_path) / "tuned.yaml").read_text(encoding="utf-8")
    said = capsys.readouterr()
    assert "stopped by Ctrl-C. The search ends with the trials so far." in said.err
    assert "Best: trial 1" in said.out


def test_optuna_is_missing(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    message = refusal("-c", str(config), "--trainer.default_root_dir", str(tmp_path / "out"))
    assert "tune needs optuna; type: pip install optuna" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--minutes", "0"], "--minutes 0; expected a number of minutes above 0"),
        (["--minutes", "nan"], "--minutes nan; expected a number of minutes above 0"),
        (["--minutes", "long"], "argument --minutes: invalid float value: 'long'"),
        (["--trials", "0"], "--trials 0; expected 1 or more"),
        (["--ckpt_path", "last"], "leave out --ckpt_path"),
        (["--trainer.max_time=00:00:01:00"], "give --minutes instead of --trainer.max_time"),
        (["--model.nothing", "1"], "nothing"),
        (["--data.folds", "3"], "say which: --data.fold 0 to 2"),
        (["--trainer.devices", "2"], "tune trains in one process, and the trainer has 2; add --trainer.devices 1"),
        (["--trainer.limit_val_batches", "0"], "the first epoch has no val_acc, by which trials are compared"),
    ],
)
def test_options_that_are_refused(words: list[str], expected: str, config: Path, tmp_path: Path) -> None:
    if "--data.folds" in words:
        root = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["init_args"]["root"]
        words = [*words, "--data.root", f"{root}/train"]
    out = ["--trainer.default_root_dir", str(tmp_path / "out")]
    assert expected in refusal("-c", str(config), *QUIET, *out, *words)
    if "--trainer.limit_val_batches" not in words:
        assert not (tmp_path / "out").exists()


def test_without_a_configuration() -> None:
    assert "needs a configuration: -c FILE" in refusal()


def test_nothing_left_to_search(config: Path, tmp_path: Path) -> None:
    words = ["--model.lr", "1e-3", "--data.size", "32", "--data.scale", "[1, 1]", "--model.backbone_args", "{}"]
    message = refusal("-c", str(config), *QUIET, "--trainer.default_root_dir", str(tmp_path), *words)
    assert "every setting that tune searches was typed" in message


def test_too_short_a_time(config: Path, tmp_path: Path) -> None:
    words = ["--minutes", "0.0001", "--trainer.max_epochs", "2", "--data.min_epoch_steps", "100"]
    message = refusal("-c", str(config), *QUIET, "--trainer.default_root_dir", str(tmp_path), *words)
    assert "the first epoch did not end within 0.0 s; give more --minutes" in message


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["tune", "--help"])
    assert stopped.value.code in (None, 0)
    assert "--minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "strength", "expected"),
    [
        ("scale", [0.4, 1.0], 0.5, [0.7, 1.0]),
        ("scale", [0.4, 1.0], 0, [1.0, 1.0]),
        ("scale", [0.4, 1.0], 2, [0.08, 1.0]),
        ("scale", [0.05, 1.0], 1, [0.05, 1.0]),
        ("auto_augment", "rand-m9-mstd0.5-inc1", 0, None),
        ("auto_augment", "rand-m7-n4-mstd0.5-inc1", 0.5, "rand-m4-n4-mstd0.5-inc1"),
        ("auto_augment", "rand-m9-mstd0.5-inc1", 2, "rand-m10-mstd0.5-inc1"),
        ("erasing", 0.6, 2, 1.0),
        ("frequency_mask", 9, 0.5, 4),
        ("noise", 0.1, 2, 0.2),
    ],
)
def test_strength_of_augmentation(name: str, value: Any, strength: float, expected: Any) -> None:
    assert _scaled(name, value, strength) == expected
    assert _scaled(name, value, 1) == value


def test_policies_of_any_strength_are_understood(photos: Path) -> None:
    from vision import ImageFolder

    for strength in (0, 0.5, 1, 1.5, 2):
        ImageFolder(str(photos), auto_augment=_scaled("auto_augment", "rand-m7-n4-mstd0.5-inc1", strength))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-c", "a", "--data.root", "p"], ["-c", "a", "-c", "t", "--data.root", "p"]),
        (["--data.root", "p", "--config=a", "--x", "1"], ["--data.root", "p", "--config=a", "-c", "t", "--x", "1"]),
        (["--model", "M", "--data", "D"], ["--model", "M", "--data", "D", "-c", "t"]),
    ],
)
def test_place_of_the_configuration_among_the_words(words: list[str], expected: list[str]) -> None:
    assert _with_config(words, Path("t")) == expected


def test_times() -> None:
    assert [_clock(seconds) for seconds in (-3, 59.9, 90_061)] == ["00:00:00:01", "00:00:00:59", "01:01:01:01"]
    assert [_duration(seconds) for seconds in (0.44, 41.2, 125)] == ["0.4 s", "41 s", "2 min 5 s"]


def test_only_unireplknet_from_random_weights_has_a_layer_scale(config: Path, tmp_path: Path) -> None:
    (resnet,) = contents(tune(config, tmp_path, "--model.backbone", "test_resnet", trials=1))
    assert set(resnet["model"]["init_args"]) == {"lr"}

    command("fit", config, tmp_path)
    weights = runs(tmp_path)[0] / "checkpoints" / "last.ckpt"
    (fine,) = contents(tune(config, tmp_path, "--model.weights", str(weights), trials=1))
    assert set(fine["model"]["init_args"]) == {"lr"}
