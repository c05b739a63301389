"""Retrievers: an encoder of `maw.models.encoder` with its tokenizer, its similarity and its trained parameters.

`BaselineRetriever` is zero-shot, or trains LoRA adapters or whole layers; `MAWRetriever` trains depth attention.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from maw.attention.architectures import Architecture, architecture_of
from maw.attention.install import build_depth_attention
from maw.config.tier1_config import Tier1Config, absolute_paths, kernel_noise
from maw.errors import ConfigError, ModelError, reason
from maw.models.after_pooling import load_after_pooling
from maw.models.cpu_kernels import ATTENTION, keep_freed_memory, use_faster_modules
from maw.models.encoder import MAWWithGRPOEncoder, NonMAWEncoder
from maw.models.lora import add_lora, matched_rank
from maw.models.model_files import WEIGHTS, check_tokenizer_files
from maw.models.pretrained import ModelSpec, model_spec, trained_layers, verify_weights
from maw.models.tokenized import Texts, TextSource
from maw.models.tokenizer_check import check_tokenizer
from maw.runtime.devices import pick_device
from maw.runtime.precision import pick_precision

logger = logging.getLogger(__name__)

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError)


class BaselineRetriever(nn.Module):
    """A pretrained retriever, zero-shot or trained in `finetune_layers` (LoRA or whole layers).

    With `config.use_lora` these layers get LoRA adapters (`maw.models.lora`; Hu et al. 2021) on the maps that
    `config.lora_targets` names; with `config.train_layers` their own weights are trained. With
    `config.adapt_maw_layers` the MAW layers are included, so that a control trains every layer that MAW trains.

    Args:
        config: names the model and the layers to adapt; its other settings override the model's own.

    Raises:
        ModelError: the model cannot be found, loaded, or adapted.
        ConfigError: a layer that the model does not have, or no layer where one is needed.
    """

    def __init__(self, config: Tier1Config):
        super().__init__()
        self.config = config = absolute_paths(config)
        self.spec = model_spec(config)
        self.layers = trained_layers(config, self.spec)
        self.tokenizer = load_tokenizer(self.spec)
        backbone, architecture = load_backbone(self.spec)
        self.encoder = self._build(backbone, architecture).eval()
        if config.train_dense and self.encoder.after_pooling is not None and self.trained_parameters:
            self.encoder.after_pooling.requires_grad_(True)
        self.encoder.round_frozen_weights()

    def _build(self, backbone: nn.Module, architecture: Architecture) -> NonMAWEncoder:
        config = self.config
        adapted: tuple[int, ...] = ()  # layers (from 1) with LoRA or trained whole, ascending
        if config.use_lora or config.train_layers:
            adapted = tuple(
                sorted({*self.layers["finetune"], *(self.layers["maw"] if config.adapt_maw_layers else ())})
            )
        for name, what in {"use_lora": "LoRA nothing to adapt", "train_layers": "nothing to train"}.items():
            if getattr(config, name) and not adapted:
                text = f"finetune_layers: none leaves {what}; name a layer, or leave {name} False"
                raise ConfigError([text])
        if config.use_lora:
            self._add_lora(backbone, architecture, adapted)
        elif config.train_layers:
            _train_whole(backbone, architecture, adapted)
        return NonMAWEncoder(backbone, architecture, trained_layers=adapted, **self._encoder_options())

    def _add_lora(self, backbone: nn.Module, architecture: Architecture, layers: Iterable[int]) -> None:
        config, rank = self.config, self.config.lora_rank
        if config.lora_targets == "all":
            wanted = count_maw_parameters(config, backbone, architecture, self.layers)
            rank = matched_rank(backbone, architecture, layers, wanted)
            logger.info("LoRA on all linear maps at rank %d, to match MAW's %d trained parameters", rank, wanted)
        alpha = rank * config.lora_alpha / config.lora_rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            add_lora(backbone, architecture, layers, rank=rank, alpha=alpha, targets=config.lora_targets)
        use_faster_modules(backbone)  # again, for the adapters' maps

    def _encoder_options(self) -> dict[str, Any]:
        return {
            "pooling": self.spec.pooling,
            "normalize": self.spec.similarity == "cosine",
            "prefix_layers": self.layers["prefix"],
            "precision": pick_precision(self.config.precision, pick_device(self.config)),
            "after_pooling": self._after_pooling(),
        }

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
        """A copy of all trained parameters on the CPU, by name, each in its own shape."""
        trained = ((name, each) for name, each in self.encoder.named_parameters() if each.requires_grad)
        return {name: each.detach().cpu().clone() for name, each in trained}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads the parameters that `trained_state` returned.

        Args:
            state: parameters by name.

        Raises:
            ModelError: names or shapes differ from this model's.
        """
        missing = {name for name, each in self.encoder.named_parameters() if each.requires_grad} - set(state)
        try:
            unexpected = self.encoder.load_state_dict(state, strict=False).unexpected_keys
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

    def _build(self, backbone: nn.Module, architecture: Architecture) -> MAWWithGRPOEncoder:
        check_depths(self.spec.name, architecture)
        if not self.layers["maw"]:
            raise ConfigError(
                ["maw_layers: none leaves a MAWRetriever without MAW; name a layer, or use BaselineRetriever"]
            )
        encoder = MAWWithGRPOEncoder(
            backbone,
            architecture,
            maw_layers=self.layers["maw"],
            seed=self.config.seed,
            trained_layers=self.layers["finetune"],
            **depth_options(self.config, backbone),
            **self._encoder_options(),
        )
        backbone.requires_grad_(False)
        _train_whole(backbone, architecture, self.layers["finetune"])
        for attention in encoder.maw_attention:
            for parameter in (*attention.kernel_parameters(), *attention.router.parameters()):
                parameter.requires_grad_(True)
        return encoder


