"""Runs a job in several processes, connected as under torchrun, and collects the result of each.

    python processes.py 2 training,search FOLDER       # FOLDER/training-0.json, ...

The parent loads everything once and forks, so that one launch costs one import. It never computes, since autograd's
threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forks import Forks

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SPLITS = ("queries", "docs", "qrels", "negatives")


def start(count: int, jobs: str, folder: Path) -> subprocess.Popen[str]:
    """Starts the jobs in so many processes, whose settings lie in FOLDER/settings.json."""
    known = os.environ | {"PYTHONPATH": f"{ROOT}:{TESTS}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    known |= {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__)), str(count), jobs, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=known, cwd=folder, **pipes)


def launch(forks: Forks, count: int, jobs: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the jobs to their end, without the time that the imports of a new process take."""
    return forks.run(__file__, count, jobs, folder, cwd=folder, path=(ROOT, TESTS))


def results(folder: Path, job: str, count: int) -> list[dict[str, Any]]:
    """What each process gave."""
    return [json.loads((folder / f"{job}-{rank}.json").read_text()) for rank in range(count)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# ------------------------------------------------------------------------------------------------------------ the jobs

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("baseline", {"use_lora": True}),
    "peft_dora": ("peft:dora", {}),
    "peft_pissa": ("peft:pissa", {}),
    "full": ("baseline", {"train_layers": True}),
    "maw": ("maw", {}),
    "maw_tokens": ("maw", {"route_by": "token", "maw_layers": [2, 3], "bank_batches": 1}),
    "maw_mcl": ("maw", {"encoder_update": "mcl", "grpo_reference": "slow", "router_balance": 0.1}),
    "maw_all": ("maw", {"grpo_group": "all", "encoder_update": "mcl_sampled"}),
    "maw_distinct": ("maw", {"grpo_group": "distinct", "encoder_update": "all_group"}),
    "maw_soft": ("maw", {"router": "soft", "route_by": "head"}),
    "maw_random": ("maw", {"router": "random"}),
    "maw_supervised": ("maw", {"router": "supervised"}),
    "maw_fixed": ("maw", {"router": "fixed"}),
    "accumulated": ("maw", {"gradient_accumulation_steps": 2}),
}


