"""Structural re-parameterisation: the folding maths as pieces, and the function that folds a whole model.

Every fold is computed in float64 on the CPU, whatever the model's dtype and device, and cast back at the end: a fold in
half precision would lose the equality that makes it worth having. Fold after training and after fine-tuning; a folded
model has lost the branches and norms that training needs.
"""

from core.reparam.kernels import add_kernel, dilated_to_dense, embed_kernel, merge_kernels, merged_kernel
from core.reparam.model import folds, reparameterize
from core.reparam.norms import (
    fold_affine,
    fold_bn,
    fuse_bn_conv,
    fuse_conv_bn,
    is_batch_norm,
    norm_affine,
    require_eval,
    set_folded,
    wide,
)

__all__ = [
    "add_kernel",
    "dilated_to_dense",
    "embed_kernel",
    "fold_affine",
    "fold_bn",
    "folds",
    "fuse_bn_conv",
    "fuse_conv_bn",
    "is_batch_norm",
    "merge_kernels",
    "merged_kernel",
    "norm_affine",
    "reparameterize",
    "require_eval",
    "set_folded",
    "wide",
]
