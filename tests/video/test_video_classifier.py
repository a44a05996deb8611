"""The video classifier: layouts, views, mixing, weights of image models, pictures, and arguments that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from lightning import Trainer
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from core.data.samples import Splits
from core.errors import InputError
from core.training.optim import parameter_groups
from video import VideoClassifier, VideoDataModule, VideoSpec, clip_to_map

QUIET: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False},
}


class Means(nn.Module):
    """A backbone whose logits (B, 3) are the means of the channels of a map, and which keeps the shape of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape)
        return self.scale * x.mean(dim=(2, 3))


def _clips(*shape: int) -> Tensor:
    """Return random pixels in [0, 1]."""
    return torch.rand(*shape)


@pytest.mark.parametrize("name", ["test_unireplknet", "test_replknet", "test_resnet", "test_convnext"])
@pytest.mark.parametrize(("layout", "frames", "classes"), [("grid", 6, 2), ("strip", 4, 11)])
def test_any_backbone_reads_clips(name: str, layout: Any, frames: int, classes: int) -> None:
    torch.manual_seed(0)
    task = VideoClassifier(name, classes, layout=layout).eval()
    x = _clips(2, frames, 3, 32, 32)
    logits = task(x)
    assert logits.shape == (2, classes)
    normalized = (x - torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_DEFAULT_STD).view(
        3, 1, 1
    )
    assert_close(logits, task.backbone(clip_to_map(normalized, layout)))
    x.requires_grad_()
    task(x)[0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0] != 0).flatten(1).any(1).all()
    assert not x.grad[1].any()


def test_bytes_are_read_like_floats() -> None:
    task = VideoClassifier("test_unireplknet", 3).eval()
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    assert_close(task(frames), task(frames / 255))


def test_layout_and_rows_shape_the_map() -> None:
    for options, shape in (
        ({}, (8, 12)),
        ({"rows": 1}, (4, 24)),
        ({"layout": "strip"}, (8, 12)),
        ({"rows": 6}, (24, 4)),
    ):
        task = VideoClassifier(Means(), 3, **options)  # type: ignore[arg-type]
        task(_clips(1, 6, 3, 4, 4))
        assert task.backbone.shape == (1, 3, *shape)
    different = _clips(1, 4, 3, 8, 8)
    grid, strip = (VideoClassifier(Means(), 3, layout=layout).to_maps(different) for layout in ("grid", "strip"))
    assert not torch.equal(grid, strip)


PLAIN_PIXELS = VideoSpec(classes=("a", "b", "c"), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_views_are_averaged_as_probabilities() -> None:
    x = 3 * _clips(5, 7, 4, 3, 8, 8)
    expected = x.mean(dim=(2, 4, 5)).softmax(dim=2).mean(dim=1)
    task = VideoClassifier(Means(), spec=PLAIN_PIXELS)
    assert_close(task(x).softmax(dim=1), expected)
    rows = task.rows(task(x).detach(), list("vwxyz"))
    assert rows["file"] == list("vwxyz")
    assert rows["probability"] == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    assert rows["class"] == ["abc"[i] for i in expected.argmax(1).tolist()]


class Ready(VideoDataModule):
    """A data module of clips in memory."""

    def __init__(self, x: Tensor, y: Tensor, classes: int, **kwargs: Any) -> None:
        super().__init__(batch_size=4, num_workers=0, num_frames=x.shape[-4], **kwargs)
        self.classes = [f"c{i}" for i in range(classes)]
        self.train_set = self.val_set = self.test_set = TensorDataset(x, y)

    def splits(self) -> Splits:
        return Splits(self.classes, train=[], val=[], test=[])

    def setup(self, stage: str | None = None) -> None:
        """Do nothing: the clips are in memory."""


def test_top1_and_top5_of_views() -> None:
    class Logits(Means):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, 0].mean(dim=1)[:, :12]

    x, y = 2 * _clips(21, 3, 1, 3, 1, 12), torch.randint(12, (21,))
    probabilities = x[:, :, 0, :, 0].mean(dim=2).softmax(dim=2).mean(dim=1)
    best = probabilities.topk(5, dim=1).indices
    data = Ready(x, y, 12, mean=(0, 0, 0), std=(1, 1, 1))
    (found,) = Trainer(**QUIET).test(VideoClassifier(Logits(), spec=data.spec()), data, verbose=False)
    assert found["test_acc"] == pytest.approx(float((best[:, 0] == y).float().mean()))
    assert found["test_acc5"] == pytest.approx(float((best == y[:, None]).any(1).float().mean()))
    assert found["test_loss"] == pytest.approx(float(-probabilities.log()[torch.arange(21), y].mean()), rel=1e-5)
    assert 0 < found["test_acc"] < found["test_acc5"] < 1


def test_each_augmented_clip_of_a_video_counts_as_a_sample() -> None:
    x, y = torch.randint(0, 256, (4, 3, 2, 3, 8, 8), dtype=torch.uint8), torch.tensor([2, 0, 1, 1])
    clips, target = VideoClassifier(Means(), 3).augment_batch(x, y)
    assert_close(clips, x.flatten(0, 1) / 255)
    assert target.tolist() == [2] * 3 + [0] * 3 + [1] * 6
    task = VideoClassifier(Means(), 3)
    output, same = task.training_output(x, y)
    assert torch.equal(same, target)
    assert_close(output, task(x.flatten(0, 1)))


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixing_is_the_same_in_all_frames(kind: str) -> None:
    task = VideoClassifier(Means(), 4, rows=1, **{kind: 1.0})
    for _ in range(8):
        x = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 5, 3, 8, 8) / 3
        mixed, target = task.augment_batch(x.clone(), torch.arange(4))
        assert mixed.shape == (4, 5, 3, 8, 8)
        assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
        assert_close(target.sum(dim=1), torch.ones(4))
        share = mixed[3, 0, 0]  # of the clip of ones, mixed with that of zeros
        assert float(share.mean()) == pytest.approx(float(target[3, 3]), abs=1e-5)
        maps = task.to_maps(mixed)
        assert task.augment_map(maps, target) == (maps, target)


