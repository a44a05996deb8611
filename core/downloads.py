"""Files from the Hugging Face Hub and other addresses, compared with the hash that the address or the Hub gives."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm.models
from huggingface_hub import hf_hub_download
from timm.models import _builder, _hub
from timm.models._hub import download_cached_file

from core.errors import InputError, MissingError

__all__ = ["checked_hub", "checked_names", "hub_file", "web_file"]

_HASH_IN_NAME = re.compile(r"-[0-9a-f]{8,64}\.\w+$")
_CHUNK = 2**24


def web_file(url: str) -> Path:
    """A file by its address, from torch's cache if it is there.

    A name such as ``net-fd08e268.pth`` holds the beginning of the file's SHA-256, which the download must have. Other
    names say nothing about the content, which is then not compared.

    Raises:
        MissingError: if it cannot be got, or is not what its name says.
    """
    try:
        return Path(download_cached_file(url, check_hash=bool(_HASH_IN_NAME.search(url.partition("?")[0]))))
    except (OSError, RuntimeError) as error:
        raise MissingError(
            f"could not get {url}: {error}; check the address and the network, or download it and pass its path"
        ) from error


def hub_file(repository: str, name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """A file of a Hub repository, from the local cache if it is there.

    The Hub names the content of a file by its SHA-256, small files by git's SHA-1, and the cache keeps it under that
    name. The content is compared with it. Where the cache cannot link files (Windows without rights), it has no such
    name and there is nothing to compare.

    Args:
        repository: OWNER/NAME.
        name: path of the file in it.
        revision: branch, tag or commit; by default the main branch.
        token: for what is not public; by default the one that the Hub's client has stored.

    Raises:
        OSError: if it cannot be got; the Hub's own errors derive from it or from ValueError.
        ValueError: if the names are none.
        InputError: if the content is not what the Hub has.
    """
    return _compared(Path(hf_hub_download(repository, name, revision=revision, token=token)), repository)


def _compared(path: Path, repository: str) -> Path:
    content = path.resolve()
    if content.parent.name == "blobs" and _sum_of(content, len(content.name)) not in (None, content.name):
        raise InputError(
            f"{path.name} of {repository!r} is not what the Hugging Face Hub has: its hash is not {content.name}. "
            f"Delete {content} and try again"
        )
    return path


def _sum_of(path: Path, digits: int) -> str | None:
    """Hash of the length that the Hub's name for a content has; None if it is no hash."""
    if digits == 64:
        known = hashlib.sha256()
    elif digits == 40:
        known = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return None
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            known.update(chunk)
    return known.hexdigest()


@contextmanager
def checked_names() -> Iterator[None]:
    """Let timm compare what it downloads with the hash in the file's name; for models whose files all have one.

    timm leaves this out by default, since it takes other words in names for hashes.
    """
    before = _builder._CHECK_HASH
    timm.models.set_pretrained_check_hash(True)
    try:
        yield
    finally:
        timm.models.set_pretrained_check_hash(before)


@contextmanager
def checked_hub() -> Iterator[None]:
    """Let timm compare what it gets from the Hub as :func:`hub_file` does; the Hub's own client compares sizes."""
    get = _hub.hf_hub_download

    def compared(*args: Any, **kwargs: Any) -> str:
        repository = str(args[0] if args else kwargs["repo_id"])
        return str(_compared(Path(get(*args, **kwargs)), repository))

    _hub.hf_hub_download = compared
    try:
        yield
    finally:
        _hub.hf_hub_download = get
