"""Small detection and segmentation data in COCO's and ADE20K's layouts, and models of every head at a tiny width."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from vision.openmmlab.config_files import read_config
from vision.openmmlab.data import OpenMMLabData

CONFIGS = Path(__file__).parents[2] / "vision" / "openmmlab" / "configs"
SIDE = 64
BACKBONES = {
    "UniRepLKNet": {"type": "UniRepLKNet", "variant": "test_unireplknet", "layer_scale_init_value": 0.5},
    "RepLKNet": {"type": "RepLKNet", "variant": "test_replknet"},
}
DIMS = [8, 16, 24, 32]
_BN = {"type": "BN", "requires_grad": True}


def tiny(name: str, family: str = "UniRepLKNet", root: Path | None = None) -> Config:
    """A published config with its heads, losses, assigners and post-processing, three classes and small widths."""
    config = read_config(next(CONFIGS.glob(f"{name}*.py")))
    model = config.model
    model.backbone = {**BACKBONES[family]}
    if config.default_scope == "mmseg":
        model.data_preprocessor.size = (SIDE, SIDE)
        model.decode_head.update(in_channels=DIMS, channels=16, num_classes=3, norm_cfg=_BN)
        model.auxiliary_head.update(in_channels=DIMS[2], channels=16, num_classes=3, norm_cfg=_BN)
    else:
        model.neck.update(in_channels=DIMS, out_channels=16)
        _narrow(model)
    if root is not None:
        _point_at(config, root)
    return config


def _narrow(model: Any) -> None:
    if "bbox_head" in model:
        model.bbox_head.update(
            num_classes=3, in_channels=16, feat_channels=16, norm_cfg={"type": "GN", "num_groups": 4}
        )
        return
    model.rpn_head.update(in_channels=16, feat_channels=16)
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(num_classes=3, in_channels=16, fc_out_channels=32)
        if "norm_cfg" in head:
            head.update(norm_cfg=_BN, conv_out_channels=16)
    for extractor in ("bbox_roi_extractor", "mask_roi_extractor"):
        model.roi_head[extractor].out_channels = 16
    model.roi_head.mask_head.update(num_classes=3, in_channels=16, conv_out_channels=16)


def _point_at(config: Config, root: Path) -> None:
    """Read the files of :func:`write_scenes` without augmentation."""
    mmdet = config.default_scope == "mmdet"
    labels = {"type": "LoadAnnotations"} | ({"with_bbox": True, "with_mask": True} if mmdet else {})
    pack = {"type": "PackDetInputs" if mmdet else "PackSegInputs"}
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (SIDE, SIDE)}, labels, pack]
    for split in ("train", "val", "test"):
        dataset: dict[str, Any] = {"data_root": str(root), "metainfo": META, "pipeline": pipeline}
        if mmdet:
            dataset |= {"type": "CocoDataset", "ann_file": "coco.json", "data_prefix": {"img": "images/"}}
        else:
            prefix = {"img_path": "images", "seg_map_path": "labels"}
            dataset |= {"type": "BaseSegDataset", "data_prefix": prefix, "img_suffix": ".png"}
        loader = {"batch_size": 2, "num_workers": 0, "dataset": dataset | {"test_mode": split != "train"}}
        config[f"{split}_dataloader"] = loader | {"sampler": {"type": "DefaultSampler", "shuffle": False}}
    kind = {"type": "CocoMetric", "ann_file": str(root / "coco.json"), "metric": ["bbox", "segm"]}
    config.val_evaluator = config.test_evaluator = kind if mmdet else {"type": "IoUMetric", "iou_metrics": ["mIoU"]}


META = {"classes": ("red", "green", "blue"), "palette": [(255, 0, 0), (0, 255, 0), (0, 0, 255)]}


def write_scenes(root: Path, count: int = 4, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """``images/``, ``labels/`` (0 to 2; 255 is ignored) and ``coco.json``: a colored rectangle or two on gray."""
    width, height = size
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, notes = [], []
    for i in range(count):
        pixels, labels = np.full((height, width, 3), 90, np.uint8), np.zeros((height, width), np.uint8)
        for j in range(1 + i % 2):
            x, y, w, h = 4 + 30 * j, 6 + 3 * i, 20, 16 + 2 * j
            label = (i + j) % 3
            pixels[y : y + h, x : x + w] = META["palette"][label]
            labels[y : y + h, x : x + w] = label
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            note = {"id": len(notes) + 1, "image_id": i, "category_id": label + 1, "bbox": [x, y, w, h]}
            notes.append(note | {"area": w * h, "iscrowd": 0, "segmentation": [polygon]})
        labels[0] = 255
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "labels" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(META["classes"])]
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return root


def write_config(config: Config, path: Path) -> str:
    """The config as a file of its own."""
    config.dump(path)
    return str(path)


def config_of(name: str, scenes: Path) -> str:
    """A tiny config of this name for scenes, written beside them."""
    return write_config(tiny(name, root=scenes), scenes / "config.py")


def data_of(config: str, **options: Any) -> OpenMMLabData:
    """Its data, without loading processes."""
    return OpenMMLabData(config, num_workers=0, **options)


def edit_truth(scenes: Path, change: Any) -> None:
    content = json.loads((scenes / "coco.json").read_text())
    change(content)
    (scenes / "coco.json").write_text(json.dumps(content))
