"""Encoders: token ids, or cached hidden states of the frozen layers, to text embeddings.

`NonMAWEncoder` is a pretrained encoder and its pooling, `MAWWithGRPOEncoder` one with depth attention in it. Every
computation is a mode of an encoder's one `forward`, whose arguments and results are tensors with the batch first, so
that DataParallel and DistributedDataParallel need to know nothing else.

Letters: B texts, G samples of each text, T tokens, C hidden size, D depths, M MAW layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maw.attention.architectures import Architecture
from maw.attention.install import build_depth_attention
from maw.attention.layer import MAWAttentionLayer
from maw.attention.noise import mix64, text_keys
from maw.attention.routers import Routing
from maw.runtime.precision import computing_in


class NonMAWEncoder(nn.Module):
    """A pretrained encoder and its pooling: texts as token ids to embeddings.

    Args:
        backbone: Hugging Face encoder.
        architecture: adapter of its family.
        pooling: "mean" over a text's tokens; "cls", its first token; or "last", its last one.
        normalize: divide embeddings by their length, so that a dot product is the cosine.
        trained_layers: layers (from 1) that run in training mode when the encoder does; all others always run as at
            evaluation, dropout off, so that their output for a text is one fixed thing.
        prefix_layers: how many layers from the bottom no arm of the run trains; `mode="prefix"` ends there.
        precision: number format of matrix products, see `maw.runtime.precision`. The weights of the prefix layers,
            which nothing trains, are brought into it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        architecture: Architecture,
        *,
        pooling: str = "mean",
        normalize: bool = True,
        trained_layers: Sequence[int] = (),
        prefix_layers: int = 0,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.backbone = backbone
        self.architecture = architecture
        self.pooling, self.normalize = pooling, normalize
        self.trained_layers, self.prefix_layers = tuple(trained_layers), prefix_layers
        self.precision = precision
        architecture.layers(backbone)[:prefix_layers].to(precision)

    def round_frozen_weights(self) -> None:
        """Holds linear maps that nothing trains in the precision that they are used in: the same result, sooner."""
        for module in self.architecture.layers(self.backbone).modules():
            if isinstance(module, nn.Linear) and not any(each.requires_grad for each in module.parameters()):
                module.to(self.precision)

    def train(self, mode: bool = True) -> NonMAWEncoder:
        super().train(mode)
        for module in self.backbone.modules():
            module.training = False
        layers = self.architecture.layers(self.backbone)
        for number in self.trained_layers:
            layers[number - 1].train(mode)
        return self

    def forward(self, inputs: Mapping[str, Tensor], mode: str = "embed") -> Any:
        """Runs one mode.

        Args:
            inputs: "input_ids" (B, T), or "hidden" (B, T, C) from `mode="prefix"`; and "attention_mask" (B, T).
            mode: "embed" or "prefix".

        Returns:
            "embed": {"embedding": (B, C)}. "prefix": the hidden states (B, T, C) that enter the first layer above
            `prefix_layers`.

        Raises:
            ValueError: unknown mode.
        """
        if mode == "prefix":
            with torch.no_grad():
                return self._prefix(inputs)
        if mode == "embed":
            hidden = self._layers(self._prefix(inputs), inputs["attention_mask"], None)
            return {"embedding": self._pool(hidden, inputs["attention_mask"])}
        raise ValueError(f"unknown mode {mode!r}")

    def _prefix(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if "hidden" in inputs:
            return inputs["hidden"]
        hidden = self.architecture.embed(self.backbone, inputs["input_ids"])
        if self.prefix_layers:
            hidden = hidden.to(self.precision)
        return self._run(hidden, inputs["attention_mask"], None, 0, self.prefix_layers)

    def _layers(self, hidden_BTC: Tensor, padding_BT: Tensor, routing: Routing | None) -> Tensor:
        """From the prefix's output through the last layer; float32 between its matrix products."""
        total = len(self.architecture.layers(self.backbone))
        with computing_in(self.precision, hidden_BTC.device.type):
            hidden = self._run(hidden_BTC.float(), padding_BT, routing, self.prefix_layers, total)
            return self.architecture.finish(self.backbone, hidden).float()

    def _run(self, hidden: Tensor, padding: Tensor, routing: Routing | None, start: int, stop: int) -> Tensor:
        """Layers start..stop-1 (from 0). With a routing plan of G samples, the first MAW layer's output is G-fold."""
        extra = {} if routing is None else {"routing": routing}
        inputs = None
        for index in range(start, stop):
            layer = self.architecture.layers(self.backbone)[index]
            is_maw = isinstance(self.architecture.attention(layer), MAWAttentionLayer)
            if is_maw and routing is not None and routing.samples > 1 and routing.layer == 0:
                hidden, padding = (each.repeat_interleave(routing.samples, 0) for each in (hidden, padding))
                inputs = None
            if inputs is None:
                inputs = self.architecture.layer_inputs(self.backbone, hidden, padding)
            hidden = layer(hidden, **inputs[index], **(extra if is_maw else {}))
        return hidden

    def _pool(self, hidden_BTC: Tensor, padding_BT: Tensor) -> Tensor:
        if self.pooling == "cls":
            pooled = hidden_BTC[:, 0]
        elif self.pooling == "last":
            pooled = hidden_BTC[torch.arange(len(hidden_BTC), device=hidden_BTC.device), padding_BT.sum(1) - 1]
        else:
            weights = padding_BT.to(hidden_BTC.dtype)[..., None]
            pooled = (hidden_BTC * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


class MAWWithGRPOEncoder(NonMAWEncoder):
    """An encoder whose `maw_layers` hold depth attention; at its start it computes what the pretrained one does.

    Args: as `NonMAWEncoder`, and
        maw_layers: layers (from 1) that get depth kernels and a router.
        depths: D, kernels of each head.
        kernels: arguments of `build_kernels` beside those read off the backbone.
        router: arguments of `build_router` beside those read off the backbone.
        seed: of the kernels' noise, and of a random router's picks at evaluation.
        depth_values: let depths change the values too, an ablation that is not MAW.
    """

    def __init__(
        self,
        backbone: nn.Module,
        architecture: Architecture,
        *,
        maw_layers: Sequence[int],
        depths: int,
        kernels: Mapping[str, Any],
        router: Mapping[str, Any],
        seed: int,
        depth_values: bool = False,
        **options: Any,
    ):
        super().__init__(backbone, architecture, **options)
        self.maw_layers, self.seed = tuple(maw_layers), seed
        generator = torch.Generator().manual_seed(seed)
        for number in self.maw_layers:
            made = build_depth_attention(
                backbone,
                architecture,
                number,
                depths=depths,
                kernels=kernels,
                router=router,
                depth_values=depth_values,
                generator=generator,
            )
            architecture.replace_attention(architecture.layers(backbone)[number - 1], made)

    @property
    def maw_attention(self) -> list[MAWAttentionLayer]:
        """The MAW layers, bottom first."""
        layers = self.architecture.layers(self.backbone)
        return [self.architecture.attention(layers[number - 1]) for number in self.maw_layers]

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        mode: str = "embed",
        depths: Sequence[Tensor] | None = None,
        keys: Tensor | None = None,
    ) -> Any:
        """Runs one mode.

        Args:
            inputs: as for `NonMAWEncoder`; for "policy" {"states": one tensor for each MAW layer}.
            mode: "prefix"; "embed", one routing for each text; "group", G routings of the same text, which share
                all that does not depend on the depth; "policy", log-probabilities of every depth in given states.
            depths: picks to use, int64, for each MAW layer (B, G, h, t); else routers pick.
            keys: noise keys (B, G): depths are sampled; None: greedy.

        Returns:
            "embed": {"embedding": (B, C), "depth_share": (B, M, D), each text's share of picks}.
            "group": {"embedding": (B, G, C), "depths": [(B, G, h, t)], "states": [(B, 1 or G, h, t, F)]}.
            "policy": [log-probabilities (B, 1 or G, h, t, D)].
        """
        if mode == "policy":
            routers = (layer.router for layer in self.maw_attention)
            return [r.logits(state).log_softmax(-1) for r, state in zip(routers, inputs["states"], strict=True)]
        if mode not in ("embed", "group"):
            return super().forward(inputs, mode)
        padding = inputs["attention_mask"]
        routing = Routing(
            padding,
            keys_BG=keys,
            depths=None if depths is None else list(depths),
            text_keys_B1=self._text_keys(inputs),
            samples=_samples(keys, depths),
        )
        hidden = self._layers(self._prefix(inputs), padding, routing)
        embedding = self._pool(hidden, routing.flat_padding(len(hidden)))
        if mode == "embed":
            return {"embedding": embedding, "depth_share": self._depth_share(routing)}
        embedding = embedding.unflatten(0, (len(padding), -1))
        return {"embedding": embedding, "depths": routing.taken, "states": routing.states}

    def _text_keys(self, inputs: Mapping[str, Tensor]) -> Tensor:
        keys = inputs.get("text_keys")
        if keys is None:
            keys = text_keys(inputs["input_ids"], inputs["attention_mask"])
        return mix64(keys ^ self.seed)

    def _depth_share(self, routing: Routing) -> Tensor:
        """How often each text took each depth, by MAW layer, (B, M, D); padding is not counted."""
        shares = []
        for taken, layer in zip(routing.taken, self.maw_attention, strict=True):
            taken = taken.detach()
            soft = taken.is_floating_point()
            weights = taken if soft else _one_hot(taken, layer.router.depths)
            weights = weights.mean(dim=(1, 2))  # samples and heads: (B, t, D)
            if weights.shape[1] > 1:
                tokens = routing.padding_BT.to(weights.dtype)[..., None]
                weights = (weights * tokens).sum(1, keepdim=True) / tokens.sum(1, keepdim=True)
            shares.append(weights[:, 0])
        return torch.stack(shares, dim=1)


def _one_hot(taken: Tensor, depths: int) -> Tensor:
    """1 at the depth taken, float32 (..., D); unlike torch's own it does not look at the values on the host."""
    return (taken[..., None] == torch.arange(depths, device=taken.device)).float()


def _samples(keys: Tensor | None, depths: Sequence[Tensor] | None) -> int:
    if keys is not None:
        return keys.shape[1]
    return depths[0].shape[1] if depths else 1
