"""Settings that are paths: absolute, split at commas, one identity, found again after a move."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import beir_outline

from maw.cli.config_file import read_settings
from maw.cli.flags import read_command_line
from maw.config.fields import split_names
from maw.config.paths import absolute, beir_parts, check_there, found_again, identity, no_folder, short_path
from maw.config.tier1_config import Tier1Config, absolute_paths
from maw.data.dataset_table import results_name
from maw.errors import MAWError
from maw.experiment.config_checks import find_problems

ODD = [
    "a,b",
    "a b",
    "a, b",
    "-a",
    "a#b",
    "#a",
    "a%20b",
    "100%",
    "caf\u00e9",
    "cafe\u0301",
    "a\\b",
    "a@b",
    "a'b",
    "$HOME",
]
"""Names of folders that a shell, a list, a URL or a format string could take apart."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --------------------------------------------------------------------------------------------------------- absolute


@pytest.mark.parametrize("text", ["x", "./x", "x/", "x/.", "y/../x", "../here/x", "./y/.././x//"])
def test_one_folder_has_one_absolute_path_however_it_is_written(tmp_path, monkeypatch, text):
    (tmp_path / "here" / "y").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert absolute(text) == str(tmp_path / "here" / "x")


def test_the_home_folder_and_an_unknown_user(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    assert absolute("~/x") == str(here / "home" / "x")
    assert absolute("~") == str(here / "home")
    assert absolute("~nosuchuser/x") == str(here / "~nosuchuser" / "x")


def test_a_link_keeps_its_name_and_is_followed_before_two_dots(here):
    (here / "real" / "v3").mkdir(parents=True)
    (here / "link").symlink_to(here / "real" / "v3")
    assert absolute("link") == str(here / "link")
    assert absolute("link/x") == str(here / "link" / "x")
    assert absolute("link/../x") == str(here / "real" / "x")
    assert absolute("link/..") == str(here / "real")
    assert results_name("beir:link") == "beir_link", "as the loader calls it"


def test_a_name_of_the_hub_is_no_path_unless_a_folder_has_it(here):
    assert absolute_paths(Tier1Config(model="org/model")).model == "org/model"
    assert absolute_paths(Tier1Config(model="packaged:all-MiniLM-L6-v2")).model == "packaged:all-MiniLM-L6-v2"
    (here / "org" / "model").mkdir(parents=True)
    assert absolute_paths(Tier1Config(model="org/model")).model == str(here / "org" / "model")


def test_every_path_of_a_configuration_is_made_absolute(here):
    (here / "m").mkdir()
    settings = {"model": "m", "datasets": ["nq", "beir:d/small@dev"], "distractors": ["e", "beir:f/"]}
    found = absolute_paths(Tier1Config(**settings, log_dir="logs/x", cache_dir="./c"))
    assert (found.model, found.log_dir, found.cache_dir) == (f"{here}/m", f"{here}/logs/x", f"{here}/c")
    assert found.datasets == ["nq", f"beir:{here}/d/small@dev"]
    assert found.distractors == [f"{here}/e", f"{here}/f"]
    assert absolute_paths(found) is found, "nothing is left to change"


def test_a_damaged_setting_is_left_to_the_configuration(here):
    assert identity({"model": 3, "datasets": [1], "distractors": None}) == {
        "model": 3,
        "datasets": [1],
        "distractors": None,
    }


def test_a_reader_sees_a_short_path_in_the_current_folder_only(here):
    assert short_path(here / "logs" / "x") == "logs/x"
    assert short_path("./logs/x/") == "logs/x"
    assert short_path("/elsewhere/x") == "/elsewhere/x"


# -------------------------------------------------------------------------------------------------------- identity


def test_the_identity_is_that_of_the_place_not_of_its_spelling(here):
    (here / "m").mkdir()
    (here / "up").symlink_to(here)
    spellings = ["m", "./m", "m/", str(here / "m"), str(here / "up" / "m"), "up/m"]
    datasets = ["beir:d", "beir:./d/", f"beir:{here}/up/d"]
    assert len({identity({"model": each})["model"] for each in spellings}) == 1
    assert len({identity({"datasets": [each]})["datasets"][0] for each in datasets}) == 1
    assert identity({"model": "org/m", "seed": 1}) == {"model": "org/m", "seed": 1}
    assert identity({"model": "./m"}) != identity({"model": "./n"})


# ----------------------------------------------------------------------------------------------------- found again


def test_a_folder_is_looked_for_where_it_was_then_beside_the_run_then_by_name(here, tmp_path):
    for each in ("old/m", "old/d", "old/logs/run"):
        (here / each).mkdir(parents=True)
    stored = {"model": f"{here}/old/m", "datasets": [f"beir:{here}/old/d@dev"], "log_dir": f"{here}/old/logs/run"}
    assert found_again(stored, here / "old/logs/run") == stored
    shutil.move(here / "old", here / "new")
    moved = found_again(stored, here / "new/logs/run")
    assert (moved["model"], moved["datasets"]) == (f"{here}/new/m", [f"beir:{here}/new/d@dev"])
    (here / "far" / "other").mkdir(parents=True)
    shutil.move(here / "new/m", here / "far/m")
    assert found_again(stored, here / "new/logs/run")["model"] == stored["model"], "nowhere: it stays for a message"
    assert found_again(stored, here / "new/logs/run", ["far/other", "far/m/"])["model"] == f"{here}/far/m"
    with pytest.raises(MAWError, match="'far/n': there is no such folder"):
        found_again(stored, here / "new/logs/run", ["far/n"])


@pytest.mark.parametrize("model", ["m", "./m", "sub/m"])
def test_an_older_run_with_relative_paths(here, monkeypatch, model):
    """Relative to the current folder; else to the folder in which the run was started."""
    for each in (model, "logs/run", "elsewhere"):
        (here / "start" / each).mkdir(parents=True)
    stored = {"model": model, "datasets": ["nq"], "distractors": None, "log_dir": "logs/run"}
    monkeypatch.chdir(here / "start")
    assert found_again(stored, Path("logs/run"))["model"] == absolute(model)
    expected = absolute(model)
    monkeypatch.chdir(here / "start" / "elsewhere")
    assert found_again(stored, here / "start/logs/run")["model"] == expected
    assert found_again(stored | {"model": "org/hub"}, here / "start/logs/run")["model"] == "org/hub"


def test_a_new_run_with_a_hub_model_never_takes_a_folder_beside_the_run(here, monkeypatch):
    (here / "org/m").mkdir(parents=True)
    (here / "run").mkdir()
    (here / "x").mkdir()
    monkeypatch.chdir(here / "x")
    stored = {"model": "org/m", "log_dir": str(here / "run")}
    assert found_again(stored, here / "run")["model"] == "org/m"


def test_what_is_gone_is_named_with_what_to_pass(here):
    with pytest.raises(MAWError, match=rf"^run: needs the folder {here}/m, which is not there.*--moved FOLDER"):
        check_there(Path("run"), [str(here), f"{here}/m"])


# ----------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_of_an_existing_folder_is_one_name(here, name):
    (here / name / "small").mkdir(parents=True)
    for text in (f"beir:{name}/small", f"beir:{here}/{name}/small", f"beir:{name}/small@dev"):
        assert split_names(text) == [text]
        assert split_names(f"nq,{text},pystdlib") == ["nq", text, "pystdlib"]
    assert split_names(f"{here}/{name}/small") == [f"{here}/{name}/small"], "distractors have no beir:"


def test_names_without_such_a_folder_are_split_as_before(here):
    (here / "a").mkdir()
    (here / "b").mkdir()
    assert split_names("beir:a,beir:b") == ["beir:a", "beir:b"]
    assert split_names("a,b") == ["a", "b"]
    assert split_names("nq, msmarco hotpotqa") == ["nq", "msmarco", "hotpotqa"]
    assert split_names("a,,b,") == ["a", "b"]
    (here / "a,b").mkdir()
    assert split_names("a,b") == ["a,b"], "the longest existing folder wins"


def test_flags_files_and_python_take_the_same_folder(here):
    folder = beir_outline(here / "x,y" / "small")
    for words in (["--datasets", "beir:x,y/small", "nq"], ["--datasets=beir:x,y/small,nq"]):
        assert read_command_line(words)[0].datasets == ["beir:x,y/small", "nq"]
    assert read_command_line(["--distractors", "x,y/small"])[0].distractors == ["x,y/small"]
    (here / "run.yaml").write_text('datasets: beir:x,y/small\ndistractors: ["x,y/small"]\n')
    loaded = Tier1Config.from_dict(read_settings("run.yaml").values)
    assert (loaded.datasets, loaded.distractors) == (["beir:x,y/small"], ["x,y/small"])
    assert Tier1Config(datasets=[f"beir:{folder}"]).datasets == [f"beir:{folder}"]


def test_a_configuration_file_in_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "run.yaml").write_text("seed: 7\n")
    assert read_settings("~/run.yaml").values == {"seed": 7}


