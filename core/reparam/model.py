"""Folding a whole model, whatever is around the blocks that fold."""

import copy
import inspect
from typing import TypeVar

from torch import nn

from core.reparam.norms import require_eval

__all__ = ["folds", "reparameterize"]

M = TypeVar("M", bound=nn.Module)


def reparameterize(model: M) -> M:
    """A new model in inference form with the same outputs; the model passed in stays as it is.

    Every part that offers ``reparameterize()`` without arguments is folded, wherever it sits: in a backbone, a
    detector, a LightningModule. A model already in inference form comes back as an equal copy.

    With a classifier, the last norm folds into it, and ``forward_head(..., pre_logits=True)`` is refused, since its
    vector is gone. For embeddings, fold a model with ``num_classes=0``. ``timm.utils.reparameterize_model`` gives the
    same outputs; it calls the parts of a model alone, so it leaves the last norm and the classifier of a bare backbone
    apart.

    Args:
        model: any module in eval mode, any dtype, any device.

    Raises:
        RuntimeError: if the model, or a part of it that folds, is in train mode.

    Example:
        >>> import core, timm
        >>> model = timm.create_model("test_unireplknet").eval()
        >>> folded = core.reparameterize(model)
        >>> sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
        True
    """
    require_eval(model)
    folded = copy.deepcopy(model)
    for module in list(folded.modules()):
        if folds(module) and (module is not folded or _ours(module)):  # a task's own method may call this function
            module.reparameterize()  # type: ignore[operator]
    return folded


def folds(module: nn.Module) -> bool:
    """Whether a module has a method ``reparameterize`` that needs no arguments, as a variational net's does."""
    fold = getattr(module, "reparameterize", None)
    if not callable(fold):
        return False
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(fold).parameters.values()
    return not any(p.default is p.empty and p.kind in kinds for p in parameters)


def _ours(module: nn.Module) -> bool:
    classes = (c for c in type(module).__mro__ if "reparameterize" in vars(c))
    owner = next(classes, None)  # None for a wrapper, which passes on what it wraps
    return owner is not None and owner.__module__.partition(".")[0] in ("core", "timm")
