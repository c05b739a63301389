"""A profile of `maw.runtime.profiler` as a table for the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LEFT_OUT = 0.005  # share of the run; less time than this outside of all stages has no row
_HEADER = ("stage", "calls", "seconds", "share", "GFLOP/s", "of peak")


def profile_text(content: Mapping[str, Any]) -> str:
    """A table of the stages: time, and matrix products as a share of the machine's peak."""
    total = content["seconds"]
    rows = [_HEADER, *_rows(content["stages"], total, total, 0), ("all", "", f"{total:.2f}", "100.0%", "", "")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ["Where the time went:"]
    for name, *numbers in rows:
        cells = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *cells)).rstrip())
    peak = content["peak_flops_per_second"]
    if peak:
        lines.append(
            f"Peak: {peak / 1e9:,.1f} GFLOP/s, the best of large square matrix products in {content['precision']} on "
            f"{content['device']}, {content['threads']} thread{'s' * (content['threads'] != 1)}; padding not counted"
        )
    return "\n".join(lines)


def _rows(
    stages: list[Mapping[str, Any]], seconds: float, total: float, depth: int
) -> Iterator[tuple[str, str, str, str, str, str]]:
    """One row for each stage, and one for the rest of `seconds`, which their parent stage took."""
    for stage in stages:
        rate = stage.get("flops_per_second")
        yield (
            "  " * depth + stage["name"],
            f"{stage['calls']:,}",
            f"{stage['seconds']:.2f}",
            f"{stage['share']:.1%}",
            "" if rate is None else f"{rate / 1e9:,.1f}",
            "" if rate is None else f"{stage['share_of_peak']:.1%}",
        )
        yield from _rows(stage["stages"], stage["seconds"], total, depth + 1)
    rest = seconds - sum(stage["seconds"] for stage in stages)
    if stages and rest > _LEFT_OUT * total:
        yield "  " * depth + "other", "", f"{rest:.2f}", f"{rest / total:.1%}", "", ""
