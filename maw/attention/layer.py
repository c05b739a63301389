"""Multi-Attention-Weight attention: D weights for every query-key pair, of which a router picks one.

Ordinary attention sums the element-wise product of query and key. Here every head has D learned weightings of that
product, the depth kernels:

    score[b,h,q,k,d] = scale * sum_e query[b,h,q,e] * W[h,d,e] * key[b,h,k,e]
    attn[b,h,q,k,d]  = softmax over k of (score + mask)

`W = 1` is ordinary attention. The pick never depends on the key, so `attention(query * W[h, d], key, value)` is
exactly the selected slice of that 5-D tensor: `MAWAttentionLayer` computes only the slice, with the backend's fused
attention, at the price of one product and a small router. `attention_5d` is the whole tensor, for analysis and tests.

Two kernel families stand behind one interface. `diagonal` is the formula. `low_rank` adds a change of rank r to the
layer's query map for each depth, a weighting that may look at the text. Both change attention weights and nothing
else. With rotary positions the query is weighted before it is rotated and a diagonal kernel treats the two halves of
a rotary pair alike, so weighting before and after the rotation are the same thing.

An ablation that is not MAW, since more than attention weights is picked: with `value_kernels` the same pick also
chooses among kernels of the values, which makes a layer a mixture of adapters.

Letters: B texts, G samples of each text, H heads, T tokens (Q as queries, K as keys), D depths, E head size,
C hidden size, R kernel rank; h is 1 or H and t is 1 or T, by how the router routes.
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
    """The whole 5-D attention tensor, materialised: for analysis and tests, never for training.

    Args:
        query_BHQDE: the query at every depth, from a kernel's `all_depths`; it and the key are taken as float32 at
            least.
        mask: boolean (True: may attend) or additive, broadcastable to (B, H, Q, K); None where all may attend.

    Returns:
        attn_BHQKD, summing to one over K.
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
    """Stands where a Hugging Face layer's self-attention stood, and holds it.

    Called like the module it replaces, with one more keyword: `routing`, the plan of the whole pass. Without it the
    layer takes its greedy depths, so the model still works when called directly.

    When the plan asks for G samples of each text, the first MAW layer receives every text G times over and computes
    projections and kernel features once for each text; later layers differ between samples and compute them all.

    Args:
        attention: the pretrained attention module; its weights are used, not copied.
        architecture: adapter of its family.
        kernels: depth kernels.
        router: who picks.
        value_kernels: depth kernels of the values, for the ablation; None, and depths change attention weights alone.

    Raises:
        ValueError: value kernels with a pick for each token; every token of a text reads the same values.
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
        *,
        routing: Routing | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, None]:
        """Attends with the picked depths.

        Args:
            hidden_states: (B*G, T, C).
            attention_mask: as the module that is replaced gets it; None where all tokens attend to all.
            routing: the plan of the pass; None for greedy depths.
            inputs: what else that module gets, such as rotary positions.

        Returns:
            The attention output, (B*G, T, C), and None where weights would stand.

        Raises:
            ModelError: tokens of an earlier call are to be attended to, which no pick of this one is made from.
        """
        _refuse_cache(inputs.get("past_key_values"), hidden_states.shape[1], getattr(self.base, "layer_idx", 0))
        if routing is None:
            routing = Routing(_tokens_seen(hidden_states, attention_mask))
        inputs["attention_mask"] = attention_mask
        copies = len(hidden_states) // len(routing.padding_BT) if routing.layer == 0 else 1
        hidden = hidden_states[::copies]
        query, key, value = self.architecture.project(self.base, hidden)
        gate = self._gate(query, routing, copies)
        weighted = self.kernels(query, self.kernels.features(hidden), gate).to(key.dtype)  # (texts, samples, H, T, E)
        if self.value_kernels is not None:
            features = self.value_kernels.features(hidden)
            value = self.value_kernels(value, features, gate).to(key.dtype).flatten(0, 1)
        elif weighted.shape[1] > 1 and not self.architecture.rotary and _is_shared(attention_mask):
            return self._attend_together(weighted, key, value, inputs), None
        elif copies > 1:
            value = value.repeat_interleave(copies, 0)
        if copies > 1:
            key = key.repeat_interleave(copies, 0)
        weighted, key = self.architecture.rotate((weighted.flatten(0, 1), key), inputs)
        return self.architecture.attend(self.base, weighted, key, value, inputs), None

    def _attend_together(
        self, weighted_BGHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, inputs: dict[str, Any]
    ) -> Tensor:
        """The samples of a text as more queries to the same keys and values: (B*G, T, C)."""
        samples, tokens = weighted_BGHTE.shape[1], weighted_BGHTE.shape[3]
        query = weighted_BGHTE.transpose(2, 3).flatten(1, 2).transpose(1, 2)  # (B, H, G*T, E)
        mask = inputs["attention_mask"]
        if mask is not None:
            mask = mask[::samples, :, :1].expand(-1, -1, samples * tokens, -1)
        output = self.architecture.attend(self.base, query, key_BHTE, value_BHTE, inputs | {"attention_mask": mask})
        return output.unflatten(1, (samples, tokens)).flatten(0, 1)

    def _gate(self, query: Tensor, routing: Routing, copies: int) -> Tensor:
        """The picks, shaped for `query`: (texts, samples, h, t[, D]); past the first layer samples are texts."""
        taken = self.router(query, routing)
        if copies == taken.shape[1]:
            return taken
        return taken.flatten(0, 1)[:, None]

    def reference(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor]:
        """The materialised form, of which `mix_depth` takes a slice.

        Args: as `MAWAttentionLayer.forward`, without samples: (B, T, C); and
            weigh: query (B, H, T, E) and hidden states to the queries whose attention is wanted, (B, H, T, any D, E);
                those at every depth, if not given.

        Returns:
            attn_BHQKD, and the values that it mixes: (B, H, K, E), or with value kernels those of every depth,
            (B, H, K, D, E).

        Raises:
            ModelError: a backend such as flash attention, whose masks do not say who may attend to whom.
        """
        name = str(self.base.config._attn_implementation)
        if "flash" in name or (attention_mask is not None and attention_mask.ndim == 2):
            text = 'load the model with attn_implementation="sdpa" to see the attention itself'
            raise ModelError(f"the masks of {name} do not say which tokens may attend to which; {text}")
        inputs["attention_mask"] = attention_mask
        query, key, value = self.architecture.project(self.base, hidden_states)
        every = (weigh or self.kernels.all_depths)(query, hidden_states)  # (B, H, T, D, E)
        heads, depths = every.shape[1], every.shape[3]
        every = every.permute(0, 3, 1, 2, 4).flatten(1, 2)  # depths join the heads, as rotation is blind to both
        every, key = self.architecture.rotate((every, key), inputs)
        every = every.unflatten(1, (depths, heads)).permute(0, 2, 3, 1, 4)
        if self.value_kernels is not None:
            value = self.value_kernels.all_depths(value, hidden_states)
        if attention_mask is None and self.architecture.causal:
            tokens = hidden_states.shape[1]
            attention_mask = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden_states.device).tril()
        return attention_5d(every, key, attention_mask, query.shape[-1] ** -0.5), value


def _refuse_cache(cache: Any, tokens: int, place: int) -> None:
    """Depths are picked from a whole text, so that one must not come piece by piece.

    The layers below `place` have put this call's tokens into the cache already, the others have not.
    """
    held = [] if cache is None else [cache.get_seq_length(layer) for layer in range(len(cache.layers))]
    if max(held[:place], default=0) > tokens or max(held[place:], default=0) > 0:
        raise ModelError("depth attention reads a text as a whole; call the model with use_cache=False and all tokens")


def _is_shared(mask: Tensor | None) -> bool:
    """Whether every query token of a text may attend to the same ones, as far as the mask's layout says it."""
    return mask is None or mask.shape[2] == 1 or mask.stride(2) == 0


