"""Retrievers: a pretrained encoder, how its output becomes a vector, and what of it is trained.

`BaselineRetriever` (as it is, with LoRA, or with whole layers trained) and `MAWRetriever` add the tokenizer and the
model's own similarity to an encoder of `maw.encoder`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from maw.architectures import Architecture, architecture_of
from maw.config import Tier1Config, parse_layers
from maw.cpu import ATTENTION, keep_freed_memory, use_faster_modules
from maw.encoder import MAWWithGRPOEncoder, NonMAWEncoder
from maw.errors import ConfigError, ModelError
from maw.inputs import Texts, TextSource
from maw.lora import add_lora
from maw.parallel import pick_device
from maw.precision import pick_precision
from maw.pretrained import ModelSpec, model_spec, verify_weights

logger = logging.getLogger(__name__)


class BaselineRetriever(nn.Module):
    """A pretrained retriever without MAW: as it is, or with LoRA adapters if `config.use_lora`.

    Args:
        config: names the model, its layers to adapt, and whatever of the model's own settings to override.

    Raises:
        ModelError: the model cannot be found, loaded, or adapted.
        ConfigError: layers that the model does not have, or none where there must be one.
    """

    def __init__(self, config: Tier1Config):
        super().__init__()
        self.config = config
        self.spec = model_spec(config)
        self.layers = trained_layers(config, self.spec)
        self.tokenizer = load_tokenizer(self.spec)
        backbone, architecture = load_backbone(self.spec)
        self.encoder = self._build(backbone, architecture).eval()
        self.encoder.round_frozen_weights()

    def _build(self, backbone: nn.Module, architecture: Architecture) -> NonMAWEncoder:
        finetune = self.layers["finetune"] if self.config.use_lora else ()
        if self.config.use_lora and not finetune:
            raise ConfigError(
                ["finetune_layers: none leaves LoRA nothing to adapt; name a layer, or leave use_lora False"]
            )
        if self.config.use_lora:
            options = {"rank": self.config.lora_rank, "alpha": self.config.lora_alpha}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                add_lora(backbone, architecture, finetune, **options)
            use_faster_modules(backbone)  # the adapters' own maps too
        return NonMAWEncoder(backbone, architecture, trained_layers=finetune, **self._encoder_options())

    def _encoder_options(self) -> dict[str, Any]:
        return {
            "pooling": self.spec.pooling,
            "normalize": self.spec.similarity == "cosine",
            "prefix_layers": self.layers["prefix"],
            "precision": pick_precision(self.config.precision, pick_device(self.config)),
        }

    @property
    def precision(self) -> torch.dtype:
        """Number format of the encoder's matrix products."""
        return self.encoder.precision

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def trained_parameters(self) -> int:
        """How many numbers training may change."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of all that training may change, by parameter name."""
        trained = ((name, each) for name, each in self.encoder.named_parameters() if each.requires_grad)
        return {name: each.detach().cpu().clone() for name, each in trained}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `trained_state` gave.

        Raises:
            ModelError: names or shapes that are not this model's.
        """
        missing = {name for name, each in self.encoder.named_parameters() if each.requires_grad} - set(state)
        try:
            unexpected = self.encoder.load_state_dict(state, strict=False).unexpected_keys
        except RuntimeError as error:
            raise ModelError(f"weights do not fit model {self.spec.name}: {_first_line(error)}") from error
        if missing or unexpected:
            name = sorted(missing or unexpected)[0]
            raise ModelError(f"weights do not fit model {self.spec.name}: {name} is in only one of the two")

    def forward(self, inputs: Mapping[str, Tensor], mode: str = "embed", **options: Any) -> Any:
        """The encoder's own forward."""
        return self.encoder(inputs, mode, **options)

    def source(self, texts: Texts | Sequence[str], kind: str) -> TextSource:
        """Texts of one kind, "query" or "document", as this model reads them: prefix, length limit, tokens."""
        query = kind == "query"
        return TextSource(
            texts,
            self.tokenizer,
            prefix=self.spec.query_prefix if query else self.spec.document_prefix,
            max_length=self.spec.max_query_length if query else self.spec.max_document_length,
        )

    def encode(self, texts: Sequence[str], kind: str = "document", batch_size: int = 128) -> np.ndarray:
        """Texts to embeddings, float32 (N, C), in the order given.

        Args:
            kind: "query" or "document", which some models treat differently.
        """
        from maw.encoding import (
            encode,  # encoding stands after retrievers; this is a convenience for notebooks
        )

        return encode(self.encoder, self.source(texts, kind), batch_size=batch_size).embeddings


class MAWRetriever(BaselineRetriever):
    """A pretrained retriever with depth attention in `config.maw_layers` and `config.finetune_layers` trained whole.

    On a MAW layer that is not among the layers to fine-tune only kernels and router are trained. LoRA is no part of
    it, whatever `config.use_lora` says.
    """

    def _build(self, backbone: nn.Module, architecture: Architecture) -> MAWWithGRPOEncoder:
        config = self.config
        if not self.layers["maw"]:
            raise ConfigError(
                ["maw_layers: none leaves a MAWRetriever without MAW; name a layer, or use BaselineRetriever"]
            )
        encoder = MAWWithGRPOEncoder(
            backbone,
            architecture,
            maw_layers=self.layers["maw"],
            depths=config.depth_dim,
            kernels={
                "family": config.depth_kernel,
                "rank": config.kernel_rank,
                "init_std": config.kernel_init_std,
            },
            router={"name": config.router, "route_by": config.route_by, "fixed_depth": config.fixed_depth},
            seed=config.seed,
            trained_layers=self.layers["finetune"],
            **self._encoder_options(),
        )
        backbone.requires_grad_(False)
        layers = architecture.layers(backbone)
        for number in self.layers["finetune"]:
            layers[number - 1].requires_grad_(True)
        for attention in encoder.maw_attention:
            attention.kernels.requires_grad_(True)
            attention.router.requires_grad_(True)
        return encoder


def trained_layers(config: Tier1Config, spec: ModelSpec) -> dict[str, Any]:
    """Layers by what is done to them: "maw", "finetune" (from 1), and "prefix", how many no arm of the run changes."""
    maw, finetune = (
        parse_layers(getattr(config, name), spec.num_layers, name) for name in ("maw_layers", "finetune_layers")
    )
    return {
        "maw": maw,
        "finetune": finetune,
        "prefix": min((*maw, *finetune), default=spec.num_layers + 1) - 1,
    }


def load_backbone(spec: ModelSpec) -> tuple[nn.Module, Architecture]:
    """The pretrained encoder in float32, frozen, and its adapter.

    Raises:
        ModelError: the weights cannot be read, or are not those that the package expects.
    """
    architecture = architecture_of(spec.model_type)
    verify_weights(spec)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a report of the pooler's unused weights is no news here
    transformers_logging.disable_progress_bar()
    try:
        backbone = AutoModel.from_pretrained(
            spec.folder or spec.name, attn_implementation=ATTENTION, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {spec.name}: {_first_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if hasattr(backbone, "pooler"):
        backbone.pooler = None  # its output is not used, and unused weights confuse gradient checks
    keep_freed_memory()
    use_faster_modules(backbone)
    return backbone.requires_grad_(False), architecture


def load_tokenizer(spec: ModelSpec) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(spec.folder or spec.name)
    except (OSError, ValueError) as error:
        raise ModelError(f"tokenizer of model {spec.name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
