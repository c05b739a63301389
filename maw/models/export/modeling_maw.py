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
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

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
        features_BTDR = F.linear(hidden_BTC, self.down.flatten(0, 1)).unflatten(-1, self.down.shape[:2])
        weighted = share_BhtD.to(features_BTDR.dtype)[..., None] * features_BTDR[:, None]  # (B, h, T, D, R)
        return states_BTHE + (weighted.flatten(-2) @ self.up.flatten(1, 2)).transpose(1, 2)


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
            return F.one_hot(depth, self.num_depths).float()
        with torch.autocast(query_BTHE.device.type, enabled=False):
            state = self._state(query_BTHE.float(), padding_BT.float())
            state = F.rms_norm(state, state.shape[-1:])
            logits = torch.einsum("bhtf,hfd->bhtd", state, self.weight.float()) + self.bias.float()
        return logits.softmax(-1) if self.name == "soft" else F.one_hot(logits.argmax(-1), self.num_depths).float()

    def _state(self, query_BTHE: Tensor, padding_BT: Tensor) -> Tensor:
        if self.route_by == "token":
            return query_BTHE.transpose(1, 2)
        total_BHE = (query_BTHE * padding_BT[..., None, None]).sum(1)
        mean_BHE = total_BHE / padding_BT.sum(1).clamp(min=1)[:, None, None]
        return mean_BHE.flatten(1)[:, None, None] if self.route_by == "sequence" else mean_BHE[:, :, None]


class SharedLinear(nn.Linear):
    """A linear map that shares the weights of the pretrained map `plain`."""

    def __init__(self, plain: nn.Linear):
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias


class DepthLinear(SharedLinear):
    """A pretrained query map, followed by a router and depth kernels.

    Args:
        fused: whether the map also computes keys and values.
    """

    def __init__(self, plain: nn.Linear, maw: dict[str, Any], heads: int, size: int, *, fused: bool):
        super().__init__(plain)
        self.heads, self.size, self.fused = heads, size, fused
        self.router = Router(maw, heads, size)
        self.kernels = Kernels(maw, plain.in_features, heads, size, rotary=fused)
        if fused and maw["values"]:
            self.value_kernels = Kernels(maw, plain.in_features, heads, size, rotary=False)
        self.padding_BT: Tensor | None = None

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        states = super().forward(hidden_BTC).unflatten(-1, (-1, self.heads, self.size))  # (B, T, 1 or 3, H, E)
        parts = list(states.unbind(-3))
        share = self.router(parts[0], self.padding_BT)
        parts[0] = self.kernels(parts[0], hidden_BTC, share)
        if hasattr(self, "value_kernels"):
            parts[2] = self.value_kernels(parts[2], hidden_BTC, share)
        return torch.stack(parts, dim=-3).flatten(-3)

    def depth_share(self, hidden_BTC: Tensor) -> Tensor:
        """The router's share of each depth, (B, h, t, D)."""
        query = super().forward(hidden_BTC).unflatten(-1, (self.heads, self.size))
        return self.router(query, self.padding_BT)


class ValueLinear(SharedLinear):
    """A pretrained value map, followed by kernels at the depths of the layer's query map."""

    def __init__(self, plain: nn.Linear, maw: dict[str, Any], heads: int, size: int):
        super().__init__(plain)
        self.heads, self.size = heads, size
        self.kernels = Kernels(maw, plain.in_features, heads, size, rotary=False)
        self.query_map: list[DepthLinear] = []  # a list, so that it does not become a submodule here

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        values = super().forward(hidden_BTC).unflatten(-1, (self.heads, self.size))
        return self.kernels(values, hidden_BTC, self.query_map[0].depth_share(hidden_BTC)).flatten(-2)


class SeenLinear(SharedLinear):
    """A pretrained map that keeps its last input for the norm after it."""

    def __init__(self, plain: nn.Linear):
        super().__init__(plain)
        self.seen: Tensor | None = None

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        self.seen = hidden_BTC
        return super().forward(hidden_BTC)


class DepthNorm(Qwen3RMSNorm):
    """A pretrained query norm, followed by router and kernels; a norm after the kernels would undo part of them."""

    def __init__(self, plain: Qwen3RMSNorm, maw: dict[str, Any], hidden: int, heads: int, size: int):
        super().__init__(size, eps=plain.variance_epsilon)
        self.weight = plain.weight
        self.router = Router(maw, heads, size)
        self.kernels = Kernels(maw, hidden, heads, size, rotary=True)
        self.padding_BT: Tensor | None = None
        self.query_map: list[SeenLinear] = []

    def forward(self, query_BTHE: Tensor) -> Tensor:
        query_BTHE = super().forward(query_BTHE)
        return self.kernels(query_BTHE, self.query_map[0].seen, self.router(query_BTHE, self.padding_BT))


