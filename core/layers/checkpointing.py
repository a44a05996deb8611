"""Activation checkpointing that leaves the running statistics of batch norms as they would be without it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_blocks"]

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def checkpoint_blocks(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run blocks one after the other, each recomputed in the backward pass (non-reentrant).

    Args:
        blocks: modules that map a tensor to a tensor.
        x: the input of the first.

    Returns:
        The output of the last, equal to that without checkpointing.
    """
    for block in blocks:
        if torch.compiler.is_compiling():  # the compiler plans its own recomputation and takes no context managers
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = checkpoint(block, x, use_reentrant=False, context_fn=_recompute_contexts(block))
    return x


def _recompute_contexts(block: nn.Module) -> Callable[[], Contexts]:
    return lambda: (nullcontext(), _statistics_kept(block))


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Lend copies of the running statistics: the recomputation would move them a second time."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
