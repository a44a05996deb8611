"""OpenMMLab data sets of files that have been read and checked already: boxes in memory, pairs of image and mask."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import DATASETS as DET_DATASETS
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS as SEG_DATASETS
from mmseg.registry import TRANSFORMS
from PIL import Image

from core.errors import InputError
from vision.openmmlab.annotations import CheckedCOCO, CheckedCocoDataset, CheckedMaskCOCO

__all__ = ["BoxDataset", "LoadMaskAnnotations", "MaskDataset"]

IGNORED = 255
"""Label of the pixels that count for nothing."""


@DET_DATASETS.register_module()
class BoxDataset(CheckedCocoDataset):
    """Images with boxes, from the content of a COCO file.

    Args:
        content: the content; the ``file_name`` of each image is the path of its file.
        image_ids: ids of the images to take.
        kwargs: arguments of :class:`mmdet.datasets.CocoDataset`.
    """

    def __init__(self, content: dict[str, Any], image_ids: Sequence[Any], **kwargs: Any) -> None:
        self.content = content
        self.image_ids = image_ids
        super().__init__(**kwargs)

    def load_data_list(self) -> list[Any]:
        """Return the images with their objects, in MMDetection's form."""
        needs_masks = any(getattr(step, "with_mask", False) for step in self.pipeline.transforms)
        index_class = CheckedMaskCOCO if needs_masks else CheckedCOCO
        index = index_class(self.ann_file, self.content)
        self.cat_ids = index.get_cat_ids(cat_names=self.metainfo["classes"])
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        self.cat_img_map = index.cat_img_map

        found = []
        for image_id in self.image_ids:
            image = {**index.imgs[image_id], "img_id": image_id}
            raw = {"raw_img_info": image, "raw_ann_info": index.img_ann_map[image_id]}
            found.append(self.parse_data_info(raw))
        return found


@SEG_DATASETS.register_module()
class MaskDataset(BaseSegDataset):
    """Images with label maps, from pairs of files.

    Args:
        pairs: paths of each image and its label map.
        values: value of each class in the label maps.
        kwargs: arguments of :class:`mmseg.datasets.BaseSegDataset`.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], values: Sequence[int], **kwargs: Any) -> None:
        self.pairs = pairs
        self.values = tuple(values)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the pairs in MMSegmentation's form."""
        return [
            {
                "img_path": str(image),
                "seg_map_path": str(mask),
                "label_map": None,
                "label_values": self.values,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for image, mask in self.pairs
        ]


@TRANSFORMS.register_module()
class LoadMaskAnnotations(BaseTransform):
    """Loads a label map, and replaces the values of the file by class numbers; all others become 255, to be ignored.

    It takes the place of MMSegmentation's ``LoadAnnotations``, in which values without a class stay as they are.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``gt_seg_map`` (H, W) uint8."""
        table = np.full(256, IGNORED, np.uint8)
        for label, value in enumerate(results["label_values"]):
            table[value] = label
        results["gt_seg_map"] = table[read_mask(Path(results["seg_map_path"]))]
        results["seg_fields"].append("gt_seg_map")
        return results


def read_mask(path: Path) -> np.ndarray:
    """Return the values of a label map, (H, W) uint8.

    Raises:
        InputError: if the file cannot be decoded, is a color picture, or holds values above 255.
    """
    try:
        with Image.open(path) as mask:
            mode = mask.mode
            values = np.asarray(mask)
    except Exception as error:  # PIL's decoders raise errors of any type
        raise InputError(f"the mask {path} cannot be decoded as an image: {error}; replace it") from error

    if values.ndim != 2:
        raise InputError(
            f"the mask {path} is a color picture ({mode}); expected one channel, whose values are the numbers of the "
            "classes, as in a PNG of mode L or P"
        )
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > IGNORED):
        raise InputError(f"the mask {path} holds values from {values.min()} to {values.max()}; expected 0 to 255")
    return values.astype(np.uint8)


def image_ids_of(content: Mapping[str, Any]) -> list[Any]:
    """Return the ids of the images of a COCO file, in its order."""
    return [image["id"] for image in content["images"]]
