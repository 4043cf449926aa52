"""The oneDNN products against PyTorch's own, and the soft token by blocks against the softmax written out."""

import copy
import pickle

import pytest
import torch
from conftest import FAMILIES, tiny_backbone, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import laser_lab as ll
from laser_lab import backbone as backbones
from laser_lab.base import kernels, processes
from laser_lab.base.kernels import linear, use_fast_linear
from laser_lab.encoder import LatentEncoder, LatentRetriever, think
from laser_lab.training.run import add_lora

needs_onednn = pytest.mark.skipif(not kernels.AVAILABLE, reason="this build of PyTorch has only one kernel")


@pytest.fixture(params=[False, kernels.AVAILABLE], ids=["pytorch", "onednn"], autouse=True)
def both_libraries(request, monkeypatch):
    """Every test here goes through both, whoever made this processor."""
    monkeypatch.setattr(kernels, "PREFERRED", request.param)


@pytest.mark.parametrize(
    "cpuinfo, maker",
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n", "GenuineIntel"),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "AuthenticAMD"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", "aarch64"),
    ],
)
def test_the_maker_of_the_processor(cpuinfo, maker, monkeypatch):
    monkeypatch.setattr(kernels.Path, "read_text", lambda self: cpuinfo)
    monkeypatch.setattr(kernels.platform, "machine", lambda: "aarch64")
    assert kernels.processor_maker() == maker


def test_products_go_to_onednn_only_where_it_is_preferred(monkeypatch):
    called = []
    product = kernels._product
    monkeypatch.setattr(kernels, "_product", lambda *of: called.append(of) or product(*of))
    with torch.no_grad():
        linear(torch.randn(2, 3), torch.randn(4, 3))
    assert len(called) == kernels.PREFERRED


@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(1, 5), max_size=2),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_linear_and_its_gradients(leading, inputs, outputs, bias, transposed):
    torch.manual_seed(0)
    x = torch.randn(*leading, inputs, requires_grad=True)
    weight = torch.randn(inputs, outputs).T if transposed else torch.randn(outputs, inputs)
    wanted = [x, weight.requires_grad_()] + ([torch.randn(outputs, requires_grad=True)] if bias else [])
    expected, found = nn.functional.linear(*wanted), linear(*wanted)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear(*wanted), expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, wanted, upstream), torch.autograd.grad(expected, wanted, upstream)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_second_gradients():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)

    def twice(product):
        first = torch.autograd.grad(product(x, weight).pow(3).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.pow(2).sum(), [x, weight])

    for a, b in zip(twice(linear), twice(nn.functional.linear)):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_torch_func_goes_through():
    torch.manual_seed(0)
    x, weight = torch.randn(6), torch.randn(5, 6)
    found = torch.func.jacrev(lambda x: linear(x[None], weight)[0].tanh())(x)
    torch.testing.assert_close(found, torch.func.jacrev(lambda x: (weight @ x).tanh())(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_pytorchs_own(dtype):
    x, weight = torch.randn(4, 6).to(dtype), torch.randn(5, 6).to(dtype)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x, weight.float())


def test_autocast_and_empty_inputs_are_pytorchs_own():
    x, weight = torch.randn(4, 6), torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x[:0], weight).shape == (0, 5)


@needs_onednn
def test_frozen_weights_keep_no_inputs_for_the_gradient(monkeypatch):
    """A LoRA run must not hold the inputs of layers that do not train."""
    monkeypatch.setattr(kernels, "PREFERRED", True)
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6)
    assert linear(x, weight).grad_fn.saved_tensors[0] is None
    assert linear(x, weight.requires_grad_()).grad_fn.saved_tensors[0] is not None


def test_a_model_can_be_switched_there_and_back():
    model = tiny_model()
    names, plain = list(model.state_dict()), [name for name, m in model.named_modules() if type(m) is nn.Linear]
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        expected = model(ids).logits
        use_fast_linear(model)
        assert plain and all(type(model.get_submodule(name)) is kernels.Linear for name in plain)
        assert list(model.state_dict()) == names and model.lm_head.weight is model.get_input_embeddings().weight
        for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(same(ids).logits, expected, atol=1e-4, rtol=1e-4)
        use_fast_linear(model, False)
        assert all(type(model.get_submodule(name)) is nn.Linear for name in plain)
        assert torch.equal(model(ids).logits, expected)


