"""The plan of a run as text: a table of the datasets, and lines on downloads, disks, memory and time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from urllib.parse import urlsplit

from maw.config.layers import parse_layers
from maw.config.methods import claim, find_method, subject_of, trained_methods
from maw.config.paths import short_path
from maw.config.tier1_config import Tier1Config, group_kind
from maw.data.check import Checked
from maw.data.self_passages import RULES
from maw.experiment.plan.plan import Plan
from maw.experiment.plan.workload import Work
from maw.report.text.format import as_table, bullet, clean, heading, wrapped
from maw.storage.disk import size_text

MOST_FILES = 10
_RESUMED = "the plan is for the whole run; finished parts are not repeated"


def plan_text(plan: Plan) -> str:
    """The plan as text, at most 100 columns wide; estimates are marked as such."""
    rows = []
    for work in plan.works:
        rows.append(_row(short_name(work.needs.dataset), [work], plan))
    rows += [_row("total", plan.works, plan)] if len(rows) > 1 else []
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in plan.memory.items())
    disks = []
    for disk in plan.disks:
        disks.append(f"{size_text(disk.size)} of {size_text(disk.free)} free")
        disks += [
            f"  {size_text(each.size)} for {each.what} in {short_path(each.folder)}" for each in disk.requirements
        ]
    memory = f"about {size_text(sum(plan.memory.values()))}, an estimate: {parts}"
    lines = [
        heading("Plan", "="),
        as_table(["Dataset", "download", "passages", "searched", "queries", "texts encoded", "time"], rows),
        "",
        *_part("Model", [_model(plan)]),
        *_part("Download", _downloads(plan)),
        *_part("Disk", disks),
        *_part("Memory", [memory]),
        *_part("Encoding", _encoding(plan)),
        *_part("Time", [_time(plan)]),
        *_part("Ranking", [_ranking(plan.config.self_passages)]),
        *_part("Router", _router(plan)),
        *_part("Tests", [_claim(plan.config)]),
        *_part("Resumed", [_RESUMED] if plan.config.resume is not None else []),
    ]
    return "\n".join([*lines, *(line for problem in plan.too_small() for line in bullet(problem))])


def data_text(checks: Iterable[Checked], *, warnings: bool) -> str:
    """What the check of the data found, as a part of the plan."""
    texts = []
    for each in checks:
        found = "cannot be used; the error says why" if each.problem else each.text
        texts.append(f"{short_name(each.name)}: {found}")
        texts += [f"  {text}" for text in each.warnings if warnings]
    return "\n".join(_part("Data", texts))


def short_name(dataset: str) -> str:
    """A dataset's name in the plan: of a folder in BEIR layout only its last part."""
    folder = dataset.removeprefix("beir:")
    return dataset if dataset == folder else f"beir:{PurePath(folder).name}"


def _part(name: str, texts: Iterable[str]) -> list[str]:
    names = [name]
    return [line for text in texts for line in wrapped(f"{names.pop() if names else '':<10}", clean(text))]


def _row(name: str, works: Sequence[Work], plan: Plan) -> list[str]:
    one = works[0] if len(works) == 1 else None
    files = {file.path: file.size for work in works for file in work.needs.files if not file.present}
    passages = sum(sum(work.needs.passages.values()) for work in works)
    seconds = [plan.seconds(work) for work in works]
    return [
        clean(name),
        _download_size(list(files.values())),
        f"{'about ' if one.needs.estimated else ''}{passages:,}" if one and passages else "unknown" if one else "",
        f"{one.searched:,}" if one and one.searched else "",
        " / ".join(f"{sum(work.queries[split] for work in works):,}" for split in works[0].queries),
        f"{sum(sum(work.encoded.values()) for work in works):,}"
        if all(work.searched for work in works)
        else "unknown",
        "unknown" if None in seconds else _duration(sum(filter(None, seconds))),
    ]


def _download_size(sizes: Sequence[int | None]) -> str:
    """The sum of known sizes, with a + if some are unknown."""
    if not sizes:
        return "none"
    known = [size for size in sizes if size is not None]
    return f"{size_text(sum(known))}{' +' if len(known) < len(sizes) else ''}" if known else "unknown"


