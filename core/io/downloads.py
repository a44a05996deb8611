"""Download files from the Hugging Face Hub and other addresses, and compare them with their published hashes."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from huggingface_hub import hf_hub_download
from timm.models import PretrainedCfg

from core.errors import InputError, MissingError

__all__ = ["download_pretrained", "hub_file", "web_file"]

_CHUNK = 2**24  # bytes
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def web_file(url: str) -> Path:
    """Return the path of a file in torch's cache, and download the file first if it is not there.

    A name such as ``model-fd08e268.pth`` ends in the first digits of the file's SHA-256, which are compared after the
    download. With any other name, nothing is compared.

    Raises:
        MissingError: if the file cannot be downloaded, or does not have the hash in its name.
    """
    try:
        return _download(url)
    except (OSError, RuntimeError) as error:
        raise MissingError(
            f"could not get {url}: {error}; check the address and the network, or download it and pass its path"
        ) from error


def hub_file(repository: str, name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the path of a Hub file in the Hub's cache, download it first if necessary, and verify its hash.

    The Hub identifies the content of a file by its SHA-256 (of a small file, by git's SHA-1), and the cache stores the
    content under that name. If the cache cannot create links (on Windows without the permission), there is no such name
    and nothing is compared.

    Args:
        repository: name of the repository, OWNER/NAME.
        name: path of the file in the repository.
        revision: branch, tag or commit; by default the main branch.
        token: for private repositories; by default the one that ``hf auth login`` stored.

    Raises:
        OSError: if the file cannot be downloaded; the Hub's own errors derive from it or from ValueError.
        ValueError: if the repository's name is invalid.
        InputError: if the content does not have the hash that the Hub gives.
    """
    path = Path(hf_hub_download(repository, name, revision=revision, token=token))
    content = path.resolve()
    if content.parent.name == "blobs" and not _has_hash(content, content.name):
        raise InputError(
            f"{path.name} of {repository!r} is not what the Hugging Face Hub has: its hash is not {content.name}. "
            f"Delete {content} and try again"
        )
    return path


def download_pretrained(cfg: PretrainedCfg) -> None:
    """Download the weights of a timm configuration and verify their hash, before timm finds them in the same cache.

    timm itself compares the hash in a file name only if a global option asks for it, and never for files of the Hub.
    If a file does not exist, the error is left to timm, whose message names the file.

    Raises:
        InputError: if a file does not have the hash that its name or the Hub gives.
    """
    if cfg.file or cfg.state_dict:
        return

    if cfg.hf_hub_id:
        repository, _, revision = cfg.hf_hub_id.partition("@")
        _download_from_hub(repository, cfg.hf_hub_filename or "pytorch_model.bin", revision or None)
    elif cfg.url:
        _download(cfg.url)


def _download_from_hub(repository: str, name: str, revision: str | None) -> None:
    """Download the file that timm will choose: the safetensors file if the repository has one."""
    safe_name = "model.safetensors" if name == "pytorch_model.bin" else str(Path(name).with_suffix(".safetensors"))
    for candidate in (safe_name, name):
        try:
            hub_file(repository, candidate, revision=revision)
        except InputError:
            raise
        except (OSError, ValueError):  # the repository has no such file
            continue
        return


def _download(url: str) -> Path:
    """Download a file into the cache of torch and timm, unless it is already there."""
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        published = _HASH_IN_NAME.search(name)
        torch.hub.download_url_to_file(url, str(path), published[1] if published else None, progress=False)
    return path


def _has_hash(path: Path, name: str) -> bool:
    """Return whether the content of a file has the hash ``name``, a SHA-256 or git's SHA-1; other names pass."""
    if len(name) == 64:
        digest = hashlib.sha256()
    elif len(name) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True

    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == name
