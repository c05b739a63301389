"""An exported model behaves as any PyTorch module: no call leaves anything behind for another."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from conftest import FAMILIES, IN_SHORT, WORDS, random_texts, write_model
from torch import nn
from transformers import AutoModel

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.models.export.modeling_maw import MODELS
from maw.models.export.sentence_transformers import export_retriever
from maw.training.checkpoint import RETRIEVERS

KINDS = {
    "head": ("maw", {"route_by": "head"}),
    "token": ("maw", {"route_by": "token", "depth_kernel": "low_rank"}),
    "values": ("maw_qv", {"route_by": "sequence", "depth_kernel": "low_rank"}),
    "fixed": ("maw_fixed", {"fixed_depth": 2, "depth_kernel": "diagonal"}),
}
CASES = [
    *(("bert", kind) for kind in ("head", "token", "values")),
    *((family, "values") for family in ("roberta", "electra", "distilbert")),
    *((family, "head") for family in ("xlm-roberta", "camembert")),
    *((family, kind) for family in ("modernbert", "qwen3") for kind in ("head", "token")),
    ("modernbert", "values"),
    *((family, "head") for family in IN_SHORT),
    *((family, "values") for family in ("mpnet", "t5", "nomic_bert")),
]
every_export = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.faults if case[0] in IN_SHORT else ()) for case in CASES],
    ids=["-".join(case) for case in CASES],
)
_FIRST = list({case[0]: case for case in reversed(CASES)}.values())[::-1]
_ALWAYS = ("bert", "modernbert", "qwen3")  # each has an attention of its own; the others are like BERT's
every_family = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case[0] in _ALWAYS else pytest.mark.faults) for case in _FIRST],
    ids=["-".join(case) for case in _FIRST],
)
one_of_each = pytest.mark.parametrize("case", [CASES[2], CASES[8], CASES[10]], ids=["bert", "modernbert", "qwen3"])


def test_every_family_that_exports_is_tried():
    assert set(FAMILIES) | {"camembert"} == set(MODELS) == {family for family, _ in CASES}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """`export(case)` gives the folder of an exported model with two MAW layers and depths that differ, made once."""
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def make(case):
        if case not in made:
            family, kind = case
            if not (folder / family).exists():
                write_model(folder / family, family)
            method, changes = KINDS[kind]
            known = {"model": str(folder / family), "depth_dim": 4, "maw_layers": [1, 3], "kernel_rank": 2}
            known |= {"precision": "float32", "device": "cpu", "router_start": "uniform", "kernel_init_std": 0.5}
            config = find_method(method).configure(Tier1Config(**known | changes))
            retriever = RETRIEVERS[find_method(method).retriever](config)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for name, parameter in retriever.named_parameters():
                    if parameter.requires_grad and not name.endswith("router.bias"):
                        size = 3.0 if name.endswith("router.weight") else 0.3
                        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
            made[case] = export_retriever(retriever.eval(), folder / f"{family}-{kind}")
        return made[case]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
        yield make


@pytest.fixture
def model(export, case):
    return load(export(case))


def load(folder, **options):
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()


def batch(seed=0, texts=4, tokens=11, *, left=False):
    """Token ids and a mask with paddings of 0 to `tokens` - 2."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 5 + len(WORDS), (texts, tokens), generator=random)
    length = torch.randint(2, tokens + 1, (texts, 1), generator=random)
    mask = (torch.arange(tokens) < length).long()
    mask = mask.flip(1) if left else mask
    return {"input_ids": ids * mask, "attention_mask": mask}


def embed(model, inputs, **options):
    """Mean embeddings."""
    hidden, weights = model(**inputs, **options).last_hidden_state.float(), inputs["attention_mask"][..., None]
    return (hidden * weights).sum(1) / weights.sum(1)


