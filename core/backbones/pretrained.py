"""Where the published weights lie, and how their images are prepared: timm's pretrained configurations.

File names and resolutions are those of huggingface.co/DingXiaoH/UniRepLKNet (Apache-2.0); accuracies are the papers'.
Below 384 pixels the shorter side is resized to size / 0.875 and the centre cut out; at 384 the whole image is squashed.
"""

from typing import Any

__all__ = ["UNIREPLKNET_WEIGHTS"]


def _unireplknet(
    filename: str, *, top1: float | None = None, size: int = 224, num_classes: int = 1000
) -> dict[str, Any]:
    accuracy = f"ImageNet-1K top-1 {top1} (paper)" if top1 else "ImageNet-22K pretraining, no accuracy published"
    return {
        "hf_hub_id": "DingXiaoH/UniRepLKNet",
        "hf_hub_filename": f"unireplknet_{filename}.pth",
        "license": "apache-2.0",
        "origin_url": "https://github.com/AILab-CVC/UniRepLKNet",
        "paper_ids": "arXiv:2311.15599",
        "paper_name": "UniRepLKNet: A Universal Perception Large-Kernel ConvNet",
        "notes": (accuracy,),
        "input_size": (3, size, size),
        "crop_pct": 1.0 if size >= 384 else 0.875,
        "crop_mode": "squash" if size >= 384 else "center",
        "interpolation": "bicubic",
        "num_classes": num_classes,
        "first_conv": "downsample_layers.0.0",
        "classifier": "head",
    }


_TEST: dict[str, Any] = {
    "input_size": (3, 64, 64),
    "first_conv": "downsample_layers.0.0",
    "classifier": "head",
}

UNIREPLKNET_WEIGHTS: dict[str, dict[str, Any]] = {
    "unireplknet_a.in1k": _unireplknet("a_in1k_224_acc77.03", top1=77.0),
    "unireplknet_f.in1k": _unireplknet("f_in1k_224_acc78.58", top1=78.6),
    "unireplknet_p.in1k": _unireplknet("p_in1k_224_acc80.23", top1=80.2),
    "unireplknet_n.in1k": _unireplknet("n_in1k_224_acc81.64", top1=81.6),
    "unireplknet_t.in1k": _unireplknet("t_in1k_224_acc83.21", top1=83.2),
    "unireplknet_s.in1k": _unireplknet("s_in1k_224_acc83.91", top1=83.9),
    "unireplknet_s.in22k_ft_in1k_384": _unireplknet("s_in22k_to_in1k_384_acc86.44", top1=86.4, size=384),
    "unireplknet_s.in22k": _unireplknet("s_in22k_pretrain", num_classes=21841),
    "unireplknet_b.in22k_ft_in1k_384": _unireplknet("b_in22k_to_in1k_384_acc87.40", top1=87.4, size=384),
    "unireplknet_b.in22k": _unireplknet("b_in22k_pretrain", num_classes=21841),
    "unireplknet_l.in22k_ft_in1k_384": _unireplknet("l_in22k_to_in1k_384_acc87.88", top1=87.9, size=384),
    "unireplknet_l.in22k": _unireplknet("l_in22k_pretrain", size=192, num_classes=21841),
    "unireplknet_xl.in22k_ft_in1k_384": _unireplknet("xl_in22k_to_in1k_384_acc87.96", top1=88.0, size=384),
    "unireplknet_xl.in22k": _unireplknet("xl_in22k_pretrain", size=192, num_classes=21841),
    "test_unireplknet.untrained": _TEST,
}
"""timm's ``architecture.tag`` to its configuration; the first tag of an architecture is its default."""
