"""The published variants of RepLKNet, by name, and where their weights lie: timm's registry.

The authors' files lie on Google Drive, which no program can download from by name; the files that ``pretrained=True``
fetches are the same weights in mmpretrain's naming, on OpenMMLab's server. Accuracies are the paper's, weights are
under the MIT licence. Evaluation follows the official script: below 384 pixels the shorter side is resized to
size / 0.875 and the centre cut out; at 384 the whole image is squashed. XL takes pixels normalised by mean and standard
deviation 0.5.
"""

from typing import Any

from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import generate_default_cfgs, register_model

from core.backbones.pretrained import build_variant, evaluated_at
from core.backbones.replknet import RepLKNet

__all__ = ["ARCHITECTURES", "replknet_13", "replknet_31b", "replknet_31l", "replknet_xl", "test_replknet"]

_MIRROR = "https://download.openmmlab.com/mmclassification/v0/replknet/replknet-"
_DRIVE = "https://drive.google.com/file/d/"


def _weights(
    drive: str, mirror: str | None, *, top1: float | None = None, size: int = 224, num_classes: int = 1000
) -> dict[str, Any]:
    return {
        **({"url": f"{_MIRROR}{mirror}.pth"} if mirror else {}),
        "license": "mit",
        "origin_url": f"{_DRIVE}{drive}",
        "paper_ids": "arXiv:2203.06717",
        "paper_name": "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs",
        **evaluated_at(size, top1=top1, num_classes=num_classes, first_conv="stem.0.conv"),
    }


_INCEPTION: dict[str, Any] = {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}
_TEST: dict[str, Any] = {"input_size": (3, 64, 64), "first_conv": "stem.0.conv", "classifier": "head"}

default_cfgs = generate_default_cfgs(
    {
        "replknet_13.in1k_e120": _weights("15gohkZof_Qi4__jluUXacB_0Gvbuf5GI", None, top1=83.02),
        "replknet_31b.in1k": _weights(
            "1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S", "31B_3rdparty_in1k_20221118-fd08e268", top1=83.5
        ),
        "replknet_31b.in1k_384": _weights(
            "1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN", "31B_3rdparty_in1k-384px_20221118-03a170ce", top1=84.8, size=384
        ),
        "replknet_31b.in22k_ft_in1k": _weights(
            "1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s", "31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46", top1=85.2
        ),
        "replknet_31b.in22k_ft_in1k_384": _weights(
            "1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX",
            "31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24",
            top1=86.0,
            size=384,
        ),
        "replknet_31b.in22k": _weights("1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z", None, num_classes=21841),
        "replknet_31l.in22k_ft_in1k_384": _weights(
            "1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl",
            "31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c",
            top1=86.6,
            size=384,
        ),
        "replknet_31l.in22k": _weights("16jcPsPwo5rko7ojWS9k_W-svHX-iFknY", None, num_classes=21841),
        "replknet_xl.meg73m_ft_in1k_320": _weights(
            "1tPC60El34GntXByIRHb-z-Apm4Y5LX1T",
            "XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d",
            top1=87.8,
            size=320,
        )
        | _INCEPTION,
        "test_replknet.untrained": _TEST,
    }
)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "replknet_13": {"dims": (128, 256, 512, 1024), "kernel_sizes": (13, 13, 13, 13)},
    "replknet_31b": {"dims": (128, 256, 512, 1024)},
    "replknet_31l": {"dims": (192, 384, 768, 1536)},
    "replknet_xl": {
        "dims": (256, 512, 1024, 2048),
        "kernel_sizes": (27, 27, 27, 13),
        "small_kernel": 0,
        "dw_ratio": 1.5,
    },
    "test_replknet": {
        "dims": (8, 16, 24, 32),
        "depths": (1, 1, 2, 1),
        "kernel_sizes": (9, 7, 13, 5),
        "small_kernel": 3,
    },
}
"""Arguments of :class:`RepLKNet` that make a variant."""


def _create(variant: str, pretrained: bool, **kwargs: Any) -> RepLKNet:
    return build_variant(RepLKNet, variant, pretrained, ARCHITECTURES[variant] | kwargs, hashes_in_names=True)


@register_model
def replknet_13(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-13: 74.2 M parameters in training form and 73.8 M with merged kernels, 13.5 GMACs at 224.

    31B with kernels of 13, from the comparison of kernel sizes (RepLKNet section 4.2). Its weights, of 120 epochs in
    which 31B reaches 83.07, were published to compare receptive fields.
    """
    return _create("replknet_13", pretrained, **kwargs)


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31B: 79.9 M parameters in training form and 79.5 M with merged kernels, 15.4 GMACs at 224."""
    return _create("replknet_31b", pretrained, **kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31L: 173 M parameters in training form and 172 M with merged kernels, 96 GMACs at 384."""
    return _create("replknet_31l", pretrained, **kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-XL: 335 M parameters, 129 GMACs at 320; no small kernels, wider large-kernel layers."""
    return _create("replknet_xl", pretrained, **kwargs)


@register_model
def test_replknet(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """A tiny net for tests; it has no weights."""
    return _create("test_replknet", pretrained, **kwargs)
