"""mteb on a retriever in memory and on an exported one gives the run's own scores."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conftest import random_texts

from maw.evaluation.mteb import MTEBEncoder
from maw.experiment.past_run import PastRun
from maw.models.export.sentence_transformers import export_retriever
from maw.models.retriever import BaselineRetriever

ROOT = Path(__file__).resolve().parents[2]
TEXTS = random_texts(7, seed=2)


def batches(texts, size=3):
    return [{"text": texts[start : start + size]} for start in range(0, len(texts), size)]


def test_batches_become_embeddings_in_their_order(tiny_settings):
    model = BaselineRetriever(tiny_settings(query_prefix="get ", document_prefix="text ", max_query_length=5))
    encoder = MTEBEncoder(model)
    for kind in ("query", "document"):
        np.testing.assert_allclose(encoder.encode(batches(TEXTS), prompt_type=kind), model.encode(TEXTS, kind))
    plain = BaselineRetriever(tiny_settings(query_prefix="", document_prefix=""))
    np.testing.assert_allclose(encoder.encode(batches(TEXTS)), plain.encode(TEXTS), atol=1e-6)
    assert np.abs(encoder.encode(batches(TEXTS)) - model.encode(TEXTS)).max() > 1e-3, "neither kind has no prefix"


def test_similarity_is_the_models_own(tiny_settings):
    for similarity in ("cosine", "dot"):
        model = BaselineRetriever(tiny_settings(similarity=similarity))
        encoder, embeddings = MTEBEncoder(model), model.encode(TEXTS)
        expected = embeddings @ embeddings.T
        np.testing.assert_allclose(encoder.similarity(embeddings, embeddings), expected, rtol=1e-6)
        np.testing.assert_allclose(encoder.similarity_pairwise(embeddings, embeddings), np.diag(expected), rtol=1e-5)
        assert encoder.similarity(embeddings[0], embeddings).shape == (1, 7)


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("mteb", reason="mteb is not installed (requirements-dev.txt has it)")
    spec = importlib.util.spec_from_file_location("mteb_task", ROOT / "examples" / "mteb_task.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_finds_the_runs_own_score(example, tiny_run, capsys):
    run = PastRun.open(tiny_run)
    for method in ("zero_shot", "maw"):
        found = example.main(str(tiny_run), method)
        assert found == pytest.approx(run.record(method)["metrics"]["ndcg_cut_10"], abs=1e-5)
        assert f"nDCG@10 {found:.4f} by mteb, {found:.4f} by the run" in capsys.readouterr().out


def test_an_export_gives_mteb_the_same(example, tiny_run, tmp_path, monkeypatch):
    import mteb
    from sentence_transformers import SentenceTransformer

    from maw.data.registry import load_collection

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    run = PastRun.open(tiny_run)
    folder = export_retriever(run.model("maw"), tmp_path / "out")
    task = example.RunTask()
    task.data = load_collection(run.config.datasets[0], run.config).test
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    result = mteb.evaluate(model, task, cache=None, co2_tracker=False)
    expected = run.record("maw")["metrics"]["ndcg_cut_10"]
    assert result.task_results[0].get_score() == pytest.approx(expected, abs=1e-5)


def test_what_mteb_writes_beside_results(example, tiny_settings):
    from mteb.models.models_protocols import EncoderProtocol

    encoder = MTEBEncoder(BaselineRetriever(tiny_settings(query_prefix="get ")), "maw/tiny", "1")
    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim, meta.max_tokens) == ("maw/tiny", "1", 16, 64)
    assert meta.use_instructions and meta.similarity_fn_name.value == "cosine"