def depth_options(config: Tier1Config, backbone: nn.Module) -> dict[str, Any]:
    """Arguments of `maw.attention.install.build_depth_attention` from a configuration."""
    return {
        "depths": config.depth_dim,
        "kernels": {
            "family": config.depth_kernel,
            "rank": min(config.kernel_rank, backbone.config.hidden_size),  # a higher rank adds no expressiveness
            "shared_rank": min(config.kernel_shared_rank, backbone.config.hidden_size),
            "init_std": kernel_noise(config),
        },
        "router": {"name": config.router, "route_by": config.route_by, "fixed_depth": config.fixed_depth},
        "depth_values": config.depth_values,
    }


def _train_whole(backbone: nn.Module, architecture: Architecture, numbers: Iterable[int]) -> None:
    """Unfreezes the weights of some layers (from 1)."""
    layers = architecture.layers(backbone)
    for number in numbers:
        for parameter in architecture.own_parameters(layers[number - 1]):
            parameter.requires_grad_(True)


def check_depths(name: str, architecture: Architecture) -> None:
    """Raises ModelError for a family that cannot carry depth attention, with the reason."""
    if architecture.no_depths:
        raise ModelError(f"model {name} cannot carry MAW: {architecture.no_depths}")


def count_maw_parameters(
    config: Tier1Config, backbone: nn.Module, architecture: Architecture, layers: Mapping[str, Any]
) -> int:
    """The number of parameters that MAW trains in a plain backbone: whole layers, depth kernels and routers."""
    modules = architecture.layers(backbone)
    trained = [each for number in layers["finetune"] for each in architecture.own_parameters(modules[number - 1])]
    options = depth_options(config, backbone) | {"depth_values": False}
    for number in layers["maw"]:
        attention = build_depth_attention(backbone, architecture, number, **options)
        trained += [*attention.kernel_parameters(), *attention.router.parameters()]
    return sum(parameter.numel() for parameter in trained)


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
