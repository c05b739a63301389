"""Evaluates the rankings of a finished run, and of other systems, with ir_measures on the same judgements.

    python examples/ir_measures_run.py logs/tier1
    python examples/ir_measures_run.py logs/tier1 bm25.trec other.trec.gz      # TREC run files of other systems

Every ranking of the run is a row of the table, and so is each named file. A file must use the query and passage ids of
the run's own data. Queries that a file lacks count as 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ir_measures
from ir_measures import AP, RR, R, nDCG

MEASURES = (nDCG @ 10, AP, R @ 100, RR)


def measure(judged: Path, others: list[Path]) -> dict[str, dict[str, float]]:
    """Name of a ranking -> measure -> mean over all judged queries.

    Args:
        judged: the judgements of a dataset, beside the rankings of the run.
        others: TREC run files of other systems, plain or .gz.
    """
    qrels = list(ir_measures.read_trec_qrels(str(judged)))
    own = sorted(judged.parent.glob(f"{judged.name.removesuffix('_qrels.trec')}_*.trec*"))
    found = {}
    for path in [*(each for each in own if each != judged), *others]:
        ranking = list(ir_measures.read_trec_run(str(path)))
        means = ir_measures.calc_aggregate(MEASURES, qrels, ranking)
        found[path.name.partition(".")[0]] = {str(each): means[each] for each in MEASURES}
    return found


def main(run_dir: str, *others: str) -> dict[str, dict[str, dict[str, float]]]:
    """Prints and returns a table for each dataset of a run, from its newest results."""
    newest = {path.name: path for path in sorted(Path(run_dir).glob("*/runs/*_qrels.trec"))}
    if not newest:
        raise SystemExit(f"{run_dir}: has no judgements; give the --log-dir of a finished run")
    tables = {}
    for name, judged in newest.items():
        tables[name] = measure(judged, [Path(each) for each in others])
        sys.stdout.write(f"{name:<32}{''.join(f'{each!s:>10}' for each in MEASURES)}\n")
        for ranking, means in tables[name].items():
            sys.stdout.write(f"  {ranking:<30}{''.join(f'{value:10.4f}' for value in means.values())}\n")
    return tables


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
