"""The command line: every field has a flag, sources override each other in order, all mistakes come at once."""

from __future__ import annotations

import json
import re

import pytest
from conftest import beir_outline

from maw.cli.flags import build_parser, flag_of, help_topics, parse_command_line
from maw.config.methods import METHOD_NAMES
from maw.config.presets import FIRST_FLAGS
from maw.config.tier1_config import Tier1Config, kinds
from maw.errors import ConfigError

SETTINGS = {"model_type": "bert", "num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 32}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["doctr"], "'doctr': is neither a flag nor the value of one (did you mean doctor?)"),
        (["--preset", "offline", "search"], "'search': is neither a flag nor the value of one; the command search"),
    ],
)
def test_a_misspelt_or_misplaced_command_is_named(words, expected):
    with pytest.raises(ConfigError) as caught:
        parse_command_line(words)
    assert caught.value.problems[0].startswith(expected)


@pytest.fixture
def parse(tmp_path):
    """Parses flags for a run over a model of 6 layers, so that nothing but the flags can be wrong."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SETTINGS | {"max_position_embeddings": 64}))

    def run(*words: str) -> Tier1Config:
        given = [] if any(word.startswith("--datasets") for word in words) else ["--datasets", "pystdlib"]
        return parse_command_line([*given, "--model", str(model), *words])

    return run


@pytest.fixture
def problems(parse):
    """The problems of flags that are wrong."""

    def run(*words: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            parse(*words)
        return caught.value.problems

    return run


def test_every_field_has_a_flag_with_help():
    text = build_parser().format_help()
    for name, kind in kinds().items():
        assert flag_of(name) in text
        assert kind.base is not bool or f"--no-{flag_of(name)[2:]}" in text


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--batch-size", "16"], "batch_size", 16),
        (["--batch-size=16"], "batch_size", 16),
        (["--learning-rate", "1e-5"], "learning_rate", 1e-5),
        (["--learning-rate", "none"], "learning_rate", None),
        (["--max-grad-norm", "2"], "max_grad_norm", 2.0),
        (["--maw-layers", "5,6"], "maw_layers", [5, 6]),
        (["--maw-layers", "5", "6"], "maw_layers", [5, 6]),
        (["--maw-layers", "-1"], "maw_layers", [-1]),
        (["--maw-layers", "-1,-2"], "maw_layers", [-1, -2]),
        (["--maw-layers=-1"], "maw_layers", [-1]),
        (["--maw-layers", "last"], "maw_layers", "last"),
        (["--finetune-layers", "All"], "finetune_layers", "all"),
        (["--methods", "zero_shot,maw"], "methods", ["zero_shot", "maw"]),
        (["--methods", "zero_shot", "maw"], "methods", ["zero_shot", "maw"]),
        (["--methods", "zero_shot, maw"], "methods", ["zero_shot", "maw"]),
        (["--methods", "all"], "methods", list(METHOD_NAMES)),
        (["--use-lora"], "use_lora", True),
        (["--no-compress-logs"], "compress_logs", False),
        (["--query-prefix", "query: "], "query_prefix", "query: "),
        (["--query-prefix="], "query_prefix", ""),
        (["--query-prefix=--x"], "query_prefix", "--x"),
        (["--route-by", "token"], "route_by", "token"),
        (["--log-dir", "out dir"], "log_dir", "out dir"),
        (["--device", "none"], "device", None),
    ],
)
def test_flags(parse, words, name, value):
    config = parse(*words)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


def test_a_beir_path_may_have_blanks(parse, tmp_path):
    folder = beir_outline(tmp_path / "my data" / "small")
    assert parse("--datasets", f"pystdlib,beir:{folder}").datasets == ["pystdlib", f"beir:{folder}"]


def test_presets_then_files_then_flags(parse, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("num_epochs: 7\ntest_samples: 70\nseed: 3\n")
    config = parse("--seed", "4", "--config", str(file), "--preset", "quick")
    assert (config.train_samples, config.num_epochs, config.test_samples, config.seed) == (500, 7, 70, 4)


def test_the_offline_preset_is_a_whole_run():
    config = parse_command_line(["--preset", "offline"])
    assert config == Tier1Config.from_preset("offline")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bach-size", "3"], "--bach-size: no such flag (did you mean --batch-size?)"),
        (["--no-compress-log"], "--no-compress-log: no such flag (did you mean --no-compress-logs?)"),
        (["--qqqq=1"], "--qqqq: no such flag; --help all shows every flag"),
        (["-q"], "-q: no such flag"),
        (["--batch_size", "3"], "--batch_size: no such flag (did you mean --batch-size?)"),
        (["--batch-size"], "--batch-size: needs a value"),
        (["--batch-size", "--use-lora"], "--batch-size: needs a value"),
        (["--methods"], "--methods: needs a value"),
        (["--preset"], "--preset: needs a value"),
        (["--config"], "--config: needs a value"),
        (["stray"], "'stray': is neither a flag nor the value of one"),
        (["--seed", "1", "2"], "'2': is neither a flag nor the value of one"),
        (["--seed", "1", "--seed", "2"], "--seed: is given more than once"),
        (["--use-lora", "--no-use-lora"], "--no-use-lora: is given more than once"),
        (["--use-lora=yes"], "--use-lora: takes no value; it is --use-lora or --no-use-lora"),
        (["--batch-size", "many"], "--batch-size: must be a whole number, got 'many'"),
        (["--batch-size", "1e3"], "--batch-size: must be a whole number, got '1e3'"),
        (["--batch-size", "1_000"], "--batch-size: must be a whole number, got '1_000'"),
        (["--batch-size="], "--batch-size: must be a whole number, got ''"),
        (["--batch-size", "-3"], "--batch-size: must be at least 1 and at most 65536, got -3"),
        (["--learning-rate", "nan"], "--learning-rate: must be a finite number, got nan"),
        (["--learning-rate", "-1e-5"], "--learning-rate: must be above 0 and at most 1, got -1e-05"),
        (["--router", "gpro"], "(did you mean grpo?)"),
        (["--preset", "offlin"], "(did you mean offline?)"),
        (["--methods", "lora,lora"], "--methods: names 'lora' more than once"),
        (["--datasets", "msmarko"], "--datasets: unknown dataset 'msmarko' (did you mean msmarco?)"),
        (["--maw-layers", "7"], "--maw-layers: no layer 7 in a model of 6 layers; use 1 to 6"),
        (["--maw-layers", "none"], "--maw-layers: none leaves the method maw without MAW"),
        (["--hidden-dim", "768"], "--hidden-dim: 768 contradicts the model"),
        (["--max-query-length", "65"], "--max-query-length: 65 tokens are too many"),
        (["--fixed-depth", "4", "--depth-dim", "4"], "--fixed-depth: no depth 4"),
        (["--help", "ruter"], "--help: no topic 'ruter' (did you mean router?); there are all, model, data,"),
        (["--help", "search"], "--help: no topic 'search'; the command has its own: python tier_1.py search --help"),
        (["--config", "no.yaml"], "'no.yaml': cannot be read: No such file"),
    ],
)
def test_one_mistake_is_one_problem(problems, words, expected):
    (problem,) = problems(*words)
    assert expected in problem


def test_all_mistakes_come_at_once(problems, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\nrouter: gpo\nnum_epochs: x\n")
    words = ["--bach-size", "3", "--top-k", "--config", str(file), "--num-epochs", "0", "--maw-layers", "9"]
    found = problems(*words)
    assert sorted(problem.split(" ")[0] for problem in found) == sorted(
        # the flag --num-epochs stands in for the file's line 3
        ["--bach-size:", "--top-k:", "--num-epochs:", f"{file}:2:", "--maw-layers:"]
    )


def test_a_flag_repairs_what_the_file_has_wrong(parse, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("num_epochs: x\n")
    assert parse("--config", str(file), "--num-epochs", "2").num_epochs == 2


def test_after_a_bad_preset_nothing_is_said_of_what_it_would_have_set():
    with pytest.raises(ConfigError) as caught:
        parse_command_line(["--preset", "ofline", "--maw-layers", "99"])
    assert len(caught.value.problems) == 1


def test_a_flag_without_its_value_is_not_judged_further(problems):
    assert problems("--fixed-depth", "40", "--depth-dim") == ["--depth-dim: needs a value"]


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        parse_command_line(words)
    assert caught.value.code == 0
    return capsys.readouterr().out


def flags_in(text):
    return set(re.findall(r"^ +(?:-h, )?(--[\w-]+)(?=[ ,\n])", text.partition("more help:")[0], re.M))


def test_help_shows_the_first_flags_with_examples_that_work(parse, capsys, tmp_path):
    text = help_of(capsys, "--help")
    assert flags_in(text) == {flag_of(name) for name in FIRST_FLAGS} and len(FIRST_FLAGS) == 12
    folder = beir_outline(tmp_path / "folder")
    for name, example in FIRST_FLAGS.items():
        assert f"{flag_of(name)} {example}".strip() in text
        if name not in ("model", "resume"):  # which name a folder with a model, and an unfinished run
            parse(flag_of(name), *filter(None, [example.replace("path/to/folder", str(folder))]))


def test_the_topics_have_all_flags_together(capsys):
    first, everything = help_of(capsys, "-h"), help_of(capsys, "--help", "all")
    topics = help_topics()
    assert all(f"--help {topic} " in first for topic in topics) and topics[0] == "all"
    own = [flags_in(help_of(capsys, "--help", topic)) for topic in topics[1:]]
    assert sum(map(len, own)) == len(set().union(*own)) == len(kinds())
    assert set().union(*own) == flags_in(everything) - {"--help", "--version", "--preset", "--config"}
    router = help_of(capsys, "--help=router")
    assert "--router-start" in router and "--batch-size" not in router


def test_help_and_version_end_well(capsys):
    for words in (["--help"], ["--seed", "x", "-h"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            parse_command_line(words)
        assert caught.value.code in (0, None)
        assert capsys.readouterr().out


def test_a_word_that_is_no_flag_sends_nobody_to_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("maw.models.model_files.reachable", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ConfigError) as caught:
        parse_command_line(["reprt", "logs"])
    first, second = caught.value.problems
    assert "did you mean report?" in first and second.startswith("'logs'"), "and nothing of a model nobody asked for"