def expect(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


BATCHES = [batch(seed, tokens=tokens) for seed, tokens in enumerate((11, 11, 5, 17, 11, 8))]


@every_export
def test_padding_matters_to_these_models(model):
    """Else none of the tests below could fail: another text's padding changes an embedding."""
    with torch.no_grad():
        good = embed(model, BATCHES[0])
        other = model(BATCHES[0]["input_ids"], BATCHES[1]["attention_mask"]).last_hidden_state
    weights = BATCHES[0]["attention_mask"][..., None]
    assert ((other * weights).sum(1) / weights.sum(1) - good).abs().max() > 1e-3


@every_export
def test_a_call_changes_nothing_in_any_module(model):
    def state():
        return {name: {key: copy.copy(each) for key, each in vars(part).items()} for name, part in parts.items()}

    parts = dict(model.named_modules())
    before = state()
    embed(model, BATCHES[0]).sum().backward()
    model.zero_grad()
    after = state()
    for name in parts:
        assert before[name].keys() == after[name].keys(), name
        for key, each in before[name].items():
            assert not isinstance(after[name][key], torch.Tensor) or after[name][key] is each, (name, key)
            same = isinstance(each, (torch.Tensor, nn.Module)) or callable(each) or each == after[name][key]
            assert same, (name, key)


@every_export
def test_a_call_inside_a_call(model):
    """A hook between the layers embeds other texts with the same model, as a distillation or a cache might."""
    with torch.no_grad():
        expected = [embed(model, each) for each in BATCHES]
        found, inside = [], []

        def call(*_):
            if not inside:
                inside.append(True)
                found.append(embed(model, BATCHES[len(found) + 1]))
                inside.clear()

        middle = model.get_submodule(model.attention_path.format(1))
        hook = middle.register_forward_pre_hook(call)
        expect(embed(model, BATCHES[0]), expected[0])
        hook.remove()
        expect(found[0], expected[1])


@every_export
def test_two_threads_in_step(model):
    """Every thread waits for the others at each layer: nobody's padding may be that of the last who came."""
    with torch.no_grad():
        expected = [embed(model, each) for each in BATCHES]
        barrier = threading.Barrier(len(BATCHES), timeout=60)

        def wait(*_):
            barrier.wait()

        for part in model.modules():
            if type(part).__name__.endswith(("SelfAttention", "Attention")) and hasattr(part, "config"):
                part.register_forward_pre_hook(wait)

        def job(inputs):
            try:
                with torch.no_grad():
                    return embed(model, inputs)
            except BaseException:
                barrier.abort()
                raise

        with ThreadPoolExecutor(len(BATCHES)) as threads:
            for found, right in zip(threads.map(job, BATCHES), expected, strict=True):
                expect(found, right)


@pytest.mark.parametrize("one_length", [False, True])
def test_four_threads_share_a_sentence_transformer(export, one_length):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(export(("bert", "head"))), trust_remote_code=True, device="cpu")
    texts = [random_texts(3, seed=seed, longest=4 + seed % 9) for seed in range(60)]
    if one_length:
        texts = [[*some, " ".join(WORDS[:12])] for some in texts]
    encode = lambda some: model.encode(some, convert_to_tensor=True)
    expected = [encode(some) for some in texts]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            for found, right in zip(threads.map(encode, texts * 4), expected * 4, strict=True):
                expect(found, right)
    finally:
        sys.setswitchinterval(interval)


@every_export
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_run_again_in_the_backward_pass(model, reentrant):
    """Two forward passes, then one backward pass: each layer runs again with the padding of its own texts."""
    if not model.supports_gradient_checkpointing:
        pytest.skip("transformers has no checkpointing of this family's layers")
    model.train()

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)  # for dropout
        loss = sum(embed(model, each).square().mean() for each in BATCHES[:3])
        loss.backward()
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    expected = gradients()
    if reentrant:  # it needs an input that has a gradient
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients()
    assert any("kernels" in name for name in found)
    for name, each in expected.items():
        expect(found[name], each)


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def replica(model):
    """As `torch.nn.parallel.replicate` makes it for one device: shallow copies of modules, with tensors as weights."""
    found = {each: each._replicate_for_data_parallel() for each in model.modules()}
    for each, made in found.items():
        for name, child in each._modules.items():
            made._modules[name] = None if child is None else found[child]
        for name, weight in each._parameters.items():
            if weight is None:
                made._parameters[name] = None
            else:
                setattr(made, name, weight.clone())
        made._buffers = {name: weight if weight is None else weight.clone() for name, weight in each._buffers.items()}
    return found[model]


