"""The published settings, value by value, and what they do to images: read from the authors' configs."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mm_files import CONFIGS, tiny, write_scenes
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, DefaultScope

from vision.openmmlab.config_files import build_dataset, build_model, read_config

WIDE = (100, 75)
"""Width and height of a file."""
SEGMENTED = [
    ("upernet_unireplknet_t_in1k_160k_ade20k_512", 512, (512, 704)),
    ("upernet_unireplknet_s_in22k_160k_ade20k_640", 640, (640, 864)),
    ("upernet_replknet_31b_in1k_160k_ade20k_512", 512, (512, 683)),
    ("upernet_replknet_31l_in22k_160k_ade20k_640", 640, (512, 683)),
    ("upernet_replknet_31b_in1k_80k_cityscapes_769", 769, (1025, 1367)),
]
"""Crop in training, and the size in which the network sees a file of 100 x 75 at test time."""


def _config(name: str) -> Any:
    return read_config(f"{name}.py")


def _own_pipelines(name: str, scenes: Path) -> Any:
    """The published pipelines on small files, without the shift of labels that ADE20K's files need."""
    config, published = tiny(name, root=scenes), _config(name)
    for split in ("train", "val"):
        pipeline = published[f"{split}_dataloader"].dataset.pipeline
        for step in pipeline:
            step.pop("reduce_zero_label", None)
        config[f"{split}_dataloader"].dataset.pipeline = pipeline
    return config


def _prepared(config: Any, batch: Any, training: bool) -> Any:
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(config.model.data_preprocessor)(batch, training)


@pytest.mark.parametrize(("name", "crop"), [row[:2] for row in SEGMENTED])
def test_no_class_fills_more_than_three_quarters_of_a_crop(name: str, crop: int) -> None:
    (step,) = (s for s in _config(name).train_dataloader.dataset.pipeline if s["type"] == "RandomCrop")
    assert (tuple(step["crop_size"]), step["cat_max_ratio"]) == ((crop, crop), 0.75)


