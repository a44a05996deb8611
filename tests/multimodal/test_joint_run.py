"""A joint run through the command: metrics, pictures, checkpoints, resuming, prediction, and its members alone."""

import csv
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from small_members import joint_runs, write_joint_config
from torch.testing import assert_close
from training.small_runs import Interrupt, command, interrupted_and_resumed, metric, saved, table

import core
from core.cli import main
from core.errors import InputError
from core.io.checkpoint import TaskCheckpoint
from core.training.hub import build_task, from_pretrained, save_pretrained
from multimodal import JointTask, extract
from multimodal.extract import main as extract_main

MEMBERS = ("image", "series")


def _task(run: Path, name: str = "last") -> JointTask:
    task = build_task(TaskCheckpoint.read(run / "checkpoints" / f"{name}.ckpt"))
    assert isinstance(task, JointTask)
    return task


def test_run_logs_the_metrics_of_each_member_and_leaves_its_pictures(trained_joint: dict[str, Path]) -> None:
    run = trained_joint["folder"]
    names = {"image/val_acc", "image/val_loss", "series/val_mse", "series/val_mse_last", "val_error", "train_loss"}
    rows = table(run / "metrics.csv")
    assert names | {f"{name}/train_loss" for name in MEMBERS} <= set(rows[0])
    expected = (1 - metric(run, "image/val_acc")[-1] + metric(run, "series/val_mse")[-1]) / 2
    assert metric(run, "val_error")[-1] == pytest.approx(expected, abs=1e-6)

    pictures = {path.name for path in run.glob("*.png")}
    assert {"image_confusion_matrix.png", "image_examples.png", "series_forecasts.png", "series_errors.png"} <= pictures
    assert "learning_curves.png" in pictures
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("image/val_acc", "series/val_mse", "Forecasts (series)"))
    stored = saved(run, "best")["metrics"]
    assert {"image/val_acc", "series/val_mse", "val_error"} <= set(stored)


def test_loss_is_the_mean_of_losses_in_units_of_the_first_step(photos: Path, tmp_path: Path) -> None:
    config = write_joint_config(tmp_path / "joint.yaml", photos, loss_weights={"series": 3.0})
    one_step = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    logger = ["--trainer.logger.class_path", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path)]
    command("fit", config, tmp_path, *one_step, *logger)
    (file,) = tmp_path.rglob("metrics.csv")
    (row,) = [row for row in table(file) if row.get("train_loss")]
    assert float(row["train_loss"]) == pytest.approx((1.0 + 3.0) / 2, rel=1e-5)
    (last,) = tmp_path.rglob("last.ckpt")
    state = torch.load(last, weights_only=True)["state_dict"]
    for name in MEMBERS:
        assert state[f"units.{name}_loss"].item() == pytest.approx(float(row[f"{name}/train_loss"]), rel=1e-5)


def test_checkpoint_has_shared_tensors_once(trained_joint: dict[str, Path]) -> None:
    state = saved(trained_joint["folder"])["state_dict"]
    assert not [name for name in state if name.startswith("members.") and "pwconv1" in name]
    assert len([name for name in state if name.endswith("stages.0.0.pwconv1.1.weight")]) == 1


