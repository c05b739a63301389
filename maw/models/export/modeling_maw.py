"""An encoder with MAW attention: every query-key pair has D learned weightings (depths), and a router picks one.

    SentenceTransformer(folder, trust_remote_code=True)       # or AutoModel.from_pretrained, without the pooling

This file is part of an exported model's folder and needs only torch and transformers. The router picks one depth for
each text, head or token. The kernel of that depth weights the query; transformers computes the attention:

    score[h, q, k] = scale * sum_e query[h, q, e] * W[h, depth, e] * key[h, k, e]

The depths are greedy, in training too. Weights keep the names of the pretrained model; kernels and routers are added.

Letters: B texts, T tokens, H heads, E head size, C hidden size, D depths, R kernel rank, F features of a router's
state; h is 1 or H and t is 1 or T, as the router decides.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    EuroBertConfig,
    EuroBertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GteConfig,
    GteModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.camembert.modeling_camembert import CamembertSelfAttention
from transformers.models.distilbert.modeling_distilbert import DistilBertSelfAttention
from transformers.models.electra.modeling_electra import ElectraSelfAttention
from transformers.models.eurobert.modeling_eurobert import EuroBertAttention
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
from transformers.models.gte.modeling_gte import GteAttention
from transformers.models.jina_embeddings_v3.modeling_jina_embeddings_v3 import JinaEmbeddingsV3Attention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.modernbert.modeling_modernbert import ModernBertAttention
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention
from transformers.models.nomic_bert.modeling_nomic_bert import NomicBertAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSelfAttention

ROUTERS = ("grpo", "supervised", "soft", "fixed")
"""The routers that `Router` can be; grpo and supervised differ in their training alone."""


class Kernels(nn.Module):
    """Depth kernels: one weight for each feature (`diagonal`), or a change of low rank (`low_rank`).

    Args:
        maw: the model's settings; "depths", "kernel" and "rank" are used.
        rotary: the two features of a rotary pair share a weight.
    """

    def __init__(self, maw: dict[str, Any], hidden: int, heads: int, size: int, *, rotary: bool):
        super().__init__()
        num_depths, self.rotary = maw["depths"], rotary
        if maw["kernel"] == "diagonal":
            self.weight = nn.Parameter(torch.ones(heads, num_depths, size // 2 if rotary else size))
        else:
            self.down = nn.Parameter(torch.zeros(num_depths, maw["rank"], hidden))
            self.up = nn.Parameter(torch.zeros(heads, num_depths, maw["rank"], size))
            self.weight = None

    def forward(self, states_BTHE: Tensor, hidden_BTC: Tensor, share_BhtD: Tensor) -> Tensor:
        """The states weighted by the kernels of the depths; the shares of the depths sum to one."""
        if self.weight is not None:
            change_HDE = (torch.cat((self.weight, self.weight), dim=-1) if self.rotary else self.weight) - 1
            share_BHtD = share_BhtD.expand(-1, len(change_HDE), -1, -1)
            picked = torch.einsum("bhtd,hde->bthe", share_BHtD, change_HDE.to(share_BhtD.dtype))
            return states_BTHE + states_BTHE * picked.to(states_BTHE.dtype)
        down, up = (each.to(hidden_BTC.dtype) for each in (self.down, self.up))
        features_BTDR = F.linear(hidden_BTC, down.flatten(0, 1)).unflatten(-1, down.shape[:2])
        weighted = share_BhtD.to(features_BTDR.dtype)[..., None] * features_BTDR[:, None]  # (B, h, T, D, R)
        return states_BTHE + (weighted.flatten(-2) @ up.flatten(1, 2)).transpose(1, 2)


class Router(nn.Module):
    """Picks depths from the layer's query states; a `fixed` router always picks the same depth."""

    def __init__(self, maw: dict[str, Any], heads: int, size: int):
        super().__init__()
        self.name, self.route_by, self.num_depths = maw["router"], maw["route_by"], maw["depths"]
        self.fixed_depth = maw["fixed_depth"]
        if self.name != "fixed":
            groups, features = (1, heads * size) if self.route_by == "sequence" else (heads, size)
            self.weight = nn.Parameter(torch.zeros(groups, features, self.num_depths))
            self.bias = nn.Parameter(torch.zeros(groups, 1, self.num_depths))

    def forward(self, query_BTHE: Tensor, padding_BT: Tensor) -> Tensor:
        """The share of each depth, float32 (B, h, t, D): one-hot, or a mixture with a `soft` router."""
        if self.name == "fixed":
            depth = torch.full((len(query_BTHE), 1, 1), self.fixed_depth, device=query_BTHE.device)
            return self._one_hot(depth)
        with torch.autocast(query_BTHE.device.type, enabled=False):
            state = self._state(query_BTHE.float(), padding_BT.float())
            state = F.rms_norm(state, state.shape[-1:])
            logits = torch.einsum("bhtf,hfd->bhtd", state, self.weight.float()) + self.bias.float()
        return logits.softmax(-1) if self.name == "soft" else self._one_hot(logits.argmax(-1))

    def _one_hot(self, depth: Tensor) -> Tensor:
        """As torch's own, which on some devices waits for the values; a CUDA graph cannot."""
        return (depth[..., None] == torch.arange(self.num_depths, device=depth.device)).float()

    def _state(self, query_BTHE: Tensor, padding_BT: Tensor) -> Tensor:
        if self.route_by == "token":
            return query_BTHE.transpose(1, 2)
        total_BHE = (query_BTHE * padding_BT[..., None, None]).sum(1)
        mean_BHE = total_BHE / padding_BT.sum(1).clamp(min=1)[:, None, None]
        return mean_BHE.flatten(1)[:, None, None] if self.route_by == "sequence" else mean_BHE[:, :, None]


