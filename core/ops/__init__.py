"""The operator that the layers are built on; ``core.ops.triton`` has what runs on NVIDIA GPUs alone."""

from core.ops.depthwise import depthwise_conv2d, is_exporting, runs_on_onednn

__all__ = ["depthwise_conv2d", "is_exporting", "runs_on_onednn"]
