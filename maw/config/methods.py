"""The methods a benchmark compares, in the order in which they run and are reported.

Zero-shot, LoRA and MAW are the three that a run compares by default. The others, except `maw_qv`, are controls: each
shows whether one part of MAW explains a gain. The parts are the number of parameters (`lora_matched`), training whole
layers (`full`), more weights for the query (`full_lowrank`), depths without routing (`maw_fixed`), with random routing
(`maw_random`), and with mixing instead of picking (`maw_soft`). MAW comes after them, because each method is compared
with earlier ones. `maw_qv` is an ablation. Methods of users (`maw.config.method_files`) come last, in the order in
which a run names them.

Everything that names, files, configures or orders methods asks this table. Configurations are of type Any, since their
module imports this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maw.config.method import Method as Method
from maw.config.method import Origin, Settings, implemented_by

LARGEST_RANK = 4096
"""Of LoRA adapters and of depth kernels."""


def static_low_rank(config: Any) -> Settings:
    """Settings of one low-rank depth that no router picks, of all depth kernels' size together.

    With low-rank kernels it has the sum of their ranks, and with gated ones their one rank. Diagonal kernels have
    D * C numbers in a layer and a low-rank change 2 * C for each rank, so it has half as many ranks as there are
    depths, rounded up. `maw.models.retriever` limits the rank to the hidden size. With rotary positions diagonal
    kernels are tied in pairs, and the change is twice their size.
    """
    total = {
        "diagonal": (config.depth_dim + 1) // 2,
        "low_rank": config.depth_dim * config.kernel_rank,
        "gated": config.kernel_rank,
    }
    return {
        "depth_dim": 1,
        "depth_kernel": "low_rank",
        "kernel_rank": min(total[config.depth_kernel], LARGEST_RANK),
        "depth_values": False,
        "router": "fixed",
        "fixed_depth": 0,
        "route_by": "sequence",
    }


# The learning rates were chosen on the validation queries of pystdlib with all-MiniLM-L6-v2: those of lora and maw by
# trials by hand, those of the controls as the best of three trials each (docs/research.md).


class ZeroShot(Method):
    """The pretrained retriever as it is."""

    name = "zero_shot"
    short = "zeroshot"
    key = "1_normal_retriever"
    approach = "Zero-shot (No Training)"
    trained = False
    label = "Zero-shot"
    settings = {"use_lora": False, "train_layers": False}
    by_default = True
    adapt = implemented_by("maw.models.adaptation:change_nothing")


class Lora(Method):
    """Parameter-efficient fine-tuning using LoRA adapters."""

    name = "lora"
    key = "2_lora_fine_tuned_retriever"
    approach = "LoRA Fine-tuned"
    label = "LoRA Fine-tuned"
    settings = {"use_lora": True, "train_layers": False, "lora_targets": "query_value", "adapt_maw_layers": False}
    learning_rate = 3e-3
    by_default = True
    adapt = implemented_by("maw.models.adaptation:add_adapters")
    merge = implemented_by("maw.models.adaptation:merge_adapters")


class LoraMatched(Lora):
    """LoRA on every linear map of the same layers, with about as many trained parameters as MAW."""

    name = "lora_matched"
    key = "lora_matched_retriever"
    approach = "LoRA on All Maps, as Large as MAW"
    label = "LoRA matched"
    settings = {"use_lora": True, "train_layers": False, "lora_targets": "all", "adapt_maw_layers": True}
    learning_rate = 3.5e-4


class Full(Method):
    """The same layers trained whole, without depths."""

    name = "full"
    key = "full_layers_retriever"
    approach = "Whole Layers"
    label = "Whole layers"
    settings = {"use_lora": False, "train_layers": True, "adapt_maw_layers": True}
    learning_rate = 2e-4
    adapt = implemented_by("maw.models.adaptation:train_layers")


class _WithDepths(Method):
    """A method with depth attention."""

    retriever = "maw"
    adapt = implemented_by("maw.models.adaptation:add_depths")


class FullLowRank(_WithDepths):
    """The same layers trained whole, with one low-rank query change as large as all depth kernels."""

    name = "full_lowrank"
    key = "full_lowrank_retriever"
    approach = "Whole Layers + Static Low-rank Query Change"
    label = "Whole + low-rank"
    settings = staticmethod(static_low_rank)
    learning_rate = 2e-4


class MawFixed(_WithDepths):
    """MAW without routing: every text uses the same depth."""

    name = "maw_fixed"
    key = "maw_fixed_retriever"
    approach = "MAW at One Fixed Depth"
    label = "MAW fixed"
    settings = {"router": "fixed", "depth_values": False}
    learning_rate = 2e-4


class MawRandom(_WithDepths):
    """MAW whose depths are drawn: anew at every training step, from the text's hash at evaluation."""

    name = "maw_random"
    key = "maw_random_retriever"
    approach = "MAW at Random Depths"
    label = "MAW random"
    settings = {"router": "random", "depth_values": False}
    learning_rate = 2e-4


class MawSoft(_WithDepths):
    """MAW whose router mixes the depth kernels and learns from the encoder's own loss."""

    name = "maw_soft"
    key = "maw_soft_retriever"
    approach = "MAW with Softly Mixed Depths"
    label = "MAW soft"
    settings = {"router": "soft", "depth_values": False}
    learning_rate = 2e-4


