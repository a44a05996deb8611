"""The depthwise convolution; ``core.ops.triton`` has kernels for NVIDIA GPUs."""

from core.ops.depthwise import depthwise_conv2d, is_exporting, runs_on_onednn

__all__ = ["depthwise_conv2d", "is_exporting", "runs_on_onednn"]
