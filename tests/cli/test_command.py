"""The command as a user types it: help, what a run leaves, checkpoints by name, configurations that add up."""

import functools
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from training.small_runs import PLAIN, add_callbacks, command, metric, runs, saved, table, write_config

import core.analysis.verbs
import core.cli
from core.cli import ANALYSES, HELP, VERBS, main
from core.training.lightning_cli import LarKitCLI
from core.training.run_folder import new_run

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    assert capsys.readouterr().out == HELP


def test_help_has_an_example_line_for_each_verb() -> None:
    examples = re.findall(r"^ {12}lightning (\w+)", HELP, flags=re.MULTILINE)
    assert set(examples) - {"configs", "tune"} == set(VERBS) == set(LarKitCLI.subcommands())


def test_help_has_an_example_line_for_each_analysis() -> None:
    examples = re.findall(r"^ +lightning ([a-z-]+) [a-z]\w+ [a-z]\w+ .*--", HELP, flags=re.MULTILINE)
    described = re.findall(r"^  ([a-z-]+)  +[a-z]", HELP, flags=re.MULTILINE)
    assert tuple(examples) == ANALYSES == tuple(core.analysis.verbs.VERBS)
    assert [name for name in described if name != "tune"] == ["configs", *VERBS, *ANALYSES]
    assert not set(VERBS) & set(ANALYSES)


@pytest.mark.parametrize("line", re.findall(r"^ {14}lightning (.*)$", HELP, flags=re.MULTILINE))
def test_example_lines_of_the_analyses_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, *words = line.split()
    verbs, given = core.analysis.verbs.VERBS, []
    monkeypatch.setitem(verbs, verb, functools.wraps(verbs[verb])(lambda **options: given.append(options)))
    main([verb, *words])
    assert all(timm.is_model(name) for name in given[0]["models"])
    for option, value in pairwise(words):
        if option.startswith("--"):
            assert str(given[0][option[2:]]) == value


