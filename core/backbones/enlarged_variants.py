"""timm's MobileNetV2 and ResNets with large kernels, by name, for the papers' comparison of kernel sizes.

``timm.create_model("lk_mobilenetv2_100", kernel_size=13, shortcut=False)`` takes the arguments of
:func:`core.enlarge_kernels` beside those of the network itself, and ``shortcut=False`` for
:func:`core.enlarge.remove_shortcuts`. ``kernel_size=3`` is the network to compare with, without small branches:
MobileNetV2 as it is, a ResNet with depthwise 3x3 convolutions where they have as many outputs as inputs. The papers'
files of these studies were never published, so there are no weights; ``pretrained=True`` takes the small network's own.
"""

from typing import Any

import timm
from timm.models import load_pretrained, register_model
from torch import nn

from core.enlarge import enlarge_kernels, remove_shortcuts

__all__ = [
    "lk_mobilenetv2_050",
    "lk_mobilenetv2_075",
    "lk_mobilenetv2_100",
    "lk_resnet18",
    "lk_resnet50",
    "lk_resnet101",
    "lk_resnet152",
]


def _create(
    name: str,
    pretrained: bool,
    *,
    kernel_size: int = 13,
    small_kernel: int = 3,
    identity: bool = False,
    shortcut: bool = True,
    dense: bool = False,
    where: str = "",
    **kwargs: Any,
) -> nn.Module:
    own = {key: kwargs.pop(key, None) for key in ("pretrained_cfg", "pretrained_cfg_overlay")}
    shared = False
    if isinstance(own["pretrained_cfg"], dict):  # else of the small network, or None
        own["pretrained_cfg"] = dict(own["pretrained_cfg"])
        shared = own["pretrained_cfg"].pop("enlarged", False)
    model: nn.Module = timm.create_model(name, pretrained=pretrained and not shared, **own, **kwargs)
    if kernel_size == 3:
        small_kernel = 0
    if kernel_size != 3 or dense:
        options: dict[str, Any] = {"identity": identity, "dense": dense, "where": where}
        model = enlarge_kernels(model, kernel_size, small_kernel=small_kernel, **options)
    model = model if shortcut else remove_shortcuts(model)
    held: Any = model
    # what timm writes beside a shared file and reads to build the network again; the file is of the enlarged network
    held.pretrained_cfg = held.default_cfg = held.pretrained_cfg | {"architecture": f"lk_{name}", "enlarged": True}
    if pretrained and shared:
        load_pretrained(model, held.pretrained_cfg, num_classes=held.num_classes)
    return model


@register_model
def lk_mobilenetv2_050(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of half the width with large depthwise kernels."""
    return _create("mobilenetv2_050", pretrained, **kwargs)


@register_model
def lk_mobilenetv2_075(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of three quarters of the width, that of the paper's study of the last stage (by its parameters)."""
    return _create("mobilenetv2_075", pretrained, **kwargs)


@register_model
def lk_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 with large depthwise kernels ('Scaling Up Your Kernels', table 2)."""
    return _create("mobilenetv2_100", pretrained, **kwargs)


@register_model
def lk_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with large depthwise kernels."""
    return _create("resnet18", pretrained, **{"dense": True} | kwargs)


@register_model
def lk_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with large depthwise kernels ('Scaling Up Your Kernels', figure 2)."""
    return _create("resnet50", pretrained, **{"dense": True} | kwargs)


@register_model
def lk_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with large depthwise kernels ('Scaling Up Your Kernels', figure 2)."""
    return _create("resnet101", pretrained, **{"dense": True} | kwargs)


@register_model
def lk_resnet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-152 with large depthwise kernels ('Scaling Up Your Kernels', figure 2)."""
    return _create("resnet152", pretrained, **{"dense": True} | kwargs)
