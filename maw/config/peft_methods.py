"""Methods of the PEFT library as methods of the benchmark.

    --methods zero_shot,lora,peft:dora,peft:pissa              # rows of `OFFERED`
    --methods zero_shot,lora,peft:path/to/adapter_config.json  # a configuration with PEFT's own keys

`PeftMethod` is the one class behind them. It changes the layers and maps that `lora` changes; a rank and an alpha are
those of the run where PEFT's configuration has such a number. `docs/peft.md` has the table for readers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maw.config.method import Origin, digest, implemented_by, read_code
from maw.config.methods import Lora
from maw.config.paths import absolute, is_folder, short_path
from maw.errors import ConfigError, reason, show, suggestion

PREFIX = "peft:"
LIBRARY = "peft"
"""The distribution whose version a run holds for the code of these methods."""


@dataclass(frozen=True)
class Adapter:
    """A method that PEFT has.

    Attributes:
        kind: PEFT's own name, a value of its `PeftType`.
        title: for tables.
        paper: its source.
        learning_rate: the default, the middle of the rates that tuning tries.
        settings: of PEFT's configuration, where they differ from PEFT's defaults.
        from_run: keys of PEFT's configuration -> settings of the run that they take.
        merged: whether a plain model of the family can compute the same as the trained one.
    """

    kind: str
    title: str
    paper: str
    learning_rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    from_run: Mapping[str, str] = field(default_factory=dict)
    merged: bool = True


_LORA = {"r": "lora_rank", "lora_alpha": "lora_alpha"}
_ALPHA = {"r": "lora_rank", "alpha": "lora_alpha"}
_RANK = {"r": "lora_rank"}
_NORMS = r"(.*\.)?\w*[nN]orm\w*"

OFFERED: dict[str, Adapter] = {
    "lora": Adapter("LORA", "LoRA", "arXiv:2106.09685", 3e-3, {}, _LORA),
    "rslora": Adapter("LORA", "rsLoRA", "arXiv:2312.03732", 1e-3, {"use_rslora": True}, _LORA),
    "dora": Adapter("LORA", "DoRA", "arXiv:2402.09353", 3e-3, {"use_dora": True}, _LORA),
    "pissa": Adapter("LORA", "PiSSA", "arXiv:2404.02948", 3e-4, {"init_lora_weights": "pissa"}, _LORA),
    "olora": Adapter("LORA", "OLoRA", "arXiv:2406.01775", 3e-4, {"init_lora_weights": "olora"}, _LORA),
    "mica": Adapter("LORA", "MiCA", "arXiv:2604.01694", 3e-3, {"init_lora_weights": "mica"}, _LORA),
    "vera": Adapter("VERA", "VeRA", "arXiv:2310.11454", 1e-2),
    "ia3": Adapter("IA3", "IA3", "arXiv:2205.05638", 1e-2, {"feedforward_modules": []}),
    "oft": Adapter("OFT", "OFT", "arXiv:2306.07280", 1e-3),
    "boft": Adapter("BOFT", "BOFT", "arXiv:2311.06243", 1e-3),
    "hra": Adapter("HRA", "HRA", "arXiv:2405.17484", 1e-3, {}, _RANK),
    "psoft": Adapter("PSOFT", "PSOFT", "openreview.net/forum?id=FSHrinMArK", 1e-3, {}, _RANK),
    "osf": Adapter("OSF", "OSF", "arXiv:2504.07097", 1e-4),
    "loha": Adapter("LOHA", "LoHa", "arXiv:2108.06098", 3e-3, {}, _ALPHA),
    "lokr": Adapter("LOKR", "LoKr", "arXiv:2309.14859", 3e-3, {}, _ALPHA),
    "hira": Adapter("HIRA", "HiRA", "openreview.net/pdf?id=TwJrTz9cRS", 3e-3, {}, _RANK),
    "delora": Adapter("DELORA", "DeLoRA", "arXiv:2503.18225", 3e-3, {}, _RANK),
    "deft": Adapter("DEFT", "DEFT", "NeurIPS 2025", 3e-3, {}, _RANK),
    "lily": Adapter("LILY", "Lily", "arXiv:2407.09946", 3e-3, {}, _RANK, merged=False),
    "miss": Adapter("MISS", "MiSS", "arXiv:2409.15371", 1e-3, {}, _RANK),
    "peanut": Adapter("PEANUT", "PEANuT", "arXiv:2410.01870", 3e-3, {}, _RANK),
    "randlora": Adapter("RANDLORA", "RandLoRA", "arXiv:2502.00987", 1e-3),
    "pvera": Adapter("PVERA", "PVeRA", "arXiv:2512.07703", 1e-2),
    "frod": Adapter("FROD", "FRoD", "doi.org/10.1609/aaai.v40i31.39813", 1e-2, {"progressbar": False}),
    "tinylora": Adapter("TINYLORA", "TinyLoRA", "arXiv:2602.04118", 1e-2),
    "fourierft": Adapter("FOURIERFT", "FourierFT", "arXiv:2405.03003", 1e-2, {"init_weights": True}),
    "waveft": Adapter("WAVEFT", "WaveFT", "arXiv:2505.12532", 1e-2),
    "c3a": Adapter("C3A", "C3A", "arXiv:2407.19342", 1e-2, {"block_size": 128, "init_weights": True}),
    "road": Adapter("ROAD", "RoAd", "arXiv:2409.00119", 3e-3),
    "shira": Adapter("SHIRA", "SHiRA", "arXiv:2406.13175", 1e-3, {}, _RANK),
    "supertuning": Adapter("SUPERTUNING", "Super-Tuning", "arXiv:2607.09287", 1e-3),
    "beft": Adapter("BEFT", "BEFT", "arXiv:2509.15974", 3e-3),
    "ln_tuning": Adapter("LN_TUNING", "LayerNorm tuning", "arXiv:2312.11420", 1e-3, {"target_modules": _NORMS}),
}
"""What may stand behind `peft:`, in the order of the documentation."""

_LONGER = "it puts trained vectors before the text, and the benchmark's texts keep their own tokens"
_IN_LOSS = "it adds a term to the loss, and all methods of a run have the same loss"
_FROM_TEXTS = "it computes its start from a pass over training texts, which a method does not get"
_QUANTISED = "it is made for quantised weights"
_ELSEWHERE = "its random start is not the pretrained model"
REFUSED: dict[str, str] = {
    "adalora": "its ranks change by a call after every training step, and it adds a term to the loss",
    "adamss": "it needs scikit-learn, which the benchmark does not",
    "adaption_prompt": "it puts trained vectors into the attention of decoders such as LLaMA",
    "cartridge": _LONGER,
    "cpt": _LONGER,
    "glora": "it takes no map but torch's own Linear, and the benchmark's maps have faster products",
    "gralora": "it changes the output of a map in place, which the benchmark's faster maps do not allow",
    "multitask_prompt_tuning": _LONGER,
    "p_tuning": _LONGER,
    "poly": "it mixes adapters by the number of a text's task, and a run has one task",
    "prefix_tuning": _LONGER,
    "prompt_tuning": _LONGER,
    "shadow": "it runs a second network beside a decoder",
    "unilora": _ELSEWHERE,
    "vblora": _ELSEWHERE,
    "trainable_tokens": "it trains the embeddings of chosen tokens, below the layers that the methods of a run share",
    "xlora": "it mixes adapters that were trained before",
}
"""Kinds of PEFT's that are no method of a run, and why."""
_REFUSED_KEYS = {
    "alora_invocation_tokens": "it changes what follows certain tokens in the text of a decoder",
    "arrow_config": REFUSED["xlora"],
    "kasa_config": _IN_LOSS,
    "layer_replication": "it changes the number of layers",
    "modules_to_save": "it trains copies of whole modules; the method full trains whole layers",
    "monteclora_config": _IN_LOSS,
    "trainable_token_indices": REFUSED["trainable_tokens"],
    "use_qalora": _QUANTISED,
    "velora_config": "its first batch sets a tensor that is not trained, and checkpoints do not hold it",
}
_REFUSED_STARTS = {"corda": _FROM_TEXTS, "eva": _FROM_TEXTS, "loftq": _QUANTISED, "lora_ga": _FROM_TEXTS}
_ABOUT = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
"""Keys of adapter_config.json that describe a trained adapter and not the method."""


