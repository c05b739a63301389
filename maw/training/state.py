"""The state of a training, and its conversion to JSON and a flat dictionary of tensors.

    facts, tensors = separated(trainer.state_dict())      # facts are JSON-able
    trainer.load_state_dict(joined(facts, tensors))

A state is nested dictionaries and lists of tensors and the types of JSON. In the facts, {"tensor": name} stands for a
tensor. Numbers come back exactly: JSON has all digits of a float64, and tensors are stored as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maw.evaluation.metrics import EvaluationResult
from maw.runtime import distributed

State = dict[str, Any]
_PLACE = "tensor"
VALIDATION_METRIC = "ndcg_cut_10"


class History(list[dict[str, Any]]):
    """A list with one record for each epoch, and the evaluation of the best epoch.

    Attributes:
        validation: values of every validation query with the weights of the best epoch, which the model ends with;
            None before the first epoch has ended.
        seconds_before: duration of the training before it was interrupted, up to its last save; 0 if it was not.
    """

    validation: EvaluationResult | None = None
    seconds_before: float = 0.0

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch on validation; of equal ones the first."""
        return max(self, key=lambda record: (record[f"val_{VALIDATION_METRIC}"], -record["epoch"]))


@dataclass(frozen=True)
class Saved:
    """A training at one moment, as it is saved.

    Attributes:
        weights: the trained parameters.
        state: everything else that resuming needs; made by `maw.training.progress`.
    """

    weights: Mapping[str, Tensor]
    state: State

    @property
    def epoch(self) -> int:
        """The epoch of the weights, from 1."""
        return self.state["epoch"]

    @property
    def step(self) -> int:
        """Number of batches so far."""
        return self.state["trainer"]["step"]

    @property
    def history(self) -> History:
        """The records of the finished epochs."""
        return History(self.state["history"])

    @property
    def best_val_metric(self) -> float | None:
        """Validation nDCG@10 of the best finished epoch; None before the first has ended."""
        return self.history.best[f"val_{VALIDATION_METRIC}"] if self.history else None


def separated(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Splits a state into facts and tensors on the CPU; a tensor's name is its place in the state."""
    tensors: dict[str, Tensor] = {}
    return _separate(state, "", tensors), tensors


def joined(facts: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `separated` split."""
    if isinstance(facts, dict):
        if facts.keys() == {_PLACE}:
            return tensors[facts[_PLACE]]
        return {name: joined(each, tensors) for name, each in facts.items()}
    if isinstance(facts, list):
        return [joined(each, tensors) for each in facts]
    return facts


def _separate(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {_PLACE: place}
    if isinstance(value, Mapping):
        return {str(name): _separate(each, f"{place}.{name}".lstrip("."), tensors) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_separate(each, f"{place}.{index}".lstrip("."), tensors) for index, each in enumerate(value)]
    return value


def evaluation_state(result: EvaluationResult) -> State:
    """An evaluation as a state, with its ranking if it has one."""
    arrays = {"per_query": result.per_query} | ({} if result.run is None else {"ranking": result.run})
    tensors = {
        name: {key: torch.from_numpy(np.ascontiguousarray(each)) for key, each in group.items()}
        for name, group in arrays.items()
    }
    return {"query_ids": result.query_ids, "facts": result.facts, **tensors}


def load_evaluation(state: State) -> EvaluationResult:
    """The evaluation of `evaluation_state`."""
    per_query, ranking = (
        {key: each.numpy() for key, each in state.get(name, {}).items()} for name in ("per_query", "ranking")
    )
    return EvaluationResult(state["query_ids"], per_query, ranking or None, state["facts"])


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Loads what `optimizer.state_dict()` gave; JSON may have turned the numbers of its parameters into text."""
    moments = {int(number): dict(each) for number, each in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def random_state(device: torch.device) -> State:
    """States of the PyTorch generators of the CPU and of a GPU in use; with several processes, of each process."""
    state: State = {"cpu": distributed.of_every_process(torch.get_rng_state())}
    if device.type == "cuda" and distributed.is_distributed():
        return state | {"cuda_of_process": distributed.of_every_process(torch.cuda.get_rng_state(device))}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_random_state(state: State) -> None:
    """Loads what `random_state` gave; states of GPUs that are not there any more are ignored."""
    torch.set_rng_state(distributed.of_this_process(state["cpu"]))
    if "cuda_of_process" in state:
        torch.cuda.set_rng_state(
            distributed.of_this_process(state["cuda_of_process"]), distributed.this_process().local_rank
        )
    for index, each in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(each, index)
