"""Row 8: invalid configurations are refused in two seconds, with every mistake named."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from config.test_tier1_config import BAD_VALUES

from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError

ROOT = Path(__file__).parents[2]

ELSEWHERE = ("model", "datasets", "fixed_depth", "maw_layers")
BAD = [
    (name, value)
    for name, value, _ in BAD_VALUES
    if not isinstance(value, set) and value != "\udcff" and name not in ELSEWHERE
    and not (name in ("methods", "distractors") and isinstance(value, str))  # in a file, text may be a list
]  # fmt: skip
CHILD = """
import json, sys
{first}
import tier_1
status = tier_1.main(json.loads(sys.argv[1]))
print(json.dumps([status, [name for name in ("torch", "numpy", "transformers", "datasets") if name in sys.modules]]))
"""


def refused(words: list[str], expected: set[str], first: str = "") -> None:
    """Runs the main command: exit code 2 within two seconds, nothing heavy loaded, every bad setting named."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(first=first), json.dumps(words)],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    status, heavy = json.loads(done.stdout.splitlines()[-1])
    assert (status, heavy) == (2, []), done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2, f"{seconds:.2f} s of a processor"
    first_line, *problems = done.stderr.splitlines()
    assert first_line == "tier_1.py: cannot run:" and len(problems) == len(expected), done.stderr
    named = {name for name in expected for problem in problems if re.search(rf"\b{name}: |--{name}: ", problem)}
    assert named == expected, done.stderr


def bad_configuration(seed: int, folder: Path, model: Path) -> tuple[list[str], set[str]]:
    """Some bad settings in a file, and perhaps a layer that the model does not have; and the names of all of them."""
    source = random.Random(f"configuration {seed}")
    settings = {"model": str(model), "datasets": ["pystdlib"], "device": "cpu"}
    bad = {}
    for name, value in source.sample(BAD, source.randint(1, 6)):
        bad[name] = value
    if source.random() < 0.5:
        bad["maw_layers"] = [source.choice([4, -4, 99])]  # of a model of three
    if source.random() < 0.3:
        bad["no_such_setting"] = 1
    bad = bad or {"batch_size": 0}
    path = folder / f"bad {seed}.json"
    path.write_text(json.dumps(settings | bad))
    return ["--config", str(path)], set(bad)


def test_a_bad_configuration_is_refused_before_anything_is_loaded(tmp_path, models, repeats, trial):
    for seed in range(repeats(4, 100)):
        with trial(8, "configurations", seed):
            words, expected = bad_configuration(seed, tmp_path, models())
            refused(words, expected)


def test_every_bad_value_is_found_among_others(models, tmp_path):
    assert len(BAD) >= 100
    for name, value, _ in BAD_VALUES:
        other = "seed" if name != "seed" else "patience"
        with pytest.raises(ConfigError) as caught:
            Tier1Config(**{name: value, other: -1})
        assert {problem.split(":")[0] for problem in caught.value.problems} == {name, other}


def test_control_what_loads_too_much_or_says_too_little_is_noticed(tmp_path, models):
    words, expected = bad_configuration(0, tmp_path, models())
    with pytest.raises(AssertionError, match="numpy"):
        refused(words, expected, "import numpy")
    hide = "import maw.cli.flags as f\nreal = f.find_problems\nf.find_problems = lambda *w: (real(*w)[0][:1], None)"
    with pytest.raises(AssertionError):
        refused([*words, "--seed", "-1"], expected | {"seed"}, hide)
