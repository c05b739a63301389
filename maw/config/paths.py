"""Settings that name folders: as absolute paths, as the identity of a run, and found again after a move.

A run, its results and its checkpoints store absolute paths, so that they can be used from any folder. Links are kept,
since results are called by a link's own name; only what stands before a `..` is followed.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from maw.errors import MAWError, show, suggestion

BEIR = "beir:"
"""Before a folder in BEIR layout: beir:DIR."""
NO_FOLDER = "there is no such folder"


expand_home = os.path.expanduser
"""A path with ~ as the home folder; unlike `Path.expanduser` it leaves ~ of an unknown user as it is."""


def absolute(text: str | Path) -> str:
    """The absolute path of a folder, which need not exist; ~ is the home folder, and a slash at the end goes."""
    path = Path(expand_home(text))
    if path.name in ("", ".."):
        return str(path.resolve())
    return str((path.parent.resolve() if ".." in path.parts else path.parent.absolute()) / path.name)


def short_path(path: str | Path) -> str:
    """A path for the reader: relative if it is in the current folder."""
    path = Path(absolute(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def is_folder(text: str | Path) -> bool:
    """Whether this folder exists; ~ is the home folder."""
    try:
        return bool(str(text)) and "\0" not in str(text) and Path(text).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name longer than the system allows; no home folder
        return False


def beir_parts(text: str) -> tuple[str, str | None]:
    """Splits DIR@NAME into the folder and the name of its test qrels; the name is None without @.

    If a folder of the whole text exists, @ included, it is meant.
    """
    folder, _, name = text.rpartition("@")
    if not folder or "/" in name or is_folder(text):
        return text, None
    return folder, name


def no_folder(text: str) -> str:
    """Says that a folder does not exist, with the folder that is perhaps meant."""
    path = Path(absolute(text))
    with_slashes = text.replace("\\", "/")
    if with_slashes != text and is_folder(with_slashes):
        return f"{NO_FOLDER} (did you mean {with_slashes}? folders are separated by /)"
    try:
        there = [each.name for each in path.parent.iterdir() if each.name.isprintable() and each.is_dir()]
    except (OSError, ValueError):  # its parent does not exist either; a NUL
        return NO_FOLDER
    return f"{NO_FOLDER}{look_alike(path.name, there) or suggestion(path.name, there)}"


def look_alike(name: str, known: Iterable[str]) -> str:
    """Names a known text that looks the same, as another Unicode normalisation does; or ""."""
    form = unicodedata.normalize("NFC", name)
    same = next((each for each in known if each != name and unicodedata.normalize("NFC", each) == form), None)
    if same is None:
        return ""
    return f" ({show(same)} differs only in Unicode normalisation (NFC/NFD): {name!a} is not {same!a})"


def with_folders(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Settings in which `change` replaced each folder of model, datasets and distractors, and the cache folder.

    A model that is no existing folder and does not look like a path is the name of a model, and stays.
    """
    changed = dict(settings)
    model = settings.get("model")
    if isinstance(model, str) and (is_folder(model) or model.startswith(("/", ".", "~"))):
        changed["model"] = change(model)
    for name in ("datasets", "distractors"):
        if settings.get(name):
            changed[name] = [_with_folder(text, change, bare=name == "distractors") for text in settings[name]]
    if settings.get("cache_dir"):
        changed["cache_dir"] = change(settings["cache_dir"])
    return changed


def _with_folder(text: Any, change: Callable[[str], str], *, bare: bool) -> Any:
    """A dataset or distractor with its folder replaced; a `bare` folder is one without beir:."""
    if not isinstance(text, str):  # of a damaged file; the configuration refuses it
        return text
    if bare:
        return change(text.removeprefix(BEIR))
    if text.removeprefix(BEIR) in ("", text):
        return text
    folder, judgements = beir_parts(text.removeprefix(BEIR))
    return f"{BEIR}{change(folder)}{'' if judgements is None else f'@{judgements}'}"


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a folder is written in one way only, with the links above it followed."""

    def real(text: str) -> str:
        path = Path(absolute(text))
        return str(path.parent.resolve() / path.name)

    return with_folders(settings, real)


def found_again(settings: Mapping[str, Any], run: Path, moved: Iterable[str] = ()) -> dict[str, Any]:
    """Settings of an earlier run, with its folders where they are now.

    A folder that is gone, or was stored as a relative path, is looked for in the current folder, in `run`, and where
    it would be if it had moved together with `run`; then among `moved`, by its name. One that is nowhere stays.

    Args:
        settings: as the run stored them.
        run: the run's folder, as it is called now.
        moved: folders to look at, at other places than they were.

    Raises:
        MAWError: one of `moved` does not exist.
    """
    log_dir, moved = settings.get("log_dir") or ".", list(moved)
    for each in moved:
        if not is_folder(each):
            raise MAWError(f"{show(each)}: {no_folder(each)}")

    def place(text: str) -> str:
        beside = run / os.path.relpath(absolute(text), absolute(log_dir))
        named = (each for each in moved if Path(absolute(each)).name == Path(text).name)
        there = (absolute(each) for each in (text, run / text, beside, *named) if is_folder(each))
        return next(there, text)

    if not Path(log_dir).is_absolute():  # such a run stored the model's folder as it was typed, perhaps like a name
        settings = {**settings, "model": place(settings.get("model") or "")}
    return with_folders(settings, place)


def folders_of(settings: Mapping[str, Any]) -> list[str]:
    """All folders that settings name, whether they exist or not."""
    found: list[str] = []
    with_folders(settings, lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
    return found


def check_there(owner: Path, folders: Iterable[str]) -> None:
    """Makes sure that folders of an earlier run exist; `owner` is what needs them.

    Raises:
        MAWError: one is gone.
    """
    for each in folders:
        if not is_folder(each):
            text = f"needs the folder {each}, which is not there. If it moved, say where it is now: --moved FOLDER"
            raise MAWError(f"{owner}: {text}, in Python moved=[FOLDER], with FOLDER of the same name")
