"""Multi-Attention-Weight (MAW) attention: every query-key pair has D attention weights, and a router picks one.

Ordinary attention sums the element-wise product of query and key. In MAW every head has D learned weightings W of
that product, its depth kernels:

    score[b,h,q,k,d] = scale * sum_e query[b,h,q,e] * W[h,d,e] * key[b,h,k,e]
    attn[b,h,q,k,d]  = softmax over k of (score + mask)

`W = 1` is ordinary attention. The depth does not depend on the key, so `attention(query * W[h, d], key, value)` equals
the slice of the 5-D tensor at depth d. `MAWAttentionLayer` computes only this slice, with the backend's fused
attention; the extra cost is one product and a small router. `attention_5d` computes the whole tensor, for analysis and
tests.

There are three kernel families. `diagonal` is the formula above. `gated`, the default, adds one change of rank R to
the layer's query map, whose parts each depth weighs in its own way; `low_rank` adds a change of its own for each
depth. So the weighting depends on the text. All change only attention weights. With rotary positions the query is
weighted before its rotation; a diagonal kernel has one weight for both features of a rotary pair, so weighting and
rotation commute.

With `value_kernels` the depth also selects a kernel of the values. This is an ablation and not MAW: it makes the layer
a mixture of adapters.

Letters: B texts, G samples of each text, H heads, T tokens (Q as queries, K as keys), D depths, E head size,
C hidden size, R kernel rank; h is 1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maw.attention.architectures import Architecture
from maw.attention.routers import Router, Routing
from maw.errors import ModelError


def attention_5d(query_BHQDE: Tensor, key_BHKE: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Computes the whole 5-D attention tensor in memory, for analysis and tests.

    Args:
        query_BHQDE: the query at every depth, from a kernel's `all_depths`; query and key are computed in float32 or
            wider.
        mask: boolean (True: may attend) or additive, broadcastable to (B, H, Q, K); None: every token may attend.

    Returns:
        attn_BHQKD, which sums to one over K.
    """
    dtype = torch.promote_types(query_BHQDE.dtype, torch.float32)
    score_BHQKD = scale * torch.einsum("bhqde,bhke->bhqkd", query_BHQDE.to(dtype), key_BHKE.to(dtype))
    if mask is not None:
        mask = mask[..., None]
        if mask.dtype == torch.bool:
            score_BHQKD = score_BHQKD.masked_fill(~mask, torch.finfo(score_BHQKD.dtype).min)
        else:
            score_BHQKD = score_BHQKD + mask
    return score_BHQKD.softmax(dim=-2)


