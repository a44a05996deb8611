"""The video classifier by itself: layouts, views, mixing, image weights, pictures, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from core.errors import InputError
from core.training import DataModule
from core.training.optim import parameter_groups
from video import VideoClassifier, VideoFolder, clip_to_map

QUIET: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False},
}


class Means(nn.Module):
    """Logits (B, 3) that are the means of the channels of a map, whose shape it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape)
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize("name", ["test_unireplknet", "test_replknet", "test_resnet", "test_convnext"])
@pytest.mark.parametrize(("layout", "frames", "classes"), [("grid", 6, 2), ("strip", 4, 11)])
def test_any_backbone_reads_clips(name: str, layout: Any, frames: int, classes: int) -> None:
    torch.manual_seed(0)
    task = VideoClassifier(name, classes, layout=layout).eval()
    x = torch.randn(2, frames, 3, 32, 32)
    logits = task(x)
    assert logits.shape == (2, classes)
    assert_close(logits, task.backbone(clip_to_map(x, layout)))
    x.requires_grad_()
    task(x)[0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0] != 0).flatten(1).any(1).all()
    assert not x.grad[1].any()


def test_layout_and_rows_shape_the_map() -> None:
    for options, shape in (
        ({}, (8, 12)),
        ({"rows": 1}, (4, 24)),
        ({"layout": "strip"}, (8, 12)),
        ({"rows": 6}, (24, 4)),
    ):
        task = VideoClassifier(Means(), 3, **options)  # type: ignore[arg-type]
        task(torch.randn(1, 6, 3, 4, 4))
        assert task.backbone.shape == (1, 3, *shape)
    different = torch.randn(1, 4, 3, 8, 8)
    assert not torch.equal(VideoClassifier(Means(), 3).to_maps(different), clip_to_map(different, "strip"))


def test_views_are_averaged_as_probabilities() -> None:
    x = 3 * torch.randn(5, 7, 4, 3, 8, 8)
    expected = x.mean(dim=(2, 4, 5)).softmax(dim=2).mean(dim=1)
    logits = VideoClassifier(Means(), 3)(x)
    assert_close(logits.softmax(dim=1), expected)
    rows = VideoClassifier(Means(), 3).predict_step((x, list("abcde")), 0)  # type: ignore[arg-type]
    assert rows["probability"] == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    assert rows["class"] == [str(i) for i in expected.argmax(1).tolist()]


def _data(x: Tensor, y: Tensor, classes: int) -> DataModule:
    data = DataModule(batch_size=4, num_workers=0)
    data.classes = [f"c{i}" for i in range(classes)]
    data.train_set = data.val_set = data.test_set = TensorDataset(x, y)
    return data


def test_top1_and_top5_of_views() -> None:
    class Logits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, 0].mean(dim=1)[:, :12]

    x, y = 2 * torch.randn(21, 3, 1, 3, 1, 12), torch.randint(12, (21,))
    probabilities = x[:, :, 0, :, 0].mean(dim=2).softmax(dim=2).mean(dim=1)
    best = probabilities.topk(5, dim=1).indices
    (found,) = Trainer(**QUIET).test(VideoClassifier(Logits(), 12), _data(x, y, 12), verbose=False)
    assert found["test_acc"] == pytest.approx(float((best[:, 0] == y).float().mean()))
    assert found["test_acc5"] == pytest.approx(float((best == y[:, None]).any(1).float().mean()))
    assert found["test_loss"] == pytest.approx(float(-probabilities.log()[torch.arange(21), y].mean()), rel=1e-5)
    assert 0 < found["test_acc"] < found["test_acc5"] < 1


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixing_is_the_same_in_all_frames(kind: str) -> None:
    task = VideoClassifier(Means(), 4, **{kind: 1.0})
    assert task.mixup is not None
    for _ in range(8):
        x = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 5, 3, 8, 8).clone()
        mixed, target = task.mix(task.mixup, x, torch.arange(4))
        assert mixed.shape == (4, 5, 3, 8, 8)
        assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
        assert_close(target.sum(dim=1), torch.ones(4))
        share = (mixed[3, 0, 0] - 0) / 3  # of the clip of threes, mixed with that of zeros
        assert float(share.mean()) == pytest.approx((float(target[3, 3]) - 0.025) / 0.9, abs=1e-5)


def _image_file(folder: Path, name: str = "test_unireplknet") -> tuple[Path, nn.Module]:
    """Weights of an image classifier of 5 classes."""
    torch.manual_seed(7)
    image = timm.create_model(name, num_classes=5, layer_scale_init_value=0.5)
    torch.save({"model": image.state_dict()}, folder / "image.pth")
    return folder / "image.pth", image


