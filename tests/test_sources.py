"""The loaders over ir_datasets, on tiny files in the publishers' formats that the real ir_datasets reads."""

from __future__ import annotations

import pytest
from source_fixtures import home, settings, write_hotpotqa, write_msmarco, write_nq, write_triviaqa  # noqa: F401

from maw.data import load_collection

WRITERS = {
    "msmarco": write_msmarco,
    "trec_dl_2019": write_msmarco,
    "trec_dl_2020": write_msmarco,
    "nq": write_nq,
    "hotpotqa": write_hotpotqa,
    "triviaqa": write_triviaqa,
}


@pytest.fixture
def load(home, tmp_path):  # noqa: F811
    def load(name, **changes):
        return load_collection(name, settings(tmp_path, **changes))

    return load


@pytest.mark.parametrize("name", WRITERS)
def test_smoke(name, home, load):  # noqa: F811
    WRITERS[name](home)
    c = load(name)
    import json
    print(json.dumps(c.facts, indent=1))
    print(c.train.query_ids[:5], c.validation.query_ids, c.test.query_ids)
