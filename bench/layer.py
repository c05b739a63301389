"""Compares an encoder layer with depth attention to the plain layer with fused attention, and to the 5-D tensor.

    python -m bench.layer

The layer is the whole last layer of all-MiniLM-L6-v2: attention, router, feed-forward part, norms. The sides take
turns in one run. Memory is the peak during a call minus the memory before it, in a process that does nothing else: the
median of several calls. All layers have float32 weights, as trained layers do in every method, and compute in bfloat16
under autocast. Without `--full` the lengths are 64 and 256, and no pass is without gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from bench.common import (
    ROUNDS,
    alternate,
    claim,
    median,
    peak_above_now,
    peak_bytes,
    quick_parser,
    ratio,
    report,
    results_folder,
)
from bench.peer import settings
from maw.attention.routers import Routing
from maw.models.retriever import BaselineRetriever, MAWRetriever

TOKENS = 4096
FEW_ROUNDS = 3
PEAKS = 5  # calls whose peak memory is taken: one alone varies by a third, as memory that was freed is used again
LENGTHS = (64, 128, 256)
DEPTHS = (8, 32, 128)
KINDS, DEFAULT = tuple(f"{depths} depths" for depths in DEPTHS), "32 depths"


def make_layer(kind: str, precision: str) -> torch.nn.Module:
    """The last layer: "plain", or "32 depths" and so on; in float32, as trained layers are in every method."""
    config = settings(precision=precision)
    if kind == "plain":
        retriever = BaselineRetriever(config)
    else:
        config.depth_dim = int(kind.split()[0])
        retriever = MAWRetriever(config)
    encoder = retriever.encoder
    return encoder.architecture.layers(encoder.backbone)[-1].float().requires_grad_(True)


def runner(kind: str, length: int, backward: bool, precision: str, reference: bool = False) -> Callable[[], None]:
    """A call that passes a batch through the layer, and back if asked."""
    layer = make_layer(kind, precision)
    batch = TOKENS // length
    hidden = torch.linspace(-1, 1, batch * length * 384).sin().view(batch, length, 384)
    padding = torch.ones(batch, length, dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def forward() -> torch.Tensor:
        if reference:
            attention, value = layer.attention.self.reference(hidden)
            mixed = torch.einsum("bhqk,bhke->bqhe", attention[..., 0], value).flatten(2)
            output = layer.attention.output(mixed, hidden)
            return layer.output(layer.intermediate(output), output)
        inputs = {} if kind == "plain" else {"routing": Routing(padding)}
        return layer(hidden, **inputs)

    def run() -> None:
        with torch.set_grad_enabled(backward), autocast:
            output = forward()
            if backward:
                output.float().sum().backward()
                layer.zero_grad()

    return run


def main() -> None:
    """Measures times and peaks, and reports them."""
    arguments = quick_parser(__doc__).parse_args()
    lengths = LENGTHS[:1] if arguments.quick else LENGTHS if arguments.full else LENGTHS[::2]
    rounds = 1 if arguments.quick else ROUNDS if arguments.full else FEW_ROUNDS
    rows, claims = [], []
    for precision in ("float32", "bfloat16"):
        for length in lengths:
            for backward in (False, True) if arguments.full else (True,):
                found = measure(precision, length, backward, rounds)
                work = "forward+backward" if backward else "forward"
                rows += [[precision, length, work, kind, *numbers] for kind, numbers in found.items()]
                claims += claims_of(found, f"{work}, length {length}, {precision}", length == LENGTHS[-1])
    report(
        "layer",
        ["precision", "length", "pass", "layer", "ms", "x plain", "peak MiB"],
        rows,
        results_folder(arguments.quick),
        claims,
        shortened=not arguments.full,
    )


def measure(precision: str, length: int, backward: bool, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Milliseconds, times the plain layer's, and MiB at the peak, of each layer."""
    sides = {kind: runner(kind, length, backward, precision) for kind in ("plain", *KINDS)}
    if precision == "float32":
        sides["5-D"] = runner(DEFAULT, length, backward, precision, reference=True)
    seconds = alternate(sides, rounds)
    return {
        kind: (
            1000 * median(seconds[kind]),
            ratio(seconds, kind, "plain"),
            peak_bytes("bench.layer", kind, str(length), str(int(backward)), precision) / 2**20,
        )
        for kind in sides
    }


def claims_of(found: dict[str, tuple[float, float, float]], where: str, longest: bool) -> list[dict[str, Any]]:
    """Cost of layers with depths against the plain one, and of the whole 5-D tensor against the default layer."""
    (_, _, plain), (ms, _, least) = found["plain"], found[DEFAULT]
    claims = []
    for kind in KINDS:
        _, times, peak = found[kind]
        claims += [
            claim(f"layer with {kind}, time, {where}", "the plain layer", times, "<= 1.15"),
            claim(f"layer with {kind}, peak memory, {where}", "the plain layer", peak / plain, "<= 1.15"),
        ]
    if "5-D" in found and longest:
        slow, _, large = found["5-D"]
        claims.append(claim(f"layer with {DEFAULT}, times as fast, {where}", "the 5-D tensor", slow / ms, ">= 30"))
        claims.append(
            claim(f"layer with {DEFAULT}, times less memory, {where}", "the 5-D tensor", large / least, ">= 20")
        )
    return claims


def measure_peak(kind: str, length: str, backward: str, precision: str) -> None:
    """Prints the peak of one side minus the memory after loading, for `peak_bytes`."""
    reference = kind == "5-D"
    run = runner(DEFAULT if reference else kind, int(length), backward == "1", precision, reference)
    sys.stdout.write(f"{median([peak_above_now(run) for _ in range(PEAKS)]):.0f}\n")


if __name__ == "__main__":
    measure_peak(*sys.argv[1:]) if len(sys.argv) == 5 else main()