OPTIONS = {
    "plain": [],
    "shared_norms": ["--model.norms", "shared", "--model.layer_decay", "0.7", "--data.sampling", "proportional"],
    "average": ["--trainer.callbacks+", "core.training.EMA", "--trainer.callbacks.decay", "0.5"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_resumed_run_equals_an_uninterrupted_one(
    options: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("core.training.classification", "core.training.callbacks", "core.training.plots", "timeseries.task"):
        monkeypatch.setattr(f"{module}.draw_figure", lambda *_: None)
    config = write_joint_config(tmp_path / "joint.yaml", photos)
    words = ["--trainer.max_epochs", "3", *options]
    command("fit", config, tmp_path / "straight", *words)
    interrupted_and_resumed(config, tmp_path / "resumed", Interrupt(2), *words)
    (run,) = joint_runs(tmp_path / "resumed")
    (straight,) = joint_runs(tmp_path / "straight")
    got, expected = saved(run), saved(straight)
    assert got["epoch"] == 2
    for part in ("global_step", "lr_schedulers", "state_dict", "optimizer_states"):
        assert_close(got[part], expected[part], rtol=0, atol=0)
    assert table(run / "metrics.csv") == table(straight / "metrics.csv")
    if "core.training.EMA" in options:
        assert_close(got["current_model_state"], expected["current_model_state"], rtol=0, atol=0)


def test_predictions_of_a_member(trained_joint: dict[str, Path], tmp_path: Path) -> None:
    run = str(trained_joint["folder"])
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    words = ["predict", "--ckpt_path", run, "--trainer.default_root_dir", str(tmp_path), *quiet]
    with pytest.raises(SystemExit, match=r"choose who predicts: --data\.member, one of image, series"):
        main(words)
    main([*words, "--data.member", "series"])
    (file,) = tmp_path.rglob("predictions.csv")
    assert {"date", "a", "b"} <= set(table(file)[0])
    file.unlink()

    path = trained_joint["photos"] / "val" / "leaf"
    main([*words, "--data.member", "image", "--data.predict_path", str(path)])
    (file,) = tmp_path.rglob("predictions.csv")
    expected = _task(trained_joint["folder"], "best").member("image").predict(path)
    assert [(row["file"], row["class"]) for row in table(file)] == [(row["file"], row["class"]) for row in expected]
    assert len(expected) == 3


def test_evaluation_measures_what_the_run_measured(trained_joint: dict[str, Path], tmp_path: Path) -> None:
    words = ["--ckpt_path", str(trained_joint["folder"] / "checkpoints" / "last.ckpt"), "--data.batch_size", "8"]
    command("validate", trained_joint["config"], tmp_path, *words)
    (run,) = joint_runs(tmp_path)
    for name in ("image/val_acc", "series/val_mse", "val_error"):
        assert metric(run, name)[-1] == pytest.approx(metric(trained_joint["folder"], name)[-1], rel=1e-4)


@pytest.fixture(scope="module")
def image(trained_joint: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract(trained_joint["folder"], "image", tmp_path_factory.mktemp("members") / "image.ckpt")


def test_member_taken_out_is_a_checkpoint_of_its_modality(
    image: Path, trained_joint: dict[str, Path], tmp_path: Path
) -> None:
    joint = _task(trained_joint["folder"], "best")
    raw = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = joint("image", raw)
    task = build_task(TaskCheckpoint.read(image))
    assert_close(task(raw), expected, rtol=0, atol=0)
    assert task.class_names == ["brick", "leaf", "sea"]
    assert (
        TaskCheckpoint.read(image).metrics["val_acc"]
        == saved(trained_joint["folder"], "best")["metrics"]["image/val_acc"]
    )

    size = {"num_classes": 3, "layer_scale_init_value": 0.5}
    backbone = core.load_weights(timm.create_model("test_unireplknet", **size), image).eval()
    by_timm = timm.create_model(
        "test_unireplknet", **size, pretrained=True, pretrained_cfg_overlay={"file": str(image), "num_classes": 3}
    )
    maps = joint.member("image").to_maps(raw)
    assert_close(backbone(maps), expected, rtol=0, atol=0)
    assert_close(by_timm.eval()(maps), expected, rtol=0, atol=0)

    save_pretrained(image, tmp_path / "shared")
    assert_close(from_pretrained(tmp_path / "shared")(raw), expected, rtol=0, atol=0)


def test_command_predicts_and_goes_on_with_a_member(
    image: Path, trained_joint: dict[str, Path], tmp_path: Path
) -> None:
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    folder = trained_joint["photos"] / "val"
    words = ["--ckpt_path", str(image), "--data.predict_path", str(folder), "--trainer.default_root_dir", str(tmp_path)]
    main(["predict", *words, *quiet])
    (file,) = tmp_path.rglob("predictions.csv")
    with file.open() as rows:
        assert len(list(csv.DictReader(rows))) == 9
    assert "ImageClassifier" in file.parts

    main(["test", "--ckpt_path", str(image), "--trainer.default_root_dir", str(tmp_path), *quiet])


def test_extract_through_its_command(
    trained_joint: dict[str, Path], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "series.ckpt"
    extract_main([str(trained_joint["folder"]), "series", str(file)])
    assert f"wrote {file}" in capsys.readouterr().out
    assert TaskCheckpoint.read(file).class_path == "timeseries.ForecastTask"
    for words, message in (
        ([str(trained_joint["folder"]), "series", str(file)], "exists; give another file"),
        ([str(trained_joint["folder"]), "cloud", str(tmp_path / "c.ckpt")], "there is no member 'cloud'"),
        ([str(image), "image", str(tmp_path / "c.ckpt")], "holds vision.ImageClassifier, which has no members"),
        ([], "usage: "),
    ):
        with pytest.raises(SystemExit, match=message):
            extract_main(words)
    assert not (tmp_path / "c.ckpt").exists()


def _with_third(config: Path, out: Path) -> Path:
    """The configuration with a third member, which reads the same photos."""
    content: dict[str, Any] = yaml.safe_load(config.read_text())
    for section in ("model", "data"):
        members = content[section]["init_args"]["members"]
        members["more"] = members["image"]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(yaml.safe_dump(content), encoding="utf-8")
    return out


def test_member_is_added_to_a_trained_model(trained_joint: dict[str, Path], tmp_path: Path) -> None:
    config = _with_third(trained_joint["config"], tmp_path / "more.yaml")
    source = str(trained_joint["folder"] / "checkpoints" / "last.ckpt")
    words = ["--model.weights", source, "--model.freeze", "backbone", "--trainer.max_epochs", "1"]
    command("fit", config, tmp_path, *words)
    (run,) = joint_runs(tmp_path)
    before, after = saved(trained_joint["folder"])["state_dict"], saved(run)["state_dict"]
    shared = [name for name in before if name.startswith("backbone.")]
    assert_close({name: after[name] for name in shared}, {name: before[name] for name in shared}, rtol=0, atol=0)
    assert_close(after["units.image_loss"], before["units.image_loss"], rtol=0, atol=0)
    assert after["units.more_loss"] > 0
    assert "members.more.backbone.head.weight" in after


def test_weights_of_one_modality_start_all_members(image: Path) -> None:
    stored = torch.load(image, weights_only=True)["state_dict"]
    members = {
        "image": {"class_path": "vision.ImageClassifier", "init_args": {"num_classes": 3}},
        "sound": {"class_path": "audio.AudioClassifier", "init_args": {"num_classes": 4, "criterion": "ce"}},
    }
    args = {"layer_scale_init_value": 0.5}
    task = JointTask("test_unireplknet", members, backbone_args=args, weights=str(image))
    state = task.state_dict()
    for name in ("stages.2.0.pwconv1.1.weight", "downsample_layers.2.0.weight"):
        assert_close(state[f"backbone.{name}"], stored[f"backbone.{name}"], rtol=0, atol=0)
    stem = "backbone.downsample_layers.0.0.weight"
    assert_close(state[f"members.image.{stem}"], stored[stem], rtol=0, atol=0)
    assert state[f"members.sound.{stem}"].shape[1] == 1
    assert task.lr == 2e-4  # fine-tuning


def test_other_members_than_in_the_checkpoint_are_refused(trained_joint: dict[str, Path], tmp_path: Path) -> None:
    config = _with_third(trained_joint["config"], tmp_path / "more.yaml")
    source = str(trained_joint["folder"] / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit, match="members") as stopped:
        command("fit", config, tmp_path, "--ckpt_path", source)
    assert "--model.weights" in str(stopped.value)
    assert len(str(stopped.value)) < 600

    members = {"image": {"class_path": "vision.ImageClassifier", "init_args": {"num_classes": 3}}}
    with pytest.raises(InputError, match="the checkpoint has the members image, series, and the model image"):
        JointTask("test_unireplknet", members).on_load_checkpoint(torch.load(source, weights_only=True))
    with pytest.raises(InputError, match="does not fit the model"):
        JointTask("test_unireplknet", members, norms="shared", weights=source)


def test_a_name_that_stands_twice_and_a_member_without_data(trained_joint: dict[str, Path], tmp_path: Path) -> None:
    text = trained_joint["config"].read_text()
    double = tmp_path / "double.yaml"
    member = "      series:\n        class_path: timeseries.F"
    double.write_text(text.replace(member, member.replace("series:", "image:", 1)))
    assert double.read_text() != text
    with pytest.raises(SystemExit, match=r"double.yaml names 'image' twice, in lines \d+ and \d+"):
        command("fit", double, tmp_path)

    content = yaml.safe_load(text)
    del content["data"]["init_args"]["members"]["series"]
    lacking = tmp_path / "lacking.yaml"
    lacking.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=r"member 'series' has no data; add it to --data\.members"):
        command("fit", lacking, tmp_path)


def test_analyses_and_export_name_the_way_to_a_member(trained_joint: dict[str, Path], tmp_path: Path) -> None:
    run = str(trained_joint["folder"])
    with pytest.raises(SystemExit, match=r"python -m multimodal\.extract"):
        main(["cost", run, "--size", "32"])
    with pytest.raises(SystemExit, match=r"python -m multimodal\.extract"):
        main(["export", "--ckpt_path", run, "--output", str(tmp_path)])
