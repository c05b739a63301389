"""Row 12: memory that runs out in evaluation, where batches become smaller, and in training, which stops."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch

import maw.evaluation.evaluate as evaluation
import maw.runtime.out_of_memory as memory
from faults.tools import Watched
from maw.encoding.activation_cache import ActivationStore
from maw.encoding.embedding_cache import Embedder
from maw.errors import MemoryLimitError, is_out_of_memory
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.models.tokenized import ListTexts
from maw.training.train import train_retriever

CLOSE = 1e-5
ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8589934592 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError(ON_CPU),
    "Python": MemoryError,
}


def short_of_memory(model, tokens: int, error: str):
    """Lets the encoder fail on every batch of more tokens; gives the sizes of the batches that it took."""
    taken = []

    def check(module, words):
        mask = words[0]["attention_mask"]
        if mask.numel() > tokens:
            raise ERRORS[error]()
        taken.append(mask.numel())

    model.encoder.register_forward_pre_hook(check)
    return taken


def same_ranking(found, expected) -> None:
    """The same passages in the same order, but for neighbours whose scores are hardly apart."""
    scores, rows = found.run["scores"], found.run["rows"]
    np.testing.assert_allclose(scores, expected.run["scores"], atol=CLOSE, rtol=0)
    for query, place in np.argwhere(rows != expected.run["rows"]):
        other = np.flatnonzero(expected.run["rows"][query] == rows[query, place])
        assert other.size and abs(expected.run["scores"][query, other[0]] - scores[query, place]) < CLOSE


def evaluation_goes_on(make, data, folder, seed: int) -> None:
    """Evaluates with and without enough memory."""
    source = random.Random(f"memory {seed}")
    retriever, options = source.choice([(BaselineRetriever, {"use_lora": True}), (MAWRetriever, {})])
    config = make(eval_batch_size=source.choice([8, 16, 64]), **options)
    expected = evaluate_retriever(retriever(config), data, config, "cpu")
    model = retriever(config)
    taken = short_of_memory(model, source.choice([16, 32, 64, 100]), source.choice(sorted(ERRORS)))
    with ActivationStore(folder, source.choice([1.0, 1e-5, 1e-9])) as store:
        found = evaluate_retriever(model, data, config, "cpu", activations=source.choice([None, store]))
    assert taken
    same_ranking(found, expected)
    assert dict(found) == pytest.approx(dict(expected), abs=1e-9)


def test_evaluation_goes_on_in_smaller_batches(tiny_settings, tiny_data, tmp_path, repeats, trial, caplog):
    for seed in range(repeats(4, 10)):
        caplog.clear()
        with trial(12, "evaluations", seed):
            evaluation_goes_on(tiny_settings, tiny_data, tmp_path, seed)
            warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
            assert any("out of memory with" in each for each in warnings), warnings


def test_control_parts_put_together_in_another_order_are_noticed(tiny_settings, tiny_data, tmp_path, monkeypatch):
    cat = torch.cat

    class Turned:
        cat = staticmethod(lambda parts, *words: cat(tuple(parts)[::-1], *words))

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(memory, "torch", Turned())
    for seed in range(4):
        with pytest.raises(AssertionError):
            evaluation_goes_on(tiny_settings, tiny_data, tmp_path, seed)


def test_what_did_not_fit_is_not_tried_again(tiny_settings, tiny_data):
    calls = []

    def call(inputs):
        calls.append(len(inputs["attention_mask"]))
        if inputs["attention_mask"].numel() > 40:
            raise MemoryError
        return {"x": inputs["attention_mask"].sum(1)}

    fitting = memory.HalveOnOOM(call, "texts")
    batch = {"attention_mask": torch.arange(160).view(16, 10)}
    for _ in range(2):
        assert torch.equal(fitting(batch)["x"], batch["attention_mask"].sum(1))
    assert calls == [16, 8, 4, 4, 4, 4, 4, 4, 4, 4] and fitting.cut


def test_embeddings_of_smaller_batches_are_not_kept(tiny_settings, tiny_data, caplog):
    config = tiny_settings(methods=["zero_shot"])
    model = BaselineRetriever(config)
    short_of_memory(model, 64, "GPU")
    for _ in range(2):
        found = Embedder(model, config, torch.device("cpu")).encode(ListTexts(tiny_data["docs"]), "document", "d")
        assert found.cut and not found.from_cache
    assert "not cached for later runs: memory ran out" in caplog.text


def test_a_single_text_that_does_not_fit_is_said(tiny_settings, tiny_data):
    config = tiny_settings(use_lora=True)
    model = BaselineRetriever(config)
    short_of_memory(model, 0, "CPU")
    with pytest.raises(
        MemoryLimitError, match=r"out of memory with a single text of 16 tokens; .*--max-document-length"
    ):
        evaluate_retriever(model, tiny_data, config, "cpu")


def test_search_goes_on_with_smaller_blocks(tiny_settings, tiny_data, monkeypatch):
    config = tiny_settings(use_lora=True)
    model = BaselineRetriever(config)
    expected = evaluate_retriever(model, tiny_data, config, "cpu")
    real, tried = evaluation.sharded_top_k, []

    def short(*words, block):
        tried.append(block)
        if block > 1024:
            raise ERRORS["GPU"]()
        return real(*words, block=block)

    monkeypatch.setattr(evaluation, "sharded_top_k", short)
    same_ranking(evaluate_retriever(model, tiny_data, config, "cpu"), expected)
    assert tried == [16_384, 4096, 1024]
    monkeypatch.setattr(evaluation, "SMALLEST_BLOCK", 4096)
    with pytest.raises(MemoryLimitError, match="search: out of memory with blocks of 4096 passages"):
        evaluate_retriever(model, tiny_data, config, "cpu")


def training_stops(make, data, seed: int) -> None:
    """Lets memory run out at some step of a training: one line of advice, and no smaller batch."""
    source = random.Random(f"training {seed}")
    retriever, options, method = source.choice(
        [(BaselineRetriever, {"use_lora": True}, "lora"), (MAWRetriever, {}, "maw")]
    )
    config = make(num_epochs=3, patience=0, **options)
    model, step, error = retriever(config), source.randrange(9), source.choice(sorted(ERRORS))
    now, sizes = [-1], []
    layer = model.encoder.architecture.layers(model.encoder.backbone)[2]

    def check(module, words):
        if module.training:
            sizes.append(len(words[0]))
            if now[0] == step:
                raise ERRORS[error]()

    layer.register_forward_pre_hook(check)
    from maw.training import trainer

    build = trainer.build_objective

    def counting(*words):
        objective = build(*words)

        def call(queries, passages, batch, number):
            now[0] = number
            return objective(queries, passages, batch, number)

        return Watched(objective, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_objective", counting)
        with pytest.raises(MemoryLimitError) as caught:
            train_retriever(model, data, data, config, "cpu", "tiny", method)
    text = str(caught.value)
    assert text.startswith(f"tiny {method}: step {step}: out of memory; ") and "\n" not in text
    assert all(words in text for words in ("--max-document-length", "--batch-size", "negatives"))
    assert now[0] == step and sizes


def test_training_stops_with_advice(tiny_settings, tiny_data, repeats, trial):
    for seed in range(repeats(3, 10)):
        with trial(12, "trainings", seed):
            training_stops(tiny_settings, tiny_data, seed)


def test_control_a_training_that_goes_on_is_noticed(tiny_settings, tiny_data, monkeypatch):
    import contextlib

    monkeypatch.setattr("maw.training.trainer.advising", lambda *_: contextlib.nullcontext())
    with pytest.raises((MemoryError, RuntimeError)):
        training_stops(tiny_settings, tiny_data, 0)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), OSError(12, "memory")])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), memory.advising("here", "advice"):
        raise error


@pytest.mark.gpu
def test_a_gpu_that_is_full(tiny_settings, tiny_data):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    config = tiny_settings(use_lora=True, device="cuda:0", eval_batch_size=40)
    model = BaselineRetriever(config).to("cuda:0")
    expected = evaluate_retriever(model, tiny_data, config, "cuda:0")
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(0)[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + (2 << 20)) / total)
    try:
        same_ranking(evaluate_retriever(model, tiny_data, config, "cuda:0"), expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
