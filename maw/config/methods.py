"""The methods a benchmark compares, in the order in which they run and are reported.

Zero-shot, LoRA and MAW are the three that a run compares by default. The others, except `maw_qv`, are controls: each
shows whether one part of MAW explains a gain. The parts are the number of parameters (`lora_matched`), training whole
layers (`full`), more weights for the query (`full_lowrank`), depths without routing (`maw_fixed`), with random routing
(`maw_random`), and with mixing instead of picking (`maw_soft`). MAW comes after them, because each method is compared
with earlier ones. `maw_qv` is an ablation and comes last.

Everything that names, files, configures or orders methods reads this table, `maw.config.tier1_config` too, so a new
method is one more entry here. Configurations are of type Any, since their module imports this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = Mapping[str, Any]
Config = TypeVar("Config", bound="DataclassInstance")
LARGEST_RANK = 4096
"""Of LoRA adapters and of depth kernels."""

WHERE = "adapt_maw_layers"
"""Says where a method works, not how; `describes` ignores it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """One way to get a retriever. There is one object for each, so methods are compared as objects."""

    name: str
    """What `--methods` takes."""
    short: str
    """Stands in file names and in keys such as lora_vs_zeroshot_ndcg_cut_10."""
    key: str
    """Its entry under "results"."""
    approach: str
    """One line for reports; a run may say more in brackets behind it."""
    description: str
    """A sentence for reports."""
    trained: bool = True
    """Whether it is trained before it is evaluated."""
    label: str
    """Heads its column in tables."""
    retriever: str = "maw"
    """Kind of retriever it uses: "baseline" or "maw", see `maw.models.retriever`."""
    settings: Settings | Callable[[Any], Settings]
    """The settings that define it; they replace the run's. A function computes them from the run's configuration."""
    learning_rate: float | None = None
    """Default peak learning rate of its layers or adapters, None where it trains nothing."""
    by_default: bool = False
    """Whether a run compares it unless `--methods` says otherwise."""

    def configure(self, config: Config) -> Config:
        """The run's configuration as this method uses it."""
        return replace(config, **self._settings(config))

    @property
    def reaches_maw_layers(self) -> bool:
        """Whether a method without MAW adapts the MAW layers beside those to fine-tune."""
        return not callable(self.settings) and bool(self.settings.get(WHERE))

    def describes(self, retriever: str, config: Any) -> int:
        """How many of its settings a retriever of that kind and configuration has; 0 unless it has them all."""
        settings = {name: value for name, value in self._settings(config).items() if name != WHERE}
        same = retriever == self.retriever and all(getattr(config, name) == each for name, each in settings.items())
        return len(settings) if same else 0

    def _settings(self, config: Any) -> Settings:
        return self.settings(config) if callable(self.settings) else self.settings


def static_low_rank(config: Any) -> Settings:
    """Settings of one low-rank depth that no router picks, of all depth kernels' size together.

    With low-rank kernels it has the sum of their ranks, that of a shared change included. Diagonal kernels have D * C
    numbers in a layer and a low-rank change 2 * C for each rank, so it has half as many ranks as there are depths,
    rounded up. `maw.models.retriever` limits the rank to the hidden size. With rotary positions diagonal kernels are
    tied in pairs, and the change is twice their size.
    """
    low_rank = config.depth_kernel == "low_rank"
    each = config.depth_dim * config.kernel_rank + config.kernel_shared_rank
    total = each if low_rank else (config.depth_dim + 1) // 2
    return {
        "depth_dim": 1,
        "depth_kernel": "low_rank",
        "kernel_rank": min(total, LARGEST_RANK),
        "kernel_shared_rank": 0,
        "depth_values": False,
        "router": "fixed",
        "fixed_depth": 0,
        "route_by": "sequence",
    }


