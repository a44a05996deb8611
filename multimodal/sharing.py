"""The layers that the backbones of several tasks have in common."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.backbones.base import LargeKernelNet
from core.errors import InputError

__all__ = ["Norms", "Share", "SharedLayers", "shared_stages"]

Norms = Literal["shared", "per_member"]
Share = Literal["all", "none"] | list[int]


class SharedLayers(nn.Module):
    """Holds the layers that several backbones share, under the names that they have in each backbone.

    ::

        image ── stem of images ──┐                                 ┌── norm and classifier of images ── digits
                                  ├── stages, layers between them ──┤
        sound ── stem of sounds ──┘                                 └── norm and classifier of sounds ── words

    Every backbone stays a complete network, whose layers are partly the same objects as those of the others. A stage is
    shared with the strided layers before it. The stem, the norm after the last map and the classifier are never shared.

    Batch norms are shared like other layers or, with ``norms='per_member'``, each backbone has its own: those after
    depthwise convolutions, of the branches of Dilated Reparam Blocks, and at the end of blocks. Each backbone then
    folds into kernels of its own.

    Args:
        backbones: networks of one family and size, by the names of their members. The layers of the first one replace
            those of the others.
        stages: numbers of the shared stages, counted from 0.
        norms: whether the batch norms in these stages are shared.

    Raises:
        InputError: if the backbones cannot share these layers.
    """

    def __init__(self, backbones: Mapping[str, nn.Module], stages: Sequence[int], norms: Norms) -> None:
        super().__init__()
        # Where the shared layers and single parameters are, in every backbone: (module, name in that module).
        self._layer_places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._parameter_places: dict[str, list[tuple[nn.Module, str]]] = {}

        first, *_ = backbones
        for name, backbone in backbones.items():
            _check_family(name, backbone, first, backbones[first])
        for path, module in _shared_modules(cast(LargeKernelNet, backbones[first]), stages):
            if not isinstance(module, _BatchNorm) or norms == "shared":
                self._share(path, module, backbones)
        self.tie()

    def _share(self, path: str, module: nn.Module, backbones: Mapping[str, nn.Module]) -> None:
        """Put a layer of the first backbone, or the parameters of a block itself, into all backbones."""
        shapes = _own_shapes(module)
        for name, backbone in backbones.items():
            other = _get(backbone, path)
            theirs = _own_shapes(other) if type(other) is type(module) else None
            if theirs != shapes:
                raise InputError(
                    f"member {name!r} cannot share the layer {path} of {next(iter(backbones))!r}: it has "
                    f"{theirs or 'another layer'} where that has {shapes}; leave what changes it out of the member's "
                    "backbone_args, or do not share this stage (--model.share)"
                )
            if any(not p.requires_grad for p in other.parameters(recurse=False)):
                raise InputError(
                    f"member {name!r} freezes {path}, which is shared; leave that option of the member out, and set "
                    "--model.freeze backbone to freeze all that is shared"
                )

        parent_path, _, attribute = path.rpartition(".")
        if next(module.children(), None) is None:
            self._layer_places[path] = [
                (backbone.get_submodule(parent_path), attribute) for backbone in backbones.values()
            ]
            _container(self, parent_path).add_module(attribute, module)
        else:
            holder = _container(self, path)
            for attribute, parameter in module.named_parameters(recurse=False):
                places = [(backbone.get_submodule(path), attribute) for backbone in backbones.values()]
                self._parameter_places[f"{path}.{attribute}"] = places
                holder.register_parameter(attribute, parameter)

    def tie(self) -> None:
        """Put the shared layers into all backbones again; ``load_state_dict`` with ``assign=True`` needs this."""
        for path, places in self._layer_places.items():
            for module, attribute in places:
                setattr(module, attribute, self.get_submodule(path))
        for path, places in self._parameter_places.items():
            for module, attribute in places:
                setattr(module, attribute, self.get_parameter(path))

    def tensor_names(self) -> list[str]:
        """Return the names of the shared tensors, which each backbone also has under the same names."""
        return list(self.state_dict())

    def reparameterize(self) -> None:
        """End the sharing: give each backbone layers of its own, which :func:`core.reparameterize` then folds.

        A layer that was shared cannot be folded once for several batch norms.
        """
        for places in self._layer_places.values():
            for module, attribute in places:
                setattr(module, attribute, copy.deepcopy(getattr(module, attribute)))
        for places in self._parameter_places.values():
            for module, attribute in places:
                setattr(module, attribute, copy.deepcopy(getattr(module, attribute)))

        self._layer_places.clear()
        self._parameter_places.clear()
        for name, _ in list(self.named_children()):
            delattr(self, name)


def shared_stages(share: Share, count: int) -> list[int]:
    """Return the numbers of the shared stages.

    Args:
        share: 'all', 'none', or numbers of stages.
        count: number of stages of the backbone.

    Raises:
        InputError: if a number is not that of a stage.

    Example:
        >>> shared_stages("all", 4), shared_stages([1, 2], 4)
        ([0, 1, 2, 3], [1, 2])
    """
    if share in ("all", "none"):
        return list(range(count)) if share == "all" else []
    if isinstance(share, str) or not set(share) <= set(range(count)):
        raise InputError(f"share={share!r}; expected 'all', 'none', or a list of stages from 0 to {count - 1}")
    return sorted(set(share))


def _check_family(name: str, backbone: nn.Module, first: str, of_first: nn.Module) -> None:
    """Check that a backbone can share layers with that of the first member."""
    if not isinstance(backbone, LargeKernelNet):
        raise InputError(
            f"the backbone of member {name!r} is a {type(backbone).__name__}, which cannot be shared; give a "
            "UniRepLKNet or RepLKNet as --model.backbone"
        )
    depths = cast(LargeKernelNet, of_first).depths
    if type(backbone) is not type(of_first) or backbone.depths != depths:
        raise InputError(
            f"the members {first!r} and {name!r} cannot share a backbone: {type(of_first).__name__} with the depths "
            f"{depths}, and {type(backbone).__name__} with {backbone.depths}; give depths and dims as "
            "--model.backbone_args alone"
        )


def _shared_modules(backbone: LargeKernelNet, stages: Sequence[int]) -> list[tuple[str, nn.Module]]:
    """List the modules with tensors of their own in some stages, with their names in the backbone."""
    names = {module: name for name, module in backbone.named_modules()}
    found = []
    for stage in stages:
        roots = [backbone.blocks(stage)] if stage == 0 else [backbone.entry(stage), backbone.blocks(stage)]
        for root in roots:
            for path, module in root.named_modules(prefix=names[root]):
                if _own_shapes(module):
                    found.append((path, module))
    return found


def _own_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a module that are not in its children."""
    tensors: list[tuple[str, Tensor]] = [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _get(module: nn.Module, path: str) -> nn.Module:
    """Return a submodule, or a module without tensors if there is none of this name."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return nn.Module()


def _container(root: nn.Module, path: str) -> nn.Module:
    """Return the submodule of this name, and make it and those above it if they do not exist."""
    for part in path.split("."):
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root
