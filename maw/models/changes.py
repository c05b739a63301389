"""What a method changed in a pretrained encoder, found by comparing modules, parameters and hooks.

    before = Snapshot(backbone)
    method.adapt(backbone, context)
    before.changes(backbone, architecture).first_layer      # 6: the layers below can be computed once for all methods

Nothing is taken from the method's author. A change that no comparison of modules shows, such as a function that was
replaced for a whole class, is found by its effect (`maw.training.cache_check`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maw.attention.architectures import Architecture

_HELD = {"training", "_parameters", "_buffers", "_modules"}
"""Attributes of every module that are compared by themselves, or say nothing about its output."""
_CALLED = ("class", "forward", "parameters", "buffers", "children")


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensor_hash(tensor: Tensor) -> str:
    """A hash of a tensor's bits, over their sums along its first and its last dimension.

    It reads the tensor at the speed of memory, and where the tensor is; any change of one number changes it.
    """
    values = tensor.detach().contiguous()
    values = torch.view_as_real(values) if values.is_complex() else values
    bits = values.reshape(1, -1) if values.ndim < 2 else values.reshape(-1, values.shape[-1])
    bits = bits.view(_INTEGERS[bits.element_size()])
    sums = [bits.sum(dim, dtype=torch.int64).cpu().numpy().tobytes() for dim in (0, 1)]
    about = f"{values.dtype} {tuple(tensor.shape)}"
    return hashlib.sha256(b"".join([about.encode(), *sums])).hexdigest()


def frozen_hashes(module: nn.Module) -> dict[str, str]:
    """The hash of every parameter that is not trained, and of every buffer, by name."""
    frozen = {name: each for name, each in module.named_parameters() if not each.requires_grad}
    return {name: tensor_hash(each) for name, each in (frozen | dict(module.named_buffers())).items()}


@dataclass(frozen=True)
class Changes:
    """What a method changed.

    Attributes:
        paths: names of the modules that were changed, replaced or added, or have a trained parameter.
        layers: numbers from 1 of the layers that hold such a module, ascending.
        first_layer: number of the first layer with another output than in the pretrained model; 1 for a change before
            the layers; None if there is no change.
        unused: a change in a module that is never called as a whole, or "".
        structural: whether a plain model of the family, with other weights, cannot compute the same.
        tensors: names of the parameters and buffers with values that no tensor of the pretrained model has.
    """

    backbone: nn.Module
    paths: tuple[str, ...]
    layers: tuple[int, ...]
    first_layer: int | None
    unused: str
    structural: bool
    tensors: tuple[str, ...]


class Snapshot:
    """The modules of an encoder as they are now: their classes, attributes, hooks, parameters and buffers."""

    def __init__(self, backbone: nn.Module):
        self._modules = {name: (module, _facts(module)) for name, module in backbone.named_modules()}
        self._hashes = {name: tensor_hash(each) for name, each in _tensors(backbone).items()}

    def changes(self, backbone: nn.Module, architecture: Architecture) -> Changes:
        """What is different now."""
        now = dict(backbone.named_modules())
        other = [name for name, module in now.items() if self._differs(name, module)]
        other += [name for name in self._modules if name not in now]
        hashes = {name: tensor_hash(each) for name, each in _tensors(backbone).items()}
        valued = [name.rpartition(".")[0] for name in hashes if hashes[name] != self._hashes.get(name)]
        pretrained = set(self._hashes.values())  # a tensor may only have moved, as into a wrapper of its module
        tensors = tuple(name for name, each in hashes.items() if each not in pretrained)
        trained = [name.rpartition(".")[0] for name, each in backbone.named_parameters() if each.requires_grad]
        paths = tuple(dict.fromkeys([*other, *valued, *trained]))
        names = {id(module): name for name, module in now.items()}
        places = [names[id(layer)] for layer in architecture.layers(backbone)]
        inside = {path: _layer_of(path, places) for path in paths}
        layers = tuple(sorted({number for number in inside.values() if number}))
        outside = [path for path, number in inside.items() if number is None]
        around = [path for path in outside if any(_is_in(place, path) for place in places)]
        unused = [path for path in around if self._calls_differ(path, now)]
        first = 1 if set(outside) - set(around) else min(layers, default=None)
        structural = bool(other) or hashes.keys() != self._hashes.keys()
        return Changes(backbone, paths, layers, first, _named(unused, backbone), structural, tensors)

    def _differs(self, name: str, module: nn.Module) -> bool:
        before, facts = self._modules.get(name, (None, {}))
        return before is not module or _facts(module) != facts

    def _calls_differ(self, name: str, now: Mapping[str, nn.Module]) -> bool:
        """Whether what a call of the module computes was changed, not only an attribute such as PEFT's settings."""
        before, facts = self._modules.get(name, (None, {}))
        if before is None or before is not now.get(name):
            return True
        new = _facts(before)
        told = {each for each in (*facts, *new) if each in _CALLED or "_hooks" in each}
        return any(facts.get(each) != new.get(each) for each in told)


def _facts(module: nn.Module) -> dict[str, Any]:
    """What decides a module's output beside its tensors' values: class, attributes, hooks, tensors and children."""
    found: dict[str, Any] = {"class": type(module)}
    found |= {name: _frozen(value) for name, value in vars(module).items() if name not in _HELD}
    found |= {"parameters": _frozen(module._parameters), "buffers": _frozen(module._buffers)}
    return found | {"children": list(module._modules)}  # which modules these are, their own names tell


class _Object:
    """An object that equals only itself; it is kept, so that no later object has its id."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _frozen(value: Any) -> Any:
    """A copy that stays as the value is now: containers by their content, other objects by identity."""
    if isinstance(value, Mapping):
        return {key: _frozen(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_frozen, value)]
    return value if value is None or isinstance(value, bool | int | float | str | torch.dtype) else _Object(value)


def _tensors(backbone: nn.Module) -> dict[str, Tensor]:
    return dict(backbone.named_parameters()) | dict(backbone.named_buffers())


def _layer_of(path: str, places: Iterable[str]) -> int | None:
    return next((number for number, place in enumerate(places, start=1) if _is_in(path, place)), None)


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}." if place else "")


def _named(paths: list[str], backbone: nn.Module) -> str:
    return paths[0] or type(backbone).__name__ if paths else ""
