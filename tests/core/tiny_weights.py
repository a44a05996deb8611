"""A tiny UniRepLKNet as it starts, the weights that the tests write to files, and their comparison."""

from typing import Any

import timm
from golden_values import TINY, tiny
from torch import Tensor, nn
from torch.testing import assert_close

import core

State = dict[str, Tensor]
STEM = "downsample_layers.0.0.weight"


def fresh(**options: Any) -> core.UniRepLKNet:
    """Return a net in eval mode with its initial weights."""
    model: core.UniRepLKNet = timm.create_model(TINY, **options).eval()
    return model


def saved(**options: Any) -> State:
    """Return weights and statistics that differ from the initial ones."""
    return tiny(**options).state_dict()


def check_same(model: nn.Module, expected: State) -> None:
    """Check that the model has exactly the tensors of ``expected``; it may have others."""
    assert_close({n: t for n, t in model.state_dict().items() if n in expected}, expected, rtol=0, atol=0)