def test_weights_of_images_load_and_are_used(tmp_path: Path) -> None:
    file, image = _image_file(tmp_path)
    args = {"backbone_args": {"layer_scale_init_value": 0.5}}
    x = torch.randn(2, 4, 3, 32, 32)
    torch.manual_seed(0)
    fresh = VideoClassifier("test_unireplknet", 3, **args).eval()
    torch.manual_seed(0)
    loaded = VideoClassifier("test_unireplknet", 3, weights=str(file), **args).eval()
    features = image.eval().forward_features(clip_to_map(x))  # type: ignore[operator]
    assert_close(loaded.backbone.forward_features(loaded.to_maps(x)), features)  # type: ignore[operator]
    assert not torch.allclose(fresh.backbone.forward_features(fresh.to_maps(x)), features)  # type: ignore[operator]
    assert not torch.allclose(fresh(x), loaded(x))


def test_clip_of_one_frame_is_the_image(tmp_path: Path) -> None:
    _, image = _image_file(tmp_path)
    x = torch.randn(3, 1, 3, 32, 32)
    assert_close(VideoClassifier(image, 5).eval()(x), image.eval()(x[:, 0]))


def test_layer_decay_reaches_every_parameter() -> None:
    task = VideoClassifier("test_unireplknet", 3, layer_decay=0.5)
    groups = parameter_groups(task, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    rates = sorted({group["lr"] for group in groups})
    assert rates == [0.5**i for i in range(len(rates) - 1, -1, -1)]
    assert len(rates) > 4
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len(list(task.parameters()))
    stem = {id(p) for p in task.backbone.downsample_layers[0].parameters()}  # type: ignore[index,union-attr]
    assert {group["lr"] for group in groups for p in group["params"] if id(p) in stem} == {rates[0]}


@pytest.mark.parametrize(("name", "parameters"), [("k400_b", 98.253), ("k400_s", 55.995)])
def test_sizes_of_the_recipes(name: str, parameters: float) -> None:
    root = Path(__file__).parents[2] / "video" / "configs" / "recipes"
    args = yaml.safe_load((root / f"{name}.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    with torch.device("meta"):
        model = timm.create_model(args["backbone"], num_classes=400, **args["backbone_args"])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=5e-4)


def test_pictures_show_the_frames_in_order_however_they_are_laid_out() -> None:
    shades = torch.linspace(0, 1, 16).view(1, 16, 1, 1, 1).expand(2, 16, 3, 100, 100)
    for x in (shades, shades[:, None].expand(-1, 5, -1, -1, -1, -1)):
        picture = VideoClassifier(Means(), 3, layout="strip", rows=1).to_examples(x)
        assert picture.shape == (2, 3, 256, 256)
        assert_close(picture[0, 0, 32::64, 32::64].flatten(), torch.linspace(0, 1, 16))


def test_picture_of_views_is_the_middle_one() -> None:
    views = torch.arange(5.0).view(1, 5, 1, 1, 1, 1).expand(2, 5, 4, 3, 8, 8)
    assert_close(VideoClassifier(Means(), 3).to_examples(views), torch.full((2, 3, 16, 16), 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "rows"}, r"layout='rows', rows=None; expected 'grid' or 'strip'"),
        ({"rows": 0}, r"rows=0; expected .*at least 1 or null"),
        ({"num_classes": 1}, "num_classes=1,.*at least 2"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VideoClassifier(**{"backbone": "test_resnet", "num_classes": 3} | options)


def test_frames_that_fill_no_rectangle_are_refused_before_the_first_step() -> None:
    data = VideoFolder("videos", num_frames=7, size=32, num_workers=0)
    task = VideoClassifier("test_unireplknet", 3)
    task._trainer = Trainer(**QUIET)
    task.trainer.datamodule = data  # type: ignore[attr-defined]
    with pytest.raises(
        InputError, match=r"7 frames fill no rectangle but a single row; give --data\.num_frames 6 or 8"
    ):
        task.setup("fit")
    task.rows = 1
    task.setup("fit")


def test_training_with_mixing_lowers_the_loss() -> None:
    x = torch.randn(8, 4, 3, 16, 16) * 0.1 + torch.arange(2).repeat(4).view(8, 1, 1, 1, 1)
    task = VideoClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), 2, mixup_alpha=0.2, lr=1e-3)
    y = torch.arange(2).repeat(4)
    before = float(F.cross_entropy(task(x), y).detach())
    Trainer(**QUIET, max_epochs=10, limit_val_batches=0).fit(task, _data(x, y, 2))
    assert float(F.cross_entropy(task(x), y).detach()) < before