class PeftMethod(Lora):
    """A method of the PEFT library."""

    _add = implemented_by("maw.models.adaptation:add_peft")

    def __init__(self, name: str, label: str, adapter: Adapter, origin: Origin):
        self.name, self.label, self.learning_rate = name, label, adapter.learning_rate
        super().__init__()
        self.approach, self.origin, self.adapter = label, origin, adapter
        self.description = f"{adapter.title} by the PEFT library ({adapter.paper})"
        if not adapter.merged:
            self.merge = None

    def adapt(self, backbone: Any, context: Any) -> Any:
        return self._add(backbone, context, adapter=self.adapter)

    @property
    def reaches_maw_layers(self) -> bool:
        return False


def as_reference(text: str) -> str:
    """A name behind `peft:` in its final form: that of a file with its absolute path; nothing is read."""
    name = text.removeprefix(PREFIX).strip()
    return f"{PREFIX}{absolute(name) if _is_file(name) else name}"


def code_of(reference: str) -> dict[str, str]:
    """The version of the library, and the hash of the file if there is one.

    Raises:
        ConfigError: the file is gone.
    """
    return {LIBRARY: _version(), **({} if (path := _path(reference)) is None else {path: digest(read_code(path))})}


def load(reference: str) -> PeftMethod:
    """The method of a reference.

    Raises:
        ConfigError: PEFT has no such method, or it is no method of a run, or its file has a mistake; one line.
    """
    name, path = reference.removeprefix(PREFIX), _path(reference)
    version = _version()
    if path is None:
        if name not in OFFERED and is_folder(name):
            file = Path(name) / "adapter_config.json"
            raise ConfigError([f"{reference}: is a folder; give its file: {PREFIX}{file}"])
        if name not in OFFERED:
            raise ConfigError([f"{reference}: {_why_not(name)}"])
        adapter = OFFERED[name]
        origin = Origin(reference, f"PEFT {version}, {name}", LIBRARY, version)
        return PeftMethod(f"peft_{name}", f"{adapter.title} (PEFT)", adapter, origin)
    content = read_code(path)
    try:
        adapter = _of_file(content)
    except ConfigError as error:
        raise ConfigError([f"{short_path(path)}: {text}" for text in error.problems]) from error
    file = Path(path)
    own = file.parent.name if file.stem == "adapter_config" else file.stem
    short = re.sub(r"[^a-z0-9]+", "_", own.lower()).strip("_")[:27] or "file"
    short = re.sub(r"(_vs)+(?=_|$)", "", f"peft_{short}")  # which stands between the two names of a comparison
    origin = Origin(reference, short_path(path), path, digest(content), path)
    return PeftMethod(short, f"{adapter.title} of {own} (PEFT)", adapter, origin)


