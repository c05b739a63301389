"""Faster CPU kernels than PyTorch's defaults, with the same results.

- `attention`: on a CPU the backward pass of fused attention takes several times as long as that of two matrix products
  and a softmax, and in bfloat16 so does its forward pass; with dropout PyTorch has no fused forward pass at all.
- `ByteDropout`: one 64-bit random number decides on eight values; PyTorch draws one number for each value.
- `PackedLinear`: matrix products of few shapes, because oneDNN compiles a kernel for each shape; frozen weights are
  packed once into the layout of the matrix units; the product adds the bias itself.

On other devices all three call PyTorch's own. `maw.models.retriever` builds every model with them, so all methods use
the same kernels.

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

from maw.models.unpadding import ROWS, tokens_alone

ATTENTION = "maw"
"""Name of `attention` in transformers, for `attn_implementation`."""
MOST_SCORES = 2**25  # attention scores in memory at once; above it the fused kernel runs, which stores none
_SCORES_IN_CACHE = 2**20  # computed at once, unless one text has more: 2 MB in bfloat16
_PACKABLE = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


@dataclass(frozen=True)
class _Packs:
    """Packed weights by module and number format; `trained`: whether trained weights may be packed too."""

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
    """Scaled dot-product attention with the signature of a transformers `AttentionInterface`.

    Args:
        query: (B, H, T, E), as key and value; (1, H, N, E) inside of `RealTokens.alone`.
        attention_mask: boolean (True: may attend) or additive; None: every token may attend.
        dropout: probability of dropping an attention weight.

    Returns:
        The output (B, T, H, E) or (1, N, H, E), and None in place of attention weights.
    """
    tokens = tokens_alone()
    if tokens is not None:
        query, key, value = tokens.put_heads(query, key, value)
    causal = options.get("is_causal")
    if causal is None:
        causal = attention_mask is None and getattr(module, "is_causal", True)
    if causal or not _better_by_products(query, key, value, dropout, options):
        known = {"dropout": dropout, "scaling": scaling}
        mixed = sdpa_attention_forward(module, query, key, value, attention_mask, **known, **options)[0]
    else:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        mixed = _by_products(query, key, value, attention_mask, dropout, scale).transpose(1, 2).contiguous()
    return mixed if tokens is None else tokens.take(mixed), None


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """Attention by two matrix products and a softmax, (B, H, T, E)."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary positions may have made them float32
    texts, heads, queries = query.shape[:3]
    if mask is None:
        mask = query.new_zeros(1, 1, 1, key.shape[2])
    mask = _additive(mask, query.dtype).expand(texts, heads, -1, -1)

    def some(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        query, key, value, mask = (each.flatten(0, 1) for each in (query, key, value, mask))
        scores = torch.baddbmm(mask, query, key.mT, alpha=scale)
        dropped, gain = drop_unscaled(scores.softmax(-1), dropout)
        mixed = torch.bmm(dropped, value)
        return (mixed * gain if gain != 1 else mixed).unflatten(0, (-1, heads))

    # With dropout all at once: the number of draws must not depend on the parts.
    size = texts if dropout else max(1, _SCORES_IN_CACHE // (heads * queries * key.shape[2]))
    parts_of = (each.split(size) for each in (query, key, value, mask))
    with torch.autocast("cpu", enabled=False):
        parts = [some(*part) for part in zip(*parts_of, strict=True)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _better_by_products(query: Tensor, key: Tensor, value: Tensor, dropout: float, options: dict[str, Any]) -> bool:
    """Whether plain matrix products are faster: on a CPU, with dropout or in bfloat16.

    Without gradients they are so on processors that compute in bfloat16; others convert. Dropout decides without
    gradients, too: activation checkpointing runs a layer first without them and then with them, and must drop the same
    values.
    """
    gradients = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    rounded = query.dtype == torch.bfloat16 and (gradients or _packable(query.dtype))
    plain = query.shape[1] == key.shape[1] and options.get("position_bias") is None
    texts = query.shape[0] if dropout or gradients else 1  # whose scores are in memory at once
    small = texts * query.shape[1:3].numel() * key.shape[2] <= MOST_SCORES
    return query.device.type == "cpu" and (dropout > 0 or rounded) and plain and small


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in additive form; (B, 1, 1, T) if all queries share it."""
    if mask.shape[2] > 1 and mask.stride(2) == 0:
        mask = mask[:, :, :1]
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # without it transformers makes no mask, and padding leaks


class ByteDropout(nn.Dropout):
    """Dropout; on a CPU its probability is rounded to a multiple of 1/256: 0.1 becomes 26/256."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.inplace or values.device.type != "cpu":
            return super().forward(values)
        kept, gain = drop_unscaled(values, self.p)
        return kept * gain if gain != 1 else kept


def drop_unscaled(values: Tensor, probability: float) -> tuple[Tensor, float]:
    """Sets random values to zero; returns the values and the factor that keeps their mean.

    The noise comes from PyTorch's CPU generator. PyTorch's own dropout handles probabilities near 0 or 1, which steps
    of 1/256 would distort.
    """
    if probability == 0:
        return values, 1.0
    steps = round(256 * probability)
    if not 8 <= steps <= 248 or values.dtype not in _MASKS:
        return F.dropout(values, probability), 1.0
    return _Masked.apply(values, _keep_mask(values, steps)), 256 / (256 - steps)


_MASKS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def _keep_mask(values: Tensor, steps: int) -> Tensor:
    """Integers with all bits set where a value is kept, with probability 1 - steps / 256, and zero elsewhere."""
    kind = _MASKS[values.dtype]
    count = values.numel()
    numbers = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), 2**63 - 1)
    mask = numbers.view(torch.uint8)[:count].view(values.shape).to(kind)
    return mask.sub_(256 - steps).bitwise_right_shift_(8 * kind.itemsize - 1)  # copies the sign into all bits


class _Masked(torch.autograd.Function):
    """Sets values and their gradients to zero where the mask is zero; "and" is faster than a choice or a product."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return (values.view(mask.dtype) & mask).view(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradient.view(mask.dtype) & mask).view(gradient.dtype), None


class PackedLinear(nn.Linear):
    """A linear map that computes products of few shapes on a CPU, with packed weights inside `packed_weights`.

    oneDNN compiles a bfloat16 kernel for each number of rows, which takes as long as running it: rows are padded to a
    multiple of `ROWS`. Weights that need no gradient are packed once.
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
            # Without gradients only the packed weights are read.
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
    """values @ weight.T + bias, with rows padded by zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
        rows = _filled_up(values)
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        result = F.linear(rows, weight, bias) if packed is None else _product(rows, packed, bias)
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
    """Values as rows; in bfloat16 rows of zeros follow."""
    rows = values.reshape(-1, values.shape[-1])
    missing = -len(rows) % ROWS if values.dtype == torch.bfloat16 else 0
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


@contextlib.contextmanager
def packed_weights(*, trained: bool = True) -> Iterator[None]:
    """Inside the block, linear maps whose weights need no gradient use packed weights, kept until its end.

    Args:
        trained: whether trained weights are packed too; they must not change inside the block.
    """
    outer = _packs.get()
    inherited = {} if outer is None else {key: each for key, each in outer.packed.items() if _frozen(key[0])}
    token = _packs.set(_Packs(inherited, trained) if _PACKABLE else None)
    try:
        yield
    finally:
        _packs.reset(token)


def rows_are_alone(dtype: torch.dtype) -> bool:
    """Whether linear maps give a row the same bits whatever rows are beside it.

    Packed weights do so, without gradients and from `ROWS` rows on. No documentation promises it, so it is tried.
    """
    return _packs.get() is not None and not torch.is_grad_enabled() and _packable(dtype) and _tried_rows(dtype)


@cache
def _tried_rows(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    values, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((512, 1536), (384, 1536), (384,))
    )
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    whole = _product(values, packed, bias)
    return all(torch.equal(_product(values[:rows], packed, bias), whole[:rows]) for rows in (64, 192, 320, 448))


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")


@cache
def _packable(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this format here; bfloat16 needs a processor with AVX-512 or later."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _frozen(linear: nn.Module) -> bool:
    return not any(each.requires_grad for each in linear.parameters())


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


@cache
def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for reuse instead of returning large blocks to the system.

    A layer's states are blocks of some megabytes; to get such a block from the system takes as long as to fill it. The
    peak of memory use stays the same. Other C libraries have no such setting.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**25)  # glibc's upper limit
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def use_faster_modules(model: nn.Module) -> None:
    """Replaces a model's Linear and Dropout modules by `PackedLinear` and `ByteDropout`, in place; parameters stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear.of(child))
            elif type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p, child.inplace).train(child.training))
