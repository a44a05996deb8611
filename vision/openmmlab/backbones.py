"""LarKit's backbones with the arguments that MMDetection and MMSegmentation users expect.

They are registered in MMEngine's root registry, to which those of MMDetection, MMSegmentation and MMPretrain fall back:
``backbone=dict(type='UniRepLKNet', variant='unireplknet_t', ...)``. Tensor names are the official ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import timm
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.backbones import LargeKernelNet
from core.backbones.replknet import VARIANTS as REPLKNETS
from core.backbones.replknet import RepLKNet
from core.backbones.unireplknet import VARIANTS as UNIREPLKNETS
from core.backbones.unireplknet import UniRepLKNet
from core.errors import InputError, listed
from core.io.weights import load_weights

__all__ = ["MMRepLKNet", "MMUniRepLKNet", "TimmFeatures", "backbone_settings"]


class _Backbone(LargeKernelNet):
    """What both adapters add to the class of their family: maps of chosen stages, freezing, and loading of weights.

    Args:
        variant: name of a published variant, or None for your own ``depths`` and ``dims``.
        out_indices: stages whose maps are returned; stages after the last of them are removed.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: keep batch norms in eval mode during training; their weights are still trained.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` with anything that :func:`core.load_weights` reads, or a
            list of one such dictionary, which MMEngine accepts too.
        kwargs: arguments of the family's class; they override those of the variant.

    Raises:
        InputError: if a name is unknown or a number out of range.
    """

    architectures: Mapping[str, Mapping[str, Any]]
    """Arguments of the published variants, by name."""

    # train() reads these two, and the family's class may call it before they are set below
    frozen_stages = -1
    norm_eval = False

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

        arguments: dict[str, Any] = {
            "num_classes": 0,
            "feature_norms": self._has_feature_norms(variant),
        }
        if variant is not None:
            arguments |= self.architectures[variant]
        arguments |= kwargs
        try:
            super().__init__(**arguments)
        except TypeError as error:
            raise InputError(f"{type(self).__name__} does not take these arguments: {error}") from error

        _check_stages(out_indices, frozen_stages, len(self.stages))
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.init_cfg = _pretrained_only(init_cfg) if init_cfg else None

        self.prune_intermediate_layers(list(out_indices))
        self.set_grad_checkpointing(with_cp)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    @classmethod
    def _has_feature_norms(cls, variant: str | None) -> bool:
        """Return whether the family's authors put a norm on each map of this variant."""
        return True

    def init_weights(self) -> None:
        """Load the file that ``init_cfg`` names; without ``init_cfg``, keep the random initial weights."""
        if self.init_cfg:
            load_weights(self, self.init_cfg["checkpoint"])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x: normalized images (B, 3, H, W).

        Returns:
            A map (B, dims[i], H / 4 / 2^i, W / 4 / 2^i) for each of these stages i.
        """
        maps = self.forward_intermediates(
            x,
            list(self.out_indices),
            norm=self.feature_norms,
            stop_early=True,
            intermediates_only=True,
        )
        return tuple(cast(list[Tensor], maps))

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; frozen stages stay in eval mode, and with ``norm_eval`` so do all batch norms."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()

        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []

        frozen = [self.entry(0)]
        for stage in range(self.frozen_stages):
            frozen += [self.entry(stage), self.blocks(stage)]
        return frozen


def _check_stages(out_indices: Sequence[int], frozen_stages: int, stages: int) -> None:
    if not isinstance(out_indices, Sequence) or isinstance(out_indices, str):
        raise InputError(f"out_indices={out_indices!r}; expected a list of stages, such as [{out_indices}] for one")

    rising = bool(out_indices) and sorted(set(out_indices)) == list(out_indices)
    if not rising or not 0 <= out_indices[0] <= out_indices[-1] < stages:
        raise InputError(f"out_indices={tuple(out_indices)}; expected stages from 0 to {stages - 1} in rising order")

    most = out_indices[-1] + 1
    if not -1 <= frozen_stages <= most:
        raise InputError(
            f"frozen_stages={frozen_stages}; expected -1 to freeze nothing, 0 for the stem, or a number of stages up "
            f"to {most}"
        )


def _pretrained_only(init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the only entry of ``init_cfg``; of MMEngine's kinds of initialization, only 'Pretrained' is accepted."""
    entries: Any = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg
    entry = entries[0] if isinstance(entries, Sequence) and len(entries) == 1 else None
    if not isinstance(entry, Mapping) or entry.get("type") != "Pretrained" or not entry.get("checkpoint"):
        raise InputError(f"init_cfg={init_cfg}; expected dict(type='Pretrained', checkpoint='FILE')")
    return dict(entry)


@MODELS.register_module(name="UniRepLKNet")
class MMUniRepLKNet(_Backbone, UniRepLKNet):
    """:class:`core.backbones.UniRepLKNet` for OpenMMLab's registries; each map has a norm, ``norm0`` to ``norm3``.

    Raises:
        InputError: if ``feature_norms`` is False.
    """

    architectures = UNIREPLKNETS

    def __init__(self, variant: str | None = None, **kwargs: Any) -> None:
        if not kwargs.get("feature_norms", True):
            raise InputError("feature_norms=False; UniRepLKNet always has a norm on each map. Leave the option out")
        super().__init__(variant, **kwargs)


@MODELS.register_module(name="RepLKNet")
class MMRepLKNet(_Backbone, RepLKNet):
    """:class:`core.backbones.RepLKNet` for OpenMMLab's registries.

    As in the published detectors and segmentors, the maps are the outputs of the stages. Only XL has a norm on each
    map, ``stages.0.norm`` to ``stages.3.norm``. ``feature_norms`` adds or removes these norms.
    """

    architectures = REPLKNETS

    @classmethod
    def _has_feature_norms(cls, variant: str | None) -> bool:
        return variant == "replknet_xl"


@MODELS.register_module()
class TimmFeatures(nn.Module):
    """The maps of a timm model at some strides, as the backbone of a detector or segmentor.

    Args:
        name: name of a timm model that supports ``features_only``.
        strides: strides of the maps that are returned.
        init_cfg: load timm's published weights; None for random weights.
        kwargs: further arguments of the model.
    """

    def __init__(
        self, name: str, *, strides: Sequence[int], init_cfg: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        indices = [index for index, _ in _timm_maps(name, strides)]
        self.net = timm.create_model(
            name, features_only=True, out_indices=indices, pretrained=init_cfg is not None, **kwargs
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of normalized images (B, 3, H, W)."""
        return tuple(self.net(x))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the function from the name of a parameter to its layer group: a group for each part of the model."""
        groups = {name: i for i, (name, _) in enumerate(self.net.named_children())}
        return lambda parameter: groups.get(parameter.split(".")[1], 0)


def backbone_settings(name: str, stages: Sequence[int], arguments: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Return the settings of a backbone in a config, by the name of a model of LarKit or timm, and its channels.

    Args:
        name: name of the model.
        stages: stages whose maps the config uses, 0 for stride 4.
        arguments: arguments of the model.

    Raises:
        InputError: if there is no such model, or it has no maps at these strides.
    """
    base = name.partition(".")[0]
    for kind, variants in (("UniRepLKNet", UNIREPLKNETS), ("RepLKNet", REPLKNETS)):
        if base in variants:
            published = timm.get_pretrained_cfg(name)
            settings = {"type": kind, "variant": base, "out_indices": tuple(stages), **arguments}
            if published is not None and published.hf_hub_id:
                file = f"hf-hub:{published.hf_hub_id}/{published.hf_hub_filename}"
                settings["init_cfg"] = {"type": "Pretrained", "checkpoint": file}
            dims = arguments.get("dims", variants[base]["dims"])
            return settings, [dims[stage] for stage in stages]

    if not timm.is_model(name):
        raise InputError(f"there is no model {name!r}; give one of LarKit or timm, such as unireplknet_a")
    strides = [4 * 2**stage for stage in stages]
    channels = [count for _, count in _timm_maps(name, strides)]
    init_cfg = {"type": "Pretrained", "checkpoint": f"timm/{name}"}
    return {"type": "TimmFeatures", "name": name, "strides": strides, "init_cfg": init_cfg, **arguments}, channels


def _timm_maps(name: str, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return the index and the channels of the map of a timm model at each stride."""
    with torch.device("meta"):
        info = timm.create_model(name, features_only=True).feature_info
    found = {stride: i for i, stride in enumerate(info.reduction())}
    missing = [stride for stride in strides if stride not in found]
    if missing:
        raise InputError(
            f"{name} has maps at the strides {listed(found)}, and the config needs {listed(missing)}; give another one"
        )
    return [(found[stride], info.channels()[found[stride]]) for stride in strides]
