"""Checks of a configuration beyond types and ranges: datasets that exist, layers that the model has.

`validate` lists every mistake at once. It reads the model's config.json and nothing heavier, so that a wrong layer
number is reported within a second, before torch, the model and the data are loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path

from maw.attention.architectures import architecture_of
from maw.config.fields import Problem
from maw.config.layers import parse_layers
from maw.config.method_files import PYTHON, load_methods, place_of
from maw.config.methods import claim, find_method, in_order, is_known, subject_of, trained_methods
from maw.config.paths import BEIR, NO_FOLDER, beir_parts, is_folder, no_folder
from maw.config.tier1_config import LETTERS, ONE_DECISION, SAFE_NAME, Tier1Config, gather
from maw.data.dataset_table import DATASETS, results_name
from maw.errors import ConfigError, ModelError, reason, show, suggestion
from maw.models.model_files import NotCachedError
from maw.models.pretrained import ModelSpec, disagreements, read_spec
from maw.runtime import distributed
from maw.runtime.trackers import PACKAGES


def validate(config: Tier1Config, spec: ModelSpec | None = None) -> ModelSpec:
    """Checks a whole run before anything is loaded, and brings changed settings into their final form.

    Args:
        spec: its model; read from the model's files if None.

    Raises:
        ConfigError: every mistake found, a model that cannot be used included; one line each.
    """
    checked, problems = gather(vars(config))
    problems, spec = find_problems(checked, problems, spec=spec)
    if problems or spec is None:
        raise ConfigError([str(problem) for problem in problems])
    vars(config).update(vars(checked))
    return spec


def find_problems(
    config: Tier1Config,
    known: list[Problem],
    unsure: Collection[str] = (),
    spec: ModelSpec | None = None,
    *,
    mistaken: bool = False,
) -> tuple[list[Problem], ModelSpec | None]:
    """All problems of a run, the known ones first, and the model's specification if it could be read.

    Args:
        known: problems found already; their settings, and what follows from them, are not judged again.
        unsure: more settings not to judge.
        mistaken: whether there are mistakes elsewhere. After any mistake the network is not used, so a model that must
            be downloaded is not judged.
    """
    bad = {problem.name for problem in known} | set(unsure)
    if "methods" not in bad:
        known = known + [Problem("", text) for text in [*load_methods(config.methods), *_own_settings(config)]]
        bad |= {"methods"} if any(not is_known(name) for name in config.methods) else set()
    found = _dataset_problems(config) + distractor_problems(config) + _process_problems(config)
    found += (
        _compare_problems(config)
        + _method_problems(config)
        + _folder_problems(config)
        + _package_problems(config)
        + _fold_problems(config)
    )
    found = [problem for problem in found if not bad.intersection((problem.name, *problem.also))]
    if spec is None and "model" not in bad:
        try:
            spec = read_spec(config, local_only=bool(known or found or unsure or mistaken))
        except NotCachedError:
            spec = None
        except ModelError as error:
            found.append(Problem("", str(error), ("model",)))
    if spec is not None:
        of_model = disagreements(config, spec) + _layer_problems(config, spec) + _family_problems(config, spec)
        found += [problem for problem in of_model if not bad.intersection((problem.name, *problem.also))]
    return known + found, spec


def _fold_problems(config: Tier1Config) -> list[Problem]:
    named = [DATASETS[name] for name in config.datasets if name in DATASETS] if config.folds else []
    whole = [each for each in named if each.no_folds]
    texts = [
        f"{each.name} cannot be divided into folds: {each.no_folds}; leave it out, or set folds to 0" for each in whole
    ]
    return [Problem("folds", text, ("datasets",)) for text in texts]


def _package_problems(config: Tier1Config) -> list[Problem]:
    found = []
    if config.search != "exact" and not importlib.util.find_spec("faiss"):
        text = (
            f"{config.search} needs FAISS: install faiss-cpu, or faiss-gpu for an NVIDIA GPU, not both; or set exact"
        )
        found.append(Problem("search", text))
    package = PACKAGES.get(config.report_to)
    spec = importlib.util.find_spec(config.report_to) if package else None
    if package and not (spec and spec.origin):  # no origin: only a folder of that name, as trackers create
        found.append(Problem("report_to", f"{config.report_to} is not installed: pip install {package}; or set none"))
    return found


def _process_problems(config: Tier1Config) -> list[Problem]:
    here = [name for name in config.methods if name.startswith(PYTHON)]
    if config.parallel_datasets and here:
        text = f"other processes cannot load {here[0]}; put the class into a file, or leave parallel_datasets out"
        return [Problem("parallel_datasets", text, ("methods",))]
    if not config.parallel_datasets or distributed.launched().count == 1:
        return []
    text = "the processes of torchrun already share each dataset; leave it out, or start one process"
    return [Problem("parallel_datasets", text)]


def _dataset_problems(config: Tier1Config) -> list[Problem]:
    found = [dataset_problem(name) for name in config.datasets]
    names = [results_name(name) for name in config.datasets if not dataset_problem(name)]
    alike = sorted({name for name in names if names.count(name) > 1})
    if alike:
        found.append(f"the results of two datasets would both be called {show(alike[0])}; rename a BEIR folder")
    return [Problem("datasets", text) for text in found if text]


def dataset_problem(name: str) -> str | None:
    """Why a run cannot use a dataset of this name, as far as names and sizes of files tell; None if it can."""
    if name in DATASETS:
        return None
    if not name.startswith(BEIR):
        known = ", ".join(DATASETS)
        if is_folder(name):
            return f"unknown dataset {show(name)}; for the folder in BEIR layout write {BEIR}{name}"
        return f"unknown dataset {show(name)}{suggestion(name, DATASETS)}; there are {known} and beir:DIR"
    if name == BEIR:
        return "beir: needs a folder, as in beir:path/to/scifact"
    folder, judgements = beir_parts(name.removeprefix(BEIR))
    if not is_folder(folder):
        return f"{show(name)}: {no_folder(folder)}"
    if judgements is not None and not SAFE_NAME.fullmatch(judgements):
        return f"{show(name)}: the text after @ names the judgements qrels/NAME.tsv; {show(judgements)} is not a name"
    if not SAFE_NAME.fullmatch(results_name(name).removeprefix("beir_")):
        text = "the folder's name becomes that of the results, so it may hold only"
        return f"{show(name)}: {text} {LETTERS}; rename it or link to it"
    files = {"corpus.jsonl": "passages", "queries.jsonl": "queries"}
    files[f"qrels/{judgements or 'test'}.tsv"] = "test judgements"
    for file, what in files.items():
        path = Path(folder).expanduser() / file
        lacks = _lacks(path)
        if lacks:
            return f"{show(name)}: {path} {lacks}; a folder in BEIR layout has its {what} there"
    return None


def _lacks(path: Path) -> str | None:
    """Why a file cannot be read or is empty; None if it has content."""
    try:
        if not path.is_file():
            return "is missing"
        return None if path.stat().st_size else "is empty"
    except OSError as error:
        return f"cannot be read ({reason(error)})"


def distractor_problems(config: Tier1Config) -> list[Problem]:
    """What is wrong with the folders of distractors, as far as names and sizes of files tell."""
    found, names = [], []
    for name in config.distractors or ():
        try:
            folder = Path(name.removeprefix(BEIR)).expanduser().resolve()
            there = folder.is_dir() and _lacks(folder / "corpus.jsonl") is None
        except (OSError, RuntimeError, ValueError):  # name too long, ~ of an unknown user, a NUL
            folder, there = Path("\0"), False
        if not there:
            meant = "" if is_folder(folder) else no_folder(name.removeprefix(BEIR)).removeprefix(NO_FOLDER)
            found.append(
                f"{show(name)}: no such folder with passages in corpus.jsonl{meant}; give folders in BEIR layout"
            )
        elif folder.name in names:
            found.append(
                f"two folders are called {show(folder.name)}, so their passages could not be told apart; rename one"
            )
        names.append(folder.name)
    return [Problem("distractors", text) for text in found]


def _method_problems(config: Tier1Config) -> list[Problem]:
    trained = [name for name in trained_methods(config) if is_known(name)]
    found = []
    if trained and min(config.batch_size, config.train_samples) < 2:
        short = "batch_size" if config.batch_size < 2 else "train_samples"
        text = f"must be at least 2 for {', '.join(trained)}: a query alone in its batch has no negatives"
        found.append(Problem(short, text, ("methods",)))
    needed = {"maw_layers": ("maw", "without MAW layers"), "finetune_layers": ("baseline", "nothing to train")}
    empty = {name for name in needed if getattr(config, name) in ("none", [])}
    for name, (retriever, what) in needed.items():
        without = [method for method in trained if find_method(method).retriever == retriever]
        if name == "finetune_layers" and "maw_layers" not in empty:  # LoRA in MAW layers has those to train
            without = [method for method in without if not find_method(method).reaches_maw_layers]
        if without and name in empty:
            which = ", ".join(without)
            text = f"none leaves the method{'s' * (len(without) > 1)} {which} {what}; "
            text += f"name a layer, or take {which} out of methods"
            found.append(Problem(name, text, ("methods",)))
    return found


def _own_settings(config: Tier1Config) -> list[str]:
    """One line for each user's method whose `settings` are wrong."""
    found = []
    for method in in_order(config.methods):
        try:
            method.configure(config)
        except (ConfigError, TypeError) as error:
            found += [f"{place_of(method)}: {method.name}: settings: {reason(error)}"] if method.origin else []
    return found