def train(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Loss of every step, records and metrics of each arm."""
    return {arm: train_arm(settings, folder, arm) for arm in settings["arms"]}


def train_arm(settings: dict[str, Any], folder: Path, arm: str) -> dict[str, Any]:
    import torch

    from maw.config.method_files import load_method
    from maw.config.tier1_config import Tier1Config
    from maw.encoding.activation_cache import ActivationStore
    from maw.evaluation.evaluate import evaluate_retriever
    from maw.models.retriever import BaselineRetriever, MAWRetriever
    from maw.training.objective import ContrastiveObjective
    from maw.training.train import train_retriever

    kind, changes = ARMS[arm]
    config = Tier1Config(**(settings["config"] | changes))
    method = load_method(kind) if ":" in kind else None
    config = method.configure(config) if method else config
    model = (MAWRetriever if kind == "maw" else BaselineRetriever)(config, method)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for attention in model.encoder.maw_attention if kind == "maw" else ():
            for parameter in (*attention.kernels.parameters(), *attention.router.parameters()):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = {name: settings["data"][name] for name in SPLITS}
    data["qrels"] = {int(q): {int(d): grade for d, grade in found.items()} for q, found in data["qrels"].items()}
    data["negatives"] = {int(q): found for q, found in data["negatives"].items()}
    losses: list[float] = []
    real = ContrastiveObjective._losses

    def noting(self: Any, *arguments: Any) -> Any:
        found = real(self, *arguments)
        losses.append(float(found.detach().mean()))
        return found

    ContrastiveObjective._losses = noting
    try:
        with ActivationStore(folder / "activations", settings.get("activations_gb", 1.0)) as store:
            history = train_retriever(model, data, data, config, "cpu", activations=store)
            result = evaluate_retriever(model, data, config, "cpu", activations=store)
    finally:
        ContrastiveObjective._losses = real
    state = {name: float(each.double().sum()) for name, each in model.trained_state().items()}
    records = [{n: v for n, v in record.items() if isinstance(v, float) and n != "seconds"} for record in history]
    per_query = {name: values.tolist() for name, values in result.per_query.items()}
    return {"losses": losses, "history": records, "per_query": per_query, "state": state}


def search(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Rankings of a corpus full of copies, whose scores tie within and across the parts."""
    import numpy as np
    import torch

    from maw.search.left_out import leaving_out
    from maw.search.sharded import sharded_top_k

    found = {}
    for name, (queries, passages, k, block) in settings["searches"].items():
        random = np.random.default_rng(0)
        documents = random.integers(-2, 3, size=(passages, 8)).astype(np.float32)
        asked = torch.from_numpy(random.integers(-2, 3, size=(queries, 8)).astype(np.float32))
        ties = random.permutation(passages)
        own = random.integers(-1, passages, queries)
        for left_out in (None, own):
            scores, rows = leaving_out(lambda n: sharded_top_k(asked, documents, n, ties, block=block), k, left_out)  # noqa: B023
            part = name if left_out is None else f"{name}, left out"
            found[part] = {"scores": scores.tolist(), "rows": rows.tolist()}
    return found


def encoding(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Embeddings, from the cache the second time."""
    from maw.config.tier1_config import Tier1Config
    from maw.encoding.embedding_cache import Embedder
    from maw.models.retriever import BaselineRetriever, MAWRetriever
    from maw.models.tokenized import ListTexts

    found: dict[str, Any] = {}
    config = Tier1Config(**settings["config"])
    for name, build in (("baseline", BaselineRetriever), ("maw", MAWRetriever)):
        model = build(config)
        for turn in ("first", "second"):
            made = Embedder(model, config, model.device).encode(ListTexts(settings["texts"]), "document", "texts")
            share = None if made.depth_share is None else made.depth_share.tolist()
            found[f"{name} {turn}"] = {
                "embeddings": made.embeddings.tolist(),
                "depth_share": share,
                "from_cache": made.from_cache,
            }
    return found


def random(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Random numbers from a state that is saved for all processes, and again from what was saved."""
    import torch

    from maw.runtime import distributed
    from maw.training.state import load_random_state, random_state

    torch.manual_seed(distributed.this_process().rank)
    state = random_state(torch.device("cpu"))
    drawn = torch.rand(3).tolist()
    load_random_state(state)
    return {"drawn": drawn, "again": torch.rand(3).tolist()}


def killed(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One process ends without a word, while the others wait for it, or are at work and look up no more."""
    import signal

    from maw.runtime import distributed

    if distributed.this_process().rank == settings["victim"]:
        time.sleep(1)
        (folder / "killed_at").write_text(str(time.time()))
        if settings["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the planted failure")
    if settings["others"] == "wait":
        distributed.barrier()
    time.sleep(120)
    return {}


JOBS = {"train": train, "search": search, "encoding": encoding, "random": random, "killed": killed}


# ------------------------------------------------------------------------------------------------------- the processes


def main(count: int, jobs: list[str], folder: Path) -> int:
    settings = json.loads((folder / "settings.json").read_text())
    if not settings.get("light"):
        _load_everything()
    elif jobs != ["main"]:
        import torch.distributed  # noqa: F401
    port = free_port()
    children = [_forked(rank, count, port, jobs, folder, settings) for rank in range(count)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / "codes.json").write_text(json.dumps(codes))
    return max(map(abs, codes))


def _load_everything() -> None:
    """What a run would load by and by."""
    import datasets  # noqa: F401
    import torch
    import transformers.models.bert.modeling_bert  # noqa: F401

    import maw.experiment.benchmark
    import maw.report.rebuild
    import maw.training.trainer

    maw.report.rebuild._draw = lambda *_: None  # figures take longer than the run
    torch.set_num_threads(1)


def _forked(rank: int, count: int, port: int, jobs: list[str], folder: Path, settings: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 99
    try:
        code = _work(rank, jobs, folder, settings)
    except BaseException as error:  # noqa: BLE001 - the exit code says that it failed, and this why
        sys.stderr.write(f"process {rank}: {type(error).__name__}: {error}\n")
        if not isinstance(error, Exception) or "--trace" in sys.argv:
            import traceback

            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / f"ended-{rank}").write_text(str(time.time()))
        os._exit(code)


def _work(rank: int, jobs: list[str], folder: Path, settings: dict[str, Any]) -> int:
    if jobs == ["main"]:
        import tier_1

        return tier_1.main(settings["flags"])
    from maw.runtime import distributed

    with distributed.session("cpu"):
        for job in jobs:
            found = JOBS[job](settings, folder)
            (folder / f"{job}-{rank}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3])))
