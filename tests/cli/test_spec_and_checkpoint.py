"""What is typed once: the data say what they are, and a checkpoint is enough for everything but training."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training.small_runs import QUIET, command, metric, runs, saved, table, write_config, write_photos

from core.cli import main
from core.io.checkpoint import TaskCheckpoint


def _run(verb: str, checkpoint: Path | str, out: Path, *words: str) -> None:
    """A verb without a configuration, as a user who has the checkpoint alone types it."""
    main([verb, "--ckpt_path", str(checkpoint), *QUIET, "--trainer.default_root_dir", str(out), *words])


def _refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert isinstance(stopped.value.code, str)
    printed = capsys.readouterr()
    assert "Traceback" not in stopped.value.code + printed.err + printed.out
    assert "\n" not in stopped.value.code
    return stopped.value.code


@pytest.fixture
def stranger(trained: dict[str, Path], tmp_path: Path) -> Any:
    """Makes a checkpoint as somebody else might send it, with another configuration inside."""

    def make(change: Any) -> Path:
        content = saved(trained["folder"], "best")
        config = yaml.safe_load(content["config"])
        change(config)
        file = tmp_path / "stranger.ckpt"
        torch.save(content | {"config": yaml.safe_dump(config)}, file)
        return file

    return make


# The data say what they are


def test_number_of_classes_comes_from_the_data(trained: dict[str, Path]) -> None:
    config = yaml.safe_load((trained["folder"] / "config.yaml").read_text())
    assert config["model"]["init_args"]["num_classes"] is None
    assert "spec" not in config["model"]["init_args"]
    checkpoint = TaskCheckpoint.read(trained["folder"])
    assert checkpoint.spec["classes"] == ["brick", "leaf", "sea"]
    assert checkpoint.state_dict["backbone.head.weight"].shape[0] == 3


def test_number_that_contradicts_the_data_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    message = _refusal(capsys, "fit", "-c", str(config), "--model.num_classes", "7")
    assert message.startswith("lightning: error: the model has 7 classes and the data 3")
    assert "leave --model.num_classes out, or set it to 3" in message


def test_missing_data_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "a.yaml", tmp_path / "nowhere")
    assert "nowhere" in _refusal(capsys, "fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path))
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("words", [["--pred_len", "12", "--seq_len", "36"], ["--pred_len=12", "--seq_len=36"]])
def test_lengths_of_a_series_are_typed_once(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "-c", "timeseries/configs/csv.yaml", "--data.path", "load.csv", *words, "--print_config"])
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert (data["pred_len"], data["seq_len"]) == (12, 36)


def test_series_trains_and_predicts_with_the_length_typed_once(tmp_path: Path) -> None:
    hours = [f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00" for i in range(31 * 24)]
    lines = ["date,a,b", *(f"{hour},{i % 24},{i % 7}" for i, hour in enumerate(hours))]
    (tmp_path / "load.csv").write_text("\n".join(lines) + "\n")
    words = ["-c", "timeseries/configs/csv.yaml", "--data.path", str(tmp_path / "load.csv"), "--pred_len", "12"]
    limits = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    main(["fit", *words, "--seq_len", "36", *limits, *QUIET, "--trainer.default_root_dir", str(tmp_path)])
    (run,) = (tmp_path / "lightning_logs" / "ForecastTask").iterdir()
    assert TaskCheckpoint.read(run).spec["pred_len"] == 12
    _run("predict", run, tmp_path / "out")
    (found,) = (tmp_path / "out").rglob("predictions.csv")
    assert len(table(found)) == 12


# A checkpoint is enough


def test_checkpoint_holds_the_configuration_and_what_was_measured(trained: dict[str, Path]) -> None:
    run = trained["folder"]
    for name in ("best", "last"):
        content = saved(run, name)
        assert content["config"] == (run / "config.yaml").read_text()
        assert content["metrics"]["val_acc"] == metric(run, "val_acc")[content["epoch"]]


@pytest.mark.parametrize("given", ["file", "folder"])
@pytest.mark.parametrize(("verb", "name"), [("validate", "val_acc"), ("test", "test_acc")])
def test_evaluation_without_a_configuration(
    verb: str, name: str, given: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    run = trained["folder"]
    file = tmp_path / "sent.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", file)  # the file alone, away from its run
    _run(verb, file if given == "file" else run, tmp_path / "a")
    command(verb, trained["config"], tmp_path / "b", "--ckpt_path", str(run))
    assert metric(runs(tmp_path / "a")[0], name) == metric(runs(tmp_path / "b")[0], name)


@pytest.mark.parametrize("name", ["best", "last"])
def test_newest_run_of_any_task(name: str, trained: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained["out"], out)
    for i, file in enumerate(sorted(out.rglob("*.ckpt"))):
        os.utime(file, (i, i))
    other = out / "lightning_logs" / "AnotherTask" / "version_0" / "checkpoints"
    other.mkdir(parents=True)
    (other / "old.ckpt").touch()
    os.utime(other / "old.ckpt", (0, 0))
    _run("validate", name, out, "--trainer.limit_val_batches", "1")
    assert len(metric(runs(out)[-1], "val_acc")) == 1


def test_prediction_with_no_training_data_in_sight(trained: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(trained["folder"], tmp_path / "run")
    content = saved(run, "best")
    config = yaml.safe_load(content["config"])
    config["data"]["init_args"]["root"] = str(tmp_path / "gone")
    torch.save(content | {"config": yaml.safe_dump(config)}, run / "checkpoints" / "best.ckpt")
    files = tmp_path / "files"
    shutil.copytree(trained["photos"] / "test" / "leaf", files)

    _run("predict", run, tmp_path / "out", "--data.predict_path", str(files))
    rows = table(runs(tmp_path / "out")[0] / "predictions.csv")
    assert [row["class"] for row in rows] == ["leaf"] * len(list(files.iterdir()))


def test_evaluation_on_another_folder(trained: dict[str, Path], tmp_path: Path) -> None:
    other = write_photos(tmp_path / "others", val=2)
    _run("validate", trained["folder"], tmp_path / "out", "--data.root", str(other))
    assert len(metric(runs(tmp_path / "out")[0], "val_acc")) == 1


def test_other_classes_than_the_checkpoints_are_refused(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_photos(tmp_path / "others", classes=["ant", "bee", "cow"], val=2)
    words = ["--data.root", str(other), "--trainer.default_root_dir", str(tmp_path)]
    message = _refusal(capsys, "validate", "--ckpt_path", str(trained["folder"]), *words)
    assert "trained on other classes than those of the data" in message


def test_export_without_a_configuration(trained: dict[str, Path], tmp_path: Path) -> None:
    words = ["--format", "torch_export", "--output", str(tmp_path / "files")]
    _run("export", trained["folder"], tmp_path, *words)
    assert [file.name for file in (tmp_path / "files").iterdir()] == ["test_unireplknet.pt2"]


def test_fit_names_the_whole_configuration(trained: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = trained["folder"]
    message = _refusal(capsys, "fit", "--ckpt_path", str(run))
    words = f"lightning fit -c {run / 'config.yaml'} --ckpt_path {run / 'checkpoints' / 'last.ckpt'}"
    assert message.endswith(f"Type: {words}")


def test_neither_configuration_nor_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert "validate needs a configuration: -c FILE" in _refusal(capsys, "validate", "--trainer.devices", "1")


def test_folder_without_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _refusal(capsys, "test", "--ckpt_path", str(tmp_path))
    assert f"{tmp_path} has no checkpoints/best.ckpt and no checkpoints/last.ckpt" in message


# A checkpoint of a stranger


def test_of_a_foreign_configuration_only_task_data_and_precision_are_taken(
    stranger: Any, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(config: dict[str, Any]) -> None:
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}}
        trainer = {"precision": "64-true", "callbacks": {"class_path": "os.system"}, "logger": logger, "max_epochs": 7}
        config["trainer"] = trainer

    with pytest.raises(SystemExit):
        main(["validate", "--ckpt_path", str(stranger(change)), "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer["precision"] == "64-true"
    assert (trainer["callbacks"], trainer["logger"], trainer["max_epochs"]) == (None, None, None)


@pytest.mark.parametrize("section", ["model", "data"])
@pytest.mark.parametrize("class_path", ["os.system", "mine.Task", "lightning.LightningModule", "vision.PixelMap"])
def test_classes_of_a_foreign_configuration_are_those_of_installed_modalities(
    class_path: str, section: str, stranger: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stranger(lambda config: config[section].update(class_path=class_path))
    assert class_path in _refusal(capsys, "validate", "--ckpt_path", str(file))


@pytest.mark.parametrize("place", ["mean", "auto_augment"])
def test_class_inside_of_a_foreign_configuration_is_refused(
    place: str, stranger: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = {"class_path": "pathlib.Path.touch", "init_args": {"self": str(tmp_path / "ran")}}
    file = stranger(lambda config: config["data"]["init_args"].update({place: [payload]}))
    message = _refusal(capsys, "validate", "--ckpt_path", str(file))
    assert "names a class among the arguments of vision.ImageFolder" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("section", ["model", "data"])
def test_python_file_in_a_foreign_configuration_is_not_run(
    section: str, stranger: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mmdet")
    script = tmp_path / "config.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    packaged = "mask_rcnn_unireplknet_a_digit_scenes.py"

    def change(config: dict[str, Any]) -> None:
        named = {"model": packaged, "data": packaged} | {section: str(script)}
        config["model"] = {"class_path": "vision.openmmlab.detector.Detector", "init_args": {"config": named["model"]}}
        config["data"] = {"class_path": "vision.openmmlab.demo.DigitScenes", "init_args": {"config": named["data"]}}

    message = _refusal(capsys, "validate", "--ckpt_path", str(stranger(change)))
    assert f"names the Python file {str(script)!r}, which would be run" in message
    assert f"if you trust it add --{section}.config {script}" in message
    assert not (tmp_path / "ran").exists()


def test_configuration_and_hyperparameters_must_name_one_class(
    stranger: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"] = {"class_path": "audio.AudioClassifier", "init_args": {"backbone": "test_unireplknet"}}

    message = _refusal(capsys, "validate", "--ckpt_path", str(stranger(change)))
    assert "holds vision.ImageClassifier, but the configuration names audio.AudioClassifier" in message