class Call:
    """An attention module as one call of its forward sees it: a new object each call, so no call meets another's.

    Args:
        module: the attention module.
        outputs: results of its maps that are computed already, by name; all else is the module's own.
    """

    def __init__(self, module: nn.Module, outputs: dict[str, Tensor]):
        self.module, self.outputs = module, outputs

    def __getattr__(self, name: str) -> Any:
        return (lambda states: self.outputs[name]) if name in self.outputs else getattr(self.module, name)


class DepthAttention:
    """Attention at the depths that a router picks; a base class before the pretrained attention.

    Query and value are computed here. All else is the pretrained attention's own forward.
    """

    pretrained: Any = None
    query_map, value_map, rotary = "query", "value", False

    def install(self, maw: dict[str, Any], hidden: int, heads: int, size: int) -> None:
        """Adds router and kernels to a module that was built as pretrained attention."""
        self.size = size
        self.router = Router(maw, heads, size)
        self.kernels = Kernels(maw, hidden, heads, size, rotary=self.rotary)
        self.value_kernels = Kernels(maw, hidden, heads, size, rotary=False) if maw["values"] else None

    def forward(self, hidden_states: Tensor, *arguments: Any, padding_BT: Tensor, **inputs: Any) -> Any:
        """As the pretrained forward; transformers hands `padding_BT` down from the model's forward."""
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length(self.layer_idx) > 0:
            raise ValueError("depth attention reads a text as a whole; call the model without past_key_values")
        outputs = self.weighted(hidden_states, padding_BT)
        return self.pretrained.forward(Call(self, outputs), hidden_states, *arguments, **inputs)

    def weighted(self, hidden_BTC: Tensor, padding_BT: Tensor) -> dict[str, Tensor]:
        """What the pretrained forward gets from the maps that depths change."""
        query = getattr(self, self.query_map)(hidden_BTC).unflatten(-1, (-1, self.size))
        share = self.router(query, padding_BT)
        outputs = {self.query_map: self.kernels(query, hidden_BTC, share).flatten(-2)}
        if self.value_kernels is not None:
            value = getattr(self, self.value_map)(hidden_BTC).unflatten(-1, (-1, self.size))
            outputs[self.value_map] = self.value_kernels(value, hidden_BTC, share).flatten(-2)
        return outputs


class WithDepths:
    """Installs depth attention in the layers that the settings name; a base class before the pretrained model's."""

    attention_path = "encoder.layer.{}.attention.self"
    attention: Any = None
    options: dict[str, Any] = {}  # noqa: RUF012
    _supports_flash_attn = False  # flash attention drops the padding mask, which routers need
    _keep_in_fp32_modules_strict = ("router", "kernels")  # whatever the `dtype` of from_pretrained; kernels are near 1

    def __init__(self, config: Any, *inputs: Any, **options: Any):
        super().__init__(config, *inputs, **(self.options | options))
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        for number in config.maw["layers"]:
            attention = self.get_submodule(self.attention_path.format(number - 1))
            attention.__class__ = self.attention
            attention.install(config.maw, config.hidden_size, heads, size)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *arguments: Any, **inputs: Any
    ) -> BaseModelOutput:
        """As the pretrained model's forward; the mask must be (B, T), 1 for a token and 0 for padding."""
        given = inputs.get("inputs_embeds") if input_ids is None else input_ids
        if given is not None:  # else the pretrained forward says what is missing
            shape, padding = given.shape[:2], attention_mask
            if padding is None:
                padding = torch.ones(shape, dtype=torch.long, device=given.device)
            if padding.shape != shape:
                raise ValueError(f"attention_mask must have the shape {tuple(shape)}, got {tuple(padding.shape)}")
            inputs["padding_BT"] = padding
        return super().forward(input_ids, attention_mask, *arguments, **inputs)


