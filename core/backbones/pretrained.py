"""What both families have in common where timm builds them and loads published weights."""

from contextlib import nullcontext
from typing import Any, TypeVar

from timm.models import build_model_with_cfg
from torch import nn

from core.checkpoints import checkpoint_filter_fn
from core.downloads import checked_hub, checked_names

__all__ = ["build_variant", "evaluated_at"]

Net = TypeVar("Net", bound=nn.Module)


def build_variant(
    net: type[Net], variant: str, pretrained: bool, args: dict[str, Any], *, hashes_in_names: bool = False
) -> Net:
    """A registered variant by timm's builder, with published weights on request, compared with their hash.

    Args:
        net: class of the family.
        variant: name under which timm knows it.
        pretrained: load the weights of its pretrained configuration.
        args: of the class, ``dims`` among them, and of the builder.
        hashes_in_names: the names of the published files end in the beginning of their SHA-256.
    """
    with checked_hub(), checked_names() if hashes_in_names else nullcontext():
        model: Net = build_model_with_cfg(
            net,
            variant,
            pretrained,
            feature_cfg={"out_indices": tuple(range(len(args["dims"]))), "feature_cls": "getter"},
            pretrained_filter_fn=checkpoint_filter_fn,
            **args,
        )
    return model


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
