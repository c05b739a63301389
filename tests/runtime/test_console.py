"""The console: bars, lines, JSON and silence, and which process prints."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tqdm  # noqa: F401 - before anything can switch it off for the process

import tier_1
from maw.errors import MAWError
from maw.runtime import console, progress_bars

ROOT = Path(__file__).parents[2]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is told to go on."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress_bars, "time", SimpleNamespace(monotonic=lambda: now.seconds, time=lambda: 0.0))
    monkeypatch.setattr(console._state, "line_at", float("-inf"))
    return now


@pytest.fixture
def terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(console, "sys", SimpleNamespace(stderr=screen, modules=sys.modules))
    monkeypatch.setattr(progress_bars, "sys", console.sys)
    monkeypatch.setattr(progress_bars, "DELAY", 0)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------------------------------ away from a terminal


def test_lines_come_every_half_minute_and_say_where_how_far_and_how_long(clock, capsys):
    with (
        console.at(dataset="nq", method="lora", epoch=2, epochs=3),
        progress_bars.bar("training", 200, "batch") as bar,
    ):
        for _ in range(100):
            clock.seconds += 1
            bar.note(loss=0.5)
            bar.update()
    shown = capsys.readouterr().err
    assert shown.splitlines() == [
        f"nq, lora, epoch 2/3: training: {done}/200 ({done / 2:.0f}%), 1 batch/s, 0:0{left}, loss 0.500"
        for done, left in ((30, "2:50 left"), (60, "2:20 left"), (90, "1:50 left"))
    ]
    assert not CONTROL.search(shown)


def test_no_time_is_promised_from_the_first_items(clock, capsys):
    """They wait for what the task prepares."""
    with progress_bars.bar("validation documents", 5000, "text") as bar:
        for done in (16, 200):
            clock.seconds += 40
            bar.update(done)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "validation documents: 16/5,000 (0%)"
    assert shown[1] == "validation documents: 216/5,000 (4%), 2.7 text/s, 0:29:32 left"


def test_many_short_tasks_share_the_lines(clock, capsys):
    for number in range(100):
        for _ in progress_bars.track(range(4), f"task {number}", "text"):
            clock.seconds += 0.25
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_terminal_that_cannot_draw_gets_lines(terminal, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with progress_bars.bar("training", 100, "batch") as bar:
        clock.seconds += 40
        bar.update(50)
    assert terminal.getvalue() == "training: 50/100 (50%), 1.25 batch/s, 0:00:40 left\n"


# ------------------------------------------------------------------------------------------- terminals and notebooks


def test_a_terminal_gets_a_bar_that_goes_when_the_task_is_done(terminal):
    with console.at(dataset="nq", method="maw"), progress_bars.bar("training", 4, "batch", done=1) as bar:
        bar.note(loss=0.25)
        bar.update(2)
        bar._tqdm.refresh()
        console.write_line("a message")
    shown = terminal.getvalue()
    assert "nq, maw: training:  75%|" in shown and "3/4 [" in shown and " batch/s, loss 0.250]" in shown
    message = shown.index("a message\n")
    assert shown[:message].endswith("\r"), "the bar made way for the message"
    assert not shown.split("\r")[-2].strip() and "\n" not in shown[:message]


def test_a_notebook_gets_a_bar_too(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert console.draws()
    shell.config.clear()
    assert not console.draws(), "IPython in a pipe is no notebook"


def test_quiet_draws_nothing(terminal):
    with console.configured(quiet=True):
        assert list(progress_bars.track("abc", "training", "batch")) == ["a", "b", "c"]
        console.show("a table")
    assert terminal.getvalue() == ""


# ----------------------------------------------------------------------------------------------- one process speaks


def test_only_the_main_process_has_bars(terminal, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("TQDM_DISABLE", None)
    for json_progress in (False, True):
        with console.configured(json_progress=json_progress):
            assert len(list(progress_bars.track(range(3), "training", "batch"))) == 3
            console.silence_libraries()
    assert terminal.getvalue() == "" and os.environ["TQDM_DISABLE"] == "1"


def test_no_module_but_the_console_has_bars_of_its_own():
    found = {path.name for path in (ROOT / "maw").rglob("*.py") if "tqdm" in path.read_text()}
    assert found == {"console.py", "progress_bars.py"}


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def said(tiny_beir, models, tmp_path_factory):
    """What a run says on standard output and standard error, by the flag that it was given."""
    folder, found = tmp_path_factory.mktemp("said"), {}
    words = ["--datasets", f"beir:{tiny_beir}", "--model", str(models("bert")), "--methods", "zero_shot,lora"]
    words += ["--num-epochs", "1", "--batch-size", "8", "--permutations", "200", "--device", "cpu"]
    words += ["--precision", "float32", "--embedding-cache-gb", "0", "--tune", "1", "--seeds", "2"]
    with pytest.MonkeyPatch.context() as patch:
        for flag in ("--json-progress", "--quiet"):
            out, err = io.StringIO(), io.StringIO()
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            places = ["--log-dir", str(folder / flag[2:]), "--cache-dir", str(folder / "cache")]
            assert tier_1.main([*words, *places, flag]) == 0, err.getvalue()
            found[flag] = out.getvalue(), err.getvalue()
    return found


def documented():
    """Event -> the fields that the page names."""
    section = (ROOT / "docs" / "console.md").read_text().partition("## --json-progress")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip("| `"): set(re.findall(r"`(\w+)`", row[2])) for row in rows}


def test_json_progress_is_as_documented(said):
    found = objects(said["--json-progress"][1])
    events = [each["event"] for each in found]
    assert set(events) == set(documented()) and events[0] == "run" and events[-1] == "end"
    place = {"time", "event", "dataset", "method", "seed", "trial", "epoch", "epochs"}
    for each in found:
        fields = set(each) - place
        known = documented()[each["event"]]
        if each["event"] in ("epoch", "trial"):  # with a record of their own
            assert fields > {"training"}
        elif each["event"] == "progress":
            assert known - {"loss", "tokens_per_second"} <= fields <= known
        else:
            assert fields == known - {"info", "warning", "error"}
    assert found[-1]["exit_code"] == 0 and found[-1]["text"] is None and found[0]["schema"] == 1


def test_json_progress_counts_each_stage_to_its_end(said):
    training = [each for each in objects(said["--json-progress"][1]) if each.get("stage") == "training"]
    places = {tuple(each.get(name) for name in ("dataset", "method", "trial", "seed", "epoch")) for each in training}
    assert places == {("beir_small", "lora", *rest) for rest in ((1, None, 1), (None, 42, 1), (None, 43, 1))}
    assert [each["done"] for each in training[:1] + training[-1:]] == [0, training[0]["total"]]
    assert training[0]["rate"] is training[0]["seconds_left"] is None
    assert training[-1]["seconds_left"] == 0 and training[-1]["rate"] > 0 and training[-1]["loss"] > 0


def test_quiet_leaves_the_answer(said):
    out, err = said["--quiet"]
    assert err == ""
    assert "Zero-shot" in out and "Runtime Summary" in out and "Written to" not in out and "Plan" not in out
    assert "Exploratory" not in out + said["--json-progress"][0], "--verbose shows it"
    assert out.splitlines()[-1].startswith("Summary of the run: ")
    full = said["--json-progress"][0]
    assert full.startswith("Plan") and len(full) > 2 * len(out)
    table = out[out.index("Metric  ") : out.index("Runtime Summary")]
    assert table in full


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (MAWError("corpus.jsonl:3: is not JSON"), 1, "error: corpus.jsonl:3: is not JSON"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_json_progress_ends_with_why(monkeypatch, tmp_path, capsys, raised, code, text):
    def benchmark(config):
        logging.getLogger("maw.training.trainer").warning("slow disk")
        raise raised

    monkeypatch.setattr("maw.experiment.benchmark.run_complete_benchmark", benchmark)
    words = ["--preset", "offline", "--log-dir", str(tmp_path / "logs"), "--json-progress"]
    assert tier_1.main(words) == code
    message, end = objects(capsys.readouterr().err)
    assert (message["event"], message["level"], message["text"]) == ("message", "warning", "slow disk")
    assert (end["event"], end["exit_code"], end["text"]) == ("end", code, text)


def test_quiet_shows_a_warning_of_the_data_once_with_the_results(models, tiny_beir, tmp_path, capsys):
    words = ["--datasets", f"beir:{tiny_beir}", "--model", str(models("bert")), "--methods", "zero_shot"]
    words += ["--device", "cpu", "--precision", "float32", "--cache-dir", str(tmp_path / "cache"), "--seeds", "1"]
    words += ["--permutations", "200", "--test-samples", "123"]
    said = "test_samples asks for 123 queries and test has"
    for number, flags in enumerate(([], ["--quiet"])):
        assert tier_1.main([*words, *flags, "--log-dir", str(tmp_path / f"logs{number}")]) == 0
        out, err = capsys.readouterr()
        assert (out.count(said), err.count(said)) == ((1, 0) if flags else (1, 1))
        (log,) = (tmp_path / f"logs{number}").glob("run_*.log.gz")
        assert said in gzip.decompress(log.read_bytes()).decode()


def test_quiet_keeps_warnings_and_errors(monkeypatch, tmp_path, capsys):
    def benchmark(config):
        for level in (logging.INFO, logging.WARNING):
            logging.getLogger("maw.training.trainer").log(level, "a message")
        raise MAWError("the end")

    monkeypatch.setattr("maw.experiment.benchmark.run_complete_benchmark", benchmark)
    assert tier_1.main(["--preset", "offline", "--log-dir", str(tmp_path / "logs"), "--quiet"]) == 1
    assert capsys.readouterr().err.splitlines() == ["warning: a message", "error: the end"]


def test_a_dry_run_is_asked_for_its_plan(models, tiny_beir, capsys, tmp_path):
    words = ["--datasets", f"beir:{tiny_beir}", "--model", str(models("bert")), "--dry-run", "--quiet"]
    assert tier_1.main([*words, "--log-dir", str(tmp_path / "logs"), "--cache-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Plan") and shown.err == ""
