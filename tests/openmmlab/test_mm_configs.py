"""Every config of the repository is built; every head takes a training and a prediction step at a tiny size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mm_files import CONFIGS, SIDE, tiny, write_scenes
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from torch.testing import assert_close

import core
from core.errors import InputError, MissingError
from vision.openmmlab.config_files import build_dataset, build_model, read_config

FILES = sorted(CONFIGS.glob("*.py"))
MILLIONS = {
    "cascade_mask_rcnn_unireplknet_t_in1k": 89,
    "cascade_mask_rcnn_unireplknet_s_in1k": 113,
    "cascade_mask_rcnn_unireplknet_s_in22k": 113,
    "cascade_mask_rcnn_unireplknet_b_in22k": 155,
    "cascade_mask_rcnn_unireplknet_l_in22k": 276,
    "cascade_mask_rcnn_unireplknet_xl_in22k": 443,
    "cascade_mask_rcnn_replknet_31b_in1k": 137,
    "cascade_mask_rcnn_replknet_31b_in22k": 137,
    "cascade_mask_rcnn_replknet_31l_in22k": 229,
    "cascade_mask_rcnn_replknet_xl_meg73m": 392,
    "upernet_unireplknet_t_in1k": 61,
    "upernet_unireplknet_s_in1k": 86,
    "upernet_unireplknet_s_in22k": 86,
    "upernet_unireplknet_b_in22k": 130,
    "upernet_unireplknet_l_in22k": 254,
    "upernet_unireplknet_xl_in22k": 425,
    "upernet_replknet_31b_in1k_160k": 112,
    "upernet_replknet_31b_in22k": 112,
    "upernet_replknet_31b_in1k_80k": 110,
    "upernet_replknet_xl_meg73m": 374,
}
"""Parameters in the papers' tables, of the inference form and without the auxiliary head."""
HEADS = [
    ("cascade_mask_rcnn_unireplknet_t", "UniRepLKNet"),
    ("cascade_mask_rcnn_replknet_31b_in1k", "RepLKNet"),
    ("fcos_replknet", "RepLKNet"),
    ("fcos_replknet", "UniRepLKNet"),
    ("mask_rcnn_unireplknet_a", "UniRepLKNet"),
    ("upernet_unireplknet_t", "UniRepLKNet"),
    ("upernet_replknet_31b_in1k_160k", "RepLKNet"),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_config_is_built_with_the_parameters_of_the_paper(file: Path) -> None:
    config = read_config(file)
    settings = config.model.copy()
    settings.backbone = {key: value for key, value in settings.backbone.items() if key != "init_cfg"}
    with torch.device("meta"), DefaultScope.overwrite_default_scope(config.default_scope):
        model: Any = MODELS.build(settings)
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary")) / 1e6
    paper = next((value for name, value in MILLIONS.items() if file.stem.startswith(name)), None)
    assert paper is None or count == pytest.approx(paper, rel=0.02), count
    assert paper is not None or file.stem.startswith(
        ("fcos", "gfl", "mask_rcnn", "upernet_replknet_31l", "upernet_unireplknet_a")
    )
    assert config.custom_imports.imports == ["vision.openmmlab"]
    for part in ("train_dataloader", "val_dataloader", "optim_wrapper", "val_evaluator", "train_cfg"):
        assert part in config


def test_there_are_all_the_published_settings() -> None:
    names = {file.stem for file in FILES}
    for size in ("t", "s", "b", "l", "xl"):
        assert any(name.startswith(f"cascade_mask_rcnn_unireplknet_{size}_") for name in names)
        assert any(name.startswith(f"upernet_unireplknet_{size}_") for name in names)
    assert all(any(name.startswith(prefix) for name in names) for prefix in [*MILLIONS, "fcos", "upernet_replknet_31l"])


def _batch(config: Any) -> Any:
    dataset = build_dataset(config, "train")
    return pseudo_collate([dataset[0], dataset[1]])


@pytest.mark.parametrize(("name", "family"), HEADS)
def test_one_training_and_one_prediction_step(name: str, family: str, tmp_path: Path) -> None:
    config = tiny(name, family, write_scenes(tmp_path))
    model: Any = build_model(config)
    batch, scope = _batch(config), config.default_scope
    with DefaultScope.overwrite_default_scope(scope):
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        loss, parts = model.parse_losses(losses)
        loss.backward()
        assert torch.isfinite(loss)
        assert {key for key in parts if "loss" in key}
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not [
            n
            for n in without
            if n.startswith("backbone") and not n.startswith(("backbone.norm0", "backbone.stages.0.norm"))
        ]
        model.eval()
        with torch.no_grad():
            (first, second) = model(**model.data_preprocessor(batch, False), mode="predict")
    if scope == "mmseg":
        assert first.pred_sem_seg.data.shape == (1, SIDE, SIDE)
        assert set(first.pred_sem_seg.data.unique().tolist()) <= {0, 1, 2}
        return
    for sample in (first, second):
        found = sample.pred_instances
        assert found.bboxes.shape == (len(found), 4)
        assert float(found.bboxes.min()) >= 0 if len(found) else True
        assert "fcos" in name or found.masks.shape == (len(found), SIDE, SIDE)


def _wake(model: torch.nn.Module) -> None:
    """Norms that have seen something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)


@pytest.mark.parametrize(("name", "family"), HEADS[:2] + HEADS[-2:])
def test_inference_form_gives_the_same_boxes_masks_and_maps(name: str, family: str, tmp_path: Path) -> None:
    config = tiny(name, family, write_scenes(tmp_path))
    if config.default_scope == "mmdet":
        config.model.test_cfg.rcnn.score_thr = 0.0  # an untrained head has low scores
    model: Any = build_model(config)
    _wake(model)
    folded: Any = core.reparameterize(model.eval())
    assert sum(p.numel() for p in folded.backbone.parameters()) < sum(p.numel() for p in model.backbone.parameters())
    batch, found = _batch(config), []
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.no_grad():
        for net in (model, folded):
            data = net.data_preprocessor(batch, False)
            found.append(net(**data, mode="predict"))
    for before, after in zip(*found, strict=True):
        if config.default_scope == "mmseg":
            assert_close(after.seg_logits.data, before.seg_logits.data, rtol=1e-4, atol=1e-4)
            continue
        assert len(before.pred_instances) > 10
        # in pixels of images of 64 x 64, where one step of float32 is 8e-6
        assert_close(after.pred_instances.bboxes, before.pred_instances.bboxes, rtol=0, atol=1e-4)
        assert_close(after.pred_instances.scores, before.pred_instances.scores, rtol=1e-4, atol=1e-4)
        assert float((after.pred_instances.masks != before.pred_instances.masks).float().mean()) < 1e-4


def test_unknown_config_is_named_with_one_that_comes_near() -> None:
    with pytest.raises(MissingError, match=r"no config upernet_t\.py; give a file, or one of ours such as upernet_"):
        read_config("upernet_t.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", r"cannot be read"),
        ("model = dict(type='FCOS')\n", r"default_scope=None; expected 'mmdet' or 'mmseg'"),
    ],
)
def test_unreadable_config(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "c.py")


def test_model_that_cannot_be_built() -> None:
    config = read_config("mask_rcnn_unireplknet_a_digit_scenes.py", {"model.neck.type": "NoNeck"})
    with pytest.raises(InputError, match="NoNeck"):
        build_model(config)
