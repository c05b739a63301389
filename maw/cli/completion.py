"""The command `completion`: prints a shell's script that completes commands, flags and values, made by shtab.

    python tier_1.py completion bash > ~/.maw-completion.bash && source ~/.maw-completion.bash
    python tier_1.py completion zsh > ~/.zfunc/_tier_1.py           # a folder of $fpath

It completes `tier_1.py`, `python tier_1.py` and the installed `maw-tier1`. In bash the words after `python` belong to
python's own completion, so the script wraps that one; zsh needs no wrapper.
"""

from __future__ import annotations

import argparse
import re
import sys

import shtab

from maw.cli.commands import COMMANDS, parser_of
from maw.cli.flags import build_parser, help_topics
from maw.config.methods import METHOD_NAMES
from maw.config.presets import PRESETS
from maw.config.tier1_config import ALL, kinds
from maw.data.dataset_table import DATASETS

PROGRAM, INSTALLED = "tier_1.py", "maw-tier1"
_FOLDERS = ("cache_dir", "distractors", "log_dir", "model", "moved", "out", "resume", "run", "run_dir", "runs")
_FILES = ("config",)
_CHOICES = {
    "datasets": tuple(DATASETS),
    "methods": (*METHOD_NAMES, ALL),
    "method": METHOD_NAMES,
    "preset": tuple(PRESETS),
}
_FUNCTION = "_shtab_tier_1_py"

_BASH = """
# Completes `python tier_1.py`; passes all other words after `python` to its previous completion.
_completion_loader python 2>/dev/null || _comp_load python 2>/dev/null
[[ $(complete -p python 2>/dev/null) =~ -F\\ ([^ ]+) && ${BASH_REMATCH[1]} != _maw_python ]] &&
  _maw_python_before=${BASH_REMATCH[1]}
_maw_python() {
  if [[ ${COMP_WORDS[1]##*/} == tier_1.py && $COMP_CWORD -gt 1 ]]; then
    COMP_WORDS=("${COMP_WORDS[@]:1}")
    COMP_CWORD=$((COMP_CWORD - 1))
    FUNCTION
  elif [[ -n ${_maw_python_before-} ]]; then
    "$_maw_python_before" "$@"
  fi
}
complete -o bashdefault -o default -F _maw_python python python3
complete -o filenames -F FUNCTION maw-tier1
"""


def main(words: argparse.Namespace) -> int:
    """The command `completion`, see `maw.cli.commands`."""
    sys.stdout.write(script(words.shell))
    return 0


def script(shell: str) -> str:
    """The completion script of "bash" or "zsh"."""
    made = shtab.complete(whole_parser(), shell=shell)
    if shell == "bash":
        return made + _BASH.replace("FUNCTION", _FUNCTION)
    return re.sub(rf"^#compdef {re.escape(PROGRAM)}$", f"#compdef {PROGRAM} {INSTALLED}", made, count=1, flags=re.M)


def whole_parser() -> argparse.ArgumentParser:
    """The flags of a run, with all commands as subparsers; for completion only, not for parsing."""
    parser = build_parser()
    commands = parser.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        parents = [build_parser() if command.add_arguments is None else parser_of(name)]
        own = commands.add_parser(name, help=command.about, parents=parents, add_help=False)
        for switch in command.switches:
            own.add_argument(switch, action="store_true")
    for each in (parser, *commands.choices.values()):
        for action in each._actions:
            _describe(action)
    asked = next(action for action in parser._actions if action.dest == "help")
    asked.nargs, asked.choices = "?", help_topics()
    return parser


def _describe(action: argparse.Action) -> None:
    """Adds the values of an argument, where argparse does not know them."""
    if action.dest in _CHOICES:
        action.choices = _CHOICES[action.dest]
    elif action.dest in kinds() and kinds()[action.dest].choices:
        action.choices = kinds()[action.dest].choices
    elif action.dest in _FOLDERS:
        vars(action)["complete"] = shtab.DIRECTORY  # read by shtab
    elif action.dest in _FILES:
        vars(action)["complete"] = shtab.FILE
