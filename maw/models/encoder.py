"""Encoders: they map token ids, or stored hidden states of the frozen layers, to text embeddings.

`NonMAWEncoder` is a pretrained encoder with pooling; `MAWWithGRPOEncoder` adds depth attention. All computations are
modes of `forward`, with tensors whose first dimension is the batch, as DataParallel and DistributedDataParallel need.

Letters: B texts, G samples of each text, T tokens, C hidden size, D depths, M MAW layers, F features of a router's
state; h is 1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maw.attention.architectures import Architecture
from maw.attention.install import install_depths
from maw.attention.layer import MAWAttentionLayer
from maw.attention.noise import mix64, text_keys
from maw.attention.routers import Routing
from maw.models.cpu_kernels import ATTENTION, rows_are_alone
from maw.models.unpadding import RealTokens, tokens_alone
from maw.runtime.precision import computing_in


class NonMAWEncoder(nn.Module):
    """A pretrained encoder with pooling: token ids to embeddings.

    Args:
        backbone: Hugging Face encoder.
        architecture: adapter of its family.
        pooling: "mean" over a text's tokens, "cls" for its first token, "last" for its last token.
        normalize: divide embeddings by their length, so that a dot product is the cosine.
        trained_layers: layers (from 1) that follow the encoder's training mode; all others always run in evaluation
            mode, without dropout, so that their output for a text is fixed.
        prefix_layers: number of lowest layers that no method of the run trains; `mode="prefix"` ends above them.
        precision: number format of matrix products (`maw.runtime.precision`), and of the prefix layers' weights.
        after_pooling: modules behind the pooling (`maw.models.after_pooling`), before normalisation; None for none.
        pretrained_layers: number of lowest layers that are as in the pretrained model, at least `prefix_layers`.
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
        after_pooling: nn.Sequential | None = None,
        pretrained_layers: int = 0,
    ):
        super().__init__()
        self.backbone = backbone
        self.architecture = architecture
        self.pooling, self.normalize = pooling, normalize
        self.trained_layers, self.prefix_layers = tuple(trained_layers), prefix_layers
        self.pretrained_layers = max(pretrained_layers, prefix_layers)
        self.precision = precision
        self.after_pooling = after_pooling
        architecture.layers(backbone)[:prefix_layers].to(precision)

    tokens_alone = staticmethod(tokens_alone)  # for `maw.runtime.profiler`, which imports no models

    def round_frozen_weights(self) -> None:
        """Converts frozen linear maps to the precision in which they compute: the same result, faster."""
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
            "embed": {"embedding": (B, C)}. "prefix": the hidden states (B, T, C) above the prefix layers.

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
        """Runs the layers above the prefix; states between matrix products are float32."""
        total = len(self.architecture.layers(self.backbone))
        with computing_in(self.precision, hidden_BTC.device.type):
            hidden = self._run(hidden_BTC.float(), padding_BT, routing, self.prefix_layers, total)
            return self.architecture.finish(self.backbone, hidden).float()

    def _run(self, hidden: Tensor, padding: Tensor, routing: Routing | None, start: int, stop: int) -> Tensor:
        """Runs layers start..stop-1 (from 0). From the first MAW layer on, each text is repeated for each sample."""
        alone = min(stop, self.pretrained_layers)
        hidden = self._run_without_padding(hidden, padding, start, alone)
        inputs, passed = None, 0  # MAW layers
        for index in range(max(start, alone), stop):
            layer = self.architecture.layers(self.backbone)[index]
            is_maw = isinstance(self.architecture.attention(layer), MAWAttentionLayer)
            if is_maw and routing is not None and routing.samples > 1 and passed == 0:
                hidden, padding = (each.repeat_interleave(routing.samples, 0) for each in (hidden, padding))
                inputs = None
            if inputs is None:
                inputs = self.architecture.layer_inputs(self.backbone, hidden, padding)
            # The Hugging Face layer hands `routing` on to `MAWAttentionLayer.forward` in maw/attention/layer.py.
            at = {"routing": routing and routing.at(passed)} if is_maw else {}
            hidden = self.architecture.run(layer, hidden, inputs[index], **at)
            passed += is_maw
        return hidden

    def _run_without_padding(self, hidden: Tensor, padding: Tensor, start: int, stop: int) -> Tensor:
        """Runs layers start..stop-1 (from 0) of the pretrained model.

        Where that changes no bit, they run over the real tokens alone.
        """
        if start >= stop:
            return hidden
        layers = self.architecture.layers(self.backbone)
        inputs = self.architecture.layer_inputs(self.backbone, hidden, padding)

        def run(states: Tensor) -> Tensor:
            for index in range(start, stop):
                states = self.architecture.run(layers[index], states, inputs[index])
            return states

        ours = self.architecture.unpads and self.backbone.config._attn_implementation == ATTENTION
        if ours and hidden.device.type == "cpu" and rows_are_alone(self.precision):
            tokens = RealTokens(padding)
            if tokens.fewer:
                with tokens.alone():
                    return tokens.put(run(tokens.take(hidden)))
        return run(hidden)

    def _pool(self, hidden_BTC: Tensor, padding_BT: Tensor) -> Tensor:
        if self.pooling == "cls":
            pooled = hidden_BTC[:, 0]
        elif self.pooling == "last":
            pooled = hidden_BTC[torch.arange(len(hidden_BTC), device=hidden_BTC.device), padding_BT.sum(1) - 1]
        else:
            weights = padding_BT.to(hidden_BTC.dtype)[..., None]
            pooled = (hidden_BTC * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        if self.after_pooling is not None:
            pooled = self.after_pooling(pooled)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


class MAWWithGRPOEncoder(NonMAWEncoder):
    """An encoder with depth attention in `maw_layers`; untrained, it computes the same as the pretrained encoder.

    Args: as `NonMAWEncoder`, and
        maw_layers: layers (from 1) that have depth kernels and a router.
        depths: D, the number of kernels of each head; None if the backbone has depth attention in these layers.
        kernels: arguments of `build_kernels`, except those that the backbone determines.
        router: arguments of `build_router`, except those that the backbone determines.
        seed: seed of the kernels' noise, and of a random router's depths at evaluation.
        depth_values: whether depths also change the values, an ablation that is not MAW.
    """

    def __init__(
        self,
        backbone: nn.Module,
        architecture: Architecture,
        *,
        maw_layers: Sequence[int],
        seed: int,
        depths: int | None = None,
        kernels: Mapping[str, Any] | None = None,
        router: Mapping[str, Any] | None = None,
        depth_values: bool = False,
        **options: Any,
    ):
        super().__init__(backbone, architecture, **options)
        self.maw_layers, self.seed = tuple(maw_layers), seed
        if depths is not None:
            made = {"depths": depths, "kernels": kernels, "router": router, "depth_values": depth_values}
            install_depths(backbone, architecture, self.maw_layers, seed=seed, **made)

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
            mode: "prefix"; "embed" for one sample of each text; "group" for G samples of each text, which share all
                computations that do not depend on the depth; "policy" for log-probabilities of all depths.
            depths: int64 depths to use, (B, G, h, t) for each MAW layer; None: the routers pick.
            keys: noise keys (B, G) with which depths are sampled; None for greedy depths.

        Returns:
            "embed": {"embedding": (B, C), "depth_share": (B, M, D), how often each text used each depth}.
            "group": {"embedding": (B, G, C), "depths": [(B, G, h, t)], "states": [(B, 1 or G, h, t, F)]}.
            "policy": [log-probabilities (B, 1 or G, h, t, D)].
        """
        if mode == "policy":
            routers = (layer.router for layer in self.maw_attention)
            return [r.logits(state).log_softmax(-1) for r, state in zip(routers, inputs["states"], strict=True)]
        if mode not in ("embed", "group"):
            return super().forward(inputs, mode)
        padding, text_keys_B1 = inputs["attention_mask"], inputs.get("text_keys")
        if text_keys_B1 is None:
            text_keys_B1 = text_keys(inputs["input_ids"], padding)
        sampled = depths[0] if keys is None and depths else keys
        routing = Routing(
            padding,
            keys_BG=keys,
            depths=None if depths is None else list(depths),
            text_keys_B1=mix64(text_keys_B1 ^ self.seed),
            samples=1 if sampled is None else sampled.shape[1],
        )
        hidden = self._layers(self._prefix(inputs), padding, routing)
        embedding = self._pool(hidden, routing.flat_padding(len(hidden)))
        if mode == "embed":
            return {"embedding": embedding, "depth_share": self._depth_share(routing)}
        embedding = embedding.unflatten(0, (len(padding), -1))
        depths, states = (list(each.values()) for each in (routing.picked_depths, routing.states))
        return {"embedding": embedding, "depths": depths, "states": states}

    def _depth_share(self, routing: Routing) -> Tensor:
        """How often each text used each depth in each MAW layer, (B, M, D), without padding."""
        shares = []
        for depth, layer in zip(routing.picked_depths.values(), self.maw_attention, strict=True):
            weights = depth.detach()
            if not weights.is_floating_point():  # one-hot; torch's own function reads the values on the host
                weights = (weights[..., None] == torch.arange(layer.router.num_depths, device=depth.device)).float()
            weights = weights.mean(dim=(1, 2))  # over samples and heads: (B, t, D)
            if weights.shape[1] > 1:
                tokens = routing.padding_BT.to(weights.dtype)[..., None]
                weights = (weights * tokens).sum(1, keepdim=True) / tokens.sum(1, keepdim=True)
            shares.append(weights[:, 0])
        return torch.stack(shares, dim=1)
