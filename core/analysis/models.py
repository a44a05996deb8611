"""Open models that are named on the command line, with their weights and their preprocessing of images."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from core.backbones.build import build_backbone, input_channels
from core.data.images import Mode
from core.errors import InputError, listed
from core.io.weights import load_weights

if TYPE_CHECKING:
    from core.io.checkpoint import TaskCheckpoint

__all__ = ["Normalization", "image_mode", "names_checkpoint", "normalization", "open_model", "square_transform"]

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, for pixels in [0, 1]."""


def open_model(name: str, *, pretrained: bool = False, device: str = "cpu") -> nn.Module:
    """Build a model in eval mode from its name on the command line.

    Args:
        name: a timm or LarKit name (``unireplknet_t.in1k``), a name with a file of weights (``unireplknet_t=FILE``), or
            a checkpoint of ``lightning fit`` or the folder of a run, which know their model.
        pretrained: load the published weights of a model that is named without a file.
        device: device of the model.

    Raises:
        MissingError: if a file is missing.
        InputError: if there is no such model, or a file does not fit it.
    """
    if names_checkpoint(name):
        from core.io.checkpoint import TaskCheckpoint  # imports lightning, which takes seconds and is needed only here

        model = _backbone_of(TaskCheckpoint.read(name))
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


def names_checkpoint(name: str) -> bool:
    """Return whether a name is that of a checkpoint or run folder, and not NAME or NAME=FILE."""
    path = Path(name)
    if path.is_dir():
        return True
    return name.endswith(".ckpt") and (path.is_file() or "=" not in name)


def _backbone_of(checkpoint: "TaskCheckpoint") -> nn.Module:
    """Build the backbone of a task with its weights, and with mean and std of the task in its timm configuration."""
    args = checkpoint.hyperparameters
    if "backbone" not in args and "config" in args:
        raise InputError(
            f"{checkpoint.path} holds a detector or segmentor, and the analyses take other tasks' checkpoints; name "
            "its backbone alone, such as unireplknet_t"
        )
    if isinstance(args.get("members"), dict):
        member = next(iter(args["members"]))
        raise InputError(
            f"{checkpoint.path} holds several tasks, {listed(args['members'])}; take one out and give that: "
            f"python -m multimodal.extract {checkpoint.path} {member} {member}.ckpt"
        )
    if not isinstance(args.get("backbone"), str):
        raise InputError(f"{checkpoint.path} does not say what backbone it holds; type NAME={checkpoint.path}")

    options = dict(args.get("backbone_args") or {})
    num_classes = args.get("num_classes") or len(checkpoint.spec.get("classes") or ())
    if num_classes:
        options["num_classes"] = num_classes

    # The maps of the task may have another number of channels than 3, which the weights of the stem show.
    kernels = (tensor for key, tensor in checkpoint.state_dict.items() if "backbone." in key and tensor.ndim == 4)
    stem = next(kernels, None)
    if stem is not None:
        options.setdefault("in_chans", stem.shape[1])

    model = load_weights(build_backbone(args["backbone"], **options), checkpoint.path)

    statistics = {
        name: tuple(checkpoint.spec[name])
        for name in ("mean", "std")
        if isinstance(checkpoint.spec.get(name), list | tuple)
    }
    cast(Any, model).pretrained_cfg = {**cast(Any, model).pretrained_cfg, **statistics}
    return model


def image_mode(model: nn.Module) -> Mode:
    """Return the mode of images for a model: 'RGB' if it takes 3 channels, 'L' if it takes 1.

    Raises:
        InputError: if it takes another number of channels.
    """
    channels = input_channels(model)
    if channels not in (1, 3):
        raise InputError(f"{type(model).__name__} takes {channels} channels; images have 1 or 3")
    return "L" if channels == 1 else "RGB"


def normalization(model: nn.Module) -> Normalization:
    """Return mean and standard deviation that the model was trained with, one value for each channel."""
    config: dict[str, Any] = resolve_model_data_config(model)
    mean = tuple(config["mean"])
    std = tuple(config["std"])
    if len(image_mode(model)) == 1 and len(mean) == 3:
        # timm's configuration is for three channels, of which a gray image is about the average.
        return (sum(mean) / 3,), (sum(std) / 3,)
    return mean, std


def square_transform(size: int, norm: Normalization) -> Callable[[Image.Image], Tensor]:
    """Make a transform from an image to a map (C, size, size) float32: bicubic resize to a square, normalization."""
    mean, std = norm
    transform: Callable[[Image.Image], Tensor] = create_transform(
        size,
        is_training=False,
        mean=mean,
        std=std,
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="squash",
    )
    return transform
