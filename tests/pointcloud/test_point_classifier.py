"""The point-cloud classifier: loss, votes, heads, frozen backbones, pictures, and the command from fit to export."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from lightning import Trainer
from PIL import Image
from torch.testing import assert_close
from training.small_runs import command, metric, saved, table

from core.errors import InputError
from pointcloud import PointCloudClassifier
from pointcloud.feature_map import unit_sphere
from pointcloud.metrics import MeanClassAccuracy
from pointcloud.task import ViewNet
from pointcloud.views import pose_matrices

VIEWS: dict[str, Any] = {"num_views": 2, "obj_size": 32, "neighbors": 4, "dim": 8, "fusion": False}
POSES = {"val_theta": [0.1, 0.9], "val_phi": [-0.35], "test_theta": [0.0], "test_phi": [-0.4, -0.2]}


def _task(backbone: Any = "test_unireplknet", num_classes: int = 3, **kwargs: Any) -> PointCloudClassifier:
    return PointCloudClassifier(backbone, num_classes, **(VIEWS | {"poses": POSES} | kwargs))


def test_smoothing_goes_to_the_other_classes() -> None:
    logits, y = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    target = torch.full((5, 4), 0.2 / 3)
    target[torch.arange(5), y] = 0.8
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert_close(_task(num_classes=4).loss(logits, y, smoothing=0.2), expected)
    assert _task().label_smoothing == 0.2


@pytest.mark.parametrize("backbone", ["test_unireplknet", "test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_heads_on_any_backbone(backbone: str) -> None:
    args = {"img_size": 32} if "vit" in backbone else {"img_size": 224} if "swin" in backbone else {}
    if "swin" in backbone:
        args |= {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 1, 1)}
    size = {"obj_size": 224} if "swin" in backbone else {}
    for head in ("concat", "mean"):
        task = _task(backbone, head=head, backbone_args=args, **size).eval()
        images = torch.randn(2, 6, *[task.points.img_size] * 2)
        net: Any = task.backbone
        with torch.no_grad():
            got = ViewNet(net, task.cls_head, 2).eval()(images)
            each = [images[:, :3], images[:, 3:]]
            if head == "mean":
                expected = (net(each[0]) + net(each[1])) / 2
            else:
                maps = [net.forward_features(part) for part in each]
                channels = (1, 2) if "swin" in backbone else (2, 3)
                pooled = [m.mean(channels) if m.ndim == 4 else net.forward_head(m, pre_logits=True) for m in maps]
                assert task.cls_head is not None
                expected = task.cls_head.cls_head(task.cls_head.norm(torch.cat(pooled, dim=1)))
        assert got.shape == (2, 3)
        assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_is_the_mean_over_the_poses() -> None:
    task, points = _task().eval(), unit_sphere(torch.randn(3, 30, 3))
    net = ViewNet(task.backbone, task.cls_head, 2)
    votes = []
    for theta in (0.1, 0.9):
        pose = pose_matrices(*torch.tensor([[theta], [-0.35]]) * torch.pi)
        images = task.points(points, pose.expand(3, 3, 3))
        votes.append(net(torch.stack([torch.cat([images[2 * b], images[2 * b + 1]]) for b in range(3)])))
    assert_close(task(points), (votes[0] + votes[1]) / 2, rtol=1e-4, atol=1e-5)
    assert_close(task(points[:1]), task(points)[:1], rtol=1e-4, atol=1e-5)


def test_training_draws_a_pose_and_reaches_every_parameter() -> None:
    task, points = _task(), unit_sphere(torch.randn(4, 30, 3))
    assert not torch.allclose(task(points), task(points))
    task.loss(task(points), torch.tensor([0, 1, 2, 0])).backward()
    still = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []
    assert not task.points.views.requires_grad


def test_frozen_backbones() -> None:
    with pytest.warns(UserWarning, match="the frozen backbone has random weights; set --model.pretrained true"):
        task = _task(frozen="all")
    assert not any(p.requires_grad for p in task.backbone.parameters())
    assert task.train().training
    assert not any(m.training for m in task.backbone.modules())
    with pytest.warns(UserWarning, match="random weights"):
        task = _task(frozen="but_norms", head="mean")
    training = {name for name, p in task.backbone.named_parameters() if p.requires_grad}
    assert training == {name for name, _ in task.backbone.named_parameters() if "norm" in name} != set()
    assert all(p.requires_grad for p in task.points.enc.parameters())
    with pytest.warns(UserWarning, match="random weights"):
        task = _task(frozen="but_norms", head="concat")
    last = {name for name, _ in task.backbone.named_parameters() if name.startswith("norm.")}
    training = {name for name, p in task.backbone.named_parameters() if p.requires_grad}
    assert last  # which the head does not read: such a parameter never gets a gradient
    assert training == {name for name, _ in task.backbone.named_parameters() if "norm" in name} - last


def test_weights_of_a_backbone_and_of_a_run(tmp_path: Path) -> None:
    net = timm.create_model("test_unireplknet", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    task = _task(weights=str(tmp_path / "net.pth"), frozen="all")
    own = task.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in net.state_dict().items() if name in own)
    torch.save({"state_dict": task.state_dict()}, tmp_path / "run.ckpt")
    again = _task(weights=str(tmp_path / "run.ckpt"), num_classes=5)
    for name, value in again.state_dict().items():
        if not name.startswith(("cls_head.cls_head", "confusion")):
            assert torch.equal(value, task.state_dict()[name]), name
    assert again.cls_head is not None
    assert again.cls_head.cls_head.out_features == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head": "max"}, "head='max', frozen='none'; 'concat' or 'mean'"),
        ({"frozen": "some"}, "'none', 'all' or 'but_norms'"),
        ({"mixup_alpha": 0.1}, "clouds are not mixed: leave out mixup_alpha"),
        ({"label_smoothing": 0.8}, "at most 1 - 1 / num_classes"),
        ({"poses": {"angle": 1}}, "known are the fields of pointcloud.views.Poses"),
        ({"backbone_args": {"in_chans": 1}}, "the model takes 1 channels; views have 3: leave out in_chans"),
        ({"obj_size": 31}, "an even obj_size"),
    ],
)
def test_arguments_that_do_not_fit(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _task(**wrong)


def test_pictures_show_the_cloud_and_its_views() -> None:
    for views in (1, 2, 3, 4):
        pictures = _task(num_views=views).eval().to_pictures(unit_sphere(torch.randn(2, 30, 3)))
        assert pictures.shape == (2, 3, 120, {1: 240, 2: 180, 3: 240, 4: 240}[views])
        assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
        drawn = (pictures[:, 0, :, :120] < 0.99).sum(dim=(1, 2))
        assert bool(((drawn > 60) & (drawn <= 120)).all())  # four pixels a point, some hidden


def _write_shapes(root: Path, **splits: int) -> Path:
    """Rods, discs and balls."""
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for name, size in {"ball": (1, 1, 1), "disc": (1, 0.05, 1), "rod": (0.1, 1, 0.1)}.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                direction = generator.standard_normal((64, 3))
                cloud = direction / np.linalg.norm(direction, axis=1, keepdims=True) * size
                np.save(root / split / name / f"{i}.npy", cloud)
    return root


@pytest.mark.slow
def test_command_from_fit_to_export(tmp_path: Path) -> None:
    root, out = _write_shapes(tmp_path / "shapes", train=10, val=4, test=3), tmp_path / "out"
    backbone = {"backbone": "test_unireplknet", "backbone_args": {"layer_scale_init_value": 0.5}}
    init = {**backbone, "num_classes": 3, "lr": 0.01, **VIEWS, "poses": POSES}
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
    command("export", config, out, "--ckpt_path", "best", "--output", str(out / "files"))
    fit, tested, predicted = sorted((out / "lightning_logs" / "PointCloudClassifier").glob("version_*"))
    assert max(metric(fit, "val_acc")) >= 0.9
    assert metric(fit, "val_macc") == pytest.approx(metric(fit, "val_acc"))  # classes are equally large
    for run in (fit, tested):
        for name in ("confusion_matrix.png", "examples.png"):
            with Image.open(run / name) as picture:
                assert min(picture.size) > 100
    assert metric(tested, "test_acc")[0] >= 0.75
    assert saved(fit, "best")["class_names"] == ["ball", "disc", "rod"]
    rows = table(predicted / "predictions.csv")
    assert len(rows) == 9
    assert sum(Path(row["file"]).parent.name == row["class"] for row in rows) >= 7
    task = PointCloudClassifier.load_from_checkpoint(fit / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    session = onnxruntime.InferenceSession(out / "files" / "test_unireplknet.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(5, 6, 32, 32)
    with torch.no_grad():
        expected = ViewNet(task.backbone, task.cls_head, 2)(x)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-3)


def test_mean_class_accuracy_is_over_the_classes_of_the_split() -> None:
    y, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    whole, first, second = (MeanClassAccuracy(3) for _ in range(3))
    whole.update(predicted, y)
    assert float(whole.compute()) == 0.75
    first.update(predicted[:3], y[:3])
    second.update(predicted[3:], y[3:])
    first.merge_state(second)  # as what several processes counted is added up
    assert float(first.compute()) == 0.75
    whole.reset()
    whole.update(torch.eye(3)[[2, 1, 0]], torch.tensor([2, 0, 0]))
    assert float(whole.compute()) == 0.75
    scores = _task(num_classes=3).val_scores
    scores.update(torch.eye(3)[predicted], y)
    assert {name: float(score) for name, score in scores.compute().items()} == {"val_acc": 0.75, "val_macc": 0.75}


def test_testing_votes_over_its_own_poses(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = _task(), list[bool]()
    grid = type(task.poses).grid
    monkeypatch.setattr(type(task.poses), "grid", lambda self, *, test: (seen.append(test), grid(self, test=test))[1])
    points, y = unit_sphere(torch.randn(4, 30, 3)), torch.tensor([0, 1, 2, 0])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(points, y), batch_size=4)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.test(task, loader, verbose=False)
    assert seen == [True]
    trainer.validate(task, loader, verbose=False)
    assert seen == [True, False]
