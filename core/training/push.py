"""The verb ``push``: a checkpoint to the Hugging Face Hub, or into a folder."""

from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser

from core.errors import InputError
from core.training.hub import push_to_hub, save_pretrained

__all__ = ["push_verb", "run_push"]


def push_verb(
    checkpoint: str,
    repository: str | None = None,
    *,
    folder: str | None = None,
    private: bool = False,
    license: str = "apache-2.0",
) -> None:
    """Share a checkpoint: weights, config.json and a model card with what validation gave.

    Args:
        checkpoint: file that lightning fit wrote.
        repository: OWNER/NAME on the Hugging Face Hub.
        folder: write here instead, for a look before it is public.
        private: make a new repository that only its owner sees.
        license: the Hub's word for the licence of the weights.

    Raises:
        InputError: unless one of ``repository`` and ``folder`` is given, or if the checkpoint cannot be read or pushed.
    """
    if (repository is None) == (folder is None):
        raise InputError("give either OWNER/NAME, a repository of the Hugging Face Hub, or --folder FOLDER")
    if folder is not None:
        print(f"wrote {save_pretrained(checkpoint, folder, license=license)}")
    else:
        print(f"pushed {push_to_hub(checkpoint, str(repository), private=private, license=license)}")


def run_push(words: Sequence[str]) -> None:
    """Run the verb from the words of the command line, the verb first.

    Raises:
        InputError: if an option is unknown, or something given cannot be used.
    """
    summary = (push_verb.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(prog="lightning push", description=summary, exit_on_error=False)
    parser.add_argument("checkpoint", type=str, help="file that lightning fit wrote")
    parser.add_argument("repository", nargs="?", type=str, help="OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository that only its owner sees")
    parser.add_function_arguments(push_verb, as_group=False, skip={"checkpoint", "repository", "private"})
    try:
        given = parser.parse_args(list(words[1:]))
    except ArgumentError as error:
        raise InputError(f"{' '.join(str(error).split())}. Type: lightning push --help") from error
    push_verb(**given.as_dict())
