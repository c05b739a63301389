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
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.camembert.modeling_camembert import CamembertSelfAttention
from transformers.models.distilbert.modeling_distilbert import DistilBertSelfAttention
from transformers.models.electra.modeling_electra import ElectraSelfAttention
from transformers.models.modernbert.modeling_modernbert import ModernBertAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention
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
    )
}
"""Pretrained model type -> the model with depth attention."""