def _of_file(content: bytes) -> Adapter:
    """The method that a configuration file describes; a key that it lacks is that of the run or of PEFT."""
    try:
        given = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"is no JSON: {reason(error)}"]) from error
    if not isinstance(given, dict) or not isinstance(given.get("peft_type"), str):
        raise ConfigError(['must be an object with PEFT\'s keys, such as {"peft_type": "LORA", "r": 16}'])
    kind = given["peft_type"].upper()
    rows = [row for row in OFFERED.values() if row.kind == kind]
    if not rows:
        raise ConfigError(
            [f"peft_type: {_why_not(kind.lower(), {row.kind.lower(): None for row in OFFERED.values()})}"]
        )
    kept = {key: value for key, value in given.items() if value is not None and key not in _ABOUT | {"peft_type"}}
    for key, why in _REFUSED_KEYS.items():
        if kept.get(key):
            raise ConfigError([f"{key} is no part of a method here: {why}"])
    start = kept.get("init_lora_weights")
    if isinstance(start, str) and start in _REFUSED_STARTS:
        raise ConfigError([f"init_lora_weights {show(start)} is no part of a method here: {_REFUSED_STARTS[start]}"])
    made = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    unknown = [key for key in kept if key not in made.__dataclass_fields__]
    if unknown:
        close = suggestion(unknown[0], made.__dataclass_fields__)
        raise ConfigError([f"{show(unknown[0])} is no key of {made.__name__}{close}"])
    for key, value in kept.items():
        _check(key, value, made.__dataclass_fields__[key].default)
    try:
        made(**kept)
    except Exception as error:
        raise ConfigError([f"{type(error).__name__}: {reason(error)}"]) from error
    alike = [row for row in rows if all(kept.get(key) == value for key, value in row.settings.items())]
    row = max(alike, key=lambda each: len(each.settings), default=rows[0])
    from_run = {key: name for key, name in row.from_run.items() if key not in kept}
    return replace(row, settings={**row.settings, **kept}, from_run=from_run)


def _check(key: str, value: Any, default: Any) -> None:
    """Raises ConfigError for a value of a wrong type, of which PEFT would not name the key."""
    names = isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
    if key == "target_modules" and not names:
        raise ConfigError([f"{key} must be a list of names of modules, or a text, got {show(value)}"])
    if type(default) in (int, float) and (type(value) not in (int, float) or not abs(value) < math.inf):
        raise ConfigError([f"{key} must be a number, got {show(value)}"])
    if key == "r" and default and (type(value) is not int or value < 1):
        raise ConfigError([f"{key} must be a whole number of at least 1, got {show(value)}"])


def _why_not(name: str, known: Iterable[str] = ()) -> str:
    """Why PEFT's method of that name is none of a run."""
    known = list(known or OFFERED)
    why = REFUSED.get(name.lower())
    if why is not None:
        return f"PEFT's {name} is no method of a run: {why}"
    return f"no method of PEFT is called {show(name)} here{suggestion(name, known)}; there are {', '.join(known)}"


def _is_file(name: str) -> bool:
    return name.endswith(".json")


def _path(reference: str) -> str | None:
    name = reference.removeprefix(PREFIX)
    return name if _is_file(name) else None


def _version() -> str:
    return importlib.metadata.version(LIBRARY)
