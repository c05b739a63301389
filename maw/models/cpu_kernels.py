"""What a processor computes faster in another way than PyTorch's default one, with the same result.

- `attention`: the backward pass of fused attention on a CPU takes several times as long as that of two matrix products
  and a softmax, and with dropout there is no fused forward pass either.
- `ByteDropout`: eight decisions from each random number, where PyTorch draws one.
- `PackedLinear`: products of few shapes, since the library makes a program for each; weights that do not change are
  brought once into the order that the matrix units read them in, and the bias is added by the product itself.

On other devices all three are PyTorch's own. `maw.models.retriever` builds every model with them, so all methods
share them.

Letters: B texts, H heads, T tokens, E head size.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
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
ROWS = 64
_PACKABLE = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


@dataclass(frozen=True)
class _Packs:
    """Packed weights by module and format, and whether trained ones may be among them."""

    packed: dict[tuple[nn.Module, torch.dtype], tuple[Tensor, Tensor | None]]
    trained: bool


_packs: ContextVar[_Packs | None] = ContextVar("packs", default=None)


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
    """A linear map whose products on a CPU have few shapes, and which may use weights packed beforehand.

    In bfloat16 the library makes a program for each number of rows, which takes as long as running it: rows are
    filled up to a multiple of `ROWS`. Inside `packed_weights` those weights that no gradient is asked for are packed
    once.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> PackedLinear:
        """The same map with the same parameters."""
        made = nn.utils.skip_init(cls, linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, values: Tensor) -> Tensor:
        if values.device.type != "cpu":
            return super().forward(values)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else values.dtype
        packed = self._packed(dtype)
        if packed is None and dtype != torch.bfloat16:
            return super().forward(values)
        with torch.autocast("cpu", enabled=False):
            bias = packed[1] if packed else _cast(self.bias, dtype)
            # Packed weights are all that is read, unless a gradient passes through them.
            weight = self.weight if packed and not torch.is_grad_enabled() else self.weight.to(dtype)
            return _Product.apply(values.to(dtype), weight, bias, packed[0] if packed else None)

    def _packed(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None] | None:
        packs = _packs.get()
        if packs is None or not _packable(dtype):
            return None
        if not (_frozen(self) or (packs.trained and not torch.is_grad_enabled())):
            return None
        if (self, dtype) not in packs.packed:
            weight = self.weight.detach().to(dtype).contiguous()
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            packs.packed[self, dtype] = packed, _cast(self.bias, dtype)
        return packs.packed[self, dtype]


class _Product(torch.autograd.Function):
    """values @ weight.T + bias over rows filled up with zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
        rows = _filled_up(values)
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        if packed is not None:
            result = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        else:
            result = F.linear(rows, weight, bias)
        return result[: values.shape[:-1].numel()].view(*values.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        above = _filled_up(gradient)
        to_values, to_weight, to_bias, _ = ctx.needs_input_grad
        return (
            (above @ weight)[: gradient.shape[:-1].numel()].view(*gradient.shape[:-1], -1) if to_values else None,
            above.T @ rows if to_weight else None,
            above.sum(0) if to_bias else None,
            None,
        )


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _filled_up(values: Tensor) -> Tensor:
    """Values as rows, in bfloat16 with rows of zeros behind them."""
    rows = values.reshape(-1, values.shape[-1])
    missing = -len(rows) % ROWS if values.dtype == torch.bfloat16 else 0
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


@contextlib.contextmanager
def packed_weights(*, trained: bool = True) -> Iterator[None]:
    """A block whose products without a gradient for their weights use packed ones, kept until its end.

    Args:
        trained: whether no trained weight changes inside; if not, frozen weights alone are packed.
    """
    outer = _packs.get()
    inherited = {} if outer is None else {key: each for key, each in outer.packed.items() if _frozen(key[0])}
    token = _packs.set(_Packs(inherited, trained) if _PACKABLE else None)
    try:
        yield
    finally:
        _packs.reset(token)


@cache
def _packable(dtype: torch.dtype) -> bool:
    """Whether the library packs weights of that format here; bfloat16 needs a processor with AVX-512 or later."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _frozen(linear: nn.Module) -> bool:
    return not any(each.requires_grad for each in linear.parameters())


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@cache
def keep_freed_memory() -> None:
    """Tells the C library to keep what is freed for what comes next, instead of handing every large block back.

    A layer's states are blocks of some megabytes, and taking one anew from the system costs as much as filling it.
    Only glibc knows how; the most memory in use stays what the largest moment needs.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def use_faster_modules(model: nn.Module) -> None:
    """Puts `PackedLinear` and `ByteDropout` where a model has PyTorch's own, in place; parameters stay the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear.of(child))
            elif type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p, child.inplace).train(child.training))
