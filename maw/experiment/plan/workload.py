"""What a run does with a dataset: which texts it encodes, how often, and how much work that is.

Counts of texts follow from the configuration; tokens are estimated by the mean length of a passage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maw.attention.routers import ROUTERS
from maw.config.methods import find_method, trained_methods
from maw.config.tier1_config import Tier1Config, group_is_exact
from maw.data.datasets.local_needs import local_needs
from maw.data.download.needs import Needs
from maw.data.splits import SAMPLE_FIELDS
from maw.models.pretrained import ModelSpec, trained_layers
from maw.storage.disk import GIGABYTE

FLOAT_BYTES = 4
CHARACTERS_PER_TOKEN = 4.2
QUERY_CHARACTERS = 50
BACKWARD = 3  # passes that a training step with its gradient takes, in forward ones
DIAGNOSED_DOCUMENTS = (
    200  # of a split, which `maw.evaluation.routing.diagnostics` puts at every depth, beside its queries
)


@dataclass(frozen=True)
class Work:
    """What a run does with one dataset, over all its methods, seeds, trials and folds.

    Attributes:
        needs: as its loader says, or estimated from local files.
        searched: passages of the test corpus; 0 where nothing is known beforehand.
        validated: passages of the validation corpus; 0 where no method trains.
        shared: whether test and validation queries search one and the same corpus.
        queries: split -> how many are drawn; with folds, how many one round has, and in the test all rounds together.
        tokens: "document" and "query" -> of a mean text, as the model reads it.
        encoded: "test", "validation" and "training" -> texts encoded, over all methods, trainings and epochs.
        activation_bytes: of the frozen layers' output for every text of the run; 0 if nothing is stored.
        token_passes: what encoding costs, as tokens that pass through the whole model.
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


def _distractors(config: Tier1Config) -> int:
    """Passages of the folders that join every corpus that is searched."""
    folders = [name.removeprefix("beir:") for name in config.distractors or ()]
    return sum(sum(local_needs(f"beir:{folder}", config).passages.values()) for folder in folders)


def make_work(needs: Needs, config: Tier1Config, spec: ModelSpec) -> Work:
    """The first corpus of the needs is searched for the test queries, the last one for the others.

    Distractors join both, and training then reads another corpus than is searched.
    """
    joined = _distractors(config) if needs.passages else 0
    test, other = ((list(needs.passages.values()) or [0])[which] + joined for which in (0, -1))
    searched = _at_most(config.corpus_size, test)
    validated = _at_most(config.val_corpus_size, searched if config.folds else other) if trained_methods(config) else 0
    shared = len(needs.passages) == 1 and searched == test and validated in (0, test)
    queries = _of_rounds(_drawn(needs, config), config)
    folds = config.folds or 1
    tokens = {
        "document": _tokens(needs.mean_characters, spec.max_document_length),
        "query": _tokens(QUERY_CHARACTERS, spec.max_query_length),
    }
    used = {  # documents and queries of one pass: through all rounds, where there are folds
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
    return Work(
        needs=needs,
        searched=searched,
        validated=validated,
        shared=shared,
        queries=queries,
        tokens=tokens,
        encoded=encoded,
        activation_bytes=stored,
        token_passes=_token_passes(once_tokens, pass_tokens, times, stored, frozen, config)
        + _diagnosed_tokens(queries, tokens, config) * (1 - frozen),
    )


def _token_passes(
    once: int, by_pass: dict[str, int], times: dict[str, int], stored: int, frozen: float, config: Tier1Config
) -> float:
    """Tokens that pass through the whole model, or as much work.

    Args:
        once: tokens of all different texts, which pass the frozen layers once as far as their output is stored.
        by_pass: "test", "once" (the test of a method that is not trained), "validation" and "training" -> tokens of
            one pass over its texts.
        times: how often each is done, over all methods, trainings and epochs.
        stored: bytes that storing the output of all would take.
        frozen: the share of the layers that no method changes.
    """
    share = min(1.0, config.prefix_cache_gb * GIGABYTE / stored) if stored else 0.0
    every = sum(by_pass[part] * times[part] for part in by_pass)
    trained = sum(_training_passes(method, config) for method in trained_methods(config))
    upper = sum(by_pass[part] * times[part] for part in ("test", "once", "validation"))
    upper += by_pass["training"] * config.num_epochs * (config.seeds + config.tune) * trained
    return frozen * (share * once + (1 - share) * every) + (1 - frozen) * upper


def _diagnosed_tokens(queries: Mapping[str, int], tokens: Mapping[str, int], config: Tier1Config) -> int:
    """Tokens that diagnostics put at every depth: of test texts after a training, of validation texts in it."""
    if config.diagnostics == "none":
        return 0
    folds, looks = config.folds or 1, config.num_epochs if config.diagnostics == "all" else 1
    total = 0
    for split, times in {"test": 1, "validation": folds * looks}.items():
        documents = min(queries[split], folds * DIAGNOSED_DOCUMENTS)
        of_split = queries[split] * tokens["query"] + documents * tokens["document"]
        total += times * of_split
    return total * config.seeds * sum(find_method(name).configure(config).depth_dim for name in _maw_methods(config))


def _maw_methods(config: Tier1Config) -> list[str]:
    return [method for method in trained_methods(config) if find_method(method).retriever == "maw"]


def _drawn(needs: Needs, config: Tier1Config) -> dict[str, int]:
    """Queries by split: those asked for, fewer where the source has fewer."""
    drawn = {}
    for split, field in SAMPLE_FIELDS.items():
        asked = getattr(config, field) if split == "test" or trained_methods(config) else 0
        drawn[split] = min(asked, needs.queries.get(split) or asked)
    return drawn


def _of_rounds(drawn: dict[str, int], config: Tier1Config) -> dict[str, int]:
    """With folds: what one round trains on and validates with, and what all test, of all queries drawn."""
    if not config.folds:
        return drawn
    pooled = sum(drawn.values())
    fold = round(pooled / config.folds) if trained_methods(config) else 0
    return {"train": pooled - 2 * fold if fold else 0, "validation": fold, "test": pooled}


def _training_passes(method: str, config: Tier1Config) -> int:
    """What a training step costs in the layers that are not frozen, in forward passes of its texts."""
    config = find_method(method).configure(config)
    if find_method(method).retriever != "maw":
        return BACKWARD
    size = config.depth_dim if group_is_exact(config, 1) else config.grpo_group_size
    trained_by = ROUTERS[config.router].trained_by
    group = {"reward": size, "labels": config.depth_dim}.get(trained_by, 0)
    samples = size if trained_by == "reward" and config.encoder_update in ("all_group", "mcl") else 1
    return group + BACKWARD * samples


def _at_most(size: int | str, total: int) -> int:
    return total if size == "full" else min(int(size), total)


def _tokens(characters: int, limit: int) -> int:
    return min(limit, round(characters / CHARACTERS_PER_TOKEN) + 2)
