"""Row 17: pickles and untrusted code in place of models, checkpoints and caches."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts, write_model

from faults.tools import beir_folder
from maw.data.corpus import Corpus
from maw.data.registry import load_collection
from maw.encoding.embedding_cache import Embedder
from maw.errors import MAWError
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.storage.cache_entry import json_sha
from maw.training.checkpoint import load_checkpoint, save_checkpoint
from maw.training.hard_negatives import mine_negatives

ROOT = Path(__file__).parents[2]

HARMFUL = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle",
}  # fmt: skip
HARMFUL_CALLS = {"eval", "exec", "compile", "__import__"}
HARMFUL_METHODS = {
    ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system"),
    ("pandas", "read_pickle"), ("pd", "read_pickle"), ("os", "popen"),
}  # fmt: skip
BAD_OPTIONS = {"weights_only": False, "allow_pickle": True, "trust_remote_code": True, "shell": True}


def harmful(source: str) -> list[str]:
    """What in some code could run code that is not the package's own, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names] + [getattr(node, "module", None) or ""]
            found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in HARMFUL]
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        options = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
        if isinstance(called, ast.Name) and called.id in HARMFUL_CALLS:
            found.append(f"{node.lineno}: {called.id}")
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            of_tensors = (called.value.id, called.attr) == ("torch", "load") and options.get("weights_only") is True
            if (called.value.id, called.attr) in HARMFUL_METHODS and not of_tensors:
                found.append(f"{node.lineno}: {called.value.id}.{called.attr}")
            if (called.value.id, called.attr) in (("np", "load"), ("numpy", "load")) and (
                options.get("allow_pickle", True) is not False
            ):
                found.append(f"{node.lineno}: np.load that may read pickles")
        for name, bad in {
            "weights_only": False,
            "allow_pickle": True,
            "trust_remote_code": True,
            "shell": True,
        }.items():
            if options.get(name) is bad:
                found.append(f"{node.lineno}: {name}={bad}")
        loads = isinstance(called, ast.Attribute) and called.attr == "from_pretrained"
        if loads and options.get("trust_remote_code") is not False:
            found.append(f"{node.lineno}: from_pretrained that may run a model's own code")
    return found


EXECUTES = {"method_files.py": ["exec", "compile"]}
"""Executes the files of methods that the user names in --methods or --method-file, and no others."""


