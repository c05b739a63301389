"""The methods a benchmark compares, in the order in which they run and are reported.

Everything that names, files or orders methods reads this table, so a new arm is one more entry here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to get a retriever."""

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


METHODS: tuple[Method, ...] = (
    Method(
        name="zero_shot",
        short="zeroshot",
        key="1_normal_retriever",
        approach="Zero-shot (No Training)",
        description="The pretrained retriever as it is",
        trained=False,
        label="Zero-shot",
    ),
    Method(
        name="lora",
        short="lora",
        key="2_lora_fine_tuned_retriever",
        approach="LoRA Fine-tuned",
        description="Parameter-efficient fine-tuning using LoRA adapters",
        trained=True,
        label="LoRA Fine-tuned",
    ),
    Method(
        name="maw",
        short="maw",
        key="3_maw_fine_tuned_retriever",
        approach="MAW Fine-tuned",
        description="Fine-tuning with multi-attention-weight layers and a router that picks their depth",
        trained=True,
        label="MAW Fine-tuned",
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
