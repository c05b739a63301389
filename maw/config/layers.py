"""Lists of layers, as in `--maw-layers 11,12`."""

from __future__ import annotations

from maw.config.fields import Kind, Layers, check
from maw.errors import ConfigError, show


def parse_layers(value: Layers, num_layers: int, name: str = "layers") -> tuple[int, ...]:
    """Resolves a setting such as "last" or [5, -1] to layer numbers.

    Args:
        value: None or "last", "all", "none", "5,6", a number or a list of numbers; from 1, or from the end with -1.
        num_layers: number of layers of the model.
        name: name of the setting, for the message.

    Returns:
        Layer numbers from 1, ascending, without duplicates.

    Raises:
        ConfigError: the value names no layers, or a layer that the model lacks.
    """
    final, wrong = check(Kind("layers", optional=True), value)
    if wrong:
        raise ConfigError([f"{name}: {wrong}"])
    if final is None or isinstance(final, str):
        words = {"last": (num_layers,), "all": tuple(range(1, num_layers + 1)), "none": ()}
        return words[final or "last"]
    outside = [number for number in final if not 1 <= abs(number) <= num_layers]
    if outside:
        which = f"layer{'s' * (len(outside) > 1)} {', '.join(show(number) for number in outside[:5])}"
        allowed = f"use 1 to {num_layers}, or -1 to {-num_layers} from the end"
        raise ConfigError([f"{name}: no {which} in a model of {num_layers} layers; {allowed}"])
    return tuple(sorted({number if number > 0 else num_layers + 1 + number for number in final}))
