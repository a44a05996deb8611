"""Build timm models by name, with error messages that say what to change."""

import difflib
import re
from typing import Any

import timm
from torch import nn

from core.errors import InputError

__all__ = ["build_backbone", "input_channels"]


def build_backbone(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a model with ``timm.create_model``.

    Args:
        name: name of the model in timm's registry, with or without the tag of published weights.
        pretrained: load the published weights.
        kwargs: arguments of the model.

    Raises:
        InputError: if timm has no such model, refuses the arguments or cannot load the weights.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "list them with timm.list_models()"
        raise InputError(f"unknown model {name!r}; {hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except InputError:
        raise
    except (TypeError, AssertionError, re.error) as error:
        raise InputError(f"{name} does not take these backbone_args: {error}") from error
    except (RuntimeError, OSError, ValueError) as error:  # an unknown tag, no weights, or no network
        tags = ", ".join(timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)) or "none of this model"
        reason = str(error).partition(" Use `pretrained")[0]
        raise InputError(
            f"{name} cannot be built: {reason}; published weights: {tags}.{_manual_download(name)} A downloaded file "
            f"goes to --model.weights FILE, or {name}=FILE in an analysis"
        ) from error


def _manual_download(name: str) -> str:
    """Return a sentence with the address of weights that can only be downloaded by hand, or '' for other weights."""
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # unknown tag
        return ""
    if cfg is None or cfg.has_weights or not cfg.origin_url:
        return ""
    return f" This one has to be downloaded by hand: {cfg.origin_url}."


def input_channels(model: nn.Module, *, without: int = 3) -> int:
    """Return the number of input channels of a model's first 2D convolution; ``without`` if it has none."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return without
