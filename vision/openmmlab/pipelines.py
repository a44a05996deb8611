"""Image pipelines that several segmentation configs share, as lists of plain dicts in MMEngine's form."""

from collections.abc import Sequence
from typing import Any

__all__ = ["segmentation_test", "segmentation_train", "segmentation_views"]

Step = dict[str, Any]

_VIEW_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


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
