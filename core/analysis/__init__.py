"""The papers' analyses of any timm or LarKit model: effective receptive field, shape bias, and cost."""

from core.analysis.cost import Cost, model_cost
from core.analysis.receptive_field import ReceptiveField, effective_receptive_field, receptive_field_figure
from core.analysis.shape_bias import ShapeBias, shape_bias

__all__ = [
    "Cost",
    "ReceptiveField",
    "ShapeBias",
    "effective_receptive_field",
    "model_cost",
    "receptive_field_figure",
    "shape_bias",
]