def _compare_problems(config: Tier1Config) -> list[Problem]:
    """What is wrong with the comparisons that are to be planned."""
    if config.compare is None:
        return []
    (subject, controls), names = subject_of(config.compare), [each.name for each in in_order(config.methods)]
    for name in (subject, *(controls or ())):
        if name not in names:
            text = f"{show(name)} is no method of this run{suggestion(name, names)}; it has {', '.join(names)}"
            return [Problem("compare", text, ("methods",))]
    if subject in (controls or ()):
        return [Problem("compare", f"{subject} cannot be its own control")]
    if claim(config) is None:
        return [Problem("compare", f"there is no trained method to compare {subject} with; name one", ("methods",))]
    return []


def _folder_problems(config: Tier1Config) -> list[Problem]:
    found = []
    for name in ("log_dir", "cache_dir"):
        folder = getattr(config, name)
        try:
            wrong = "is a file, not a folder" if folder and Path(folder).expanduser().is_file() else None
        except (OSError, RuntimeError) as error:  # name too long, or ~ of an unknown user
            wrong = reason(error)
        if wrong:
            found.append(Problem(name, f"{show(folder)}: {wrong}"))
    return found


def _family_problems(config: Tier1Config, spec: ModelSpec) -> list[Problem]:
    why = architecture_of(spec.model_type).no_depths
    refused = [name for name in config.methods if find_method(name).retriever == "maw"] if why else []
    if not refused:
        return []
    text = f"{spec.name} is of type {spec.model_type}, which cannot carry MAW: {why}; leave out {', '.join(refused)}"
    return [Problem("methods", text, ("model",))]


def _layer_problems(config: Tier1Config, spec: ModelSpec) -> list[Problem]:
    found = []
    for name in ("maw_layers", "finetune_layers"):
        try:
            parse_layers(getattr(config, name), spec.num_layers, name)
        except ConfigError as error:
            found += [Problem(name, text.removeprefix(f"{name}: "), ("model",)) for text in error.problems]
    group, bad = config.grpo_group, any(problem.name == "maw_layers" for problem in found)
    if group in ONE_DECISION and config.router == "grpo" and not bad:
        layers = parse_layers(config.maw_layers, spec.num_layers)
        if len(layers) > 1:
            text = f"{group} needs one decision for each text, but there are {len(layers)} MAW layers; use sampled"
            found.append(Problem("grpo_group", text, ("maw_layers",)))
    for name in ("lora_rank", "kernel_rank"):
        rank = getattr(config, name)
        if rank > spec.hidden_dim:
            text = f"rank {rank} is more than the model's hidden size {spec.hidden_dim}"
            found.append(Problem(name, text, ("model",)))
    return found