class Maw(_WithDepths):
    """Multi-attention-weight layers: a router picks one of several learned weightings of attention."""

    name = "maw"
    key = "3_maw_fine_tuned_retriever"
    approach = "MAW Fine-tuned"
    label = "MAW Fine-tuned"
    settings = {"depth_values": False}
    learning_rate = 2e-4
    by_default = True


class MawQueryValue(_WithDepths):
    """Not MAW: depths change the values as well as the attention weights, a mixture of adapters."""

    name = "maw_qv"
    key = "maw_qv_retriever"
    approach = "Query-and-Value Depths, an Ablation"
    label = "Query+value depths"
    settings = {"depth_values": True}
    learning_rate = 2e-4


OWN = (ZeroShot, Lora, LoraMatched, Full, FullLowRank, MawFixed, MawRandom, MawSoft, Maw, MawQueryValue)
"""The benchmark's own methods, in order."""
METHODS: tuple[Method, ...] = tuple(each() for each in OWN)
METHOD_NAMES = tuple(method.name for method in METHODS)
"""What `--methods` takes, beside `all`."""
_KNOWN: dict[str, Method] = dict(zip(METHOD_NAMES, METHODS, strict=True))
"""All methods by name, and those of users by their reference too."""


def find_method(name: str) -> Method:
    """The method of that name or reference; KeyError if there is none, for the configuration has been checked."""
    return _KNOWN[name]


def is_known(name: str) -> bool:
    """Whether there is a method of that name or reference."""
    return name in _KNOWN


def add_method(method: Method) -> None:
    """Enters a user's method, in the place of an earlier one of the same name."""
    assert method.origin is not None
    assert method.name not in METHOD_NAMES
    _KNOWN[method.name] = _KNOWN[method.origin.reference] = method


def trained_methods(config: Any) -> list[str]:
    """The names of a run's methods that are trained, in the order of `config.methods`.

    A user's method that is not loaded counts as trained.
    """
    known = ((name, _KNOWN.get(name)) for name in config.methods)
    return [method.name if method else name for name, method in known if (method.trained if method else ":" in name)]


def method_of(retriever: str, config: Any) -> Method:
    """The method that matches a model's configuration; if several match, the one with the most settings.

    Args:
        retriever: "baseline" or "maw", as `Method.retriever`.
        config: the model's own.
    """
    return max(METHODS, key=lambda method: method.describes(retriever, config))


CONTROLS = ("lora", "lora_matched", "full", "full_lowrank")
"""The controls of MAW, with which it is compared where `compare` says nothing else."""


def claim(config: Any) -> dict[str, Any] | None:
    """The comparisons that a run fixes beforehand: {"subject": name, "controls": [name, ...]}; None without any.

    Its methods must be loaded. Without controls in `config.compare` these are, for MAW, `CONTROLS`, and for another
    subject all other methods that are trained.
    """
    subject, controls = subject_of(config.compare)
    methods = in_order(config.methods)
    names = [method.name for method in methods]
    if subject not in names:
        return None
    if controls is None:
        wanted = CONTROLS if subject == Maw.name else [each.name for each in methods if each.trained]
        controls = [name for name in names if name in wanted and name != subject]
    return {"subject": subject, "controls": controls} if controls else None


def subject_of(compare: str | None) -> tuple[str, list[str] | None]:
    """The subject and the controls that `compare` names; None for controls that it leaves open."""
    names = (compare or Maw.name).replace("peft:", "peft_")  # as `methods` has it, and as results have it
    subject, several, controls = names.partition(":")
    return subject.strip(), [each.strip() for each in controls.split(",") if each.strip()] if several else None


def in_order(names: Iterable[str]) -> list[Method]:
    """Those methods: the benchmark's own in the table's order, then the others as they are named."""
    found = {method: None for name in names if (method := _KNOWN.get(name))}
    return sorted(found, key=lambda method: METHODS.index(method) if method in METHODS else len(METHODS))


def look_of(method: Method) -> int:
    """Index of a method's colour, dash and marker, the same in every chart."""
    return [each.name for each in dict.fromkeys(_KNOWN.values())].index(method.name)


def methods_of(*results: Mapping[str, Any]) -> list[Method]:
    """The methods that ran on any of these datasets, in order.

    Args:
        results: contents of dataset.json. A user's method that is not loaded is entered as they describe it, so that
            reports need none of its code.
    """
    keys = {method.key: method.name for method in _KNOWN.values()}
    names: dict[str, None] = {}
    for result in results:
        for key, record in result["results"].items():
            facts = record.get("method")
            if facts and facts["name"] not in _KNOWN:
                add_method(Described(facts))
            name = facts["name"] if facts else keys.get(key)
            names |= {name: None} if name else {}
    return in_order(names)


class Described(Method):
    """A user's method as the results of a run describe it; its code is not loaded, so it has no `adapt`."""

    def __init__(self, facts: Mapping[str, Any]):
        self.name, self.label, self.trained = facts["name"], facts["label"], facts["trained"]
        self.origin = Origin(**facts["origin"])
        super().__init__()

    @classmethod
    def facts(cls, method: Method) -> dict[str, Any]:
        """What the results of a run say of a user's method."""
        assert method.origin is not None
        kept = {"name": method.name, "label": method.label, "trained": method.trained}
        return {**kept, "origin": vars(method.origin)}


def comparisons(names: Iterable[str]) -> Iterator[tuple[Method, Method]]:
    """Each pair (method, earlier method) of those named: lora-zero_shot, maw-lora, maw-zero_shot, ..."""
    methods = in_order(names)
    for index, method in enumerate(methods):
        for earlier in reversed(methods[:index]):
            yield method, earlier
