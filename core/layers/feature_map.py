"""The base of the feature maps, which turn a raw batch of any modality into 2D maps."""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

__all__ = ["FeatureMap"]


class FeatureMap(nn.Module):
    """Turns a raw batch into maps (B, C, H, W), the first step of every task.

    ::

        raw batch ── feature map ── maps (B, C, H, W) ── backbone ── head

    Statistics of the data, such as a mean and a standard deviation, are buffers of the feature map, so that they are
    saved with the weights. They stay in float32 when the model is cast to a narrower type: a mean that is rounded to
    bfloat16 would shift every map.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        after = dict(self.named_buffers(recurse=False))

        for name, buffer in before.items():
            if buffer.is_floating_point():
                self._buffers[name] = buffer.to(after[name].device)

        return self
