"""`Method`: one way to get a retriever. The methods of the benchmark and those of users are classes of this kind.

    class Scale(Method):
        '''One trained factor for every feature of a layer's output.'''

        name, label, learning_rate = "scale", "Scale", 1e-2

        def adapt(self, backbone, context):
            for layer in context.layers.values():
                layer.factor = nn.Parameter(torch.ones(context.spec.hidden_dim))
                layer.register_forward_hook(lambda layer, inputs, hidden: hidden * layer.factor)
            return [layer.factor for layer in context.layers.values()]

A method has two halves. The light one is its attributes: name, label, default rates, what tuning varies. The plan, the
checks and the reports read these without torch. The other half is `adapt`, which is called when a model is built.
`docs/extending.md` explains how a run takes a class from a file.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maw.config.paths import short_path
from maw.errors import ConfigError, reason

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = Mapping[str, Any]
Config = TypeVar("Config", bound="DataclassInstance")

WHERE = "adapt_maw_layers"
"""Says where a method works, not how; `describes` ignores it."""
_DIGITS = 16


@dataclass(frozen=True)
class Origin:
    """Where a method comes from that is not one of the benchmark's own.

    Attributes:
        reference: what stands in a configuration: /path/mine.py:MyMethod, installed:NAME or python:MyMethod.
        place: the file and line of the class, or its distribution, for messages.
        code: the name of the code among a run's hashes: its file, or its distribution.
        digest: the first 16 digits of the SHA-256 of the code, or the distribution's version.
        file: the file of the class; None if it has none.
    """

    reference: str
    place: str
    code: str
    digest: str
    file: str | None = None


class Method:
    """One way to get a retriever. There is one object for each, so methods are compared as objects.

    A class must give `name`, `label`, `adapt` and, if it is trained, `learning_rate`. The rest has defaults. A
    subclass inherits all but `key`, `short`, `approach`, `description` and `by_default`.
    """

    name: str = ""
    """What a run calls it: in `--methods`, in file names and in results."""
    label: str = ""
    """Heads its column in tables."""
    short: str = ""
    """Stands in file names and in keys such as lora_vs_zeroshot_ndcg_cut_10; the name if empty."""
    key: str = ""
    """Its entry under "results"; NAME_retriever if empty."""
    approach: str = ""
    """One line for reports, to which a run may add more in brackets; the label if empty."""
    description: str = ""
    """A sentence for reports; the first line of the class's docstring if empty."""
    trained: bool = True
    """Whether it is trained before it is evaluated."""
    learning_rate: float | None = None
    """Default peak learning rate of what it trains, None where it trains nothing."""
    rates: Mapping[str, float] = {}
    """Further learning rates, by names of its own, with their defaults; `adapt` says what each trains."""
    tuned: Sequence[str] | None = None
    """The rates that `--tune` varies; None for all by which anything is trained."""
    settings: Settings | Callable[[Any], Settings] = {}
    """Settings of the run that it replaces. A function computes them from the run's configuration."""
    retriever: str = "baseline"
    """Kind of retriever it uses: "baseline", or "maw" for one with depth attention; see `maw.models.retriever`."""
    by_default: bool = False
    """Whether a run compares it unless `--methods` says otherwise."""
    origin: Origin | None = None
    """Where it comes from; None for the benchmark's own methods."""
    merge: Callable[[Any, Any], object] | None = None
    """`merge(self, backbone, context)` puts what was trained into the pretrained weights, in place, and removes all
    else that `adapt` added, so that a plain model of the family computes the same. Without it a method whose modules
    are not those of the pretrained encoder is not exported."""

    def __init__(self) -> None:
        own = vars(type(self))
        self.short = own.get("short") or self.name
        self.key = own.get("key") or f"{self.name}_retriever"
        self.approach = own.get("approach") or self.label
        first_line = (own.get("__doc__") or self.label).strip().partition("\n")[0]
        self.description = own.get("description") or first_line.rstrip(".")
        self.by_default = own.get("by_default", False)

    def adapt(self, backbone: Any, context: Any) -> Iterable[Any] | Mapping[str, Iterable[Any]] | None:
        """Changes the pretrained encoder in place, and says what is trained; all else stays frozen.

        It must make the same modules whenever it is called with the same seed. A checkpoint holds what is trained, and
        parameters and buffers that were added or have other values than in the pretrained model; nothing else.
        Random numbers of torch follow from the run's seed.

        Args:
            backbone: the Hugging Face encoder, with all parameters frozen.
            context: a `maw.models.adaptation.Context`: the layers to adapt, sizes and settings.

        Returns:
            The parameters to train; or those of each learning rate, by its name; or None for those that require a
            gradient now.
        """
        raise NotImplementedError

    def configure(self, config: Config) -> Config:
        """The run's configuration, `config`, as this method uses it."""
        return replace(config, **self._settings(config))

    @property
    def reaches_maw_layers(self) -> bool:
        """Whether a method without MAW adapts the MAW layers beside those to fine-tune."""
        if self.origin is not None:
            return True
        return not callable(self.settings) and bool(self.settings.get(WHERE))

    def describes(self, retriever: str, config: Any) -> int:
        """How many of its settings a retriever of that kind, with `config`, has; 0 unless it has them all."""
        settings = {name: value for name, value in self._settings(config).items() if name != WHERE}
        same = retriever == self.retriever and all(getattr(config, name) == each for name, each in settings.items())
        return len(settings) if same else 0

    def _settings(self, config: Any) -> Settings:
        return self.settings(config) if callable(self.settings) else self.settings


def implemented_by(target: str) -> Callable[..., Any]:
    """A method's `adapt` or `merge` that is "module:function", imported when it is called: it needs torch."""

    def call(self: Method, backbone: Any, context: Any, **more: Any) -> Any:
        module, _, function = target.partition(":")
        return getattr(importlib.import_module(module), function)(backbone, context, **more)

    return call


def read_code(path: str) -> bytes:
    """The bytes of a file that a run's `methods` name.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([f"methods: {short_path(path)} cannot be read: {reason(error)}"]) from error


def digest(code: bytes) -> str:
    """The first digits of a SHA-256, by which a run knows its code again."""
    return hashlib.sha256(code).hexdigest()[:_DIGITS]
