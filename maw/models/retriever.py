"""Retrievers: a pretrained encoder, how its output becomes a vector, and what of it is trained.

`BaselineRetriever` (as it is, with LoRA, or with whole layers trained) and `MAWRetriever` add the tokenizer and the
model's own similarity to an encoder of `maw.models.encoder`.
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
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from maw.attention.architectures import Architecture, architecture_of
from maw.attention.install import build_depth_attention
from maw.config.tier1_config import Tier1Config, kernel_noise
from maw.errors import ConfigError, ModelError, reason
from maw.models.cpu_kernels import ATTENTION, keep_freed_memory, use_faster_modules
from maw.models.encoder import MAWWithGRPOEncoder, NonMAWEncoder
from maw.models.lora import add_lora, matched_rank
from maw.models.model_files import WEIGHTS
from maw.models.pretrained import ModelSpec, model_spec, trained_layers, verify_weights
from maw.models.tokenized import Texts, TextSource
from maw.runtime.devices import pick_device
from maw.runtime.precision import pick_precision

logger = logging.getLogger(__name__)

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError)


class BaselineRetriever(nn.Module):
    """A pretrained retriever without MAW: as it is, or with `config.finetune_layers` adapted or trained.

    With `config.use_lora` these layers get LoRA adapters (`maw.models.lora`), on the maps that `config.lora_targets`
    names; with `config.train_layers` their own weights are trained. `config.adapt_maw_layers` counts the MAW layers
    among them, so that a control of MAW reaches every layer that MAW does.

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
        config = self.config
        adapted = self._adapted_layers()
        for name, what in {"use_lora": "LoRA nothing to adapt", "train_layers": "nothing to train"}.items():
            if getattr(config, name) and not adapted:
                text = f"finetune_layers: none leaves {what}; name a layer, or leave {name} False"
                raise ConfigError([text])
        if config.use_lora:
            self._add_lora(backbone, architecture, adapted)
        elif config.train_layers:
            _train_whole(backbone, architecture, adapted)
        return NonMAWEncoder(backbone, architecture, trained_layers=adapted, **self._encoder_options())

    def _adapted_layers(self) -> tuple[int, ...]:
        """Layers (from 1) that LoRA adapts or that are trained whole, ascending."""
        config, layers = self.config, set(self.layers["finetune"])
        if not (config.use_lora or config.train_layers):
            return ()
        return tuple(sorted(layers.union(self.layers["maw"]) if config.adapt_maw_layers else layers))

    def _add_lora(self, backbone: nn.Module, architecture: Architecture, layers: Iterable[int]) -> None:
        config, rank = self.config, self.config.lora_rank
        if config.lora_targets == "all":
            wanted = count_maw_parameters(config, backbone, architecture, self.layers)
            rank = matched_rank(backbone, architecture, layers, wanted)
            logger.info("LoRA on all linear maps at rank %d, to train about as much as MAW: %d numbers", rank, wanted)
        alpha = rank * config.lora_alpha / config.lora_rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            add_lora(backbone, architecture, layers, rank=rank, alpha=alpha, targets=config.lora_targets)
        use_faster_modules(backbone)  # the adapters' own maps too

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
        """A copy, on the CPU, of all that training may change: by parameter name, each in its own shape."""
        trained = ((name, each) for name, each in self.encoder.named_parameters() if each.requires_grad)
        return {name: each.detach().cpu().clone() for name, each in trained}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `trained_state` gave.

        Args:
            state: by parameter name, of this model's shapes.

        Raises:
            ModelError: names or shapes that are not this model's.
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
        """Texts as this model reads them: prefix, length limit, tokens.

        Args:
            texts: a list, or a corpus.
            kind: "query" or "document", which some models treat differently.
        """
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
            texts: N of them.
            kind: "query" or "document", which some models treat differently.
            batch_size: most texts encoded at once.
        """
        from maw.models.encode import encode

        return encode(self.encoder, self.source(texts, kind), batch_size=batch_size).embeddings


class MAWRetriever(BaselineRetriever):
    """A pretrained retriever with depth attention in `config.maw_layers` and `config.finetune_layers` trained whole.

    On a MAW layer that is not among the layers to fine-tune only kernels and router are trained. LoRA is no part of
    it, whatever `config.use_lora` says. With `config.depth_values` depths change the values too: an ablation, not MAW.
    """

    def _build(self, backbone: nn.Module, architecture: Architecture) -> MAWWithGRPOEncoder:
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
    """What `maw.attention.install.build_depth_attention` takes from a configuration."""
    return {
        "depths": config.depth_dim,
        "kernels": {
            "family": config.depth_kernel,
            "rank": min(config.kernel_rank, backbone.config.hidden_size),  # a higher one could express no more
            "init_std": kernel_noise(config),
        },
        "router": {"name": config.router, "route_by": config.route_by, "fixed_depth": config.fixed_depth},
        "depth_values": config.depth_values,
    }


def _train_whole(backbone: nn.Module, architecture: Architecture, numbers: Iterable[int]) -> None:
    """Makes all weights of some layers (from 1) trainable."""
    layers = architecture.layers(backbone)
    for number in numbers:
        layers[number - 1].requires_grad_(True)


def count_maw_parameters(
    config: Tier1Config, backbone: nn.Module, architecture: Architecture, layers: Mapping[str, Any]
) -> int:
    """How many numbers MAW trains with these settings: the layers to fine-tune whole, depth kernels and routers.

    Args:
        backbone: the pretrained encoder, without adapters or depth attention.
        layers: from `trained_layers`.
    """
    modules = architecture.layers(backbone)
    trained = [each for number in layers["finetune"] for each in modules[number - 1].parameters()]
    options = depth_options(config, backbone) | {"depth_values": False}
    for number in layers["maw"]:
        attention = build_depth_attention(backbone, architecture, number, **options)
        trained += [*attention.kernel_parameters(), *attention.router.parameters()]
    return sum(parameter.numel() for parameter in trained)


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
        with _reading(f"model {spec.name}"):
            _check_readable(spec)
            backbone = AutoModel.from_pretrained(
                spec.folder or spec.name, attn_implementation=ATTENTION, dtype=torch.float32, trust_remote_code=False
            )
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
    with _reading(f"tokenizer of model {spec.name}"):
        return AutoTokenizer.from_pretrained(spec.folder or spec.name, trust_remote_code=False)


def _check_readable(spec: ModelSpec) -> None:
    """OSError for weights that may not be read, of which safetensors says that they are not there."""
    path = spec.folder / WEIGHTS if spec.folder else None
    if path and path.exists():
        path.open("rb").close()


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns what the libraries make of a damaged or hostile file into one line."""
    try:
        yield
    except Exception as error:
        of_the_file = isinstance(error, _UNREADABLE) or type(error) is Exception  # which tokenizers raises
        if not of_the_file and type(error).__name__ != "UnpicklingError":
            raise
        raise ModelError(f"{what}: {reason(error)}") from error