# -------------------------------------------------------------------------------------------------------- messages


def problems_with(**settings):
    config = Tier1Config(**({"datasets": ["pystdlib"], "model": "packaged:none"} | settings))
    return [str(each) for each in find_problems(config, [])[0] if not str(each).startswith("no packaged")]


def test_a_folder_that_is_not_there_names_the_one_that_is_meant(here):
    (here / "data" / "scifact").mkdir(parents=True)
    (here / "data" / "cafe\u0301").mkdir()
    assert "did you mean scifact?" in problems_with(datasets=["beir:data/scifac"])[0]
    assert "did you mean data/scifact? folders are separated by /" in problems_with(datasets=["beir:data\\scifact"])[0]
    (composed,) = problems_with(datasets=["beir:data/caf\u00e9"])
    assert r"only in Unicode normalisation (NFC/NFD): 'caf\xe9' is not 'cafe\u0301'" in composed
    assert "did you mean scifact?" in problems_with(distractors=["data/scifac"])[0]
    assert no_folder("no/such/parent") == "there is no such folder"


def test_a_name_that_results_cannot_have_is_refused_before_anything_is_loaded(here):
    for name in ("my data", "a,b", "caf\u00e9"):
        beir_outline(here / name)
        (problem,) = problems_with(datasets=[f"beir:{name}"])
        assert problem.startswith("datasets: ") and problem.endswith("64 at most; rename it or link to it")
        (here / "link").unlink(missing_ok=True)
        (here / "link").symlink_to(here / name)
        assert problems_with(datasets=["beir:link"]) == []


def test_a_value_that_begins_with_a_dash(here):
    (here / "-m").mkdir()
    _, mistakes = read_command_line(["--model", "-m"])
    assert "--model: needs a value; one that begins with - is written --model=-m" in mistakes
    assert "--model: needs a value" in read_command_line(["--model", "--seed", "1"])[1]
    assert read_command_line(["--model=-m"])[0].model == "-m"


def test_judgements_are_split_off_only_where_no_folder_has_the_whole_name(here):
    (here / "a@b").mkdir()
    assert beir_parts("a@b") == ("a@b", None)
    assert beir_parts("a@c") == ("a", "c")
