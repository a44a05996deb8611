"""``lightning cost --tune``: measure a model's depthwise convolutions, show them and keep the fastest."""

import sys

import torch
from torch import Tensor, nn

from core.analysis.report import print_table
from core.ops.implementations import IMPLEMENTATIONS
from core.ops.measure import Convolution, measure
from core.ops.table import write_table
from core.ops.tune import convolutions_of
from core.reparam import folds, reparameterize

__all__ = ["tune_model"]

DTYPES = (torch.float32, torch.bfloat16)


def tune_model(model: nn.Module, x: Tensor) -> None:
    """Print milliseconds of each implementation of each convolution, and keep the fastest for this machine.

    Args:
        model: in eval mode; its training step, its prediction and that of its inference form are looked at.
        x: input (B, C, H, W) on the model's device.
    """
    found = dict.fromkeys(convolutions_of(model, x))
    if any(folds(module) for module in model.modules()):
        found |= dict.fromkeys(convolutions_of(reparameterize(model), x))
    if not found:
        print("no depthwise convolution of stride 1 in this model goes through core.ops: nothing to tune")
        return
    rows, fastest = [], {}
    for number, convolution in enumerate(found, start=1):
        for dtype in DTYPES:
            print(f"{number} of {len(found)}: {_name(convolution, dtype)}", file=sys.stderr)
            measured = measure(convolution, dtype, str(x.device))
            fastest[measured.key] = measured.fastest
            times = [measured.milliseconds.get(name) for name in IMPLEMENTATIONS]
            cells = ["" if time is None else f"{time:.3f}" for time in times]
            rows.append([_name(convolution, dtype), *cells, measured.fastest])
    print_table(["milliseconds", *IMPLEMENTATIONS, "kept"], rows)
    print(f"kept in {write_table(fastest)}; delete it to go back to the rules")


def _name(convolution: Convolution, dtype: torch.dtype) -> str:
    size, kernel = ("x".join(map(str, sides)) for sides in (convolution.shape, convolution.kernel))
    layout, kind = "channels_last" if convolution.last else "contiguous", convolution.kind.replace("_", " ")
    return f"{kind} {size} K={kernel} r={convolution.dilation} {layout} {str(dtype).removeprefix('torch.')}"