class MAWAttentionLayer(nn.Module):
    """Replaces the self-attention module of a Hugging Face layer, and holds the replaced module as `base`.

    The layer is called like the module that it replaces, with one more keyword, `routing`. Without it the layer uses
    its greedy depths, so the model also works when it is called directly.

    For G samples of each text the first MAW layer receives every text G times and computes projections once for each
    text. Above it the hidden states differ between samples.

    Args:
        attention: the pretrained attention module; its weights are shared, not copied.
        architecture: adapter of the model family.
        kernels: depth kernels of the query.
        router: picks the depths.
        value_kernels: depth kernels of the values, for the ablation; None for MAW.

    Raises:
        ValueError: value kernels with a depth for each token, since all tokens of a text read the same values.
    """

    def __init__(
        self,
        attention: nn.Module,
        architecture: Architecture,
        kernels: nn.Module,
        router: Router,
        value_kernels: nn.Module | None = None,
    ):
        super().__init__()
        if value_kernels is not None and router.route_by == "token":
            raise ValueError('kernels of the values need route_by "sequence" or "head", got "token"')
        self.base = attention
        self.architecture = architecture
        self.kernels = kernels
        self.router = router
        self.value_kernels = value_kernels

    def kernel_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all depth kernels."""
        for kernels in (self.kernels, self.value_kernels):
            yield from () if kernels is None else kernels.parameters()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | Routing | None = None,
        *,
        routing: Routing | None = None,
        **inputs: Any,
    ) -> tuple[Any, ...]:
        """Attends at the router's depths.

        Args:
            hidden_states: (B*G, T, C).
            attention_mask: the mask that the replaced module takes; None: every token attends to every token.
            position_bias: what a family with relative positions adds to the scores; or the routing, from a layer that
                hands nothing else on.
            routing: how the routers pick; None for greedy depths. `NonMAWEncoder._run` in `maw/models/encoder.py`
                passes it through `Architecture.run` to the Hugging Face layer, which hands it on.
            inputs: the other inputs of the replaced module, such as rotary positions.

        Returns:
            What the replaced module returns: the attention output (B*G, T, C), and None in place of its weights.

        Raises:
            ModelError: a key-value cache holds tokens of an earlier call, which the router does not see.
        """
        _refuse_cache(inputs.get("past_key_values"), hidden_states.shape[1], getattr(self.base, "layer_idx", 0))
        if isinstance(position_bias, Routing):
            routing, position_bias = position_bias, None
        inputs = self._inputs(hidden_states, attention_mask, position_bias, inputs)
        if routing is None:
            routing = Routing(_padding_of(hidden_states, inputs["attention_mask"]))
        return self.architecture.attention_outputs(self._attend(hidden_states, routing, inputs), inputs)

    def _inputs(
        self, hidden_BTC: Tensor, mask: Tensor | None, bias: Tensor | None, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        given = {"attention_mask": mask} | ({} if bias is None else {"position_bias": bias})
        return self.architecture.attention_inputs(self.base, hidden_BTC, inputs | given)

    def _attend(self, hidden_states: Tensor, routing: Routing, inputs: dict[str, Any]) -> Tensor:
        copies = len(hidden_states) // len(routing.padding_BT) if routing.layer == 0 else 1
        hidden = hidden_states[::copies]
        query, key, value = self.architecture.project(self.base, hidden)
        depth = self.router(query, routing)  # (B, G, h, t) or (B, G, h, t, D)
        if copies != depth.shape[1]:
            depth = depth.flatten(0, 1)[:, None]  # above the first MAW layer the hidden states hold every sample
        weighted = self.kernels(query, hidden, depth).to(key.dtype)  # (texts, samples, H, T, E)
        if self.value_kernels is not None:
            value = self.value_kernels(value, hidden, depth).to(key.dtype).flatten(0, 1)
        elif (
            weighted.shape[1] > 1 and not self.architecture.rotary and _same_for_all_queries(inputs["attention_mask"])
        ):
            return self._attend_together(weighted, key, value, inputs)
        elif copies > 1:
            value = value.repeat_interleave(copies, 0)
        if copies > 1:
            key = key.repeat_interleave(copies, 0)
        weighted, key = self.architecture.rotate((weighted.flatten(0, 1), key), inputs)
        return self.architecture.attend(self.base, weighted, key, value, inputs)

    def _attend_together(
        self, weighted_BGHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, inputs: dict[str, Any]
    ) -> Tensor:
        """Attends with all samples of a text at once, as more queries to the same keys and values: (B*G, T, C)."""
        samples, tokens = weighted_BGHTE.shape[1], weighted_BGHTE.shape[3]
        query = weighted_BGHTE.transpose(2, 3).flatten(1, 2).transpose(1, 2)  # (B, H, G*T, E)
        mask = inputs["attention_mask"]
        if mask is not None:
            mask = mask[::samples, :, :1].expand(-1, -1, samples * tokens, -1)
        output = self.architecture.attend(self.base, query, key_BHTE, value_BHTE, inputs | {"attention_mask": mask})
        return output.unflatten(1, (samples, tokens)).flatten(0, 1)

    def reference(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        *,
        weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor]:
        """The attention tensor and the values at every depth.

        Args: as `MAWAttentionLayer.forward`, without samples: (B, T, C); and
            weigh: maps query (B, H, T, E) and hidden states to weighted queries (B, H, T, any D, E); by default to
                the queries at every depth.

        Returns:
            attn_BHQKD, and the values: (B, H, K, E), or (B, H, K, D, E) with value kernels.

        Raises:
            ModelError: a backend such as flash attention, whose masks do not state who may attend to whom.
        """
        name = str(self.base.config._attn_implementation)
        if "flash" in name or (attention_mask is not None and attention_mask.ndim == 2):
            text = 'load the model with attn_implementation="sdpa" to see the attention itself'
            raise ModelError(f"the masks of {name} do not say which tokens may attend to which; {text}")
        inputs = self._inputs(hidden_states, attention_mask, position_bias, inputs)
        attention_mask = inputs["attention_mask"]
        query, key, value = self.architecture.project(self.base, hidden_states)
        every = (weigh or self.kernels.all_depths)(query, hidden_states)  # (B, H, T, D, E)
        heads, num_depths = every.shape[1], every.shape[3]
        every = every.permute(0, 3, 1, 2, 4).flatten(1, 2)  # rotation treats each depth as one more head
        every, key = self.architecture.rotate((every, key), inputs)
        every = every.unflatten(1, (num_depths, heads)).permute(0, 2, 3, 1, 4)
        if self.value_kernels is not None:
            value = self.value_kernels.all_depths(value, hidden_states)
        if attention_mask is None and self.architecture.causal:
            tokens = hidden_states.shape[1]
            attention_mask = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden_states.device).tril()
        return attention_5d(every, key, attention_mask, self.architecture.scale(self.base)), value


def _refuse_cache(cache: Any, tokens: int, place: int) -> None:
    """Refuses a key-value cache with earlier tokens, because a router reads the whole text.

    The layers below `place` have already added this call's tokens to the cache; the others have not.
    """
    held = [] if cache is None else [cache.get_seq_length(layer) for layer in range(len(cache.layers))]
    if max(held[:place], default=0) > tokens or max(held[place:], default=0) > 0:
        raise ModelError("depth attention reads a text as a whole; call the model with use_cache=False and all tokens")


def _same_for_all_queries(mask: Tensor | None) -> bool:
    """Whether the mask's layout shows that all query tokens of a text may attend to the same tokens."""
    return mask is None or mask.shape[2] == 1 or mask.stride(2) == 0


def _padding_of(hidden_BTC: Tensor, mask: Tensor | None) -> Tensor:
    """The padding mask (B, T) that an attention mask implies: a token that no token attends to is padding."""
    batch, tokens, _ = hidden_BTC.shape
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.long, device=hidden_BTC.device)
    if mask.ndim == 2:  # flash attention takes the padding mask itself
        return mask.long()
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return allowed.flatten(1, 2).any(1).long().expand(batch, -1)
