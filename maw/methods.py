"""The methods a benchmark compares, in the order in which they run and are reported.

Everything that names, files, configures or orders methods reads this table, so a new arm is one more entry here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from maw.config import Tier1Config


@dataclass(frozen=True, eq=False)
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
    trained: bool
    """Whether it is trained before it is evaluated."""
    label: str
    """Heads its column in tables."""
    retriever: str
    """What it trains: "baseline" or "maw", see `maw.retriever`."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The settings that make it what it is, whatever the run's configuration says of them."""
    learning_rate: float | None = None
    """Default peak learning rate of its layers or adapters, None where it trains nothing."""

    def configure(self, config: Tier1Config) -> Tier1Config:
        """The run's configuration as this method uses it."""
        return replace(config, **self.settings)


# The learning rates were chosen on the validation queries of pystdlib with all-MiniLM-L6-v2.
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
        settings={"use_lora": False},
    ),
    Method(
        name="lora",
        short="lora",
        key="2_lora_fine_tuned_retriever",
        approach="LoRA Fine-tuned",
        description="Parameter-efficient fine-tuning using LoRA adapters",
        trained=True,
        label="LoRA Fine-tuned",
        retriever="baseline",
        settings={"use_lora": True},
        learning_rate=3e-3,
    ),
    Method(
        name="maw",
        short="maw",
        key="3_maw_fine_tuned_retriever",
        approach="MAW Fine-tuned",
        description="Fine-tuning with multi-attention-weight layers and a router that picks their depth",
        trained=True,
        label="MAW Fine-tuned",
        retriever="maw",
        settings={"use_lora": False},
        learning_rate=2e-4,
    ),
)

_BY_NAME = {method.name: method for method in METHODS}


def find_method(name: str) -> Method:
    """The method of that name; KeyError if there is none, for `maw.config` has checked it."""
    return _BY_NAME[name]


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
