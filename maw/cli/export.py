"""The command `export`: writes a trained retriever as a folder for sentence-transformers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maw.cli.commands import parser_of
from maw.experiment.model_card import model_card
from maw.experiment.past_run import PastRun
from maw.models.export.hub import check_hub, push_to_hub
from maw.models.export.sentence_transformers import MODELING, check_free, export_retriever


def main(words: argparse.Namespace) -> int:
    """The command `export`, see `maw.cli.commands`."""
    if words.public and not words.push_to_hub:
        parser_of("export").error("--public needs --push-to-hub")
    check_free(Path(words.out))
    run = PastRun.open(words.run_dir, words.dataset, words.moved)
    run.record(words.method)
    if words.push_to_hub:
        check_hub(words.push_to_hub)  # fails early, before the model is loaded or anything is written
    model = run.model(words.method, words.seed, words.fold, code=words.method_file)
    target = words.push_to_hub or "this/folder"
    card = model_card(model.spec, run, words.method, seed=words.seed, fold=words.fold, exported_to=target)
    folder = export_retriever(model, words.out, card)
    trust = ", trust_remote_code=True" if (folder / MODELING).exists() else ""
    sys.stdout.write(f'Written to {folder}; load it with SentenceTransformer("{folder}"{trust})\n')
    if words.push_to_hub:
        address = push_to_hub(folder, words.push_to_hub, private=not words.public)
        sys.stdout.write(f"Uploaded to {address}, {'public' if words.public else 'private'}\n")
    return 0
