"""Read weights from a file or the Hub, under whichever names, and load them into a model.

Files are read with ``weights_only=True`` or as safetensors: a downloaded checkpoint never runs code.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from core.downloads import hub_file, web_file
from core.errors import InputError, MissingError
from core.fitting import StateDict, fit, warn_of_lost_norms
from core.torch_files import read_torch_file

__all__ = ["checkpoint_filter_fn", "load_weights", "read_state_dict"]

_HUB_PREFIX, _URLS = "hf-hub:", ("http://", "https://")
_WRAPPERS = ("state_dict", "model", "module")
_PREFIXES = ("_orig_mod.", "module.", "backbone.", "model.", "encoder.")

M = TypeVar("M", bound=nn.Module)


def load_weights(model: M, source: str | Path) -> M:
    """Load published or own weights into a model, in place.

    Understood are: official ``.pth`` files, plain or wrapped in ``'model'`` or ``'state_dict'`` (of a training
    state that holds ``'model_ema'`` too, ``'model'`` is loaded, where timm's ``checkpoint_path`` takes the
    average); mmpretrain's RepLKNet files; checkpoints of detectors and segmentors (``backbone.`` prefixes; ``ema_``
    copies are left out); safetensors; Lightning checkpoints of this project; and files in inference form for models
    in inference form. The first convolution adapts to another number of input channels as timm does it; a
    classifier of another size, and norms after the stages that one side lacks, keep their initial weights, and a
    message says so. Everything else must fit exactly.

    Args:
        model: a backbone, a ``features_only`` model, or a LightningModule with a ``backbone``.
        source: path of a file, its address (https://...), a Hub repository ``org/name``, or one of its files,
            ``hf-hub:org/name/file.pth``.

    Returns:
        The same model.

    Raises:
        MissingError: if there is no such file or repository.
        InputError: if the file is no checkpoint, or its tensors do not fit the model; the message names them.
    """
    state_dict = _from_mmpretrain(read_state_dict(source))
    target = _target(model, state_dict)
    state_dict = _strip_prefixes(state_dict, target)
    if isinstance(model, FeatureGetterNet) or getattr(target, "pruned", False):
        own = target.state_dict()
        if not isinstance(model, FeatureGetterNet) and not getattr(target, "feature_norms", True):
            warn_of_lost_norms(state_dict, own, where=str(source))
        state_dict = {name: value for name, value in state_dict.items() if name in own}
    state_dict = fit(state_dict, target, where=str(source))
    target.load_state_dict(state_dict, strict=False)  # fit has compared every name and shape
    return model


def read_state_dict(source: str | Path) -> StateDict:
    """The tensors of a checkpoint by name, unwrapped, on the CPU; ``source`` as for :func:`load_weights`.

    Raises:
        MissingError: if there is no such file or repository.
        InputError: if the file is no checkpoint.
    """
    path, name = Path(source), str(source)
    if path.is_file():
        return _unwrap(_read_file(path), name)
    if name.startswith(_URLS):
        return _unwrap(_read_file(web_file(name)), name)
    if name.startswith(_HUB_PREFIX) or re.fullmatch(r"[\w.-]+/[\w-]+(\.\d[\w-]*)*", name):
        return _unwrap(_read_file(_download(name.removeprefix(_HUB_PREFIX))), name)
    kind = "a folder" if path.is_dir() else "not there"
    raise MissingError(
        f"no weights at {name!r} (it is {kind}); give a .pth, .ckpt or .safetensors file, a Hub repository such as "
        "'org/name', or a file in one: 'hf-hub:org/name/file.pth'"
    )


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> StateDict:
    """The hook that timm calls on a pretrained file before it loads it: unwrap, then compare with the model."""
    unwrapped = _strip_prefixes(_from_mmpretrain(_unwrap(state_dict, "the pretrained file")), model)
    return fit(unwrapped, model, where="the pretrained file", adapt_stem=False)


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise InputError(f"{path} is not a checkpoint that torch or safetensors can read: {error}") from error


def _download(name: str) -> Path:
    """A file of a Hub repository, from the local cache if it is there."""
    parts = name.split("/")
    files = ["/".join(parts[2:])] if len(parts) > 2 else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        try:
            return hub_file("/".join(parts[:2]), file)
        except InputError:
            raise
        except (OSError, ValueError) as error:  # the Hub's own errors derive from these
            reason = error
    raise MissingError(
        f"could not get {' or '.join(files)} of {'/'.join(parts[:2])!r} from the Hugging Face Hub: {reason}; check the "
        "name and the network, or download the file and pass its path"
    )


def _unwrap(content: Any, where: str) -> StateDict:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise InputError(
            f"{where} holds no tensors by name; expected a state dict, plain or in 'state_dict' or 'model'"
        )
    return tensors


def _target(model: nn.Module, state_dict: StateDict) -> nn.Module:
    """The part of ``model`` that the file describes: inside a feature wrapper, or a task's backbone."""
    if isinstance(model, FeatureGetterNet):
        return _target(model.model, state_dict)
    backbone, own = getattr(model, "backbone", None), model.state_dict()
    if isinstance(backbone, nn.Module):
        inside = not any(key.startswith("backbone.") for key in own)  # it is part of a detector, which may be meant
        if inside and any(key in own for key in state_dict):
            return model
        nothing_else = all(key.startswith("backbone.") for key in own)
        if nothing_else or not any(key.startswith("backbone.") for key in state_dict):
            return _target(backbone, state_dict)
    return model


def _strip_prefixes(state_dict: StateDict, model: nn.Module) -> StateDict:
    own = model.state_dict()
    state_dict = {k: v for k, v in state_dict.items() if not k.startswith("ema_")}
    foreign = [prefix for prefix in _PREFIXES if not any(k.startswith(prefix) for k in own)]
    while found := next((p for p in foreign if any(k.startswith(p) for k in state_dict)), None):
        state_dict = {k.removeprefix(found): v for k, v in state_dict.items() if k.startswith(found)}
    return state_dict


def _from_mmpretrain(state_dict: StateDict) -> StateDict:
    """The official names of a RepLKNet file of mmpretrain, which keeps the last norm in the last stage."""
    norms = [name for name in state_dict if re.match(r"^backbone\.stages\.\d+\.norm\.", name)]
    if "head.fc.weight" not in state_dict or not norms:
        return state_dict
    last = max(norms).rsplit(".", 1)[0] + "."
    renamed = {name.replace(last, "backbone.norm."): value for name, value in state_dict.items()}
    return {re.sub(r"^head\.fc\.", "head.", name.removeprefix("backbone.")): value for name, value in renamed.items()}
