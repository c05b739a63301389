"""Uploads an exported model to a model hub: huggingface.co, or the hub at HF_ENDPOINT.

    python tier_1.py export logs/tier1 --method maw my-maw --push-to-hub ORG/NAME              # private
    python tier_1.py export logs/tier1 --method maw my-maw --push-to-hub ORG/NAME --public

    maw.push_to_hub("my-maw", "ORG/NAME")

Only these commands upload. A new repository is private unless `--public` is given, and a public repository is refused
without `--public`. An existing repository gets the files as a new version and keeps earlier ones. The token is that of
`hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import re
from pathlib import Path

from maw.errors import ConfigError, MAWError, reason, show
from maw.runtime.network import told_to_stay_offline, unreachable

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_EXPORTED = ("config.json", "modules.json", "model.safetensors")
TOKEN = "make one that may write at https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN"


def check_hub(name: str) -> None:
    """Checks before an upload that the name is valid, the hub can be reached and there is a token.

    Args:
        name: name of the repository, ORG/NAME; ORG is a user or an organisation.

    Raises:
        ConfigError: the name is not valid.
        MAWError: connections are forbidden, the hub cannot be reached, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if not _NAME.fullmatch(name):
        text = f"{show(name)} is not a repository name; write ORG/NAME, where ORG is your user name or an organisation"
        raise ConfigError([f"--push-to-hub: {text}"])
    if told_to_stay_offline():
        raise MAWError("HF_HUB_OFFLINE forbids connections, so nothing was uploaded; unset it, or do not upload")
    if unreachable([constants.ENDPOINT]):
        raise MAWError(f"{constants.ENDPOINT} cannot be reached, so nothing was uploaded; export now, upload later")
    if not get_token():
        raise MAWError(f"there is no token for {constants.ENDPOINT}, so nothing was uploaded; {TOKEN}")


def push_to_hub(folder: Path | str, name: str, *, private: bool = True) -> str:
    """Uploads the folder of an exported model as one repository.

    Args:
        folder: from `maw.export_retriever` or the command `export`.
        name: name of the repository, ORG/NAME; it is created if it does not exist.
        private: whether only its owners may read it.

    Returns:
        The repository's address.

    Raises:
        ConfigError: the name is not valid, or the folder is not an export.
        MAWError: as `check_hub`; the hub refuses; or the repository exists and is public although `private` is true,
            or private although it is false.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError

    folder = Path(folder)
    missing = [each for each in _EXPORTED if not (folder / each).is_file()]
    if missing:
        raise ConfigError([f"{folder}: has no {missing[0]}, so it is not an exported model; export one first"])
    check_hub(name)
    api = HfApi(endpoint=constants.ENDPOINT, library_name="maw-transformers")
    again = f"maw.push_to_hub({str(folder)!r}, {name!r}{'' if private else ', private=False'})"
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        if bool(api.model_info(name).private) != private:
            kinds = ("public", "private") if private else ("private", "public")
            text = "the repository exists and is {}, but the upload asks for {}".format(*kinds)
            raise MAWError(f"{name}: {text}; nothing was uploaded: choose another name, or upload it as {kinds[0]}")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.resolve().name}")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the library of the upload protocol: RuntimeError
        text = f"the model is complete in {folder}: correct this, then {again}"
        raise MAWError(f"{constants.ENDPOINT} refused {name}: {reason(error)}; {text}") from error
    return address