class MAWBertConfig(BertConfig):
    """Settings of BERT with depth attention."""

    model_type = "maw-bert"
    maw: dict | None = None


class MAWBertAttention(DepthAttention, BertSelfAttention):
    """The self-attention of BERT at picked depths."""

    pretrained = BertSelfAttention


class MAWBertModel(WithDepths, BertModel):
    """BERT with depth attention."""

    config_class = MAWBertConfig
    attention = MAWBertAttention
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWRobertaConfig(RobertaConfig):
    """Settings of RoBERTa with depth attention."""

    model_type = "maw-roberta"
    maw: dict | None = None


class MAWRobertaAttention(DepthAttention, RobertaSelfAttention):
    """The self-attention of RoBERTa at picked depths."""

    pretrained = RobertaSelfAttention


class MAWRobertaModel(WithDepths, RobertaModel):
    """RoBERTa with depth attention."""

    config_class = MAWRobertaConfig
    attention = MAWRobertaAttention
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWXLMRobertaConfig(XLMRobertaConfig):
    """Settings of XLM-R with depth attention."""

    model_type = "maw-xlm-roberta"
    maw: dict | None = None


class MAWXLMRobertaAttention(DepthAttention, XLMRobertaSelfAttention):
    """The self-attention of XLM-R at picked depths."""

    pretrained = XLMRobertaSelfAttention


class MAWXLMRobertaModel(WithDepths, XLMRobertaModel):
    """XLM-R with depth attention."""

    config_class = MAWXLMRobertaConfig
    attention = MAWXLMRobertaAttention
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWCamembertConfig(CamembertConfig):
    """Settings of CamemBERT with depth attention."""

    model_type = "maw-camembert"
    maw: dict | None = None


class MAWCamembertAttention(DepthAttention, CamembertSelfAttention):
    """The self-attention of CamemBERT at picked depths."""

    pretrained = CamembertSelfAttention


class MAWCamembertModel(WithDepths, CamembertModel):
    """CamemBERT with depth attention."""

    config_class = MAWCamembertConfig
    attention = MAWCamembertAttention
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWElectraConfig(ElectraConfig):
    """Settings of ELECTRA with depth attention."""

    model_type = "maw-electra"
    maw: dict | None = None


class MAWElectraAttention(DepthAttention, ElectraSelfAttention):
    """The self-attention of ELECTRA at picked depths."""

    pretrained = ElectraSelfAttention


class MAWElectraModel(WithDepths, ElectraModel):
    """ELECTRA with depth attention."""

    config_class = MAWElectraConfig
    attention = MAWElectraAttention


class MAWDistilBertConfig(DistilBertConfig):
    """Settings of DistilBERT with depth attention."""

    model_type = "maw-distilbert"
    maw: dict | None = None


class MAWDistilBertAttention(DepthAttention, DistilBertSelfAttention):
    """The self-attention of DistilBERT at picked depths."""

    pretrained = DistilBertSelfAttention
    query_map, value_map = "q_lin", "v_lin"


class MAWDistilBertModel(WithDepths, DistilBertModel):
    """DistilBERT with depth attention."""

    config_class = MAWDistilBertConfig
    attention = MAWDistilBertAttention
    attention_path = "transformer.layer.{}.attention"


class MAWModernBertConfig(ModernBertConfig):
    """Settings of ModernBERT with depth attention."""

    model_type = "maw-modernbert"
    maw: dict | None = None


class MAWModernBertAttention(DepthAttention, ModernBertAttention):
    """The self-attention of ModernBERT at picked depths; one map computes query, key and value."""

    pretrained = ModernBertAttention
    rotary = True

    def weighted(self, hidden_BTC: Tensor, padding_BT: Tensor) -> dict[str, Tensor]:
        query, key, value = self.Wqkv(hidden_BTC).unflatten(-1, (3, -1, self.size)).unbind(-3)
        share = self.router(query, padding_BT)
        query = self.kernels(query, hidden_BTC, share)
        if self.value_kernels is not None:
            value = self.value_kernels(value, hidden_BTC, share)
        return {"Wqkv": torch.stack((query, key, value), dim=-3).flatten(-3)}