@pytest.mark.parametrize("line", re.findall(r"^ {12}lightning (.* -c .*)$", HELP, flags=re.MULTILINE))
def test_example_lines_parse(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = line.split("   ")[0].split()
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--print_config"])
    assert stopped.value.code in (None, 0)
    content = yaml.safe_load(capsys.readouterr().out)
    _check_options(content, words)
    modality = words[words.index("-c") + 1].partition("/")[0]
    assert content["model"]["class_path"].startswith(f"{modality}.")


@pytest.mark.parametrize("line", re.findall(r"^ {12}lightning (\w+ --ckpt_path .*)$", HELP, flags=re.MULTILINE))
def test_example_lines_without_a_configuration_parse(
    line: str, trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*line.split(), "--trainer.default_root_dir", str(trained["out"])]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--print_config"])
    assert stopped.value.code in (None, 0)
    content = yaml.safe_load(capsys.readouterr().out)
    _check_options(content, words)
    assert content["model"]["class_path"] == "vision.ImageClassifier"


def _check_options(content: dict[str, Any], words: list[str]) -> None:
    """Each ``--section.key value`` of a command line is in the configuration."""
    for option, value in pairwise(words):
        if option.startswith("--") and option.count(".") == 1:
            part, key = option[2:].split(".")
            assert str(content[part].get("init_args", content[part])[key]) == value


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert re.fullmatch(r"larkit \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("words", [["fit", "--help"], ["fit", "--model.help", "vision.ImageClassifier"]])
def test_help_of_a_verb_and_of_a_class(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code in (None, 0)
    shown = capsys.readouterr().out
    assert "--ckpt_path" in shown if words[-1] == "--help" else "label_smoothing" in shown


@pytest.mark.parametrize("short", ["ImageClassifier", "vision.ImageClassifier"])
def test_class_names_may_be_short(short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "c.yaml", tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(config), "--model", short, "--print_config"])
    assert "class_path: vision.ImageClassifier" in capsys.readouterr().out


def test_files_in_a_run_folder(trained: dict[str, Path]) -> None:
    run = trained["folder"]
    assert run.relative_to(trained["out"]) == Path("lightning_logs/ImageClassifier/version_0")
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    pictures = {"learning_curves.png", "confusion_matrix.png", "examples.png"}
    assert files >= {"config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", *pictures}
    assert len([name for name in files if name.startswith("events.out.tfevents")]) == 1
    assert not [name for name in files if name.endswith(".part")]
    rows = table(run / "metrics.csv")
    assert {"epoch", "step", "lr", "train_loss", "val_loss", "val_acc"} <= set(rows[0])
    assert len(metric(run, "val_acc")) == len(metric(run, "train_loss")) == 6


def test_tensorboard_holds_metrics_and_pictures(trained: dict[str, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained["folder"]))
    events.Reload()
    assert {"val_acc", "val_loss", "train_loss", "lr"} <= set(events.Tags()["scalars"])
    assert {"confusion_matrix", "learning_curves", "examples"} <= set(events.Tags()["images"])
    assert len(events.Scalars("val_acc")) == 6


def test_best_checkpoint_is_that_of_the_best_accuracy(trained: dict[str, Path]) -> None:
    accuracies = metric(trained["folder"], "val_acc")
    assert saved(trained["folder"], "best")["epoch"] == accuracies.index(max(accuracies))


def test_second_run_gets_a_folder_of_its_own(photos: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", photos, **PLAIN)
    for _ in range(2):
        command("fit", config, tmp_path, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1")
    assert [run.name for run in runs(tmp_path)] == ["version_0", "version_1"]
    assert all((run / "config.yaml").is_file() and (run / "checkpoints/last.ckpt").is_file() for run in runs(tmp_path))


def test_configuration_of_a_run_repeats_it(trained: dict[str, Path], tmp_path: Path) -> None:
    command("fit", trained["folder"] / "config.yaml", tmp_path, "--trainer.limit_val_batches", "0")
    assert metric(runs(tmp_path)[0], "train_loss") == metric(trained["folder"], "train_loss")
    assert (runs(tmp_path)[0] / "config.yaml").is_file()


@pytest.mark.parametrize(("verb", "name"), [("validate", "best"), ("validate", "last"), ("test", "last")])
def test_evaluation_by_name_of_the_checkpoint(
    verb: str, name: str, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt_path", str(trained["folder"] / "checkpoints" / f"{name}.ckpt")]
    command(verb, trained["config"], tmp_path, *words)
    (run,) = runs(tmp_path)
    prefix = "val" if verb == "validate" else "test"
    assert f"{prefix}_acc" in capsys.readouterr().out
    (accuracy,) = metric(run, f"{prefix}_acc")
    if verb == "validate":
        epoch = saved(trained["folder"], name)["epoch"]
        assert accuracy == metric(trained["folder"], "val_acc")[epoch]
    assert {p.name for p in run.glob("*.png")} == {"confusion_matrix.png", "examples.png"}
    assert not (run / "checkpoints").exists()


def test_best_and_last_are_looked_up_in_the_newest_run(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "c.yaml", trained["photos"], **PLAIN)
    command("fit", config, tmp_path, "--trainer.max_epochs", "1", "--model.lr", "1e-8", "--model.min_lr", "0")
    command("fit", config, tmp_path, "--trainer.max_epochs", "2")
    command("validate", config, tmp_path, "--ckpt_path", "best")
    assert metric(runs(tmp_path)[2], "val_acc") == [max(metric(runs(tmp_path)[1], "val_acc"))]
    monkeypatch.chdir(tmp_path)  # the folder of runs is by default the current one
    main(["validate", "-c", str(config), "--ckpt_path", "last", "--trainer.enable_progress_bar", "false"])
    assert len(runs(tmp_path)) == 4


def test_second_configuration_changes_single_values(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_config(tmp_path / "a.yaml", photos), tmp_path / "b.yaml"
    second.write_text(
        "model: {init_args: {lr: 0.5, backbone_args: {drop_path_rate: 0.25}}}\ntrainer: {max_epochs: 9}\n"
    )
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(first), "-c", str(second), "--trainer.max_epochs", "7", "--print_config"])
    content = yaml.safe_load(capsys.readouterr().out)
    model = content["model"]["init_args"]
    assert (model["lr"], model["num_classes"], content["trainer"]["max_epochs"]) == (0.5, None, 7)
    assert model["backbone_args"] == {"layer_scale_init_value": 0.5, "drop_path_rate": 0.25}
    assert content["data"]["init_args"]["root"] == str(photos)


def test_best_of_a_task_follows_its_metric_unless_the_user_names_one(trained: dict[str, Path], tmp_path: Path) -> None:
    assert "monitor: val_acc" in (trained["folder"] / "config.yaml").read_text()
    words = ["--checkpoint.monitor", "val_loss", "--checkpoint.mode", "min", "--trainer.max_epochs", "2"]
    command("fit", trained["config"], tmp_path, *words)
    losses = metric(runs(tmp_path)[0], "val_loss")
    assert saved(runs(tmp_path)[0], "best")["epoch"] == losses.index(min(losses))


def test_running_without_logger_or_checkpoints(trained: dict[str, Path], tmp_path: Path) -> None:
    words = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"]
    command("fit", trained["config"], tmp_path / "a", *words, "--trainer.enable_checkpointing", "false")
    assert not list(tmp_path.rglob("*.ckpt"))
    assert (runs(tmp_path / "a")[0] / "metrics.csv").is_file()
    command("fit", trained["config"], tmp_path / "b", *words, "--trainer.logger", "false")
    assert {p.name for p in (tmp_path / "b").rglob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    assert not list((tmp_path / "b").rglob("*.png"))


def test_barebones_run_trains_and_leaves_nothing(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the words that switch off progress bar and summary, which Lightning does by itself."""
    config, trainers = trained["config"], add_callbacks(monkeypatch)
    words = ["--trainer.barebones", "true", "--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    main(["fit", "-c", str(config), "--trainer.log_every_n_steps", "10", *words])
    assert trainers[0].global_step == 4
    assert not list(tmp_path.iterdir())


def test_python_callers_may_pass_a_dictionary(trained: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    content = yaml.safe_load((trained["folder"] / "config.yaml").read_text())
    content["trainer"] |= {"fast_dev_run": True, "logger": False}
    core.cli.main({"subcommand": "fit", "fit": content})
    assert "fast_dev_run" in caplog.text


def test_run_folder_of_a_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of a step agree on it, and a requeued job finds it again."""
    for name, value in {"NTASKS": "8", "JOB_ID": "71", "JOB_NAME": "train", "STEP_ID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert [new_run(tmp_path / "Task") for _ in range(2)] == ["job_71_step_2"] * 2
    assert not list(tmp_path.iterdir())


def test_run_folder_of_a_resumed_run_is_that_of_the_run(tmp_path: Path) -> None:
    last = tmp_path / "Task" / "version_3" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    assert new_run(tmp_path / "Task", resumed=last) == "version_3"
    assert new_run(tmp_path / "Other", resumed=last) == "version_0"
