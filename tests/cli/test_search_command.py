"""`search` with the models of a finished run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tier_1
from maw.cli import search as search_run
from maw.cli.search import Found, Hit, depth_of, search, show_found
from maw.errors import MAWError
from maw.experiment.past_run import PastRun

QUERY = "open the file"


def search_words(run, *words):
    return tier_1.main(["search", str(run), QUERY, *words])


@pytest.mark.parametrize("method", ["zero_shot", "lora", "maw"])
def test_the_best_passages_by_hand(tiny_run, method):
    run = PastRun.open(tiny_run)
    model, corpus = run.model(method), run.corpus()
    texts = corpus.take(range(len(corpus)))
    scores = (model.encode(texts) @ model.encode([QUERY], "query").T)[:, 0]
    found = search(model, method, run.config, corpus, QUERY, 7)
    assert [hit.row for hit in found.hits] == np.argsort(-scores, kind="stable")[:7].tolist()
    assert [hit.score for hit in found.hits] == pytest.approx(np.sort(scores)[::-1][:7].tolist(), abs=1e-6)
    if method != "maw":
        assert found.depth == "" and {hit.depth for hit in found.hits} == {""}
        return
    for kind, got, wanted in [
        ("query", [found.depth], [QUERY]),
        ("document", [hit.depth for hit in found.hits], [texts[hit.row] for hit in found.hits]),
    ]:
        with torch.no_grad():
            share = model.encoder(model.source(wanted, kind).batch(range(len(wanted))))["depth_share"]
        assert got == [str(int(each.argmax())) for each in share[:, 0]]


def test_passages_are_encoded_once(tiny_run, monkeypatch):
    run = PastRun.open(tiny_run)
    model, corpus = run.model("maw"), run.corpus()
    first = search(model, "maw", run.config, corpus, QUERY, 5)

    def refuse(*given, **named):
        raise AssertionError("encoded again")

    monkeypatch.setattr("maw.encoding.embedding_cache.encode_sharded", refuse)
    assert search(model, "maw", run.config, corpus, QUERY, 5) == first
    with torch.no_grad():
        model.encoder.maw_attention[0].kernels.up += 0.1
    with pytest.raises(AssertionError, match="encoded again"):
        search(model, "maw", run.config, corpus, QUERY, 5)


def test_the_command_shows_one_method(tiny_run, capsys):
    assert search_words(tiny_run, "--method", "maw", "--k", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    run = PastRun.open(tiny_run)
    found = search(run.model("maw"), "maw", run.config, run.corpus(), QUERY, 3)
    assert lines[0] == f'"{QUERY}"' and lines[1] == f"MAW Fine-tuned: the query takes depth {found.depth}"
    for place, hit in enumerate(found.hits, start=1):
        name = run.corpus().id_of([hit.row])[0]
        assert f"{place:>3}  {hit.score:.4f}  {name}  depth {hit.depth}" in lines
        assert f"     {run.corpus().take([hit.row])[0]}" in lines


def test_the_command_sets_methods_side_by_side(tiny_run, capsys):
    assert search_words(tiny_run, "--k", "2") == 0
    shown = capsys.readouterr().out
    (header,) = [line for line in shown.splitlines() if "Zero-shot" in line]
    assert header.split() == ["Zero-shot", "LoRA", "Fine-tuned", "MAW", "Fine-tuned"]
    assert search_words(tiny_run, "--k", "2", "--method", "maw,zero_shot") == 0
    (header,) = [line for line in capsys.readouterr().out.splitlines() if "Zero-shot" in line]
    assert "LoRA" not in header and header.index("MAW") < header.index("Zero-shot")


def test_more_passages_than_there_are(tiny_run, capsys):
    assert search_words(tiny_run, "--k", "1000", "--method", "zero_shot") == 0
    assert " 40  " in capsys.readouterr().out


def test_wrong_words_are_one_line(tiny_run, capsys):
    assert search_words(tiny_run, "--method", "mwa") == 2
    assert "no method 'mwa' (did you mean maw?)" in capsys.readouterr().err
    for none in (",", ""):
        assert search_words(tiny_run, "--method", none) == 2
        assert "search: --method names no method; the run has zero_shot, lora, maw" in capsys.readouterr().err
    assert tier_1.main(["search", str(tiny_run), "  "]) == 2
    assert "search: the query is empty" in capsys.readouterr().err
    assert search_words(tiny_run, "--k", "0") == 2
    assert "argument --k: must be at least 1" in capsys.readouterr().err


def test_a_depth_says_its_share_where_a_text_is_divided():
    assert depth_of(np.array([[0.0, 1.0, 0.0]])) == "1"
    assert depth_of(np.array([[0.0, 1.0], [0.75, 0.25]])) == "1/0 (75%)"


def test_passages_of_any_kind_are_shown_safely(tiny_run):
    class Corpus:
        def id_of(self, rows):
            return ["an\x1b[31m id that is far longer than a table can show it"]

        def take(self, rows):
            return ["\x1b[2J" + "word " * 400]

    one = Found("maw", "3", [Hit(0, 0.5, "2")])
    for found in ([one], [one, Found("zero_shot", "", [Hit(0, 0.25, "")])]):
        shown = show_found(found, Corpus(), "a\nquery")
        assert "\x1b" not in shown and shown.startswith('"a query"')
        assert max(map(len, shown.splitlines())) <= 100
    assert "(no text)" in "\n".join(search_run._passage(""))


def test_a_run_whose_data_is_gone_says_so(tiny_run, tmp_path):
    import json
    import shutil

    other = tmp_path / "logs"
    shutil.copytree(tiny_run, other)
    (path,) = other.glob("*/dataset.json")
    result = json.loads(path.read_text())
    result["configuration"]["datasets"] = ["pystdlib"]
    path.write_text(json.dumps(result))
    with pytest.raises(MAWError, match="no dataset of its configuration has results called beir_small"):
        PastRun.open(other).corpus()
