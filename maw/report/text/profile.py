"""A profile of `maw.runtime.profiler` as a table for the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LEFT_OUT = 0.005  # of the run: what is in no stage is shown from here
_HEADER = ("stage", "calls", "seconds", "share", "GFLOP/s", "of peak")


def profile_text(content: Mapping[str, Any]) -> str:
    """The stages, indented, with what they took and how near their matrix products came to the peak."""
    total = content["seconds"]
    rows = [_HEADER, *_rows(content["stages"], total, total, 0), ("all", "", f"{total:.2f}", "100.0%", "", "")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ["Where the time went:", *(_line(row, widths) for row in rows)]
    peak = content["peak_flops_per_second"]
    if peak:
        lines.append(
            f"Peak: {peak / 1e9:,.1f} GFLOP/s, the best of large square matrix products in {content['precision']} on "
            f"{content['device']}, {content['threads']} thread{'s' * (content['threads'] != 1)}; padding is no work"
        )
    return "\n".join(lines)


def _rows(
    stages: list[Mapping[str, Any]], seconds: float, total: float, depth: int
) -> Iterator[tuple[str, str, str, str, str, str]]:
    """One row for each stage and for what is in none of them, of stages that took `seconds` together."""
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


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join((row[0].ljust(widths[0]), *numbers)).rstrip()
