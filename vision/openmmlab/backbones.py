"""The backbones of ``core.backbones`` with the arguments that MMDetection and MMSegmentation users expect.

Registered in MMEngine's own registry, which those of MMDetection, MMSegmentation and MMPretrain fall back on:
``backbone=dict(type='UniRepLKNet', variant='unireplknet_t', ...)``. Tensor names are the official ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.backbones.replknet import RepLKNet
from core.backbones.replknet_variants import ARCHITECTURES as REPLKNETS
from core.backbones.staged import StagedNet
from core.backbones.unireplknet import UniRepLKNet
from core.backbones.unireplknet_variants import ARCHITECTURES as UNIREPLKNETS
from core.checkpoints import load_weights
from core.errors import InputError

__all__ = ["MMRepLKNet", "MMUniRepLKNet"]


class _Backbone(StagedNet):
    """What both adapters add to their family: maps of chosen stages, freezing, loading.

    Args:
        variant: name of a published variant, or None for ``depths`` and ``dims`` of one's own.
        out_indices: stages whose maps are given; later stages are left out.
        frozen_stages: -1 freezes nothing, 0 the stem, n the first n stages too.
        norm_eval: keep batch norms in eval mode while training; their weights still train.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` with anything that :func:`core.load_weights` reads, or
            MMEngine's list with that alone in it.
        kwargs: arguments of the family's class; they go before those of the variant.

    Raises:
        InputError: if a name or a number does not fit.
    """

    architectures: Mapping[str, Mapping[str, Any]]

    def __init__(
        self,
        variant: str | None = None,
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if variant is not None and variant not in self.architectures:
            raise InputError(f"unknown variant {variant!r}; {type(self).__name__} has {', '.join(self.architectures)}")
        known = dict(self.architectures[variant]) if variant else {}
        known |= {"num_classes": 0, "feature_norms": self._maps_have_norms(variant)} | kwargs
        try:
            super().__init__(**known)
        except TypeError as error:
            raise InputError(f"{type(self).__name__} does not take these arguments: {error}") from error
        _check(out_indices, frozen_stages, len(self.stages))
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval
        self.init_cfg = _pretrained(init_cfg) if init_cfg else None
        self.prune_intermediate_layers(list(out_indices))
        self.set_grad_checkpointing(with_cp)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    @classmethod
    def _maps_have_norms(cls, variant: str | None) -> bool:
        """Whether the family's authors put a norm on each map of this variant."""
        return True

    def init_weights(self) -> None:
        """Load the file that ``init_cfg`` names; without one the initial weights of the family stay.

        Raises:
            MissingError: if it is not there.
            InputError: if it does not fit.
        """
        if self.init_cfg:
            load_weights(self, self.init_cfg["checkpoint"])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(B, 3, H, W) to the maps of ``out_indices``, stage i being (B, dims[i], H / 4 / 2^i, W / 4 / 2^i)."""
        options: dict[str, Any] = {"norm": self.feature_norms, "stop_early": True, "intermediates_only": True}
        return tuple(cast(list[Tensor], self.forward_intermediates(x, list(self.out_indices), **options)))

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; what is frozen stays in eval mode, with ``norm_eval`` batch norms too."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        """The modules that do not train."""
        if getattr(self, "frozen_stages", -1) < 0:  # not yet set while the family's class is built
            return []
        return [self._entry(0)] + [m for i in range(self.frozen_stages) for m in (self._entry(i), self._blocks(i))]


def _check(out_indices: Sequence[int], frozen: int, stages: int) -> None:
    if not isinstance(out_indices, Sequence) or isinstance(out_indices, str):
        raise InputError(f"out_indices={out_indices!r}; expected a list of stages, for one stage [{out_indices}]")
    rising = bool(out_indices) and sorted(set(out_indices)) == list(out_indices)
    if not rising or not 0 <= out_indices[0] <= out_indices[-1] < stages:
        raise InputError(f"out_indices={tuple(out_indices)}; expected rising numbers of stages from 0 to {stages - 1}")
    if not -1 <= frozen <= out_indices[-1] + 1:
        raise InputError(f"frozen_stages={frozen}; expected -1 for none, 0 for the stem, to {out_indices[-1] + 1}")


def _pretrained(init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known: Any = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg
    first = known[0] if isinstance(known, Sequence) and len(known) == 1 else None
    if isinstance(first, Mapping) and first.get("type") == "Pretrained" and first.get("checkpoint"):
        return dict(first)
    raise InputError(f"init_cfg={init_cfg}; expected dict(type='Pretrained', checkpoint='FILE')")


@MODELS.register_module(name="UniRepLKNet")
class MMUniRepLKNet(_Backbone, UniRepLKNet):
    """:class:`core.backbones.UniRepLKNet` for the registries of OpenMMLab; each map has a norm, ``norm0`` to ``norm3``.

    Raises:
        InputError: if these norms are to be left out.
    """

    architectures = UNIREPLKNETS

    def __init__(self, variant: str | None = None, **kwargs: Any) -> None:
        if not kwargs.get("feature_norms", True):
            raise InputError("feature_norms=False; UniRepLKNet's maps have norms of their own. Leave it out")
        super().__init__(variant, **kwargs)


@MODELS.register_module(name="RepLKNet")
class MMRepLKNet(_Backbone, RepLKNet):
    """:class:`core.backbones.RepLKNet` for the registries of OpenMMLab.

    The maps are those of the stages as they are, except that XL has a norm on each, ``stages.0.norm`` to
    ``stages.3.norm``: so do the published detectors and segmentors. ``feature_norms`` says otherwise.
    """

    architectures = REPLKNETS

    @classmethod
    def _maps_have_norms(cls, variant: str | None) -> bool:
        return variant == "replknet_xl"
