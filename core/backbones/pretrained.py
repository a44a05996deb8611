"""What the pretrained configurations of both families have in common: size, crop and accuracy, in timm's words."""

from typing import Any

__all__ = ["evaluated_at"]


def evaluated_at(size: int, *, top1: float | None, num_classes: int, first_conv: str) -> dict[str, Any]:
    """Entries of timm's pretrained configuration by the rule of both official scripts.

    Below 384 pixels the shorter side is resized to size / 0.875 and the centre cut out; from 384 on the whole image is
    squashed.

    Args:
        size: side of the input, in pixels.
        top1: accuracy on ImageNet-1K in percent, the paper's; None for weights of a pretraining.
        num_classes: outputs of the classifier in the file.
        first_conv: name of the layer that adapts to other input channels.
    """
    accuracy = f"ImageNet-1K top-1 {top1} (paper)" if top1 else "pretraining, no accuracy published"
    return {
        "notes": (accuracy,),
        "input_size": (3, size, size),
        "crop_pct": 1.0 if size >= 384 else 0.875,
        "crop_mode": "squash" if size >= 384 else "center",
        "interpolation": "bicubic",
        "num_classes": num_classes,
        "first_conv": first_conv,
        "classifier": "head",
    }
