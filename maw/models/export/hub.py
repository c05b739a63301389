"""An exported model as a repository of a model hub: huggingface.co, or what HF_ENDPOINT names.

    python tier_1.py export logs/tier1 --method maw my-maw --push-to-hub ORG/NAME              # private
    python tier_1.py export logs/tier1 --method maw my-maw --push-to-hub ORG/NAME --public

    maw.push_to_hub("my-maw", "ORG/NAME")

Nothing is uploaded but by these words, and nothing where others can read it unless that is said: a new repository is
made private, and one that is public already is refused without `--public`. One that exists gets the files as a new
version, and keeps its earlier ones. The token is that of `hf auth login`, or HF_TOKEN.
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
    """Makes sure, as far as can be told beforehand, that a model can be uploaded under this name.

    Args:
        name: of the repository, ORG/NAME; ORG is a user or an organisation.

    Raises:
        ConfigError: no such name can be.
        MAWError: connections are forbidden, the hub cannot be reached, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if not _NAME.fullmatch(name):
        text = f"{show(name)} is no name of a repository; write ORG/NAME, with your own user name or an organisation's"
        raise ConfigError([f"--push-to-hub: {text}"])
    if told_to_stay_offline():
        raise MAWError("HF_HUB_OFFLINE forbids connections, and nothing was uploaded; unset it, or leave the hub out")
    if unreachable([constants.ENDPOINT]):
        raise MAWError(f"{constants.ENDPOINT} cannot be reached, and nothing was uploaded; export now, upload later")
    if not get_token():
        raise MAWError(f"there is no token for {constants.ENDPOINT}, and nothing was uploaded; {TOKEN}")


def push_to_hub(folder: Path | str, name: str, *, private: bool = True) -> str:
    """Uploads an exported model, with all that lies in its folder, as one repository.

    Args:
        folder: from `maw.export_retriever` or the command `export`.
        name: of the repository, ORG/NAME; made if need be.
        private: whether only its owners may read it.

    Returns:
        The repository's address.

    Raises:
        ConfigError: no such name can be, or the folder is no export.
        MAWError: as `check_hub`; the hub refuses; or there is such a repository, and it is public where a private one
            was asked for, or the reverse.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError

    folder = Path(folder)
    missing = [each for each in _EXPORTED if not (folder / each).is_file()]
    if missing:
        raise ConfigError([f"{folder}: has no {missing[0]}, so it is no exported model; export one first"])
    check_hub(name)
    api = HfApi(endpoint=constants.ENDPOINT, library_name="maw-transformers")
    again = f"maw.push_to_hub({str(folder)!r}, {name!r}{'' if private else ', private=False'})"
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        if bool(api.model_info(name).private) != private:
            kinds = ("public", "private") if private else ("private", "public")
            text = "there is a {} repository of this name, and the upload was to be {}".format(*kinds)
            raise MAWError(f"{name}: {text}; nothing was uploaded: take another name, or ask for what it is")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.resolve().name}")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: of the upload protocol's library
        text = f"the model is whole in {folder}: mend that, then {again}"
        raise MAWError(f"{constants.ENDPOINT} did not take {name}: {reason(error)}; {text}") from error
    return address
