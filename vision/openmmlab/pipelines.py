"""Image pipelines that several configs share, as lists of plain dicts in MMEngine's form."""

from collections.abc import Sequence
from typing import Any

__all__ = [
    "detection_test",
    "detection_train",
    "own_segmentation_train",
    "segmentation_test",
    "segmentation_train",
    "segmentation_views",
]

Step = dict[str, Any]

_VIEW_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def detection_train(scale: tuple[int, int], *, flip: bool = True, masks: bool = False) -> list[Step]:
    """Return the training pipeline for small sets of boxes: another size, a crop, a flip, and other colors.

    Args:
        scale: (width, height), in pixels, into which the image fits at ratio 1; also the largest crop.
        flip: mirror half of the images.
        masks: load the masks of the objects too.
    """
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks},
        {"type": "RandomResize", "scale": scale, "ratio_range": (0.75, 1.33), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": scale, "allow_negative_crop": True},
        {"type": "RandomFlip", "prob": 0.5 if flip else 0.0},
        _colors(),
        {"type": "PackDetInputs"},
    ]


def detection_test(scale: tuple[int, int], *, masks: bool = False) -> list[Step]:
    """Return the test pipeline for boxes: resize the image to fit into ``scale``; the boxes keep its own pixels."""
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]


def own_segmentation_train(scale: tuple[int, int], labels: Step, *, flip: bool = True) -> list[Step]:
    """Return the training pipeline for small sets of label maps: another size, a crop, a flip, and other colors.

    Args:
        scale: (width, height), in pixels, into which the image fits at ratio 1; also the largest crop.
        labels: the step that loads the label map.
        flip: mirror half of the images.
    """
    return [
        {"type": "LoadImageFromFile"},
        labels,
        {"type": "RandomResize", "scale": scale, "ratio_range": (0.75, 1.5), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": scale[::-1], "cat_max_ratio": 0.9},
        {"type": "RandomFlip", "prob": 0.5 if flip else 0.0},
        _colors(),
        {"type": "PackSegInputs"},
    ]


def _colors() -> Step:
    """Return a mild change of brightness, contrast, saturation and hue; small sets rarely need the strong default."""
    return {
        "type": "PhotoMetricDistortion",
        "brightness_delta": 16,
        "contrast_range": (0.8, 1.2),
        "saturation_range": (0.8, 1.2),
        "hue_delta": 9,
    }


def segmentation_train(scale: tuple[int, int], crop: tuple[int, int], labels: Step) -> list[Step]:
    """Return the training pipeline: resize to 0.5 to 2 times ``scale``, crop, flip, and distort colors.

    At most three quarters of the pixels of a crop belong to one class.

    Args:
        scale: (long, short) side, in pixels, into which the image fits at ratio 1.
        crop: (height, width) in pixels.
        labels: the step that loads the label map.
    """
    return [
        {"type": "LoadImageFromFile"},
        labels,
        {"type": "RandomResize", "scale": scale, "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": crop, "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]


def segmentation_test(scale: tuple[int, int], labels: Step, multiple: int = 1) -> list[Step]:
    """Return the test pipeline: resize the image to fit into ``scale``; the label map keeps its size.

    Args:
        scale: (long, short) side in pixels.
        labels: the step that loads the label map.
        multiple: afterwards stretch each side to the next multiple of this number.
    """
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        *_stretch_to(multiple),
        labels,
        {"type": "PackSegInputs"},
    ]


def segmentation_views(
    scale: tuple[int, int], labels: Step, multiple: int = 1, ratios: Sequence[float] = _VIEW_RATIOS
) -> list[Step]:
    """Return the pipeline of the papers' multi-scale results (``--tta``): six sizes, each also mirrored.

    Args:
        scale: (long, short) side, in pixels, into which the image fits at ratio 1.
        labels: the step that loads the label map.
        multiple: afterwards stretch each side to the next multiple of this number.
        ratios: factors on ``scale``, one for each size.
    """
    sizes = [tuple(int(side * ratio) for side in scale) for ratio in ratios]
    views = [
        [{"type": "Resize", "scale": size, "keep_ratio": True} for size in sizes],
        *([step] for step in _stretch_to(multiple)),
        [{"type": "RandomFlip", "prob": prob, "direction": "horizontal"} for prob in (0.0, 1.0)],
        [labels],
        [{"type": "PackSegInputs"}],
    ]
    return [{"type": "LoadImageFromFile"}, {"type": "TestTimeAug", "transforms": views}]


def _stretch_to(multiple: int) -> list[Step]:
    return [{"type": "ResizeToMultiple", "size_divisor": multiple}] if multiple > 1 else []
