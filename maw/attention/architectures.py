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
    head_size: ClassVar[str] = "head_dim"
    """What a config.json calls the head size, if it is not the hidden size divided by the number of heads."""
    positions: ClassVar[str | None] = "max_position_embeddings"
    """What a config.json calls the number of positions; None in a family whose texts may be of any length."""
    model_class: ClassVar[str] = "AutoModel"
    """The class of transformers that loads the encoder."""
    float32_only: ClassVar[bool] = False
    """Whether the code of transformers fails in other number formats."""
    no_depths: ClassVar[str] = ""
    """Why the family cannot carry depth attention; empty if it can."""
    attention_path: ClassVar[str] = "attention.self"
    projections: ClassVar[tuple[str, str, str]] = ("query", "key", "value")
    """The attention module's own names of its query, key and value maps."""
    query_value_maps: ClassVar[tuple[str, ...]] = ("attention.self.query", "attention.self.value")
    """The maps that LoRA on query and value adapts, by their names in a layer."""
    unpads: ClassVar[bool] = False
    """Whether a layer can run over the real tokens of a batch (`maw.models.unpadding`): tokens meet in nothing but
    the attention function of transformers' `AttentionInterface`, and no input of a layer has positions."""
    rotary: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    """Whether a token attends only to itself and the tokens before it."""

    def __init_subclass__(cls) -> None:
        ARCHITECTURES.update(dict.fromkeys(vars(cls).get("model_types", ()), cls()))

    def loader(self) -> Any:
        """The class of transformers whose `from_pretrained` and `from_config` give the encoder."""
        import transformers

        return getattr(transformers, self.model_class)

    def lost_positions(self, settings: Mapping[str, Any]) -> int:
        """How many of the positions that config.json gives no token ever has."""
        return 0

    def layers(self, backbone: nn.Module) -> nn.ModuleList:
        """The encoder's layers, first to last."""
        return backbone.encoder.layer

    def own_parameters(self, layer: nn.Module) -> list[nn.Parameter]:
        """The parameters of a layer that no other layer uses."""
        return list(layer.parameters())

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

    def run(self, layer: nn.Module, hidden_BTC: Tensor, inputs: LayerInputs, **routing: Any) -> Tensor:
        """Passes hidden states through a layer, (B, T, C).

        Args:
            inputs: the layer's entry of `layer_inputs`.
            routing: for a layer with depth attention alone, its keyword `routing`; the Hugging Face layer does not
                know the keyword and hands it on to its attention module, `MAWAttentionLayer`.
        """
        return layer(hidden_BTC, **inputs, **routing)

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

    def scale(self, attention: nn.Module) -> float:
        """The factor of the attention scores."""
        return getattr(attention, "scaling", self.heads(attention)[1] ** -0.5)

    def attention_inputs(self, attention: nn.Module, hidden_BTC: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of an attention module, with all that is added to its scores in "attention_mask"."""
        return inputs

    def attention_outputs(self, output_BTC: Tensor, inputs: LayerInputs) -> tuple[Any, ...]:
        """What the attention module returns to its layer: its output, and None in place of attention weights."""
        return output_BTC, None

    def attend(self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, inputs: LayerInputs) -> Tensor:
        """The backend's fused attention over (B, H, T, E) states and the module's own output map, (B, T, C)."""
        import torch
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        name = attention.config._attn_implementation
        fused = ALL_ATTENTION_FUNCTIONS[name if name in ALL_ATTENTION_FUNCTIONS else "sdpa"]
        options = self._backend_options(attention)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.is_floating_point() and mask.dtype != query.dtype:
            mask = mask.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
        context, _ = fused(
            self.as_backend_sees(attention),
            query,
            key,
            value,
            mask,
            dropout=self.dropout(attention),
            scaling=self.scale(attention),
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
    unpads = True


class RobertaArchitecture(Architecture):
    """RoBERTa, and what is RoBERTa under another name."""

    model_types = ("roberta", "xlm-roberta", "camembert")
    unpads = True

    def lost_positions(self, settings: Mapping[str, Any]) -> int:
        padding = settings.get("pad_token_id")  # positions are counted from it
        return (padding if isinstance(padding, int) else 1) + 1


class ElectraArchitecture(Architecture):
    """ELECTRA, whose smaller models embed narrower than C."""

    model_types = ("electra",)
    unpads = True

    def embed(self, backbone: nn.Module, input_ids_BT: Tensor) -> Tensor:
        hidden_BTC = super().embed(backbone, input_ids_BT)
        return backbone.embeddings_project(hidden_BTC) if hasattr(backbone, "embeddings_project") else hidden_BTC


class DistilBertArchitecture(Architecture):
    """DistilBERT: BERT under other names, with the output map inside the attention module."""

    model_types = ("distilbert",)
    unpads = True
    sizes: ClassVar[Mapping[str, str]] = {"num_layers": "n_layers", "num_heads": "n_heads", "hidden_dim": "dim"}
    attention_path = "attention"
    projections = ("q_lin", "k_lin", "v_lin")
    query_value_maps = ("attention.q_lin", "attention.v_lin")

    def layers(self, backbone: nn.Module) -> nn.ModuleList:
        return backbone.transformer.layer

    def heads(self, attention: nn.Module) -> tuple[int, int]:
        return attention.n_heads, attention.attention_head_size

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        return attention.out_lin(context_BTC)


class MPNetArchitecture(Architecture):
    """MPNet: the encoder adds a bias for each head and distance of two tokens to all layers' scores.

    score = scale * sum over e of query W key + bias, softmax over keys: the bias stands where a mask stands. It is
    computed from the encoder's table, outside of the layers, so that any layer can be the first that runs.
    """

    model_types = ("mpnet",)
    attention_path = "attention.attn"
    projections = ("q", "k", "v")
    query_value_maps = ("attention.attn.q", "attention.attn.v")

    def lost_positions(self, settings: Mapping[str, Any]) -> int:
        return 2  # the padding token is number 1 to MPNet, whatever config.json says

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        inputs = super().layer_inputs(backbone, hidden_BTC, padding_BT)
        bias = backbone.encoder.compute_position_bias(hidden_BTC[:1]).to(hidden_BTC.dtype)
        return [{"attention_mask": _with_bias(inputs[0]["attention_mask"], bias)}] * len(inputs)

    def run(self, layer: nn.Module, hidden_BTC: Tensor, inputs: LayerInputs, **routing: Any) -> Tensor:
        # MPNet's layer drops keywords that it does not know, but hands on `position_bias`, which is in the mask here.
        return layer(hidden_BTC, **inputs, position_bias=routing.get("routing"))[0]

    def attention_inputs(self, attention: nn.Module, hidden_BTC: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        bias = inputs.pop("position_bias", None)
        return inputs if bias is None else inputs | {"attention_mask": _with_bias(inputs["attention_mask"], bias)}

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        return attention.o(context_BTC)


class T5Architecture(Architecture):
    """The encoder of T5: relative positions as in MPNet, pre-norm, and scores without a scale.

    The table of the bias is in the first layer and serves all: no method trains it.
    """

    model_types = ("t5",)
    sizes: ClassVar[Mapping[str, str]] = {
        "num_layers": "num_layers",
        "num_heads": "num_heads",
        "hidden_dim": "d_model",
    }
    head_size = "d_kv"
    positions = None
    model_class = "T5EncoderModel"
    attention_path = "layer.0.SelfAttention"
    projections = ("q", "k", "v")
    query_value_maps = ("layer.0.SelfAttention.q", "layer.0.SelfAttention.v")

    def layers(self, backbone: nn.Module) -> nn.ModuleList:
        return backbone.encoder.block

    def own_parameters(self, layer: nn.Module) -> list[nn.Parameter]:
        return [each for name, each in layer.named_parameters() if "relative_attention_bias" not in name]

    def embed(self, backbone: nn.Module, input_ids_BT: Tensor) -> Tensor:
        return backbone.encoder.embed_tokens(input_ids_BT)

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        inputs = super().layer_inputs(backbone, hidden_BTC, padding_BT)
        first = self.attention(self.layers(backbone)[0])
        bias = self._bias(getattr(first, "base", first), hidden_BTC)
        # As `position_bias`: a T5 layer that gets none computes its own.
        return [{"position_bias": _with_bias(inputs[0]["attention_mask"], bias)}] * len(inputs)

    def run(self, layer: nn.Module, hidden_BTC: Tensor, inputs: LayerInputs, **routing: Any) -> Tensor:
        return layer(hidden_BTC, **inputs, **routing)[0]

    def finish(self, backbone: nn.Module, hidden_BTC: Tensor) -> Tensor:
        return backbone.encoder.final_layer_norm(hidden_BTC)

    def heads(self, attention: nn.Module) -> tuple[int, int]:
        return attention.n_heads, attention.key_value_proj_dim

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        return attention.o(context_BTC)

    def dropout(self, attention: nn.Module) -> float:
        return attention.dropout if attention.training else 0.0

    def attention_inputs(self, attention: nn.Module, hidden_BTC: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        mask, bias = inputs.pop("mask", None), inputs.get("position_bias")
        if bias is None:
            bias = self._bias(attention, hidden_BTC)
        return inputs | {"position_bias": bias, "attention_mask": _with_bias(mask, bias)}

    def attention_outputs(self, output_BTC: Tensor, inputs: LayerInputs) -> tuple[Any, ...]:
        return output_BTC, inputs["position_bias"], None  # the next layer gets the bias of this one

    def _bias(self, attention: nn.Module, hidden_BTC: Tensor) -> Tensor:
        tokens = hidden_BTC.shape[1]
        return attention.compute_bias(tokens, tokens, device=hidden_BTC.device).to(hidden_BTC.dtype)


class DebertaArchitecture(Architecture):
    """DeBERTa, for the methods that leave attention as it is."""

    model_types = ("deberta",)
    no_depths = (
        "its attention scores hold products of contents and positions beside query times key, so that a depth kernel "
        "on the query would not be the MAW formula"
    )
    float32_only = True
    query_value_maps = ("attention.self.in_proj",)

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        encoder = backbone.encoder
        shared = {
            "attention_mask": encoder.get_attention_mask(padding_BT),
            "relative_pos": encoder.get_rel_pos(hidden_BTC),
            "rel_embeddings": encoder.get_rel_embedding(),
        }
        convolution = getattr(encoder, "conv", None)
        first = {} if convolution is None else {"convolution": convolution, "padding": padding_BT}
        return [shared | first] + [shared] * (len(self.layers(backbone)) - 1)

    def run(self, layer: nn.Module, hidden_BTC: Tensor, inputs: LayerInputs, **routing: Any) -> Tensor:
        inputs = dict(inputs)
        convolution, padding_BT = inputs.pop("convolution", None), inputs.pop("padding", None)
        output_BTC = layer(hidden_BTC, **inputs)[0]
        if convolution is None:
            return output_BTC
        return convolution(hidden_BTC * padding_BT[..., None], output_BTC, padding_BT)


class DebertaV2Architecture(DebertaArchitecture):
    """DeBERTa v2 and v3: separate maps of query, key and value, and perhaps a convolution beside the first layer."""

    model_types = ("deberta-v2",)
    query_value_maps = ("attention.self.query_proj", "attention.self.value_proj")


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
        all_layers = getattr(attention.config, "sliding_window", None)
        return {"sliding_window": getattr(attention, "sliding_window", all_layers)}


class ModernBertArchitecture(RotaryArchitecture):
    """ModernBERT: pre-norm, one fused projection, rotary positions, and local attention in most layers.

    LoRA on query and value adapts the whole fused projection, because PEFT adapts whole linear maps.
    """

    model_types = ("modernbert",)
    attention_path = "attn"
    query_value_maps = ("attn.Wqkv",)

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

        known = {"config": backbone.config, "inputs_embeds": hidden_BTC, "attention_mask": padding_BT}
        known |= {"allow_is_bidirectional_skip": _may_look(padding_BT)}
        makers = {
            "full_attention": create_bidirectional_mask,
            "sliding_attention": create_bidirectional_sliding_window_mask,
        }
        inputs = {
            kind: {
                "attention_mask": makers[kind](**known),
                "position_embeddings": backbone.rotary_emb(hidden_BTC, _positions(hidden_BTC), kind),
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


class EuroBertArchitecture(RotaryArchitecture):
    """EuroBERT: pre-norm, and perhaps fewer key and value heads than query heads, which are repeated."""

    model_types = ("eurobert",)
    attention_path = "self_attn"
    query_value_maps = ("self_attn.q_proj", "self_attn.v_proj")

    def embed(self, backbone: nn.Module, input_ids_BT: Tensor) -> Tensor:
        return backbone.embed_tokens(input_ids_BT)

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        rotation = {"position_embeddings": backbone.rotary_emb(hidden_BTC, _positions(hidden_BTC))}
        return [inputs | rotation for inputs in super().layer_inputs(backbone, hidden_BTC, padding_BT)]

    def finish(self, backbone: nn.Module, hidden_BTC: Tensor) -> Tensor:
        return backbone.norm(hidden_BTC)

    def project(self, attention: nn.Module, hidden_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (each(hidden_BTC).unflatten(-1, (-1, attention.head_dim)) for each in projections)
        if hasattr(attention, "q_norm"):  # a kernel follows the norm, which would undo part of a weighting before it
            query, key = attention.q_norm(query), attention.k_norm(key)
        groups = getattr(attention, "num_key_value_groups", 1)
        key, value = (each.transpose(1, 2).repeat_interleave(groups, 1) for each in (key, value))
        return query.transpose(1, 2), key, value

    def output(self, attention: nn.Module, context_BTC: Tensor) -> Tensor:
        return attention.o_proj(context_BTC)

    def as_backend_sees(self, attention: nn.Module) -> Any:
        """Settings without key groups, since `project` has repeated keys and values for every head."""
        return SimpleNamespace(is_causal=attention.is_causal, training=attention.training, config=attention.config)


class NomicBertArchitecture(EuroBertArchitecture):
    """NomicBERT, GTE and Jina v3: BERT's embeddings and post-norm layers, with rotary positions."""

    model_types = ("nomic_bert", "gte", "jina_embeddings_v3")

    def embed(self, backbone: nn.Module, input_ids_BT: Tensor) -> Tensor:
        return backbone.embeddings(input_ids=input_ids_BT)

    def finish(self, backbone: nn.Module, hidden_BTC: Tensor) -> Tensor:
        return hidden_BTC


class DecoderArchitecture(EuroBertArchitecture):
    """Decoders used as embedders: causal attention, local in some layers or in all."""

    model_types = ("qwen3", "qwen2", "llama", "mistral")
    causal = True

    def layer_inputs(self, backbone: nn.Module, hidden_BTC: Tensor, padding_BT: Tensor) -> list[LayerInputs]:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        config = backbone.config
        known = {"config": config, "inputs_embeds": hidden_BTC, "attention_mask": padding_BT}
        known |= {"past_key_values": None, "allow_is_causal_skip": False}
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        local = getattr(config, "sliding_window", None) is not None
        everywhere = ["sliding_attention" if local else "full_attention"] * config.num_hidden_layers
        kinds = getattr(config, "layer_types", None) or everywhere
        inputs = {
            kind: {
                "attention_mask": makers[kind](**known, **self._also_seen(config, kind)),
                "position_embeddings": self._rotation(backbone, hidden_BTC, kind),
            }
            for kind in set(kinds)
        }
        return [inputs[kind] for kind in kinds]

    def _also_seen(self, config: Any, kind: str) -> dict[str, Any]:
        """Arguments of a mask's maker that let a token attend to more than a causal mask does."""
        return {}

    def _rotation(self, backbone: nn.Module, hidden_BTC: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return backbone.rotary_emb(hidden_BTC, _positions(hidden_BTC))


class Gemma3Architecture(DecoderArchitecture):
    """The text model of Gemma 3, causal or, as in EmbeddingGemma, bidirectional; local layers rotate differently."""

    model_types = ("gemma3_text",)

    def _also_seen(self, config: Any, kind: str) -> dict[str, Any]:
        if not config.use_bidirectional_attention:
            return {}
        window = config.sliding_window if kind == "sliding_attention" else config.max_position_embeddings
        return {"or_mask_function": lambda _batch, _head, query, key: abs(query - key) < window}

    def _rotation(self, backbone: nn.Module, hidden_BTC: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return backbone.rotary_emb(hidden_BTC, _positions(hidden_BTC), kind)


def _positions(hidden_BTC: Tensor) -> Tensor:
    """The positions of all tokens, (1, T)."""
    import torch

    return torch.arange(hidden_BTC.shape[1], device=hidden_BTC.device).unsqueeze(0)


def _with_bias(mask: Tensor | None, bias: Tensor) -> Tensor:
    """An additive mask with a bias of the scores, broadcastable to (B, H, T, T).

    Args:
        mask: boolean (True: may attend) or additive; None: every token may attend.
        bias: (1 or B, H, T, T).
    """
    import torch

    if mask is None:
        return bias
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


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
