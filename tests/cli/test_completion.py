"""Shell completion: what a shell offers after `python tier_1.py`, and that other scripts complete as before."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from maw.cli.commands import COMMANDS
from maw.cli.completion import script, whole_parser
from maw.cli.flags import flag_of
from maw.config.methods import METHOD_NAMES
from maw.config.presets import PRESETS
from maw.config.tier1_config import kinds

ASK = """
try() {
  local asked function
  asked=$(complete -p "$1") && [[ $asked =~ -F\\ ([^ ]+) ]] && function=${BASH_REMATCH[1]}
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
  "$function" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD-1]}"
  echo "${COMPREPLY[*]}"
}
"""


@pytest.fixture
def offered(tmp_path):
    """`offered(["python", "tier_1.py", "--pre"])`: the words that bash offers for each of the word lists."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    path = tmp_path / "completion.bash"
    path.write_text(script("bash"))

    def ask(*lines: list[str], before: str = "") -> list[set[str]]:
        asked = ["try " + " ".join(f"'{word}'" for word in words) for words in lines]
        text = "\n".join([before, f"source {path}", ASK, *asked])
        done = subprocess.run([bash, "--norc"], input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return [set(line.split()) for line in done.stdout.splitlines()]

    return ask


def test_bash_offers_commands_flags_and_values(offered):
    for program in (["python", "tier_1.py"], ["python3", "./tier_1.py"], ["maw-tier1"], ["tier_1.py"]):
        commands, flags, preset, router, method, folds, topic = offered(
            [*program, ""],
            [*program, "--"],
            [*program, "--preset", ""],
            [*program, "--seed", "1", "--router", "s"],
            [*program, "compare", "a", "b", "--method", "lora"],
            [*program, "doctor", "--fol"],
            [*program, "--help", "r"],
        )
        assert commands >= set(COMMANDS)
        assert flags >= {flag_of(name) for name in kinds()} | {"--no-quiet", "--help", "--preset"}
        assert preset == set(PRESETS) and router == {"supervised", "soft"}
        assert method == {"lora", "lora_matched"} <= set(METHOD_NAMES) and folds == {"--folds"}
        assert topic == {"router"}


def test_python_s_own_completion_stays(offered):
    own = '_own() { COMPREPLY=(kept "$2"); }; complete -F _own python; '
    again = own + "source completion.bash 2>/dev/null"
    assert offered(["python", "other.py", "--pre"], before=own) == [{"kept", "--pre"}]
    assert offered(["python", "-m"], ["python", "tier_1.py", "--preci"], before=again) == [
        {"kept", "-m"},
        {"--precision"},
    ]
    assert offered(["python", "other.py", "--pre"]) == [set()]


def test_sourced_twice_it_does_not_call_itself(offered, tmp_path):
    twice = f"source {tmp_path / 'completion.bash'}"
    assert offered(["python", "other.py", "x"], before=twice) == [set()]


def test_zsh_is_told_of_both_names_and_of_every_command():
    made = script("zsh")
    assert made.startswith("#compdef tier_1.py maw-tier1\n")
    assert all(f"    {name}:'" in made for name in COMMANDS) and "--report-to" in made
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("there is no zsh to read it")
    done = subprocess.run([zsh, "-n"], input=made, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_every_choice_of_a_setting_is_offered():
    actions = {action.dest: action for action in whole_parser()._actions}
    for name, kind in kinds().items():
        if kind.choices:
            assert tuple(actions[name].choices) == tuple(kind.choices), name
