"""What MMEngine's ``Runner`` has no setting for."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

__all__ = ["AllowTF32"]


@HOOKS.register_module()
class AllowTF32(Hook):
    """Matrix products in TF32 where the GPU has it, as in UniRepLKNet's training scripts, until the run ends.

    Convolutions use it anyway, which is torch's default.

    Args:
        enable: False for full precision: ``--cfg-options default_hooks.tf32.enable=False``.
    """

    def __init__(self, enable: bool = True) -> None:
        self.enable, self.found = enable, False

    def before_run(self, runner: Any) -> None:
        """Set it, and keep what was set before."""
        self.found = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.enable

    def after_run(self, runner: Any) -> None:
        """Set what was found."""
        torch.backends.cuda.matmul.allow_tf32 = self.found
