"""Checks that a tokenizer belongs to a model, and that the model tells texts apart.

A model whose tokenizer is empty, or is another model's, embeds every text alike: a run would take hours and compare
nothing. `check_tokenizer` judges a tokenizer alone, `check_texts` a model with texts of its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maw.data.normalise import normalise
from maw.errors import ModelError, show
from maw.models.encode import encode
from maw.models.pretrained import ModelSpec
from maw.models.tokenized import TextSource

TEXTS = 16
ALIKE = 1e-5
HIGH_COSINE = 0.99
_ADVICE = "check that the tokenizer belongs to the model, and its prefixes and lengths"


def check_tokenizer(tokenizer: Any, spec: ModelSpec) -> None:
    """Refuses a tokenizer that cannot serve the model.

    Whether it can produce a token outside the table of embeddings is decided by tokenizing the texts of the entries
    that lie outside: an added token comes whenever a text contains it; an entry that its own text does not give
    (such as one with capitals behind a normalizer that lower-cases) never comes, since tokenizers cut words by rules
    that look at the word alone. Two kinds are taken to come without a proof: continuations of a word, and parts of a
    character.

    Raises:
        ModelError: no vocabulary, no padding token, a token outside the table, or capitals that it should lower-case.
    """
    name = f"tokenizer of model {spec.name}"
    vocabulary = tokenizer.get_vocab()
    if not set(vocabulary) - set(tokenizer.all_special_tokens):
        files = " and ".join(getattr(tokenizer, "vocab_files_names", {}).values())
        raise ModelError(f"{name}: it knows no word; a {type(tokenizer).__name__} reads {files}: place these files")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{name}: it has no padding token; set pad_token in tokenizer_config.json")
    found = _outside(tokenizer, vocabulary, spec.vocab_size) if spec.vocab_size else None
    if found is not None:
        raise ModelError(
            f"{name}: it can produce {found}, but the model has embeddings for {spec.vocab_size} tokens (vocab_size "
            "in config.json); it is another model's tokenizer, or tokens were added without resize_token_embeddings"
        )
    if spec.lower_case and "A" in _normalized(tokenizer, "A"):
        text = (
            "sentence_bert_config.json asks for lower-cased text (do_lower_case), which this tokenizer does not make"
        )
        raise ModelError(f"{name}: {text}; this is not supported")


def _outside(tokenizer: Any, vocabulary: Mapping[str, int], size: int) -> str | None:
    """A token that the tokenizer can produce and whose number is `size` or more, in words; None if there is none."""
    outside = [token for token, number in vocabulary.items() if number >= size]
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    mark = getattr(model, "continuing_subword_prefix", None)
    numbers = [tokenizer.pad_token_id, *tokenizer("")["input_ids"]]  # what every batch and every text may hold
    for token in outside:
        text = tokenizer.convert_tokens_to_string([token])
        if "\ufffd" in text or (mark and token.startswith(mark)):
            numbers.append(vocabulary[token])
        numbers += [i for ids in tokenizer([token, text, f" {text}", f"a {text}"])["input_ids"] for i in ids]
    found = next((number for number in numbers if number >= size), None)
    return None if found is None else f"{show(tokenizer.convert_ids_to_tokens(found))}, number {found}"


def _normalized(tokenizer: Any, text: str) -> str:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer.normalize_str(text) if normalizer else text


def check_texts(model: Any, texts: Mapping[str, Sequence[str]], data: str) -> list[str]:
    """Refuses a model that does not tell texts apart.

    Embeds `TEXTS` different texts of each kind, in evaluation mode. No random number is drawn.

    Args:
        model: a `maw.models.retriever.BaselineRetriever`.
        texts: texts of each kind, "query" and "document"; fewer than two different ones are not judged.
        data: name of the dataset, for the messages.

    Returns:
        Warnings: more than half of the tokens are unknown, or the mean cosine is above `HIGH_COSINE`.

    Raises:
        ModelError: all embeddings of a kind agree to `ALIKE`, relative to the longest, or all tokens are alike or
            unknown.
    """
    warnings = []
    for kind, found in texts.items():
        different = list({normalise(text): text for text in reversed(found) if text.strip()}.values())[-TEXTS:]
        if len(different) < 2:
            continue
        what = f"{data}: model {model.spec.name}: of {len(different)} different {NAMES[kind]}"
        unknown = _share_unknown(model, different, kind, what)
        if unknown > 0.5:
            warnings.append(f"{what}, {unknown:.0%} of the tokens are unknown to the tokenizer; {_ADVICE}")
        source = model.source(different, kind)
        embeddings = encode(model.encoder, source, batch_size=TEXTS, device=model.device).embeddings.astype(np.float64)
        lengths = np.linalg.norm(embeddings, axis=1)
        if np.ptp(embeddings, axis=0).max() <= ALIKE * lengths.max():
            raise ModelError(f"{what}, all have the same embedding; {_ADVICE}")
        directions = embeddings / np.maximum(lengths, 1e-12)[:, None]
        cosines = (directions @ directions.T)[~np.eye(len(different), dtype=bool)]
        if cosines.mean() > HIGH_COSINE:
            warnings.append(f"{what}, embeddings have a mean cosine of {cosines.mean():.4f}; {_ADVICE}")
    return warnings


NAMES = {"query": "queries", "document": "passages"}


def _share_unknown(model: Any, texts: Sequence[str], kind: str, what: str) -> float:
    """The share of unknown tokens, without prefix and special tokens; refuses texts of which nothing is left."""
    tokenizer, unknown = model.tokenizer, model.tokenizer.unk_token_id
    source = TextSource(texts, tokenizer, max_length=model.source(texts, kind).max_length)
    special = set(tokenizer.all_special_ids) - {unknown}
    inputs = source.batch(range(len(texts)))
    numbers = inputs["input_ids"][inputs["attention_mask"].bool()].tolist()
    tokens = [number for number in numbers if number not in special]
    if set(tokens) <= {unknown}:
        raise ModelError(f"{what}, all tokens are unknown to the tokenizer; {_ADVICE}")
    if len(set(tokens)) == 1:
        raise ModelError(
            f"{what}, all tokens are alike ({show(tokenizer.convert_ids_to_tokens(tokens[0]))}); {_ADVICE}"
        )
    return tokens.count(unknown) / len(tokens)
