"""Retrievers: an encoder of `maw.models.encoder` with its tokenizer, its similarity and its trained parameters.

`BaselineRetriever` trains what its method says, or else what its configuration says: LoRA adapters, whole layers or
nothing. `MAWRetriever` trains depth attention.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from maw.attention.architectures import Architecture, architecture_of
from maw.attention.layer import MAWAttentionLayer
from maw.config.method_files import mistakes_of, place_of
from maw.config.methods import Method
from maw.config.tier1_config import Tier1Config, absolute_paths
from maw.errors import ModelError, reason
from maw.models.adaptation import Context, Trained, add_depths, as_configured
from maw.models.after_pooling import load_after_pooling
from maw.models.changes import Changes, Snapshot
from maw.models.cpu_kernels import ATTENTION, keep_freed_memory, use_faster_modules
from maw.models.encoder import MAWWithGRPOEncoder, NonMAWEncoder
from maw.models.model_files import WEIGHTS, check_tokenizer_files
from maw.models.pretrained import ModelSpec, model_spec, trained_layers, verify_weights
from maw.models.tokenized import Texts, TextSource
from maw.models.tokenizer_check import check_tokenizer
from maw.runtime.devices import pick_device
from maw.runtime.precision import pick_precision

logger = logging.getLogger(__name__)

AGREES = 1e-5
"""Largest difference of two embeddings' or states' numbers that counts as rounding."""
PROBE = ("a query of a few words", "Another text that is longer, with more words in it than the first one has.")
"""Texts on which a user's method is compared with the pretrained model."""

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError)