def _tokens_seen(hidden_BTC: Tensor, mask: Tensor | None) -> Tensor:
    """The padding mask that an attention mask implies: a token that no one attends to is padding.

    Flash attention takes the padding mask as it is, (B, T).
    """
    batch, tokens, _ = hidden_BTC.shape
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.long, device=hidden_BTC.device)
    if mask.ndim == 2:
        return mask.long()
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return allowed.flatten(1, 2).any(1).long().expand(batch, -1)


def select_depth(attn_BHQKD: Tensor, depth: Tensor) -> Tensor:
    """The slice of the 5-D tensor that one pick, int64 (B, h, t), takes: (B, H, Q, K)."""
    batch, heads, queries, keys, _ = attn_BHQKD.shape
    index = depth[..., None, None].expand(batch, heads, queries, keys, 1)
    return attn_BHQKD.gather(-1, index).squeeze(-1)


def mix_depth(attn_BHQKD: Tensor, value: Tensor, depth: Tensor) -> Tensor:
    """What one pick, int64 (B, h, t), makes of `MAWAttentionLayer.reference`: the mixed values (B, H, Q, E)."""
    if value.ndim == 5:  # (B, H, K, D, E); t is 1, for a value is the same to every token that reads it
        batch, heads, keys, _, size = value.shape
        value = value.gather(3, depth[..., None, None].expand(batch, heads, keys, 1, size)).squeeze(3)
    return select_depth(attn_BHQKD, depth) @ value.to(attn_BHQKD.dtype)