class WithDepths:
    """Installs depth attention in the layers that the settings name; a base class before the pretrained model's."""

    attention_path = "encoder.layer.{}.attention.self"
    query_map, value_map = "query", "value"
    fused = False
    options: dict[str, Any] = {}  # noqa: RUF012
    _supports_flash_attn = False  # flash attention drops the padding mask, which routers need

    def __init__(self, config: Any, *inputs: Any, **options: Any):
        super().__init__(config, *inputs, **(self.options | options))
        for number in config.maw["layers"]:
            self._install(self._attention(number))

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> BaseModelOutput:
        """As the pretrained model's forward; the mask must be (B, T), 1 for a token and 0 for padding."""
        tokens = inputs["inputs_embeds"][..., 0] if input_ids is None else input_ids
        padding = torch.ones_like(tokens, dtype=torch.long) if attention_mask is None else attention_mask
        if padding.shape != tokens.shape:
            raise ValueError(f"attention_mask must have the shape {tuple(tokens.shape)}, got {tuple(padding.shape)}")
        for number in self.config.maw["layers"]:
            self._prepare(self._attention(number), padding)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)

    def _install(self, attention: nn.Module) -> None:
        maw, heads = self.config.maw, self.config.num_attention_heads
        size = self.config.hidden_size // heads
        plain = getattr(attention, self.query_map)
        setattr(attention, self.query_map, DepthLinear(plain, maw, heads, size, fused=self.fused))
        if maw["values"] and not self.fused:
            plain = getattr(attention, self.value_map)
            setattr(attention, self.value_map, ValueLinear(plain, maw, heads, size))

    def _prepare(self, attention: nn.Module, padding_BT: Tensor) -> None:
        query_map = getattr(attention, self.query_map)
        query_map.padding_BT = padding_BT
        if isinstance(values := getattr(attention, self.value_map), ValueLinear):
            values.query_map = [query_map]

    def _attention(self, number: int) -> nn.Module:
        return self.get_submodule(self.attention_path.format(number - 1))


class MAWBertConfig(BertConfig):
    """Settings of BERT with depth attention."""

    model_type = "maw-bert"
    maw: dict | None = None


class MAWBertModel(WithDepths, BertModel):
    """BERT with depth attention."""

    config_class = MAWBertConfig
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWRobertaConfig(RobertaConfig):
    """Settings of RoBERTa with depth attention."""

    model_type = "maw-roberta"
    maw: dict | None = None


class MAWRobertaModel(WithDepths, RobertaModel):
    """RoBERTa with depth attention."""

    config_class = MAWRobertaConfig
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWXLMRobertaConfig(XLMRobertaConfig):
    """Settings of XLM-R with depth attention."""

    model_type = "maw-xlm-roberta"
    maw: dict | None = None


class MAWXLMRobertaModel(WithDepths, XLMRobertaModel):
    """XLM-R with depth attention."""

    config_class = MAWXLMRobertaConfig
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWCamembertConfig(CamembertConfig):
    """Settings of CamemBERT with depth attention."""

    model_type = "maw-camembert"
    maw: dict | None = None


class MAWCamembertModel(WithDepths, CamembertModel):
    """CamemBERT with depth attention."""

    config_class = MAWCamembertConfig
    options = {"add_pooling_layer": False}  # noqa: RUF012


class MAWElectraConfig(ElectraConfig):
    """Settings of ELECTRA with depth attention."""

    model_type = "maw-electra"
    maw: dict | None = None


class MAWElectraModel(WithDepths, ElectraModel):
    """ELECTRA with depth attention."""

    config_class = MAWElectraConfig


class MAWDistilBertConfig(DistilBertConfig):
    """Settings of DistilBERT with depth attention."""

    model_type = "maw-distilbert"
    maw: dict | None = None


class MAWDistilBertModel(WithDepths, DistilBertModel):
    """DistilBERT with depth attention."""

    config_class = MAWDistilBertConfig
    attention_path = "transformer.layer.{}.attention"
    query_map, value_map = "q_lin", "v_lin"


class MAWModernBertConfig(ModernBertConfig):
    """Settings of ModernBERT with depth attention."""

    model_type = "maw-modernbert"
    maw: dict | None = None


class MAWModernBertModel(WithDepths, ModernBertModel):
    """ModernBERT with depth attention."""

    config_class = MAWModernBertConfig
    attention_path = "layers.{}.attn"
    query_map = value_map = "Wqkv"
    fused = True


class MAWQwen3Config(Qwen3Config):
    """Settings of Qwen3 with depth attention."""

    model_type = "maw-qwen3"
    maw: dict | None = None


class MAWQwen3Model(WithDepths, Qwen3Model):
    """Qwen3 with depth attention."""

    config_class = MAWQwen3Config
    attention_path = "layers.{}.self_attn"
    query_map = "q_norm"

    def _install(self, attention: nn.Module) -> None:
        heads, size = self.config.num_attention_heads, self.config.head_dim
        attention.q_proj = SeenLinear(attention.q_proj)
        attention.q_norm = DepthNorm(attention.q_norm, self.config.maw, self.config.hidden_size, heads, size)

    def _prepare(self, attention: nn.Module, padding_BT: Tensor) -> None:
        attention.q_norm.padding_BT, attention.q_norm.query_map = padding_BT, [attention.q_proj]


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
