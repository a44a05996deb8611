"""The published variants of UniRepLKNet, by name, and where their weights lie: timm's registry.

File names and resolutions are those of huggingface.co/DingXiaoH/UniRepLKNet (Apache-2.0); accuracies are the papers'.
Below 384 pixels the shorter side is resized to size / 0.875 and the centre cut out; at 384 the whole image is squashed.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from core.backbones.pretrained import build_variant, evaluated_at
from core.backbones.unireplknet import UniRepLKNet

__all__ = [
    "ARCHITECTURES",
    "test_unireplknet",
    "unireplknet_a",
    "unireplknet_b",
    "unireplknet_f",
    "unireplknet_l",
    "unireplknet_n",
    "unireplknet_p",
    "unireplknet_s",
    "unireplknet_t",
    "unireplknet_xl",
]


def _weights(filename: str, *, top1: float | None = None, size: int = 224, num_classes: int = 1000) -> dict[str, Any]:
    return {
        "hf_hub_id": "DingXiaoH/UniRepLKNet",
        "hf_hub_filename": f"unireplknet_{filename}.pth",
        "license": "apache-2.0",
        "origin_url": "https://github.com/AILab-CVC/UniRepLKNet",
        "paper_ids": "arXiv:2311.15599",
        "paper_name": "UniRepLKNet: A Universal Perception Large-Kernel ConvNet",
        **evaluated_at(size, top1=top1, num_classes=num_classes, first_conv="downsample_layers.0.0"),
    }


_TEST: dict[str, Any] = {
    "input_size": (3, 64, 64),
    "first_conv": "downsample_layers.0.0",
    "classifier": "head",
}

default_cfgs = generate_default_cfgs(
    {
        "unireplknet_a.in1k": _weights("a_in1k_224_acc77.03", top1=77.0),
        "unireplknet_f.in1k": _weights("f_in1k_224_acc78.58", top1=78.6),
        "unireplknet_p.in1k": _weights("p_in1k_224_acc80.23", top1=80.2),
        "unireplknet_n.in1k": _weights("n_in1k_224_acc81.64", top1=81.6),
        "unireplknet_t.in1k": _weights("t_in1k_224_acc83.21", top1=83.2),
        "unireplknet_s.in1k": _weights("s_in1k_224_acc83.91", top1=83.9),
        "unireplknet_s.in22k_ft_in1k_384": _weights("s_in22k_to_in1k_384_acc86.44", top1=86.4, size=384),
        "unireplknet_s.in22k": _weights("s_in22k_pretrain", num_classes=21841),
        "unireplknet_b.in22k_ft_in1k_384": _weights("b_in22k_to_in1k_384_acc87.40", top1=87.4, size=384),
        "unireplknet_b.in22k": _weights("b_in22k_pretrain", num_classes=21841),
        "unireplknet_l.in22k_ft_in1k_384": _weights("l_in22k_to_in1k_384_acc87.88", top1=87.9, size=384),
        "unireplknet_l.in22k": _weights("l_in22k_pretrain", size=192, num_classes=21841),
        "unireplknet_xl.in22k_ft_in1k_384": _weights("xl_in22k_to_in1k_384_acc87.96", top1=88.0, size=384),
        "unireplknet_xl.in22k": _weights("xl_in22k_pretrain", size=192, num_classes=21841),
        "test_unireplknet.untrained": _TEST,
    }
)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "unireplknet_a": {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)},
    "unireplknet_f": {"depths": (2, 2, 6, 2), "dims": (48, 96, 192, 384)},
    "unireplknet_p": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512)},
    "unireplknet_n": {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640)},
    "unireplknet_t": {"depths": (3, 3, 18, 3), "dims": (80, 160, 320, 640)},
    "unireplknet_s": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "unireplknet_b": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "unireplknet_l": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    "unireplknet_xl": {"depths": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048)},
    "test_unireplknet": {"depths": (1, 1, 3, 1), "dims": (8, 16, 24, 32), "kernel_sizes": (3, 7, (9, 0, 3), 13)},
}
"""Arguments of :class:`UniRepLKNet` that make a variant."""


def _create(variant: str, pretrained: bool, **kwargs: Any) -> UniRepLKNet:
    return build_variant(UniRepLKNet, variant, pretrained, ARCHITECTURES[variant] | kwargs)


@register_model
def unireplknet_a(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-A: 4.4 M parameters and 0.64 GMACs at 224 in inference form."""
    return _create("unireplknet_a", pretrained, **kwargs)


@register_model
def unireplknet_f(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-F: 6.2 M parameters and 0.91 GMACs at 224 in inference form."""
    return _create("unireplknet_f", pretrained, **kwargs)


@register_model
def unireplknet_p(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-P: 10.7 M parameters and 1.57 GMACs at 224 in inference form."""
    return _create("unireplknet_p", pretrained, **kwargs)


@register_model
def unireplknet_n(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-N: 18.3 M parameters and 2.77 GMACs at 224 in inference form."""
    return _create("unireplknet_n", pretrained, **kwargs)


@register_model
def unireplknet_t(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-T: 31.0 M parameters and 4.90 GMACs at 224 in inference form."""
    return _create("unireplknet_t", pretrained, **kwargs)


@register_model
def unireplknet_s(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-S: 55.6 M parameters and 9.09 GMACs at 224 in inference form."""
    return _create("unireplknet_s", pretrained, **kwargs)


@register_model
def unireplknet_b(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-B: 98.0 M parameters and 16.1 GMACs at 224 in inference form."""
    return _create("unireplknet_b", pretrained, **kwargs)


@register_model
def unireplknet_l(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-L: 218 M parameters and 105 GMACs at 384 in inference form."""
    return _create("unireplknet_l", pretrained, **kwargs)


@register_model
def unireplknet_xl(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-XL: 387 M parameters and 187 GMACs at 384 in inference form."""
    return _create("unireplknet_xl", pretrained, **kwargs)


@register_model
def test_unireplknet(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """A tiny net with every kind of block, for tests; it has no weights."""
    if "depths" in kwargs:
        kwargs.setdefault("kernel_sizes", None)
    return _create("test_unireplknet", pretrained, **kwargs)