def _downloads(plan: Plan) -> list[str]:
    texts = [f"the model {plan.spec.name}, from its hub"] if plan.fetched else []
    for file in plan.files[:MOST_FILES]:
        size = "size not known" if file.size is None else size_text(file.size)
        texts.append(f"{file.name} ({size}) from {urlsplit(file.url).hostname or file.url}")
    rest = len(plan.files) - MOST_FILES
    return [*texts, *([f"and {rest} more files"] if rest > 0 else [])] or ["nothing"]


def _model(plan: Plan) -> str:
    """How the model is used, and by whose settings."""
    names = ("pooling", "similarity", "temperature", "query_prefix", "document_prefix")
    names += ("max_query_length", "max_document_length")
    values = {name: getattr(plan.spec, name) for name in names}
    used = ", ".join(f"{name} {ascii(each) if 'prefix' in name else each}" for name, each in values.items())
    flags = [f"--{name.replace('_', '-')}" for name in names if getattr(plan.config, name) is not None]
    return f"{used.replace('_', ' ')}; taken from {plan.spec.source}" + (
        f", except {', '.join(flags)}" if flags else ""
    )


def _encoding(plan: Plan) -> list[str]:
    config = plan.config
    trained = trained_methods(config)
    total = {part: sum(work.encoded[part] for work in plan.works) for part in ("test", "validation", "training")}
    counts = {"seeds": config.seeds if config.seeds > 1 else 0, "folds": config.folds}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    methods = f"{len(config.methods)} methods" + (f", trained ones on each of {' and '.join(parts)}" if parts else "")
    texts = [f"{total['test']:,} texts of the test corpora and queries, once for each of {methods}"]
    if trained:
        epochs = f"{config.num_epochs} epoch{'s' * (config.num_epochs != 1)}"
        often = f"in each of at most {epochs} of {', '.join(trained)}"
        often += f", with {config.tune} trials each" if config.tune else ""
        texts.append(f"{total['validation']:,} of validation and {total['training']:,} of training, {often}")
    if any(work.activation_bytes for work in plan.works):
        texts.append("the frozen layers encode every text once; their output is stored, and all methods share it")
    return texts


def _time(plan: Plan) -> str:
    if isinstance(plan.rate, str):
        return f"not measured: {plan.rate}"
    rate = plan.rate
    time, less = (_duration(sum(plan.seconds(work, kept=kept) or 0 for work in plan.works)) for kept in (False, True))
    kept = f", {less} if an earlier run has stored the frozen layers' output for these texts" if plan.kept else ""
    return (
        f"about {time} of encoding and training{kept if less != time else ''}, an estimate: "
        f"{rate.texts / rate.seconds:,.0f} texts a second on {rate.device}, of {rate.tokens / rate.texts:.0f} tokens "
        f"each, measured with {rate.texts} texts"
    )


def _claim(config: Tier1Config) -> str:
    """The planned comparisons."""
    planned = claim(config)
    if planned is None:
        subject, _ = subject_of(config.compare)
        return f"none is planned, since it takes {subject} and a control; see --compare"
    against = ", ".join(planned["controls"])
    return f"planned: nDCG@10 of {planned['subject']} against {against}; all others are exploratory"


def _router(plan: Plan) -> list[str]:
    """Methods whose groups may hold a depth several times, since there is no rule for different ones."""
    texts = []
    for method in map(find_method, trained_methods(plan.config)):
        config = method.configure(plan.config)
        if method.retriever != "maw" or config.router != "grpo" or config.grpo_group != "auto":
            continue
        layers = len(parse_layers(config.maw_layers, plan.spec.num_layers))
        if group_kind(config, layers) == "sampled":
            why = f"{layers} MAW layers" if layers > 1 else f"--route-by {config.route_by}"
            text = f"{method.name}: a text has several depths ({why}), so the samples of a group may be alike"
            texts.append(f"{text}, and such a group trains nothing; groups of different depths need a single one")
    return texts


def _ranking(rule: str) -> str:
    counted = "" if rule == "keep" else "; how many there are is known when the data are loaded"
    return f"{RULES[rule]} (--self-passages {rule}){counted}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