# The learning rates were chosen on the validation queries of pystdlib with all-MiniLM-L6-v2: those of lora and maw by
# trials by hand, those of the controls as the best of three trials each (docs/research.md).
METHODS: tuple[Method, ...] = (
    Method(
        name="zero_shot",
        short="zeroshot",
        key="1_normal_retriever",
        approach="Zero-shot (No Training)",
        description="The pretrained retriever as it is",
        trained=False,
        label="Zero-shot",
        retriever="baseline",
        settings={"use_lora": False, "train_layers": False},
        by_default=True,
    ),
    Method(
        name="lora",
        short="lora",
        key="2_lora_fine_tuned_retriever",
        approach="LoRA Fine-tuned",
        description="Parameter-efficient fine-tuning using LoRA adapters",
        label="LoRA Fine-tuned",
        retriever="baseline",
        settings={"use_lora": True, "train_layers": False, "lora_targets": "query_value", "adapt_maw_layers": False},
        learning_rate=3e-3,
        by_default=True,
    ),
    Method(
        name="lora_matched",
        short="lora_matched",
        key="lora_matched_retriever",
        approach="LoRA on All Maps, as Large as MAW",
        description="LoRA on every linear map of the same layers, with about as many trained parameters as MAW",
        label="LoRA matched",
        retriever="baseline",
        settings={"use_lora": True, "train_layers": False, "lora_targets": "all", "adapt_maw_layers": True},
        learning_rate=3.5e-4,
    ),
    Method(
        name="full",
        short="full",
        key="full_layers_retriever",
        approach="Whole Layers",
        description="The same layers trained whole, without depths",
        label="Whole layers",
        retriever="baseline",
        settings={"use_lora": False, "train_layers": True, "adapt_maw_layers": True},
        learning_rate=2e-4,
    ),
    Method(
        name="full_lowrank",
        short="full_lowrank",
        key="full_lowrank_retriever",
        approach="Whole Layers + Static Low-rank Query Change",
        description="The same layers trained whole, with one low-rank query change as large as all depth kernels",
        label="Whole + low-rank",
        settings=static_low_rank,
        learning_rate=2e-4,
    ),
    Method(
        name="maw_fixed",
        short="maw_fixed",
        key="maw_fixed_retriever",
        approach="MAW at One Fixed Depth",
        description="MAW without routing: every text uses the same depth",
        label="MAW fixed",
        settings={"router": "fixed", "depth_values": False},
        learning_rate=2e-4,
    ),
    Method(
        name="maw_random",
        short="maw_random",
        key="maw_random_retriever",
        approach="MAW at Random Depths",
        description="MAW whose depths are drawn: anew at every training step, from the text's hash at evaluation",
        label="MAW random",
        settings={"router": "random", "depth_values": False},
        learning_rate=2e-4,
    ),
    Method(
        name="maw_soft",
        short="maw_soft",
        key="maw_soft_retriever",
        approach="MAW with Softly Mixed Depths",
        description="MAW whose router mixes the depth kernels and learns from the encoder's own loss",
        label="MAW soft",
        settings={"router": "soft", "depth_values": False},
        learning_rate=2e-4,
    ),
    Method(
        name="maw",
        short="maw",
        key="3_maw_fine_tuned_retriever",
        approach="MAW Fine-tuned",
        description="Fine-tuning with multi-attention-weight layers and a router that picks their depth",
        label="MAW Fine-tuned",
        settings={"depth_values": False},
        learning_rate=2e-4,
        by_default=True,
    ),
    Method(
        name="maw_qv",
        short="maw_qv",
        key="maw_qv_retriever",
        approach="Query-and-Value Depths, an Ablation",
        description="Not MAW: depths change the values as well as the attention weights, a mixture of adapters",
        label="Query+value depths",
        settings={"depth_values": True},
        learning_rate=2e-4,
    ),
)

METHOD_NAMES = tuple(method.name for method in METHODS)
"""What `--methods` takes, beside `all`."""
_BY_NAME = dict(zip(METHOD_NAMES, METHODS, strict=True))


def find_method(name: str) -> Method:
    """The method of that name; KeyError if there is none, for `maw.config.tier1_config` has checked it."""
    return _BY_NAME[name]


def trained_methods(config: Any) -> list[str]:
    """The names of a run's methods that are trained, in the order of `config.methods`."""
    return [name for name in config.methods if name in _BY_NAME and _BY_NAME[name].trained]


def method_of(retriever: str, config: Any) -> Method:
    """The method that matches a model's configuration; if several match, the one with the most settings.

    Args:
        retriever: "baseline" or "maw", as `Method.retriever`.
        config: the model's own.
    """
    return max(METHODS, key=lambda method: method.describes(retriever, config))


def in_order(names: Iterable[str]) -> list[Method]:
    """Those methods, in the table's order."""
    wanted = set(names)
    return [method for method in METHODS if method.name in wanted]


def comparisons(names: Iterable[str]) -> Iterator[tuple[Method, Method]]:
    """Each pair (method, earlier method) of those named: lora-zero_shot, maw-lora, maw-zero_shot, ..."""
    methods = in_order(names)
    for index, method in enumerate(methods):
        for earlier in reversed(methods[:index]):
            yield method, earlier
