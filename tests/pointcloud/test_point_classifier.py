"""The point-cloud classifier: loss, votes, heads, frozen backbones, pictures and metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Trainer
from torch.testing import assert_close

from core.errors import InputError
from pointcloud import PointCloudClassifier
from pointcloud.feature_map import unit_sphere
from pointcloud.metrics import MeanClassAccuracy
from pointcloud.views import pose_matrices

MakeTask = Callable[..., PointCloudClassifier]


def test_smoothing_goes_to_the_other_classes(make_task: MakeTask) -> None:
    logits, y = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    target = torch.full((5, 4), 0.2 / 3)
    target[torch.arange(5), y] = 0.8
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert_close(make_task(num_classes=4).loss(logits, y), expected)
    assert_close(make_task(num_classes=4).evaluation_loss(logits, y), torch.nn.functional.cross_entropy(logits, y))
    assert make_task().label_smoothing == 0.2


@pytest.mark.parametrize("backbone", ["test_unireplknet", "test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_heads_on_any_backbone(backbone: str, make_task: MakeTask) -> None:
    args = {"img_size": 32} if "vit" in backbone else {"img_size": 224} if "swin" in backbone else {}
    if "swin" in backbone:
        args |= {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 1, 1)}
    size = {"obj_size": 224} if "swin" in backbone else {}
    for head in ("concat", "mean"):
        task = make_task(backbone, head=head, backbone_args=args, **size).eval()
        images = torch.randn(2, 6, *[task.feature_map.img_size] * 2)
        net: Any = task.backbone
        with torch.no_grad():
            got = task.read(images)
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


def test_evaluation_is_the_mean_over_the_poses(make_task: MakeTask) -> None:
    task, points = make_task().eval(), unit_sphere(torch.randn(3, 30, 3))
    votes = []
    for theta in (0.1, 0.9):
        pose = pose_matrices(*torch.tensor([[theta], [-0.35]]) * torch.pi)
        votes.append(task.read(task.feature_map(points, pose.expand(3, 3, 3))))
    assert_close(task(points), (votes[0] + votes[1]) / 2, rtol=1e-4, atol=1e-5)
    assert_close(task(points[:1]), task(points)[:1], rtol=1e-4, atol=1e-5)


def test_training_draws_a_pose_and_reaches_every_parameter(make_task: MakeTask) -> None:
    task, points = make_task(), unit_sphere(torch.randn(4, 30, 3))
    y = torch.tensor([0, 1, 2, 0])
    (first, same), (second, _) = (task.training_output(points, y) for _ in range(2))
    assert not torch.allclose(first, second)
    assert torch.equal(same, y)
    task.loss(first, y).backward()
    still = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []
    assert not task.feature_map.views.requires_grad


def test_frozen_backbones(make_task: MakeTask) -> None:
    with pytest.warns(UserWarning, match="the frozen backbone has random weights; set --model.pretrained true"):
        task = make_task(frozen="all")
    assert not any(p.requires_grad for p in task.backbone.parameters())
    assert task.train().training
    assert not any(m.training for m in task.backbone.modules())
    with pytest.warns(UserWarning, match="random weights"):
        task = make_task(frozen="but_norms", head="mean")
    training = {name for name, p in task.backbone.named_parameters() if p.requires_grad}
    assert training == {name for name, _ in task.backbone.named_parameters() if "norm" in name} != set()
    assert all(p.requires_grad for p in task.feature_map.enc.parameters())
    with pytest.warns(UserWarning, match="random weights"):
        task = make_task(frozen="but_norms", head="concat")
    last = {name for name, _ in task.backbone.named_parameters() if name.startswith("norm.")}
    training = {name for name, p in task.backbone.named_parameters() if p.requires_grad}
    assert last  # which the head does not read: such a parameter never gets a gradient
    assert training == {name for name, _ in task.backbone.named_parameters() if "norm" in name} - last


@pytest.mark.parametrize("head", ["concat", "mean"])
def test_freeze_of_every_task_leaves_feature_map_and_head_to_train(head: str, make_task: MakeTask) -> None:
    task = make_task(head=head, freeze="backbone")
    classifier = {id(p) for p in task.get_classifier().parameters()}
    frozen = [p for p in task.backbone.parameters() if id(p) not in classifier]
    assert frozen
    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in task.get_classifier().parameters())
    assert all(p.requires_grad for p in task.feature_map.enc.parameters())


def test_weights_of_a_backbone_and_of_a_run(tmp_path: Path, make_task: MakeTask) -> None:
    net = timm.create_model("test_unireplknet", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    task = make_task(weights=str(tmp_path / "net.pth"), frozen="all")
    own = task.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in net.state_dict().items() if name in own)
    torch.save({"state_dict": task.state_dict()}, tmp_path / "run.ckpt")
    again = make_task(weights=str(tmp_path / "run.ckpt"), num_classes=5)
    for name, value in again.state_dict().items():
        if not name.startswith(("cls_head.cls_head", "confusion")):
            assert torch.equal(value, task.state_dict()[name]), name
    assert again.cls_head is not None
    assert again.cls_head.cls_head.out_features == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head": "max"}, "head='max', frozen='none'; expected 'concat' or 'mean'"),
        ({"frozen": "some"}, "'none', 'all' or 'but_norms'"),
        ({"mixup_alpha": 0.1}, "clouds are not mixed; leave out mixup_alpha"),
        ({"label_smoothing": 0.8}, "expected at most 1 - 1 / num_classes"),
        ({"poses": {"angle": 1}}, "expected fields of pointcloud.augment.Poses"),
        (
            {"backbone_args": {"in_chans": 1}},
            "the backbone takes 1 channels and the maps have 3; leave --model.backbone_args.in_chans out",
        ),
        ({"obj_size": 31}, "an even obj_size"),
    ],
)
def test_arguments_that_do_not_fit(wrong: dict[str, Any], message: str, make_task: MakeTask) -> None:
    with pytest.raises(InputError, match=message):
        make_task(**wrong)


def test_pictures_show_the_cloud_and_its_views(make_task: MakeTask) -> None:
    for views in (1, 2, 3, 4):
        pictures = make_task(num_views=views).show(unit_sphere(torch.randn(2, 30, 3)))
        assert pictures.shape == (2, 3, 120, {1: 240, 2: 180, 3: 240, 4: 240}[views])
        assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
        drawn = (pictures[:, 0, :, :120] < 0.99).sum(dim=(1, 2))
        assert bool(((drawn > 60) & (drawn <= 120)).all())  # four pixels a point, some hidden


def test_mean_class_accuracy_is_over_the_classes_of_the_split(make_task: MakeTask) -> None:
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
    scores: Any = make_task(num_classes=3).scores["val"]
    scores.update(torch.eye(3)[predicted], y)
    assert {name: float(score) for name, score in scores.compute().items()} == {"val_acc": 0.75, "val_macc": 0.75}


def test_testing_votes_over_its_own_poses(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task()
    seen: list[bool] = []
    grid = type(task.poses).grid
    monkeypatch.setattr(type(task.poses), "grid", lambda self, *, test: (seen.append(test), grid(self, test=test))[1])
    points, y = unit_sphere(torch.randn(4, 30, 3)), torch.tensor([0, 1, 2, 0])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(points, y), batch_size=4)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.test(task, loader, verbose=False)
    assert seen[0]
    seen.clear()
    trainer.validate(task, loader, verbose=False)
    assert seen
    assert not any(seen)