def test_training_erases_clips_and_evaluation_does_not() -> None:
    task = VideoClassifier(Means(), 3, erasing=1.0)
    x, y = _clips(3, 4, 3, 16, 16), torch.arange(3)
    erased, target = task.augment_batch(x, y)
    assert torch.equal(target, y)
    changed = ((erased - x).abs() > 1e-5).flatten(0, 2).any(0)
    assert 0 < changed.sum() < 16 * 16
    output, _ = task.training_output(x, y)
    assert not torch.allclose(output, task(x))
    assert_close(task(x), VideoClassifier(Means(), 3)(x))


def _image_file(folder: Path, name: str = "test_unireplknet") -> tuple[Path, nn.Module]:
    """Weights of an image classifier of 5 classes."""
    torch.manual_seed(7)
    image = timm.create_model(name, num_classes=5, layer_scale_init_value=0.5)
    torch.save({"model": image.state_dict()}, folder / "image.pth")
    return folder / "image.pth", image


def test_weights_of_images_load_and_are_used(tmp_path: Path) -> None:
    file, image = _image_file(tmp_path)
    args = {"backbone_args": {"layer_scale_init_value": 0.5}}
    x = _clips(2, 4, 3, 32, 32)
    torch.manual_seed(0)
    fresh = VideoClassifier("test_unireplknet", 3, **args).eval()
    torch.manual_seed(0)
    loaded = VideoClassifier("test_unireplknet", 3, weights=str(file), **args).eval()
    features = image.eval().forward_features(loaded.feature_map(x))  # type: ignore[operator]
    assert_close(loaded.backbone.forward_features(loaded.to_maps(x)), features)  # type: ignore[operator]
    assert not torch.allclose(fresh.backbone.forward_features(fresh.to_maps(x)), features)  # type: ignore[operator]
    assert not torch.allclose(fresh(x), loaded(x))


def test_clip_of_one_frame_is_the_image(tmp_path: Path) -> None:
    _, image = _image_file(tmp_path)
    x = _clips(3, 1, 3, 32, 32)
    task = VideoClassifier(image, 5, spec=replace(PLAIN_PIXELS, classes=tuple("abcde"))).eval()
    assert_close(task(x), image.eval()(x[:, 0]))


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
        picture = VideoClassifier(Means(), 3, layout="strip", rows=1).show(x)
        assert picture.shape == (2, 3, 256, 256)
        assert_close(picture[0, 0, 32::64, 32::64].flatten(), torch.linspace(0, 1, 16))


def test_picture_of_views_is_the_middle_one() -> None:
    views = torch.arange(5).view(1, 5, 1, 1, 1, 1).expand(2, 5, 4, 3, 8, 8)
    assert_close(VideoClassifier(Means(), 3).show(51 * views.to(torch.uint8)), torch.full((2, 3, 16, 16), 0.4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "rows"}, r"layout='rows', rows=None; expected 'grid' or 'strip'"),
        ({"rows": 0}, r"rows=0; expected .*at least 1 or null"),
        ({"num_classes": 1}, "num_classes=1; expected a number from 2"),
        ({"num_classes": None}, "nothing says how many classes there are"),
        ({"erasing": 2.0}, r"erasing=2\.0; expected a probability"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VideoClassifier(**{"backbone": "test_resnet", "num_classes": 3} | options)


def test_frames_that_fill_no_rectangle_are_refused_before_the_first_step() -> None:
    data = Ready(_clips(4, 7, 3, 16, 16), torch.arange(4), 4)
    trainer = Trainer(**QUIET, max_epochs=1, limit_val_batches=0)
    with pytest.raises(
        InputError, match=r"7 frames fill no rectangle but a single row; give --data\.num_frames 6 or 8"
    ):
        trainer.fit(VideoClassifier("test_unireplknet", 4), data)
    assert trainer.global_step == 0
    trainer = Trainer(**QUIET, max_epochs=1, limit_val_batches=0)
    trainer.fit(VideoClassifier("test_unireplknet", 4, rows=1), data)
    assert trainer.global_step == 1


def test_task_takes_classes_and_statistics_from_the_data() -> None:
    data = Ready(_clips(4, 4, 3, 16, 16), torch.arange(4), 4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    task = VideoClassifier("test_unireplknet", 4)
    Trainer(**QUIET, max_epochs=1, limit_val_batches=0).fit(task, data)
    assert task.spec == data.spec()
    assert task.class_names == ["c0", "c1", "c2", "c3"]
    assert_close(task.feature_map.mean, torch.tensor([0.1, 0.2, 0.3]))
    assert_close(task.feature_map.std, torch.tensor([0.5, 0.25, 1.0]))


def test_training_with_mixing_lowers_the_loss() -> None:
    x = _clips(8, 4, 3, 16, 16) * 0.1 + 0.8 * torch.arange(2).repeat(4).view(8, 1, 1, 1, 1)
    y = torch.arange(2).repeat(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    task = VideoClassifier(net, 2, mixup_alpha=0.2, erasing=0.25, lr=1e-3)
    before = float(F.cross_entropy(task(x), y).detach())
    Trainer(**QUIET, max_epochs=10, limit_val_batches=0).fit(task, Ready(x, y, 2))
    assert float(F.cross_entropy(task(x), y).detach()) < before