class MAWModernBertModel(WithDepths, ModernBertModel):
    """ModernBERT with depth attention."""

    config_class = MAWModernBertConfig
    attention = MAWModernBertAttention
    attention_path = "layers.{}.attn"


class MAWQwen3Config(Qwen3Config):
    """Settings of Qwen3 with depth attention."""

    model_type = "maw-qwen3"
    maw: dict | None = None


class MAWQwen3Attention(DepthAttention, Qwen3Attention):
    """The self-attention of Qwen3 at picked depths; kernels follow the norm, which would undo part of them."""

    pretrained = Qwen3Attention
    rotary = True

    def weighted(self, hidden_BTC: Tensor, padding_BT: Tensor) -> dict[str, Tensor]:
        query = self.q_norm(self.q_proj(hidden_BTC).unflatten(-1, (-1, self.size)))
        query = self.kernels(query, hidden_BTC, self.router(query, padding_BT))
        return {"q_proj": query.flatten(-2), "q_norm": query}


class MAWQwen3Model(WithDepths, Qwen3Model):
    """Qwen3 with depth attention."""

    config_class = MAWQwen3Config
    attention = MAWQwen3Attention
    attention_path = "layers.{}.self_attn"


class RotaryDepthAttention(DepthAttention):
    """For attention with rotary positions and separate maps of query, key and value."""

    query_map, value_map, rotary = "q_proj", "v_proj", True


class MAWEuroBertConfig(EuroBertConfig):
    """Settings of EuroBERT with depth attention."""

    model_type = "maw-eurobert"
    maw: dict | None = None


class MAWEuroBertAttention(RotaryDepthAttention, EuroBertAttention):
    """The self-attention of EuroBERT at picked depths."""

    pretrained = EuroBertAttention


class MAWEuroBertModel(WithDepths, EuroBertModel):
    """EuroBERT with depth attention."""

    config_class = MAWEuroBertConfig
    attention = MAWEuroBertAttention
    attention_path = "layers.{}.self_attn"


class MAWNomicBertConfig(NomicBertConfig):
    """Settings of NomicBERT with depth attention."""

    model_type = "maw-nomic_bert"
    maw: dict | None = None


class MAWNomicBertAttention(RotaryDepthAttention, NomicBertAttention):
    """The self-attention of NomicBERT at picked depths."""

    pretrained = NomicBertAttention


class MAWNomicBertModel(WithDepths, NomicBertModel):
    """NomicBERT with depth attention."""

    config_class = MAWNomicBertConfig
    attention = MAWNomicBertAttention
    attention_path = "layers.{}.self_attn"
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWGteConfig(GteConfig):
    """Settings of GTE with depth attention."""

    model_type = "maw-gte"
    maw: dict | None = None


class MAWGteAttention(RotaryDepthAttention, GteAttention):
    """The self-attention of GTE at picked depths."""

    pretrained = GteAttention


class MAWGteModel(WithDepths, GteModel):
    """GTE with depth attention."""

    config_class = MAWGteConfig
    attention = MAWGteAttention
    attention_path = "layers.{}.self_attn"
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWJinaEmbeddingsV3Config(JinaEmbeddingsV3Config):
    """Settings of Jina v3 with depth attention."""

    model_type = "maw-jina_embeddings_v3"
    maw: dict | None = None


class MAWJinaEmbeddingsV3Attention(RotaryDepthAttention, JinaEmbeddingsV3Attention):
    """The self-attention of Jina v3 at picked depths."""

    pretrained = JinaEmbeddingsV3Attention


class MAWJinaEmbeddingsV3Model(WithDepths, JinaEmbeddingsV3Model):
    """Jina v3 with depth attention."""

    config_class = MAWJinaEmbeddingsV3Config
    attention = MAWJinaEmbeddingsV3Attention
    attention_path = "layers.{}.self_attn"
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWQwen2Config(Qwen2Config):
    """Settings of Qwen2 with depth attention."""

    model_type = "maw-qwen2"
    maw: dict | None = None


class MAWQwen2Attention(RotaryDepthAttention, Qwen2Attention):
    """The self-attention of Qwen2 at picked depths."""

    pretrained = Qwen2Attention


class MAWQwen2Model(WithDepths, Qwen2Model):
    """Qwen2 with depth attention."""

    config_class = MAWQwen2Config
    attention = MAWQwen2Attention
    attention_path = "layers.{}.self_attn"


class MAWLlamaConfig(LlamaConfig):
    """Settings of Llama with depth attention."""

    model_type = "maw-llama"
    maw: dict | None = None


class MAWLlamaAttention(RotaryDepthAttention, LlamaAttention):
    """The self-attention of Llama at picked depths."""

    pretrained = LlamaAttention


