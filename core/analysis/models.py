"""Models named on the command line, with their weights and the preparation of images that goes with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from core.backbones.build import build_backbone, input_channels
from core.checkpoints import load_weights
from core.errors import InputError, MissingError
from core.images import Mode
from core.torch_files import read_torch_file

__all__ = ["Normalisation", "image_mode", "normalisation", "open_model", "square_transform"]

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, for pixels in [0, 1]."""


def open_model(name: str, *, pretrained: bool = False, device: str = "cpu") -> nn.Module:
    """A model in eval mode from one word of the command line.

    Args:
        name: a timm or LarKit name (``unireplknet_t.in1k``), a name with a file of weights (``unireplknet_t=FILE``), or
            a checkpoint of this project's ``fit`` (``.../checkpoints/best.ckpt``), which says what model it holds.
        pretrained: load the published weights of a model named without a file.
        device: where it is put.

    Raises:
        MissingError: if a file is not there.
        InputError: if there is no such model, or a file does not fit it.
    """
    if name.endswith(".ckpt") and (Path(name).is_file() or "=" not in name):
        model = _from_checkpoint(Path(name))
    else:
        name, _, file = name.partition("=")
        try:
            model = build_backbone(name, pretrained=pretrained and not file)
        except InputError as error:
            hint = ". Or type --pretrained false for random weights" if pretrained and timm.is_model(name) else ""
            raise InputError(f"{error}{hint}") from error
        if file:
            load_weights(model, file)
    try:
        return model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {error}; type --device cpu") from error


def _from_checkpoint(path: Path) -> nn.Module:
    if not path.is_file():
        raise MissingError(f"there is no checkpoint {path}; give a file that fit wrote, or the name of a model")
    try:
        checkpoint = read_torch_file(path)
        stored = checkpoint["hyper_parameters"]
        of_openmmlab = "backbone" not in stored and "config" in stored
        name, args = "" if of_openmmlab else stored["backbone"], dict(stored.get("backbone_args") or {})
    except Exception as error:
        raise InputError(f"{path} does not say what model it holds ({error}); type NAME={path}") from error
    if of_openmmlab:
        raise InputError(
            f"{path} holds a detector or segmentor, and the analyses take other tasks' checkpoints; name its backbone "
            "alone, such as unireplknet_t"
        )
    if "num_classes" in stored:
        args["num_classes"] = stored["num_classes"]
    model = load_weights(build_backbone(name, **args), path)
    used = {key: tuple(checkpoint[key]) for key in ("mean", "std") if key in checkpoint}
    cast(Any, model).pretrained_cfg = {**cast(Any, model).pretrained_cfg, **used}
    return model


def image_mode(model: nn.Module) -> Mode:
    """'RGB' or 'L', by the channels that the model takes.

    Raises:
        InputError: if that is neither 1 nor 3.
    """
    channels = input_channels(model)
    if channels not in (1, 3):
        raise InputError(f"{type(model).__name__} takes {channels} channels; images have 1 or 3")
    return "L" if channels == 1 else "RGB"


def normalisation(model: nn.Module) -> Normalisation:
    """Mean and standard deviation that the model was trained with, one value for each channel."""
    config: dict[str, Any] = resolve_model_data_config(model)
    channels = len(image_mode(model))
    if channels == 1 and len(config["mean"]) == 3:  # a grey image has the luminance of the three
        return (sum(config["mean"]) / 3,), (sum(config["std"]) / 3,)
    return tuple(config["mean"]), tuple(config["std"])


def square_transform(size: int, norm: Normalisation) -> Callable[[Image.Image], Tensor]:
    """From an image to a (C, size, size) float32 map: the whole image squashed, bicubic, and normalised."""
    transform: Callable[[Image.Image], Tensor] = create_transform(
        size, is_training=False, mean=norm[0], std=norm[1], interpolation="bicubic", crop_pct=1.0, crop_mode="squash"
    )
    return transform
