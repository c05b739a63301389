"""Adapters of encoder families: each states where a Hugging Face encoder keeps its layers and its attention.

An `Architecture` finds the layers, the attention module of a layer and its projections, and runs the parts around the
layers (embeddings, masks, final norm). Depth attention, LoRA, the activation cache and the checks of config.json use
it, so a new family needs one small class. Adapters call modules and never read their weights, so projections that PEFT
has wrapped work too. Torch and transformers are imported where they are used: a wrong `--model` is refused before they
load.

Letters: B batch, T tokens, C hidden size, H heads, E head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from maw.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

LayerInputs = Mapping[str, Any]

ARCHITECTURES: dict[str, Architecture] = {}
"""The adapter of each model type; a class that names model types enters itself."""


class Architecture:
    """What an adapter says and does, as it is for BERT.

    BERT has post-norm layers, separate query, key and value projections, and absolute positions.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type` of each config.json that it adapts."""
    sizes: ClassVar[Mapping[str, str]] = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "hidden_dim": "hidden_size",
    }
    """What a config.json calls the number of layers, the number of heads and the hidden size."""
    positions_follow_padding: ClassVar[bool] = False
    """Whether positions are counted from the padding token's id + 1, so that many fewer are left for tokens."""
    attention_path: ClassVar[str] = "attention.self"
    projections: ClassVar[tuple[str, str, str]] = ("query", "key", "value")
    """The attention module's own names of its query, key and value maps."""
    query_value_maps: ClassVar[tuple[str, ...]] = ("attention.self.query", "attention.self.value")
    linear_maps: ClassVar[tuple[str, ...]] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    """All linear maps of a layer, query and value included."""
    rotary: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    """Whether a token attends only to itself and the tokens before it."""

    def __init_subclass__(cls) -> None:
        ARCHITECTURES.update(dict.fromkeys(vars(cls).get("model_types", ()), cls()))

    def layers(self, backbone: nn.Module) -> nn.ModuleList:
        """The encoder's layers, first to last."""
        return backbone.encoder.layer

    def embed(self, backbone: nn.Module, input_ids_BT: Tensor) -> Tensor:
        """Token ids to the hidden states that enter the first layer, (B, T, C)."""
        return backbone.embeddings(input_ids=input_ids_BT)

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        """The inputs of each layer besides the hidden states: masks, and rotary tables if the family has them."""
        tokens = padding_BT.shape[1]
        real = padding_BT.bool()
        full = _may_look(real) and bool(real.all())
        mask = None if full else real[:, None, None].expand(-1, -1, tokens, -1)
        return [{"attention_mask": mask}] * len(self.layers(backbone))

    def finish(self, backbone: nn.Module, hidden_BTC: Tensor) -> Tensor:
        """Applies what follows the last layer, such as a final norm."""
        return hidden_BTC

    def attention(self, layer: nn.Module) -> nn.Module:
        """The self-attention module of one layer."""
        return layer.get_submodule(self.attention_path)

    def replace_attention(self, layer: nn.Module, module: nn.Module) -> None:
        """Replaces the layer's self-attention by `module`."""
        parent, _, name = self.attention_path.rpartition(".")
        setattr(layer.get_submodule(parent), name, module)

    def heads(self, attention: nn.Module) -> tuple[int, int]:
        """Number of heads H and head size E."""
        return attention.num_attention_heads, attention.attention_head_size

    def project(self, attention: nn.Module, hidden_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states to query, key and value, each (B, H, T, E), before any rotation."""
        heads, size = self.heads(attention)
        states = (getattr(attention, name)(hidden_BTC).unflatten(-1, (heads, size)) for name in self.projections)
        return tuple(each.transpose(1, 2) for each in states)

    def rotate(self, states: tuple[Tensor, ...], inputs: LayerInputs) -> tuple[Tensor, ...]:
        """Applies rotary positions to (B, H, T, E) states; families without them change nothing."""
        return states

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        """The attention module's own output map; BERT has it in the layer instead."""
        return context_BTC

    def dropout(self, attention: nn.Module) -> float:
        """Probability of dropping an attention weight; zero outside training."""
        return attention.dropout.p if attention.training else 0.0

    def attend(self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, inputs: LayerInputs) -> Tensor:
        """The backend's fused attention over (B, H, T, E) states and the module's own output map, (B, T, C)."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        name = attention.config._attn_implementation
        fused = ALL_ATTENTION_FUNCTIONS[name if name in ALL_ATTENTION_FUNCTIONS else "sdpa"]
        options = self._backend_options(attention)
        context, _ = fused(
            self.as_backend_sees(attention),
            query,
            key,
            value,
            inputs.get("attention_mask"),
            dropout=self.dropout(attention),
            scaling=query.shape[-1] ** -0.5,
            **options,
        )
        return self.output(attention, context.flatten(2))

    def as_backend_sees(self, attention: nn.Module) -> Any:
        """The object from which the fused attention reads its settings."""
        return attention

    def _backend_options(self, attention: nn.Module) -> dict[str, Any]:
        return {}


class BertArchitecture(Architecture):
    """BERT."""

    model_types = ("bert",)


class RobertaArchitecture(Architecture):
    """RoBERTa, and what is RoBERTa under another name."""

    model_types = ("roberta", "xlm-roberta", "camembert")
    positions_follow_padding = True


class ElectraArchitecture(Architecture):
    """ELECTRA, whose smaller models embed narrower than C."""

    model_types = ("electra",)

    def embed(self, backbone: nn.Module, input_ids_BT: Tensor) -> Tensor:
        hidden_BTC = super().embed(backbone, input_ids_BT)
        return backbone.embeddings_project(hidden_BTC) if hasattr(backbone, "embeddings_project") else hidden_BTC


class DistilBertArchitecture(Architecture):
    """DistilBERT: BERT under other names, with the output map inside the attention module."""

    model_types = ("distilbert",)
    sizes: ClassVar[Mapping[str, str]] = {"num_layers": "n_layers", "num_heads": "n_heads", "hidden_dim": "dim"}
    attention_path = "attention"
    projections = ("q_lin", "k_lin", "v_lin")
    query_value_maps = ("attention.q_lin", "attention.v_lin")
    linear_maps = (
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
    )

    def layers(self, backbone: nn.Module) -> nn.ModuleList:
        return backbone.transformer.layer

    def heads(self, attention: nn.Module) -> tuple[int, int]:
        return attention.n_heads, attention.attention_head_size

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        return attention.out_lin(context_BTC)


class RotaryArchitecture(Architecture):
    """Rotary positions: queries and keys are rotated, feature i together with feature i + E/2."""

    rotary = True

    def rotate(self, states: tuple[Tensor, ...], inputs: LayerInputs) -> tuple[Tensor, ...]:
        cos, sin = (table.unsqueeze(1) for table in inputs["position_embeddings"])
        return tuple((state.float() * cos + _rotate_half(state.float()) * sin).to(state.dtype) for state in states)

    def layers(self, backbone: nn.Module) -> nn.ModuleList:
        return backbone.layers

    def heads(self, attention: nn.Module) -> tuple[int, int]:
        return attention.config.num_attention_heads, attention.head_dim

    def dropout(self, attention: nn.Module) -> float:
        return attention.attention_dropout if attention.training else 0.0

    def _backend_options(self, attention: nn.Module) -> dict[str, Any]:
        return {"sliding_window": attention.sliding_window}


class ModernBertArchitecture(RotaryArchitecture):
    """ModernBERT: pre-norm, one fused projection, rotary positions, and local attention in most layers.

    LoRA on query and value adapts the whole fused projection, because PEFT adapts whole linear maps.
    """

    model_types = ("modernbert",)
    attention_path = "attn"
    query_value_maps = ("attn.Wqkv",)
    linear_maps = ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        import torch
        from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

        known = {"config": backbone.config, "inputs_embeds": hidden_BTC, "attention_mask": padding_BT}
        known |= {"allow_is_bidirectional_skip": _may_look(padding_BT)}
        positions = torch.arange(hidden_BTC.shape[1], device=hidden_BTC.device).unsqueeze(0)
        makers = {
            "full_attention": create_bidirectional_mask,
            "sliding_attention": create_bidirectional_sliding_window_mask,
        }
        inputs = {
            kind: {
                "attention_mask": makers[kind](**known),
                "position_embeddings": backbone.rotary_emb(hidden_BTC, positions, kind),
            }
            for kind in set(backbone.config.layer_types)
        }
        return [inputs[layer.attention_type] for layer in self.layers(backbone)]

    def finish(self, backbone: nn.Module, hidden_BTC: Tensor) -> Tensor:
        return backbone.final_norm(hidden_BTC)

    def project(self, attention: nn.Module, hidden_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads, size = self.heads(attention)
        states = attention.Wqkv(hidden_BTC).unflatten(-1, (3, heads, size))
        return tuple(part.transpose(1, 2) for part in states.unbind(dim=-3))

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        return attention.out_drop(attention.Wo(context_BTC))


class Qwen3Architecture(RotaryArchitecture):
    """Qwen3, a decoder used as embedder: causal attention, and fewer key and value heads than query heads.

    Depth kernels weight the query after its norm; the norm would undo part of a weighting before it. Keys and values
    are repeated for every query head.
    """

    model_types = ("qwen3",)
    attention_path = "self_attn"
    query_value_maps = ("self_attn.q_proj", "self_attn.v_proj")
    linear_maps = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    causal = True

    def embed(self, backbone: nn.Module, input_ids_BT: Tensor) -> Tensor:
        return backbone.embed_tokens(input_ids_BT)

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        import torch
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        known = {"config": backbone.config, "inputs_embeds": hidden_BTC, "attention_mask": padding_BT}
        known |= {"past_key_values": None, "allow_is_causal_skip": False}
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        kinds = backbone.config.layer_types
        masks = {kind: makers[kind](**known) for kind in set(kinds)}
        positions = torch.arange(hidden_BTC.shape[1], device=hidden_BTC.device).unsqueeze(0)
        rotation = backbone.rotary_emb(hidden_BTC, positions)
        return [{"attention_mask": masks[kind], "position_embeddings": rotation} for kind in kinds]

    def finish(self, backbone: nn.Module, hidden_BTC: Tensor) -> Tensor:
        return backbone.norm(hidden_BTC)

    def project(self, attention: nn.Module, hidden_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, groups = attention.head_dim, attention.num_key_value_groups
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (each(hidden_BTC).unflatten(-1, (-1, size)) for each in projections)
        query, key = attention.q_norm(query), attention.k_norm(key)
        key, value = (each.transpose(1, 2).repeat_interleave(groups, 1) for each in (key, value))
        return query.transpose(1, 2), key, value

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        return attention.o_proj(context_BTC)

    def as_backend_sees(self, attention: nn.Module) -> Any:
        """Settings without key groups, since `project` has repeated keys and values for every head."""
        return SimpleNamespace(is_causal=True, training=attention.training, config=attention.config)


def _may_look(values: Tensor) -> bool:
    """Whether the program can branch on the values without waiting for a GPU."""
    return values.device.type != "cuda"


def _rotate_half(states: Tensor) -> Tensor:
    """Rotates by a quarter turn; feature i is paired with feature i + E/2 (Su et al. 2021, order of GPT-NeoX)."""
    import torch

    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def architecture_of(model_type: str) -> Architecture:
    """The adapter of a `config.model_type`.

    Raises:
        ModelError: no adapter knows the type.
    """
    if model_type not in ARCHITECTURES:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"no adapter for model type {model_type!r}; supported: {supported}")
    return ARCHITECTURES[model_type]