class BaselineRetriever(nn.Module):
    """A pretrained retriever, zero-shot or adapted by a method.

    Without a method, LoRA adapters (`config.use_lora`; Hu et al. 2021) or whole layers (`config.train_layers`) are
    trained in `finetune_layers`, with `config.adapt_maw_layers` in the MAW layers too.

    Args:
        config: names the model and the layers to adapt; its other settings override the model's own.
        method: what changes the encoder; `config` is as it configures it.

    Raises:
        ModelError: the model cannot be found, loaded, or adapted; or the method has a mistake.
        ConfigError: a layer that the model does not have, or no layer where one is needed.
    """

    _adaptation: Callable[[nn.Module, Context], Trained] = staticmethod(as_configured)
    """What changes the encoder where no method is given."""

    def __init__(self, config: Tier1Config, method: Method | None = None):
        super().__init__()
        self.config = config = absolute_paths(config)
        self.method = method
        self.spec = model_spec(config)
        self.layers = trained_layers(config, self.spec)
        self.tokenizer = load_tokenizer(self.spec)
        backbone, architecture = load_backbone(self.spec)
        self.made: dict[str, Tensor] = {}
        """Frozen parameters and buffers that a user's method has added or changed, by name, before any rounding."""
        self.rate_names: dict[int, str] = {}
        """The learning rate of each trained parameter, by its id."""
        self.context = self._context(backbone, architecture)
        self.encoder = self._build(backbone, architecture).eval()
        if config.train_dense and self.encoder.after_pooling is not None and self.trained_parameters:
            self.encoder.after_pooling.requires_grad_(True)
        self.encoder.round_frozen_weights()

    def _context(self, backbone: nn.Module, architecture: Architecture) -> Context:
        modules, (finetune, maw) = architecture.layers(backbone), (self.layers["finetune"], self.layers["maw"])
        layers = {number: modules[number - 1] for number in sorted({*finetune, *maw})}
        return Context(self.config, self.spec, architecture, layers, tuple(sorted(finetune)), tuple(maw))

    def _build(self, backbone: nn.Module, architecture: Architecture) -> NonMAWEncoder:
        before, context = Snapshot(backbone), self.context
        theirs = self.method if self.method is not None and self.method.origin is not None else None  # a user's
        states = self._states(backbone, architecture) if theirs else []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            if self.method is None:
                trained = self._adaptation(backbone, context)
            else:
                with mistakes_of(self.method, everything=True):
                    trained = self.method.adapt(backbone, context)
                    trained = trained if trained is None or isinstance(trained, Mapping) else list(trained)
        self._release(backbone, trained)
        self.changes = before.changes(backbone, architecture)
        if theirs:
            tensors = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
            frozen = ((name, tensors[name]) for name in self.changes.tensors if not tensors[name].requires_grad)
            self.made = {f"backbone.{name}": each.detach().cpu().contiguous().clone() for name, each in frozen}
        if self.method is not None:
            self._check_changes(self.method, self.changes)
        first = self.changes.first_layer or self.spec.num_layers + 1
        prefix = min(self.layers["prefix"], first - 1)
        if theirs and prefix:
            with mistakes_of(theirs, everything=True):
                now = self._states(backbone, architecture)[:prefix]
            if any(bool((a - b).abs().max() > AGREES) for a, b in zip(states, now, strict=False)):
                prefix = 0
                logger.warning(
                    "%s: layers that %s did not visibly change give another output than in the pretrained model, so "
                    "nothing is stored for it: every text passes through all layers each time",
                    place_of(theirs),
                    theirs.name,
                )
        options = {
            "pooling": self.spec.pooling,
            "normalize": self.spec.similarity == "cosine",
            "trained_layers": self.changes.layers if context.dropout_layers is None else context.dropout_layers,
            "prefix_layers": prefix,
            "pretrained_layers": prefix if theirs else first - 1,
            "precision": pick_precision(self.config.precision, pick_device(self.config)),
            "after_pooling": self._after_pooling(),
        }
        attention = (architecture.attention(layer) for layer in architecture.layers(backbone))
        with_depths = tuple(i for i, each in enumerate(attention, start=1) if isinstance(each, MAWAttentionLayer))
        if with_depths:
            return MAWWithGRPOEncoder(backbone, architecture, maw_layers=with_depths, seed=self.config.seed, **options)
        return NonMAWEncoder(backbone, architecture, **options)

    def _states(self, backbone: nn.Module, architecture: Architecture) -> list[Tensor]:
        """The output of each layer for the texts of `PROBE`, in evaluation mode."""
        tokens = self.source(PROBE, "document").batch([0, 1])
        found = []
        with torch.no_grad():
            hidden = architecture.embed(backbone.eval(), tokens["input_ids"])
            inputs = architecture.layer_inputs(backbone, hidden, tokens["attention_mask"])
            for layer, own in zip(architecture.layers(backbone), inputs, strict=True):
                hidden = architecture.run(layer, hidden, own)
                found.append(hidden)
        return found

    def _release(self, backbone: nn.Module, trained: Trained) -> None:
        """Makes the parameters that a method names trainable, and all others not."""
        if trained is None:
            trained = [each for each in backbone.parameters() if each.requires_grad]
        by_rate: dict[str, Any] = dict(trained) if isinstance(trained, Mapping) else {"learning_rate": trained}
        backbone.requires_grad_(False)
        for rate, parameters in by_rate.items():
            for parameter in parameters:
                parameter.requires_grad_(True)
                self.rate_names[id(parameter)] = rate

    def _check_changes(self, method: Method, changes: Changes) -> None:
        """Refuses what a run would not notice: parameters outside of the encoder, changes that are never used."""
        place, name = place_of(method), method.name
        inside = {id(each) for each in changes.backbone.parameters()}
        known = {"learning_rate", "kernel_learning_rate", "router_learning_rate", *method.rates}
        wrong = next((rate for rate in self.rate_names.values() if rate not in known), None)
        if wrong is not None:
            text = f"adapt names the rate {wrong!r}; a rate of its own stands in {type(method).__name__}.rates"
            raise ModelError(f"{place}: {name}: {text}")
        if not self.rate_names.keys() <= inside:
            text = "trains parameters that are not in the encoder; make them attributes of one of its modules"
            raise ModelError(f"{place}: {name}: adapt {text}")
        if method.trained and not self.rate_names:
            text = "leaves nothing to train; return its parameters from adapt, or set trained = False"
            raise ModelError(f"{place}: {name}: {text}")
        if changes.unused:
            text = (
                f"{changes.unused}: the benchmark calls the layers themselves, so this has no effect; change a layer"
            )
            raise ModelError(f"{place}: {name}: changes {text}")

    def rebuilt(self, **changes: Any) -> BaselineRetriever:
        """A new retriever of the same kind and method, untrained, with some settings changed."""
        return type(self)(replace(self.config, **changes), self.method)

    def _after_pooling(self) -> nn.Sequential | None:
        if not self.spec.after_pooling:
            return None
        return load_after_pooling(self.spec.name, self.spec.folder, self.spec.after_pooling)

    @property
    def precision(self) -> torch.dtype:
        """Number format of the encoder's matrix products."""
        return self.encoder.precision

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def trained_parameters(self) -> int:
        """The number of parameters that are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """A copy of all trained parameters on the CPU, by name, each in its own shape; and what `made` holds.

        A method may compute frozen tensors, for example by a decomposition, whose signs another machine chooses
        otherwise. Trained parameters fit only beside the tensors with which they were trained.
        """
        trained = ((name, each) for name, each in self.encoder.named_parameters() if each.requires_grad)
        found = {name: each.detach().cpu().clone() for name, each in trained}
        for name, each in self._tensors(self.made).items():
            made = self.made[name]  # before rounding, unless the training has changed it
            now = each.detach().cpu()
            found[name] = made if torch.equal(now, made.to(now.dtype)) else now.clone()
        return found

    def _tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        tensors = dict(self.encoder.named_parameters()) | dict(self.encoder.named_buffers())
        return {name: tensors[name] for name in names}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads the tensors that `trained_state` returned.

        Args:
            state: tensors by name; those of `made` may be missing, and then stay.

        Raises:
            ModelError: names or shapes differ from this model's.
        """
        missing = {name for name, each in self.encoder.named_parameters() if each.requires_grad} - set(state)
        made = {name: state[name] for name in self.made if name in state}
        tensors = self._tensors(made)
        wrong = next((name for name, each in made.items() if each.shape != tensors[name].shape), None)
        if wrong is not None:
            raise ModelError(f"weights do not fit model {self.spec.name}: {wrong} has another shape")
        with torch.no_grad():
            for name, each in made.items():  # one by one: `load_state_dict` leaves out non-persistent buffers
                tensors[name].copy_(each)
        self.made |= made
        try:
            others = {name: each for name, each in state.items() if name not in made}
            unexpected = self.encoder.load_state_dict(others, strict=False).unexpected_keys
        except RuntimeError as error:
            raise ModelError(f"weights do not fit model {self.spec.name}: {reason(error)}") from error
        if missing or unexpected:
            name = sorted(missing or unexpected)[0]
            raise ModelError(f"weights do not fit model {self.spec.name}: {name} is in only one of the two")

    def forward(self, inputs: Mapping[str, Tensor], mode: str = "embed", **options: Any) -> Any:
        """The encoder's own forward, with its modes and shapes.

        Args: as `NonMAWEncoder.forward`; `options` are those of `MAWWithGRPOEncoder.forward`.
        """
        return self.encoder(inputs, mode, **options)

    def source(self, texts: Texts | Sequence[str], kind: str) -> TextSource:
        """Texts with this model's prefix, length limit and tokenizer.

        Args:
            texts: a list, or a corpus.
            kind: "query" or "document"; their prefixes and limits may differ.
        """
        query = kind == "query"
        return TextSource(
            texts,
            self.tokenizer,
            prefix=self.spec.query_prefix if query else self.spec.document_prefix,
            max_length=self.spec.max_query_length if query else self.spec.max_document_length,
        )

    def encode(self, texts: Sequence[str], kind: str = "document", batch_size: int = 128) -> np.ndarray:
        """Embeddings of N texts, float32 (N, C), in the order of the texts.

        Args:
            texts: the texts.
            kind: "query" or "document"; their prefixes and limits may differ.
            batch_size: most texts encoded at once.
        """
        from maw.models.encode import encode

        return encode(self.encoder, self.source(texts, kind), batch_size=batch_size).embeddings


