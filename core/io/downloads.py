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
    """Download a file into torch's cache, or find it there.

    A name such as ``net-fd08e268.pth`` ends in the beginning of the file's SHA-256, which is compared after the
    download. Other names say nothing about the content, and nothing is compared.

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
    """Download a file of a Hub repository into the Hub's cache, or find it there, and compare it with its hash.

    The Hub names the content of a file by its SHA-256 (small files by git's SHA-1), and the cache stores it under that
    name. Where the cache cannot link files (Windows without the right to), there is no such name and nothing is
    compared.

    Args:
        repository: OWNER/NAME.
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
    """Download the weights of a timm configuration and compare their hash, before timm finds them in the same cache.

    timm compares hashes in names only if told so for the whole process, and files of the Hub never. A file that is not
    there is left to timm, whose message names it.

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
    """Download the file that timm will choose: safetensors where the repository has them."""
    safe_name = "model.safetensors" if name == "pytorch_model.bin" else str(Path(name).with_suffix(".safetensors"))
    for candidate in (safe_name, name):
        try:
            hub_file(repository, candidate, revision=revision)
        except InputError:
            raise
        except (OSError, ValueError):  # it is not there
            continue
        return


def _download(url: str) -> Path:
    """Download into the folder in which torch and timm look, unless the file is there already."""
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        published = _HASH_IN_NAME.search(name)
        torch.hub.download_url_to_file(url, str(path), published[1] if published else None, progress=False)
    return path


def _has_hash(path: Path, name: str) -> bool:
    """Compare a file's hash with the Hub's name for its content; a name that is no hash is accepted."""
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
