"""Folding a whole model, whatever is around the blocks that fold."""

import copy
from typing import TypeVar

from torch import nn

from core.reparam.norms import require_eval

__all__ = ["reparameterize"]

M = TypeVar("M", bound=nn.Module)


def reparameterize(model: M) -> M:
    """A new model in inference form with the same outputs; the model passed in stays as it is.

    Every module that offers ``reparameterize()`` is folded, wherever it sits: in a backbone, a detector, a
    LightningModule. A model already in inference form comes back as an equal copy.

    With a classifier, the last norm folds into it: ``forward_head(..., pre_logits=True)`` then gives the vector that
    the folded classifier reads, without the norm's scale and shift. For embeddings, fold a model with
    ``num_classes=0``, which keeps them. ``timm.utils.reparameterize_model`` gives the same outputs; it calls the parts
    of a model alone, so it leaves the last norm and the classifier of a bare backbone apart.

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
        fold = getattr(module, "reparameterize", None)
        if callable(fold):
            fold()
    return folded