@pytest.mark.parametrize(("name", "crop", "seen"), SEGMENTED)
def test_segmentation_sees_images_as_published(name: str, crop: int, seen: tuple[int, int], tmp_path: Path) -> None:
    """UniRepLKNet stretches test images to multiples of 32, RepLKNet takes them as they are; crops are padded whole."""
    config = _own_pipelines(name, write_scenes(tmp_path, 2, WIDE))
    config.model.data_preprocessor.size = _config(name).model.data_preprocessor.get("size")
    batch = pseudo_collate([build_dataset(config, "val")[0]])
    assert float(batch["inputs"][0].float().std()) > 0
    data = _prepared(config, batch, training=False)
    assert tuple(data["inputs"].shape[2:]) == tuple(batch["inputs"][0].shape[1:]) == seen
    config.train_dataloader.dataset.pipeline[2].ratio_range = (0.5, 0.5)
    dataset = build_dataset(config, "train")
    (height, width) = (side // 2 for side in (seen[0], round(seen[0] * 4 / 3)))
    data = _prepared(config, pseudo_collate([dataset[0], dataset[1]]), training=True)
    assert data["inputs"].shape == (2, 3, crop, crop)
    assert not data["inputs"][:, :, height + 1 :].any()
    assert not data["inputs"][:, :, :, width + 1 :].any()
    labels = data["data_samples"][0].gt_sem_seg.data[0]
    assert (labels[height + 1 :] == 255).all()
    assert (labels[:, width + 1 :] == 255).all()
    assert (labels[height // 2, : width - 1] != 255).all()


@pytest.mark.parametrize("name", [SEGMENTED[0][0], SEGMENTED[2][0], SEGMENTED[3][0]])
def test_label_maps_come_back_in_the_size_of_the_file(name: str, tmp_path: Path) -> None:
    config = _own_pipelines(name, write_scenes(tmp_path, 1, (96, 71)))
    model: Any = build_model(config).eval()
    batch = pseudo_collate([build_dataset(config, "val")[0]])
    with DefaultScope.overwrite_default_scope("mmseg"), torch.no_grad():
        (found,) = model(**model.data_preprocessor(batch, False), mode="predict")
    assert found.pred_sem_seg.data.shape == found.gt_sem_seg.data.shape == (1, 71, 96)


@pytest.mark.parametrize(("name", "multiple"), [(SEGMENTED[0][0], 32), (SEGMENTED[2][0], 1)])
def test_views_of_several_sizes(name: str, multiple: int, tmp_path: Path) -> None:
    write_scenes(tmp_path, 1, WIDE)
    image, labels = (str(tmp_path / folder / "0.png") for folder in ("images", "labels"))
    with DefaultScope.overwrite_default_scope("mmseg"):
        steps = Compose(_config(name).tta_pipeline)
        views = steps({"img_path": image, "seg_map_path": labels, "reduce_zero_label": True, "seg_fields": []})
    sizes = [tuple(view.shape[1:]) for view in views["inputs"]]
    shorter = [int(512 * ratio) for ratio in (0.5, 0.75, 1, 1.25, 1.5, 1.75)]
    assert [size[0] for size in sizes[::2]] == shorter
    assert all(size[1] % multiple == 0 for size in sizes)
    assert len(set(sizes)) == 6


SCHEDULES = [
    ("upernet_unireplknet_t_in1k_160k_ade20k_512", 1e-4, 160_000, 2, 1500),
    ("upernet_unireplknet_l_in22k_160k_ade20k_640", 1e-4, 160_000, 2, 1500),
    ("upernet_replknet_31b_in1k_160k_ade20k_512", 2e-4, 40_000, 2, 400),
    ("upernet_replknet_31b_in22k_160k_ade20k_640", 2e-4, 40_000, 2, 400),
    ("upernet_replknet_31l_in22k_160k_ade20k_640", 2e-4, 80_000, 1, 800),
    ("upernet_replknet_xl_meg73m_160k_ade20k_640", 2e-4, 160_000, 2, 1500),
    ("upernet_replknet_31b_in1k_80k_cityscapes_769", 2e-4, 20_000, 2, 400),
]
"""Rate, iterations, images a process, and iterations of warm-up."""


def _rates(config: Any, wanted: set[int], length: int = 0) -> dict[int, float]:
    """The learning rate of each wanted iteration, with ``length`` iterations an epoch."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=config.optim_wrapper.optimizer.lr)
    by_step, by_epoch = [], []
    for settings in config.param_scheduler:
        (by_epoch if settings.by_epoch else by_step).append(
            PARAM_SCHEDULERS.build({**settings, "optimizer": optimizer})
        )
    found = {}
    for step in range(max(wanted) + 1):
        if step in wanted:
            found[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        for scheduler in by_step + (by_epoch if length and (step + 1) % length == 0 else []):
            scheduler.step()
    return found


@pytest.mark.parametrize(("name", "rate", "iterations", "batch", "warmup"), SCHEDULES)
def test_schedules_of_the_segmentors(name: str, rate: float, iterations: int, batch: int, warmup: int) -> None:
    """The official rule: linear down to 0 from the first iteration on, times the warm-up from 1e-6."""
    config = _config(name)
    assert config.train_cfg.max_iters == iterations
    assert config.train_dataloader.batch_size == batch
    assert config.optim_wrapper.optimizer.lr == rate
    steps = {0, warmup // 2, warmup - 1, warmup, warmup + 100}
    expected = {i: rate * (1 - i / iterations) * min(1, max(i / (warmup - 1), 1e-6)) for i in steps}
    assert _rates(config, steps) == pytest.approx(expected, rel=1e-4)
    decays = config.optim_wrapper.paramwise_cfg
    assert decays == {"norm_decay_mult": 0.0} if "unireplknet" not in name else decays.decay_rate in (1.0, 0.85)


def test_cityscapes_is_that_of_the_published_figure() -> None:
    """83.1 mIoU is of ImageNet-1K weights, 769 x 769 crops and aligned corners."""
    model = _config("upernet_replknet_31b_in1k_80k_cityscapes_769").model
    assert "in1k" in model.backbone.init_cfg.checkpoint
    assert model.backbone.drop_path_rate == 0.5
    for head in (model.decode_head, model.auxiliary_head):
        assert head.align_corners
        assert head.num_classes == 19
    assert not list(CONFIGS.glob("*in22k*cityscapes*"))
    assert not _config("upernet_replknet_31b_in1k_160k_ade20k_512").model.decode_head.align_corners


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*coco.py")) + sorted(CONFIGS.glob("upernet_*0k_*.py")))
def test_blocks_are_recomputed_where_the_authors_do(file: Path) -> None:
    """Everywhere but for UniRepLKNet-T on ADE20K."""
    backbone = read_config(file).model.backbone
    assert backbone.get("with_cp", False) == (file.stem != "upernet_unireplknet_t_in1k_160k_ade20k_512")


def test_detectors_warm_up_as_published() -> None:
    """Cascades from a thousandth, linearly, FCOS at a third; both for 500 iterations, then steps of ten."""
    cascade = _rates(_config("cascade_mask_rcnn_unireplknet_t_in1k_3x_coco"), {0, 250, 499, 500, 27 * 60, 33 * 60}, 60)
    assert cascade == pytest.approx({0: 1e-7, 250: 5.01e-5, 499: 1e-4, 500: 1e-4, 1620: 1e-5, 1980: 1e-6}, rel=3e-3)
    fcos = _rates(_config("fcos_replknet_31b_in1k_2x_coco"), {0, 498, 500, 16 * 60 - 1, 16 * 60, 22 * 60}, 60)
    assert fcos == pytest.approx({0: 2e-4 / 3, 498: 2e-4 / 3, 500: 2e-4, 959: 2e-4, 960: 2e-5, 1320: 2e-6})


def test_fcos_trains_on_two_sizes_without_crops_or_masks(tmp_path: Path) -> None:
    config, published = tiny("fcos_replknet", root=write_scenes(tmp_path, 2, WIDE)), _config(DETECTED)
    pipeline = published.train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline].count("RandomCrop") == 0
    config.train_dataloader.dataset.pipeline = pipeline
    dataset = build_dataset(config, "train")
    seen = [dataset[i % 2] for i in range(12)]
    assert {tuple(sample["inputs"].shape[1:]) for sample in seen} == {(640, 853), (800, 1067)}
    assert not any("masks" in sample["data_samples"].gt_instances for sample in seen)
    assert published.val_evaluator.metric == "bbox"


DETECTED = "fcos_replknet_31b_in1k_2x_coco"
AVERAGED = ["s_in22k", "b_in22k", "l_in22k", "xl_in22k"]


class _Net(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, inputs: Any, mode: str = "loss") -> dict[str, torch.Tensor]:
        return {"loss": self.norm(inputs).sum()}


def _steps(hook: Any, count: int) -> tuple[_Net, _Net]:
    """A net whose numbers grow by one a step, and its average."""
    net: Any = _Net()
    with DefaultScope.overwrite_default_scope("mmdet"):
        hook.before_run(SimpleNamespace(model=net))
    for step in range(count):
        for value in (net.norm.weight.data, net.norm.running_mean):
            value.fill_(float(step))
        hook.after_train_iter(SimpleNamespace(iter=step), step)
    return net, hook.ema_model.module


@pytest.mark.parametrize("size", AVERAGED)
def test_averages_follow_the_weights_at_first(size: str) -> None:
    """The published hook: at step n a share of 1e-4 + (1 - 1e-4) exp(-n / 2000) is new, of norms' statistics too."""
    (settings,) = _config(f"cascade_mask_rcnn_unireplknet_{size}_3x_coco").custom_hooks
    assert settings.pop("priority") == 49
    net, average = _steps(HOOKS.build(settings), 400)
    expected = 0.0
    for step in range(1, 400):
        share = 1e-4 + (1 - 1e-4) * math.exp(-(step + 1) / 2000)
        expected += share * (step - expected)
    assert net.norm.weight.item() == 399
    assert 398 < expected < 399
    for value in (average.norm.weight, average.norm.running_mean):
        assert value.item() == pytest.approx(expected, abs=1e-3)
    assert "custom_hooks" not in _config("cascade_mask_rcnn_unireplknet_s_in1k_3x_coco")


@pytest.mark.parametrize("name", [SEGMENTED[0][0], DETECTED, "mask_rcnn_unireplknet_a_digit_scenes"])
@pytest.mark.parametrize("enable", [True, False])
def test_tf32_is_allowed_for_the_run_alone(name: str, enable: bool) -> None:
    config = read_config(f"{name}.py", {} if enable else {"default_hooks.tf32.enable": False})
    hook: Any = HOOKS.build(config.default_hooks.tf32)
    for before in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = before
        try:
            hook.before_run(None)
            assert torch.backends.cuda.matmul.allow_tf32 == enable
            hook.after_run(None)
            assert torch.backends.cuda.matmul.allow_tf32 == before
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


def test_what_is_kept_of_a_run() -> None:
    segmented, detected = (_config(name).default_hooks.checkpoint for name in (SEGMENTED[0][0], DETECTED))
    assert (segmented.interval, segmented.max_keep_ckpts, segmented.save_best) == (4000, 20, "mIoU")
    assert (detected.interval, detected.max_keep_ckpts, detected.save_best) == (1, 5, "auto")
    assert _config(SEGMENTED[2][0]).default_hooks.checkpoint.interval == 2000
