"""The state of a training as plain values and tensors, and back.

    facts, tensors = separated(trainer.state_dict())      # facts are JSON, tensors a flat dictionary
    trainer.load_state_dict(joined(facts, tensors))

A state is nested dictionaries and lists of tensors and JSON's own types. In the facts a tensor's place is taken by
{"tensor": its name}. Numbers come back exactly: JSON is written with all digits of a float64, and tensors as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maw.runtime import distributed

State = dict[str, Any]
_PLACE = "tensor"


def separated(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """The facts of a state, and its tensors by their place in it, on the CPU."""
    tensors: dict[str, Tensor] = {}
    return _separate(state, "", tensors), tensors


def joined(facts: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `separated` took apart."""
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


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """An optimizer's moments and settings."""
    return optimizer.state_dict()


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Takes back what `optimizer_state` gave; its parameters' numbers may have become text."""
    moments = {int(number): dict(each) for number, each in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def random_state(device: torch.device) -> State:
    """Where PyTorch's generators stand: the CPU's, and a GPU's where one is used; of several processes each's."""
    state: State = {"cpu": distributed.of_every_process(torch.get_rng_state())}
    if device.type == "cuda" and distributed.is_distributed():
        return state | {"cuda_of_process": distributed.of_every_process(torch.cuda.get_rng_state(device))}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_random_state(state: State) -> None:
    """Takes back what `random_state` gave; GPUs that are not there any more are left out."""
    torch.set_rng_state(distributed.of_this_process(state["cpu"]))
    if "cuda_of_process" in state:
        torch.cuda.set_rng_state(
            distributed.of_this_process(state["cuda_of_process"]), distributed.this_process().local_rank
        )
    for index, each in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(each, index)
