"""Whether a router has learnt anything: one sentence for each training, and what to try if it has not.

A router learns from rewards, so the sentence tests the rewards of its depths on validation against those of the depths
that its start would take, with the same weights; Holm's correction is over queries and documents. nDCG@10 stands
beside it: a reward counts every change of a score, nDCG@10 only the ranking's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maw.evaluation.significance import holm
from maw.report.text.format import p_value

ALPHA = 0.05
SIDES = {"query": "queries", "document": "documents"}
_SAME_DEPTHS = 0.001  # cosine distance
_FLAT, _STILL = 0.9, 0.05  # shares of groups, and of texts


def router_lines(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each training of a method whose router a learner trains; none for other methods, or old results.

    Args:
        record: the method's entry in dataset.json.
    """
    runs = record.get("runs") or [record]
    found = []
    for run in runs:
        sentence = _sentence(run)
        if sentence:
            name = f"seed {run['seed']}" + (f", fold {run['fold']}" if "fold" in run else "")
            found.append(f"Router{', ' + name if len(runs) > 1 else ''}: {sentence}")
    return found


def _sentence(run: Mapping[str, Any]) -> str:
    history = run.get("training_history") or []
    best = next((each for each in history if each["epoch"] == run.get("best_epoch")), None)
    sides = {side: (best or {}).get("val_routing", {}).get(side, {}) for side in SIDES}
    if not all("learnt" in facts for facts in sides.values()):
        return ""
    rewarded = all(facts["learnt"]["reward_against_start"] for facts in sides.values())
    kind = "reward_against_start" if rewarded else "against_start"
    tests = [facts["learnt"][kind] for facts in sides.values()]
    p_values = holm([test["p_value"] for test in tests])
    better = [test["mean_difference"] > 0 and p < ALPHA for test, p in zip(tests, p_values, strict=True)]
    unit = " nats of reward" if rewarded else " nDCG@10"
    parts = []
    for (side, facts), test, p in zip(sides.items(), tests, p_values, strict=True):
        ndcg = f"; nDCG@10 {facts['learnt']['against_start']['mean_difference']:+.4f}" if rewarded else ""
        parts.append(
            f"{SIDES[side]} {test['mean_difference']:+.4f}{unit} (p {'' if p < 0.00005 else '= '}{p_value(p)}{ndcg})"
        )
    compared = f"its depths, compared with those of the untrained router on validation queries: {', '.join(parts)}."
    if any(better):
        names = " and ".join(name for name, each in zip(SIDES.values(), better, strict=True) if each)
        return f"it learnt to pick better depths for {names}; {compared}"
    return f"it has learnt nothing that validation shows; {compared} {_advice(history[0], sides)}"


def _advice(first: Mapping[str, Any], sides: Mapping[str, Mapping[str, Any]]) -> str:
    """What to try, by the first reason that holds."""
    if max(facts.get("depth_distance") or 0.0 for facts in sides.values()) < _SAME_DEPTHS:
        return "The depths hardly differ: try a higher --kernel-learning-rate, or --depth-kernel gated."
    if first.get("flat_group_share", 0.0) > _FLAT:
        return "Nearly all groups have equal rewards: try --grpo-group distinct, or a lower --router-sharpness."
    if max(max(facts.get("changed_share") or [1.0]) for facts in sides.values()) < _STILL:
        return "Its depths are nearly the untrained ones: try a higher --router-learning-rate, or a lower --grpo-kl."
    return "More training queries or epochs may help; if not, the method full does the same in less time."