class MAWRetriever(BaselineRetriever):
    """A pretrained retriever with depth attention in `config.maw_layers`; `config.finetune_layers` are trained whole.

    In a MAW layer outside `finetune_layers` only kernels and router are trained. `config.use_lora` has no effect. With
    `config.depth_values` depths also change the values: an ablation, not MAW.
    """

    _adaptation = staticmethod(add_depths)


def load_backbone(spec: ModelSpec) -> tuple[nn.Module, Architecture]:
    """The pretrained encoder in float32, frozen, and its architecture.

    Raises:
        ModelError: the weights cannot be read, or differ from the expected ones.
    """
    architecture = architecture_of(spec.model_type)
    verify_weights(spec)
    transformers_logging.disable_progress_bar()
    with quiet_transformers(), _reading(f"model {spec.name}"):
        if spec.folder and (spec.folder / WEIGHTS).exists():  # safetensors reports an unreadable file as missing
            (spec.folder / WEIGHTS).open("rb").close()
        backbone = architecture.loader().from_pretrained(
            spec.folder or spec.name, attn_implementation=ATTENTION, dtype=torch.float32, trust_remote_code=False
        )
    if hasattr(backbone, "pooler"):
        backbone.pooler = None  # its output is unused, and unused weights confuse gradient checks
    keep_freed_memory()
    use_faster_modules(backbone)
    return backbone.requires_grad_(False), architecture


def load_tokenizer(spec: ModelSpec) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: the tokenizer is missing, cannot be read, or does not fit the model.
    """
    check_tokenizer_files(spec.name, spec.folder)
    with _reading(f"tokenizer of model {spec.name}"):
        tokenizer = AutoTokenizer.from_pretrained(spec.folder or spec.name, trust_remote_code=False)
    check_tokenizer(tokenizer, spec)
    return tokenizer


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppresses transformers' reports of weights that a model or its checkpoint lacks, such as a pooler's."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns the libraries' errors about damaged or hostile files into one-line ModelErrors."""
    try:
        yield
    except Exception as error:
        of_the_file = isinstance(error, _UNREADABLE) or type(error) is Exception  # tokenizers raises Exception itself
        if not of_the_file and type(error).__name__ != "UnpicklingError":
            raise
        raise ModelError(f"{what}: {reason(error)}") from error
