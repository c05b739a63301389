"""What a processor computes faster in another way than PyTorch's default one, with the same result.

- `attention`: the backward pass of fused attention on a CPU takes several times as long as that of two matrix products
  and a softmax, and with dropout there is no fused forward pass either.
- `ByteDropout`: eight decisions from each random number, where PyTorch draws one.
- `PackedLinear`: outside training the weights of linear maps are brought once into the order that the matrix units
  read them in, instead of in every product, and the bias is added by the product itself.

On other devices all three are PyTorch's own. `maw.retriever` builds every model with them, so all methods share them.

Letters: B texts, H heads, T tokens, E head size.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "maw"
"""Name of `attention` in transformers, for `attn_implementation`."""
MOST_SCORES = 2**25  # that may be held at once; longer texts are left to the fused kernel, which holds none
_PACKABLE = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()

Packs = dict[tuple[nn.Module, torch.dtype], tuple[Tensor, Tensor | None]]
_packs: ContextVar[Packs | None] = ContextVar("packs", default=None)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, called as transformers calls its own.

    Args:
        query: (B, H, T, E), as key and value.
        attention_mask: boolean, True where a token may attend, or additive; None where all may.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, T, H, E), and None where weights would stand.
    """
    causal = options.get("is_causal")
    if causal is None:
        causal = attention_mask is None and getattr(module, "is_causal", True)
    if causal or not _better_by_products(query, key, value, dropout, options):
        known = {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **known, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        scores = (query * scale) @ key.transpose(-1, -2)
        if attention_mask is not None:
            scores = scores + _additive(attention_mask, scores.dtype)
        dropped, gain = drop_unscaled(scores.softmax(-1), dropout)
        mixed = dropped @ value
        return (mixed * gain if gain != 1 else mixed).transpose(1, 2).contiguous(), None


def _better_by_products(query: Tensor, key: Tensor, value: Tensor, dropout: float, options: dict[str, Any]) -> bool:
    """In training, on a CPU: in bfloat16, whose fused backward pass is the slowest, and wherever there is dropout."""
    learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    plain = query.shape[1] == key.shape[1] and options.get("position_bias") is None
    small = query.shape[:3].numel() * key.shape[2] <= MOST_SCORES
    slow = dropout > 0 or query.dtype == torch.bfloat16
    return query.device.type == "cpu" and learns and plain and small and slow


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores; where all queries share it, for one of them."""
    if mask.shape[2] > 1 and mask.stride(2) == 0:
        mask = mask[:, :, :1]
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # without it transformers makes no mask, and padding leaks


class ByteDropout(nn.Dropout):
    """Dropout whose probability on a CPU is rounded to the next of 256 steps: 0.1 becomes 26/256."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.inplace or values.device.type != "cpu":
            return super().forward(values)
        kept, gain = drop_unscaled(values, self.p)
        return kept * gain if gain != 1 else kept


def drop_unscaled(values: Tensor, probability: float) -> tuple[Tensor, float]:
    """Values with some of them zero, and what to multiply by so that their mean stays.

    Noise comes from PyTorch's own generator of the CPU. What a step of 1/256 would distort is left to PyTorch.
    """
    if probability == 0:
        return values, 1.0
    steps = round(256 * probability)
    if not 8 <= steps <= 248 or values.dtype not in _MASKS:
        return F.dropout(values, probability), 1.0
    return _Masked.apply(values, _keep_mask(values, steps)), 256 / (256 - steps)


_MASKS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def _keep_mask(values: Tensor, steps: int) -> Tensor:
    """Integers of all ones where a value stays, with probability 1 - steps / 256, and zero elsewhere."""
    kind = _MASKS[values.dtype]
    count = values.numel()
    numbers = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), 2**63 - 1)
    mask = numbers.view(torch.uint8)[:count].view(values.shape).to(kind)
    return mask.sub_(256 - steps).bitwise_right_shift_(8 * kind.itemsize - 1)  # the sign, spread over all bits


class _Masked(torch.autograd.Function):
    """Values, and their gradients, zero where the mask is: an "and" is much faster than a choice or a product."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return (values.view(mask.dtype) & mask).view(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradient.view(mask.dtype) & mask).view(gradient.dtype), None


class PackedLinear(nn.Linear):
    """A linear map that inside `packed_weights`, without gradient and on a CPU, uses weights packed once."""

    @classmethod
    def of(cls, linear: nn.Linear) -> PackedLinear:
        """The same map with the same parameters."""
        made = nn.utils.skip_init(cls, linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, values: Tensor) -> Tensor:
        packs = _packs.get()
        if packs is None or torch.is_grad_enabled() or values.device.type != "cpu":
            return super().forward(values)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else values.dtype
        key = (self, dtype)
        if key not in packs:
            weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().to(dtype).contiguous(), None)
            packs[key] = (weight, None if self.bias is None else self.bias.detach().to(dtype))
        return torch.ops.mkldnn._linear_pointwise(values.to(dtype), *packs[key], "none", [], "")


@contextlib.contextmanager
def packed_weights() -> Iterator[None]:
    """A block in which no weight changes; packed weights are kept until its end."""
    if not _PACKABLE or _packs.get() is not None:
        yield
        return
    token = _packs.set({})
    try:
        yield
    finally:
        _packs.reset(token)


def use_faster_modules(model: nn.Module) -> None:
    """Puts `PackedLinear` and `ByteDropout` where a model has PyTorch's own, in place; parameters stay the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear.of(child))
            elif type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p, child.inplace).train(child.training))