@every_family
@pytest.mark.parametrize("copy_of", [copied, pickled, saved, replica])
def test_a_copy_is_a_whole_and_stands_alone(model, copy_of):
    """Made after a call with gradients; it still computes the same when the original has other weights."""
    expected = embed(model, BATCHES[0])
    made = copy_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        del model
        gc.collect()
        other_kernel = 1e-6 if made.config.model_type == "maw-t5" else 0  # T5's bias has a gradient above, not here
        expect(embed(made, BATCHES[0]), expected.detach(), atol=other_kernel)
        embed(made, BATCHES[3])


@every_family
def test_torch_compile_finds_one_graph(model):
    """Without a break, and for any number of texts and tokens."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        for inputs in BATCHES:
            expect(embed(compiled, inputs), embed(model, inputs))


@one_of_each
def test_the_compiler_computes_gradients_too(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(embed(model, BATCHES[0]).square().sum(), kernels(model))
    found = torch.autograd.grad(embed(compiled, BATCHES[0]).square().sum(), kernels(model))
    for one, other in zip(found, expected, strict=True):
        expect(one, other)


def kernels(model):
    return [each for name, each in model.named_parameters() if "kernels" in name]


@every_family
def test_torch_export_writes_it_as_a_graph(model):
    sizes = {"input_ids": {0: torch.export.Dim.DYNAMIC}, "attention_mask": {0: torch.export.Dim.DYNAMIC}}
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=BATCHES[0], dynamic_shapes=sizes, strict=False).module()
        for inputs in (BATCHES[1], batch(9, texts=7)):
            expect(embed(program, inputs), embed(model, inputs))


@every_export
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kernels_and_routers_keep_float32(export, case, dtype):
    """Kernels are near 1, where bfloat16 has two digits."""
    folder = export(case)
    exact, rounded = load(folder), load(folder, dtype=dtype)
    narrow = set()
    for (name, one), other in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        if "kernels" in name or "router" in name:
            assert torch.equal(one, other), name
        elif not name.endswith(".wo.weight"):  # transformers keeps T5's in float32, beside float16
            narrow.add(other.dtype)
    assert narrow == {dtype}


@pytest.mark.parametrize("case", [(family, "fixed") for family in ("bert", "distilbert", "modernbert", "qwen3")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["loaded", "converted", "autocast"])
def test_half_precision_is_near_float32(export, case, dtype, how):
    """At a fixed depth, as a router may pick another depth of two that are as good."""
    folder = export(case)
    exact = load(folder)
    made = load(folder, dtype=dtype) if how == "loaded" else load(folder).to(dtype if how == "converted" else None)
    with torch.no_grad():
        expected = embed(exact, BATCHES[0])
        with torch.autocast("cpu", dtype, enabled=how == "autocast"):
            found = embed(made, BATCHES[0])
        for parameter in kernels(exact):
            parameter.fill_(float(exact.config.maw["kernel"] == "diagonal"))
        plain = embed(exact, BATCHES[0])
    error, effect = ((each - expected).norm(dim=1) for each in (found, plain))
    assert 0 < error.max() < 0.1 * effect.max(), "the depths' effect is not lost in rounding"


@every_export
def test_padding_on_the_left_and_texts_without_tokens(model):
    """A text alone, without padding, is what it is between others; a row of padding alone disturbs no other row."""
    inputs = batch(3, left=True)
    inputs = {name: torch.cat((each, torch.zeros_like(each[:1]))) for name, each in inputs.items()}
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if model.config.model_type.removeprefix("maw-") in ("roberta", "xlm-roberta", "camembert"):
        positions = positions + model.config.pad_token_id + 1
    elif model.config.model_type == "maw-mpnet":
        positions = positions + 2
    with torch.no_grad():
        found = model(**inputs, position_ids=positions).last_hidden_state
        assert found[:-1].isfinite().all()
        for ids, mask, row in zip(inputs["input_ids"][:-1], inputs["attention_mask"], found):
            alone = model(ids[mask.bool()][None]).last_hidden_state[0]
            expect(row[mask.bool()], alone, atol=2e-5)


@every_export
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_outputs_that_transformers_records(export, case, attention):
    if case[0] == "mpnet" and attention == "sdpa":
        pytest.skip("transformers has MPNet's attention written out, and no other")
    model, plain = load(export(case), attn_implementation=attention), load(export(case))
    with torch.no_grad():
        found = model(**BATCHES[0], output_attentions=attention == "eager", output_hidden_states=True)
        expect(embed(lambda **_: found, BATCHES[0]), embed(plain, BATCHES[0]))
        assert len(found.hidden_states) == 4
        if attention == "eager":
            heads, tokens = 2, BATCHES[0]["input_ids"].shape[1]
            assert [each.shape for each in found.attentions] == [(4, heads, tokens, tokens)] * 3


@every_export
def test_it_is_called_as_the_pretrained_model(model):
    inputs = BATCHES[0]
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        ids, mask = inputs.values()
        expect(model(ids, mask, None).last_hidden_state, expected)
        expect(model(ids, mask, return_dict=False)[0], expected)
        found = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask).last_hidden_state
        expect(found[mask.bool()], expected[mask.bool()])
        with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
            model(attention_mask=mask)
        with pytest.raises(ValueError, match=r"must have the shape \(4, 11\), got \(4, 1, 11\)"):
            model(ids, mask[:, None])


@pytest.mark.parametrize("case", [("qwen3", "head")])
def test_a_cache_of_earlier_tokens_is_refused(model):
    ids = BATCHES[0]["input_ids"][:1]
    with torch.no_grad():
        assert model(ids).past_key_values is None
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="call the model without past_key_values"):
            model(ids[:, :1], past_key_values=cache)


@one_of_each
def test_peft_adapts_it(model):
    """New adapters change nothing, and the adapted query is what the router reads."""
    from peft import LoraConfig, get_peft_model

    names = {"distilbert": "q_lin", "modernbert": "Wqkv", "qwen3": "q_proj"}
    target = names.get(model.config.model_type.removeprefix("maw-"), "query")
    expected = embed(model, BATCHES[0]).detach()
    adapted = get_peft_model(model, LoraConfig(target_modules=[target]))
    expect(embed(adapted, BATCHES[0]), expected)
    embed(adapted, BATCHES[0]).square().sum().backward()
    assert all(each.grad is not None for name, each in adapted.named_parameters() if "lora_B" in name)


@contextmanager
def captured(model, inputs):
    """A CUDA graph of one pass: `run` computes `output` anew from what `inputs` hold."""
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            model(**inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            output = model(**inputs).last_hidden_state
    yield graph.replay, output


@pytest.mark.gpu
@every_export
def test_a_cuda_graph_reads_the_padding_of_each_replay(export, case):
    model = load(export(case)).cuda()
    held = {name: each.cuda() for name, each in BATCHES[0].items()}
    with captured(model, held) as (run, output):
        for inputs in (BATCHES[0], BATCHES[1], BATCHES[4]):
            for name, each in inputs.items():
                held[name].copy_(each)
            run()
            with torch.no_grad():
                expected = model(**{name: each.cuda() for name, each in inputs.items()}).last_hidden_state
            mask = inputs["attention_mask"].bool()
            expect(output.cpu()[mask], expected.cpu()[mask], atol=1e-4)