@pytest.mark.parametrize("path", [ROOT / "tier_1.py", *sorted((ROOT / "maw").rglob("*.py"))], ids=lambda p: p.name)
def test_no_code_of_others_is_run(path):
    found = [each.partition(": ")[2] for each in harmful(path.read_text(encoding="utf-8"))]
    assert found == EXECUTES.get(path.name, [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_control_harmful_code_is_noticed(source):
    assert harmful(f"def f(path, text, name):\n    {source}\n")


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def rewrite_manifest(folder: Path) -> None:
    """Makes a manifest fit its changed files, as somebody would who means harm."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": json_sha(manifest)}))


class Victim:
    """What a pickle is put in the place of, and what then reads it."""

    def __init__(self, folder: Path, make_settings):
        self.folder, self.make = folder, make_settings
        self.canary = Canary(folder / "canary")
        self.payload = pickle.dumps({"weight": self.canary, "a": self.canary})

    def torch_saved(self) -> bytes:
        data = io.BytesIO()
        torch.save({"embeddings.word_embeddings.weight": self.canary}, data)
        return data.getvalue()

    def numpy_saved(self) -> bytes:
        data = io.BytesIO()
        np.save(data, np.array([[self.canary]], dtype=object), allow_pickle=True)
        return data.getvalue()

    def model_of(self, change: Callable[[Path], None]) -> None:
        folder = write_model(self.folder / "model")
        change(folder)
        BaselineRetriever(self.make(model=str(folder)))

    def weights(self, name: str, content: bytes) -> None:
        def change(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            (folder / name).write_bytes(content)

        self.model_of(change)

    def own_code(self, file: str, entry: dict) -> None:
        def change(folder: Path) -> None:
            content = json.loads((folder / file).read_text()) | entry
            (folder / file).write_text(json.dumps(content))
            (folder / "evil.py").write_text(f"import os\nos.mkdir({str(self.canary.path)!r})\nclass Evil: pass\n")

        self.model_of(change)

    def checkpoint(self, content: bytes, place: str) -> None:
        model = BaselineRetriever(self.make(use_lora=True))
        folder = save_checkpoint(
            self.folder / "checkpoint", model, dataset="tiny", method="lora", epoch=1, best_val_metric=0.5,
            training_history=[],
        )  # fmt: skip
        (path,) = folder.glob(place)
        path.write_bytes(content)
        record = folder / "checkpoint.json"
        if path != record:
            text = json.loads(record.read_text()) | {"weights_sha256": hashlib.sha256(content).hexdigest()}
            record.write_text(json.dumps(text))
        load_checkpoint(folder)

    def store(self, name: str, content: bytes) -> None:
        def make():
            return ((f"p{i}", "", text) for i, text in enumerate(random_texts(20))), None, {"extra": [1]}

        place = self.folder / "store"
        expected = Corpus.cached(place, {"a": 1}, make).fingerprint
        (place / name).write_bytes(content)
        rewrite_manifest(place)
        found = Corpus.cached(place, {"a": 1}, make)
        assert found.fingerprint == expected
        found.attachment("extra")

    def embeddings(self) -> None:
        config = self.make(methods=["zero_shot"])
        embedder = Embedder(BaselineRetriever(config), config, torch.device("cpu"))
        embedder.encode(ListTexts(random_texts(5)), "document", "documents")
        (path,) = Path(config.cache_dir).rglob("embeddings.npy")
        path.write_bytes(self.numpy_saved())
        rewrite_manifest(path.parent)
        embedder.encode(ListTexts(random_texts(5)), "document", "documents")

    def negatives(self) -> None:
        config = self.make(negative_source="bm25", datasets=["pystdlib"])
        folder = beir_folder(self.folder / "tiny")
        data = load_collection(f"beir:{folder}", config).train
        mine_negatives(data, config)
        for path in (Path(config.cache_dir) / "negatives").glob("*.json"):
            path.write_bytes(self.payload)
        mine_negatives(data, config)


ATTACKS: dict[str, Callable[[Victim], None]] = {
    "weights that torch saved": lambda v: v.weights("pytorch_model.bin", v.torch_saved()),
    "weights that are a bare pickle": lambda v: v.weights("pytorch_model.bin", v.payload),
    "a pickle called safetensors": lambda v: v.weights("model.safetensors", v.payload),
    "code beside a tokenizer": lambda v: v.own_code(
        "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    ),
    "code beside a model": lambda v: v.own_code("config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
    "weights of a checkpoint": lambda v: v.checkpoint(v.torch_saved(), "*.safetensors"),
    "record of a checkpoint": lambda v: v.checkpoint(v.payload, "checkpoint.json"),
    "passages": lambda v: v.store("passages.arrow", v.payload),
    "index of ids": lambda v: v.store("index.npy", v.numpy_saved()),
    "attachment": lambda v: v.store("extra.json", v.payload),
    "embeddings": lambda v: v.embeddings(),
    "hard negatives": lambda v: v.negatives(),
}


def canary_is_never_made(victim: Victim, attack: str) -> None:
    """Lets something read the pickle: it works all the same, or one line says why not."""
    said = ""
    try:
        ATTACKS[attack](victim)
    except MAWError as error:
        said = str(error)
    assert "\n" not in said
    assert not victim.canary.path.exists(), "the pickle was run"


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_is_never_run(tiny_settings, tmp_path, trial, monkeypatch, attack):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the user whether to run a model's code"))
    with trial(17, "pickles", attack):
        canary_is_never_made(Victim(tmp_path, tiny_settings), attack)


def test_control_a_pickle_that_is_run_is_noticed(tiny_settings, tmp_path, monkeypatch):
    victim = Victim(tmp_path, tiny_settings)
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: load(path, allow_pickle=True))
    with pytest.raises(AssertionError, match="was run"):
        canary_is_never_made(victim, "embeddings")