class MAWLlamaModel(WithDepths, LlamaModel):
    """Llama with depth attention."""

    config_class = MAWLlamaConfig
    attention = MAWLlamaAttention
    attention_path = "layers.{}.self_attn"


class MAWMistralConfig(MistralConfig):
    """Settings of Mistral with depth attention."""

    model_type = "maw-mistral"
    maw: dict | None = None


class MAWMistralAttention(RotaryDepthAttention, MistralAttention):
    """The self-attention of Mistral at picked depths."""

    pretrained = MistralAttention


class MAWMistralModel(WithDepths, MistralModel):
    """Mistral with depth attention."""

    config_class = MAWMistralConfig
    attention = MAWMistralAttention
    attention_path = "layers.{}.self_attn"


class MAWGemma3TextConfig(Gemma3TextConfig):
    """Settings of the text model of Gemma 3 with depth attention."""

    model_type = "maw-gemma3_text"
    maw: dict | None = None


class MAWGemma3Attention(DepthAttention, Gemma3Attention):
    """The self-attention of Gemma 3 at picked depths; kernels follow the norm, which would undo part of them."""

    pretrained = Gemma3Attention
    rotary = True

    def weighted(self, hidden_BTC: Tensor, padding_BT: Tensor) -> dict[str, Tensor]:
        query = self.q_norm(self.q_proj(hidden_BTC).unflatten(-1, (-1, self.size)))
        query = self.kernels(query, hidden_BTC, self.router(query, padding_BT))
        return {"q_proj": query.flatten(-2), "q_norm": query.transpose(1, 2)}


class MAWGemma3TextModel(WithDepths, Gemma3TextModel):
    """The text model of Gemma 3 with depth attention."""

    config_class = MAWGemma3TextConfig
    attention = MAWGemma3Attention
    attention_path = "layers.{}.self_attn"


class MAWMPNetConfig(MPNetConfig):
    """Settings of MPNet with depth attention."""

    model_type = "maw-mpnet"
    maw: dict | None = None


class MAWMPNetAttention(DepthAttention, MPNetSelfAttention):
    """The self-attention of MPNet at picked depths; its layers hand no padding mask down, so the mask tells it."""

    pretrained = MPNetSelfAttention
    query_map, value_map = "q", "v"

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *given: Any, **inputs: Any) -> Any:
        padding = torch.ones(hidden_states.shape[:2], device=hidden_states.device)
        if attention_mask is not None:  # additive, (B, 1, 1 or T, T)
            allowed = attention_mask > torch.finfo(attention_mask.dtype).min / 2
            padding = padding * allowed.flatten(1, 2).any(1)
        return super().forward(hidden_states, attention_mask, *given, padding_BT=padding, **inputs)


class MAWMPNetModel(WithDepths, MPNetModel):
    """MPNet with depth attention."""

    config_class = MAWMPNetConfig
    attention = MAWMPNetAttention
    attention_path = "encoder.layer.{}.attention.attn"
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWT5Config(PreTrainedConfig):
    """Settings of T5's encoder with depth attention.

    It is no T5Config: for one sentence-transformers would load transformers' own encoder, without the depths.
    """

    model_type = "maw-t5"
    attribute_map = T5Config.attribute_map
    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float | int = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    dense_act_fn: str = "relu"
    is_gated_act: bool = False
    use_cache: bool = False
    is_encoder_decoder: bool = False
    is_decoder: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1
    tie_word_embeddings: bool = True
    maw: dict | None = None


class MAWT5Attention(DepthAttention, T5Attention):
    """The self-attention of T5 at picked depths."""

    pretrained = T5Attention
    query_map, value_map = "q", "v"


class MAWT5Model(WithDepths, T5EncoderModel):
    """T5's encoder with depth attention."""

    config_class = MAWT5Config
    attention = MAWT5Attention
    attention_path = "encoder.block.{}.layer.0.SelfAttention"


MODELS = {
    model.config_class.model_type.removeprefix("maw-"): model
    for model in (
        MAWBertModel,
        MAWRobertaModel,
        MAWXLMRobertaModel,
        MAWCamembertModel,
        MAWElectraModel,
        MAWDistilBertModel,
        MAWModernBertModel,
        MAWQwen3Model,
        MAWEuroBertModel,
        MAWNomicBertModel,
        MAWGteModel,
        MAWJinaEmbeddingsV3Model,
        MAWQwen2Model,
        MAWLlamaModel,
        MAWMistralModel,
        MAWGemma3TextModel,
        MAWMPNetModel,
        MAWT5Model,
    )
}
"""Pretrained model type -> the model with depth attention."""
