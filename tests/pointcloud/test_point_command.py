"""The command on class folders of shapes, from fit to export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close
from training.small_runs import command, metric, saved, table

from pointcloud import PointCloudClassifier

VIEWS: dict[str, Any] = {"num_views": 2, "obj_size": 32, "neighbors": 4, "dim": 8, "fusion": False}
POSES = {"val_theta": [0.1, 0.9], "val_phi": [-0.35], "test_theta": [0.0], "test_phi": [-0.4, -0.2]}


@pytest.mark.slow
def test_command_from_fit_to_export(tmp_path: Path, make_shapes: Callable[..., Path]) -> None:
    root, out = make_shapes(train=10, val=4, test=3), tmp_path / "out"
    backbone = {"backbone": "test_unireplknet", "backbone_args": {"layer_scale_init_value": 0.5}}
    init = {**backbone, "lr": 0.01, **VIEWS, "poses": POSES}
    data = {"root": str(root), "load_points": 64, "num_points": 48, "batch_size": 6, "num_workers": 0}
    content = {
        "model": {"class_path": "PointCloudClassifier", "init_args": init},
        "data": {"class_path": "PointFolder", "init_args": data},
        "trainer": {"max_epochs": 16, "check_val_every_n_epoch": 4, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    config = tmp_path / "shapes.yaml"
    config.write_text(yaml.safe_dump(content))
    command("fit", config, out)
    command("test", config, out, "--ckpt_path", "best")
    command("predict", config, out, "--ckpt_path", "best", "--data.predict_path", str(root / "test"))
    command("export", config, out, "--ckpt_path", "best", "--output", str(out / "files"), "--from", "map")
    fit, tested, predicted = sorted((out / "lightning_logs" / "PointCloudClassifier").glob("version_*"))
    assert max(metric(fit, "val_acc")) >= 0.9
    assert metric(fit, "val_macc") == pytest.approx(metric(fit, "val_acc"))  # classes are equally large
    for run in (fit, tested):
        for name in ("confusion_matrix.png", "examples.png"):
            with Image.open(run / name) as picture:
                assert min(picture.size) > 100
    assert metric(tested, "test_acc")[0] >= 0.75
    assert saved(fit, "best")["hyper_parameters"]["spec"]["classes"] == ["ball", "disc", "rod"]
    rows = table(predicted / "predictions.csv")
    assert len(rows) == 9
    assert sum(Path(row["file"]).parent.name == row["class"] for row in rows) >= 7
    task = PointCloudClassifier.load_from_checkpoint(fit / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    again = task.predict(root / "test")
    assert [row["class"] for row in again] == [row["class"] for row in rows]
    assert [row["probability"] for row in again] == pytest.approx([float(row["probability"]) for row in rows], abs=1e-5)
    session = onnxruntime.InferenceSession(out / "files" / "test_unireplknet.onnx", providers=["CPUExecutionProvider"])
    maps = torch.randn(5, 6, 32, 32)
    with torch.no_grad():
        expected = task.read(maps)
    got = session.run(None, {session.get_inputs()[0].name: maps.numpy()})[0]
    assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-3)
