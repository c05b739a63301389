"""Work of a run on one dataset: texts to encode, how often, and the cost in tokens.

Counts of texts follow from the configuration; tokens are estimated from the mean length of a passage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maw.attention.routers import ROUTERS
from maw.config.methods import find_method, trained_methods
from maw.config.tier1_config import Tier1Config, group_kind, group_share
from maw.data.datasets.local_needs import local_needs
from maw.data.download.needs import Needs
from maw.data.splits import SAMPLE_FIELDS
from maw.models.pretrained import ModelSpec, trained_layers
from maw.storage.disk import GIGABYTE

FLOAT_BYTES = 4
CHARACTERS_PER_TOKEN = 4.2
QUERY_CHARACTERS = 50
BACKWARD = 3  # cost of a forward and backward pass, in forward passes
DIAGNOSED = {"query": 256, "document": 64}  # validation texts that `maw.evaluation.routing` encodes at every depth


@dataclass(frozen=True)
class Work:
    """Work of a run on one dataset, over all methods, seeds, trials and folds.

    Attributes:
        needs: stated by the loader, or estimated from local files.
        searched: passages of the test corpus; 0 if not known yet.
        validated: passages of the validation corpus; 0 if no method is trained.
        shared: whether test and validation queries search the same corpus.
        queries: split -> number of sampled queries; with folds those of one fold, and in "test" those of all folds.
        tokens: "document" and "query" -> tokens of a mean text.
        encoded: "test", "validation" and "training" -> texts encoded, over all methods, trainings and epochs.
        activation_bytes: size of the frozen layers' output for all texts; 0 if it is not stored.
        token_passes: cost of encoding, in tokens that pass through the whole model.
        kept_passes: the part of it that an earlier run may have stored.
    """

    needs: Needs
    searched: int
    validated: int
    shared: bool
    queries: dict[str, int]
    tokens: dict[str, int]
    encoded: dict[str, int]
    activation_bytes: int
    token_passes: float
    kept_passes: float


def make_work(needs: Needs, config: Tier1Config, spec: ModelSpec) -> Work:
    """The work on a dataset with these needs.

    Test queries search the first corpus of the needs, other queries the last one. Distractors are added to both;
    training then reads another corpus than is searched.
    """
    joined = 0
    for name in (config.distractors or ()) if needs.passages else ():
        joined += sum(local_needs(f"beir:{name.removeprefix('beir:')}", config).passages.values())
    test, other = ((list(needs.passages.values()) or [0])[which] + joined for which in (0, -1))
    searched = _at_most(config.corpus_size, test)
    validated = _at_most(config.val_corpus_size, searched if config.folds else other) if trained_methods(config) else 0
    shared = len(needs.passages) == 1 and searched == test and validated in (0, test)
    queries = _queries(needs, config)
    folds = config.folds or 1
    tokens = {
        "document": _tokens(needs.mean_characters, spec.max_document_length),
        "query": _tokens(QUERY_CHARACTERS, spec.max_query_length),
    }
    used = {  # documents and queries of one pass over all folds
        "test": (searched * folds, queries["test"]),
        "once": (searched, queries["test"]),
        "validation": (validated * folds, queries["validation"] * folds),
        "training": (queries["train"] * folds * (1 + config.num_negatives), queries["train"] * folds),
    }
    epochs = config.num_epochs * len(trained_methods(config)) * (config.seeds + config.tune)
    trained = len(trained_methods(config))
    times = {"test": trained * config.seeds, "once": len(config.methods) - trained}
    times |= dict.fromkeys(("validation", "training"), epochs)
    encoded = {part: sum(used[part]) * times[part] if searched else 0 for part in used}
    encoded["test"] += encoded.pop("once")
    once = searched + (0 if shared else validated * folds) + (0 if shared and not joined else used["training"][0])
    in_splits = queries["test"] + folds * (queries["train"] + queries["validation"])
    once_tokens = once * tokens["document"] + in_splits * tokens["query"]
    pass_tokens = {part: d * tokens["document"] + q * tokens["query"] for part, (d, q) in used.items()}
    frozen = trained_layers(config, spec)["prefix"] / spec.num_layers
    stored = once_tokens * spec.hidden_dim * FLOAT_BYTES if frozen and config.prefix_cache_gb and searched else 0
    kept = min(1.0, config.prefix_cache_gb * GIGABYTE / stored) if stored else 0.0
    return Work(
        needs=needs,
        searched=searched,
        validated=validated,
        shared=shared,
        queries=queries,
        tokens=tokens,
        encoded=encoded,
        activation_bytes=stored,
        token_passes=_token_passes(once_tokens, pass_tokens, times, kept, frozen, config)
        + _diagnosed_tokens(queries, tokens, config) * (1 - frozen),
        kept_passes=frozen * kept * once_tokens,
    )


def _token_passes(
    once: int, by_pass: dict[str, int], times: dict[str, int], kept: float, frozen: float, config: Tier1Config
) -> float:
    """Cost of encoding, in tokens that pass through the whole model.

    Args:
        once: tokens of all different texts; they pass the frozen layers once if their output is stored.
        by_pass: "test", "once" (the test of a method that is not trained), "validation" and "training" -> tokens of
            one pass over its texts.
        times: number of passes of each, over all methods, trainings and epochs.
        kept: the share of all texts whose output of the frozen layers is stored.
        frozen: the share of the layers that no method changes.
    """
    every = sum(by_pass[part] * times[part] for part in by_pass)
    trained = sum(_training_passes(method, config) for method in trained_methods(config))
    upper = sum(by_pass[part] * times[part] for part in ("test", "once", "validation"))
    upper += by_pass["training"] * config.num_epochs * (config.seeds + config.tune) * trained
    return frozen * (kept * once + (1 - kept) * every) + (1 - frozen) * upper


def _diagnosed_tokens(queries: Mapping[str, int], tokens: Mapping[str, int], config: Tier1Config) -> int:
    """Tokens of validation texts that diagnostics encode, at every depth or at the router's and its start's."""
    if config.diagnostics == "none":
        return 0
    looks = (config.folds or 1) * config.seeds * (config.num_epochs if config.diagnostics == "all" else 1)
    maw = [method for method in map(find_method, trained_methods(config)) if method.retriever == "maw"]
    every = sum(method.configure(config).depth_dim for method in maw)
    asked = queries["validation"]
    total = sum((min(asked, most) * every + 2 * asked * len(maw)) * tokens[kind] for kind, most in DIAGNOSED.items())
    return looks * total


def _queries(needs: Needs, config: Tier1Config) -> dict[str, int]:
    """Sampled queries by split; with folds those of one fold, and in "test" those of all folds."""
    drawn = {}
    for split, field in SAMPLE_FIELDS.items():
        asked = getattr(config, field) if split == "test" or trained_methods(config) else 0
        drawn[split] = min(asked, needs.queries.get(split) or asked)
    if not config.folds:
        return drawn
    pooled = sum(drawn.values())
    fold = round(pooled / config.folds) if trained_methods(config) else 0
    return {"train": pooled - 2 * fold if fold else 0, "validation": fold, "test": pooled}


def _training_passes(method: str, config: Tier1Config) -> float:
    """Cost of a training step in the layers that are not frozen, in forward passes."""
    config = find_method(method).configure(config)
    if find_method(method).retriever != "maw":
        return BACKWARD
    size = config.depth_dim if group_kind(config, 1) == "all" else config.grpo_group_size
    trained_by = ROUTERS[config.router].trained_by
    group = {"reward": group_share(config) * size, "labels": config.depth_dim}.get(trained_by, 0)
    samples = size if trained_by == "reward" and config.encoder_update in ("all_group", "mcl") else 1
    return group + BACKWARD * samples


def _at_most(size: int | str, total: int) -> int:
    return total if size == "full" else min(int(size), total)


def _tokens(characters: int, limit: int) -> int:
    return min(limit, round(characters / CHARACTERS_PER_TOKEN) + 2)