def test_the_layers_of_a_new_adapter_use_it_too(tiny_folder):
    model = ll.load(tiny_folder, device="cpu")
    add_lora(model, {"r": 4})
    trained = model.encoder.backbone.model
    layers = [type(m) for m in trained.modules() if isinstance(m, nn.Linear)]
    assert layers and set(layers) == {kernels.Linear}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bias", [False, True])
def test_soft_tokens_by_blocks_of_the_vocabulary(family, bias, monkeypatch):
    """Blocks that do not divide the vocabulary, a head with a bias, soft caps: equal to the softmax written out."""
    monkeypatch.setattr(backbones, "VOCABULARY_BLOCK", 5)
    backbone = tiny_backbone(family)
    torch.manual_seed(0)
    if bias:
        backbone.head.bias = nn.Parameter(torch.randn(len(backbone.embedding_table)))
    states = 3 * torch.randn(4, 32)
    written_out = backbone.logits(states).softmax(-1) @ backbone.embedding_table * backbone.embedding_scale
    with torch.no_grad():
        found = backbone.soft_token(states)
    torch.testing.assert_close(found, written_out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.soft_token(states), written_out, atol=1e-4, rtol=1e-4)


def test_a_block_that_takes_all_the_probability(monkeypatch):
    """Logits far apart between blocks must neither overflow nor lose the winner."""
    monkeypatch.setattr(backbones, "VOCABULARY_BLOCK", 5)
    backbone = tiny_backbone("llama-untied")
    with torch.no_grad():
        backbone.head.weight.copy_(torch.linspace(-1e4, 1e4, len(backbone.embedding_table))[:, None])
        for sign, token in ((1, -1), (-1, 0)):
            found = backbone.soft_token(torch.full((1, 32), float(sign)))
            torch.testing.assert_close(found[0], backbone.embedding_table[token])


# -- threads beside other processes --------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("free, threads", [(1, 1), (2, 2), (16, 2)])
def test_threads_for_free_cores(free, threads, two_threads, monkeypatch):
    monkeypatch.setattr(processes, "free_cores", lambda: free)
    with pytest.raises(KeyError), processes.threads_for_free_cores():
        assert torch.get_num_threads() == threads
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("running, own, free", [(1, "R", 4), (3, "R", 2), (9, "R", 1), (3, "RR", 3), (1, "S", 3)])
def test_free_cores_are_those_that_no_other_process_computes_on(running, own, free, monkeypatch):
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(processes.Path, "read_text", lambda self: f"0.5 0.4 0.3 {running}/300 4242\n" if
                        self.name == "loadavg" else f"7 (a (b) c) {self.parent.name} 1 2")  # fmt: skip
    tasks = [processes.Path(f"/proc/self/task/{state}/stat") for state in own]
    monkeypatch.setattr(processes.Path, "glob", lambda self, pattern: iter(tasks))
    assert processes.free_cores() == free


def test_where_nobody_can_tell_all_cores_are_free(monkeypatch):
    def refuse(self):
        raise FileNotFoundError

    monkeypatch.setattr(processes.Path, "read_text", refuse)
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 8)
    assert processes.free_cores() == 8


def test_encoding_takes_the_free_cores_and_training_all(two_threads, monkeypatch):
    monkeypatch.setattr(processes, "free_cores", lambda: 1)
    encoder = LatentEncoder(tiny_backbone())
    model = LatentRetriever(modules=[encoder], device="cpu")
    seen, real = [], type(encoder).think
    monkeypatch.setattr(
        type(encoder), "think", lambda *of, **how: seen.append(torch.get_num_threads()) or real(*of, **how)
    )
    model.encode(["why is the sky blue"])
    think(model, ["why is the sky blue"])
    model(model.preprocess(["why is the sky blue"]))
    assert seen == [1, 1, 2]
