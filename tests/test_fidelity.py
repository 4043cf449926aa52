"""The released data, checkpoints and scripts give the released model: texts, token ids, gradients, adapters.

Lines are those of github.com/ignorejjj/LaSER at d602664 (below src/) and github.com/Roytsai27/GIRCSE at 20676c1.
"""

import json
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
import transformers
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from mteb_tasks import as_mteb_task
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax

import laser_lab as ll
from laser_lab.data.prompts import join_queries, join_query
from laser_lab.data.readers import RetrievalTask, read_dataset
from laser_lab.lab.benchmarks import mteb_model
from laser_lab.training.batches import Collator, training_pairs
from laser_lab.training.objectives import DualViewLoss

LITERALS = json.loads((Path(__file__).parent / "fixtures" / "released_inputs.json").read_text())
TOKENS = [
    *("<pad>", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    *("\n", "\n\n", ".\n\n", " ", ".", ":", "user", "assistant", "Instruct", "Query", "Find", "facts", "x"),
    *"why is the sky blue light scatters most rain water clouds sea snow cold salt question Answer".split(),
    *"bluelight rainwater saltsea snowcold".split(),  # query and reasoning meet in one token
]
SPLIT = r"<\|im_start\|>|<\|im_end\|>|</?think>|\.?\n\n|\n|\w+|[^\w\s]| "
CHAT = (  # of the shape of Qwen3's, for one message of a user
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ROWS = [  # the released layout: README.md, "Prepare Training Data"
    {
        "query": "why is the sky blue",
        "prompt": "Find facts",
        "reasoning_query": "light scatters\n\nblue light most\n\nsky",
        "positive_passages": ["the sky scatters light"],
        "negative_passages": ["sea water", "rain"],
    },
    {  # a full stop and a blank line are one token, so no segment ends there
        "query": "why rain",
        "prompt": "Answer the question",
        "reasoning_query": "water is cold.\n\nclouds\n\nrain\n\n",
        "positive_passages": ["clouds", "rain is water"],
        "negative_passages": ["the sky scatters light", "salt", "snow"],
    },
    {  # too short a reasoning, and no instruction
        "query": "sea salt",
        "prompt": "",
        "reasoning_query": "sea",
        "positive_passages": ["salt water"],
        "negative_passages": ["cold snow"],
    },
    {  # a prefix that is whole
        "query": "snow",
        "prompt": "Instruct: x\nQuery:",
        "reasoning_query": "cold water.\n\ncold rain",
        "positive_passages": ["snow is cold water"],
        "negative_passages": ["blue sea", "rain"],
    },
]


def tokenizer(bos=False, chat=True):
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    names = dict(pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT if chat else None, **names)


def base_folder(folder, **how):
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SMALL | dict(vocab_size=len(TOKENS), max_position_embeddings=256))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    tokenizer(**how).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "released.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return read_dataset(file)


def adapted(base, **how):
    """A retriever with an adapter that is not zero and drops nothing."""
    model = ll.load(base, device="cpu", **how)
    torch.manual_seed(1)
    backbone = model.encoder.backbone
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    backbone.model = get_peft_model(backbone.model, config)
    return model


# -- the texts -----------------------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_one_function_joins_instruction_and_query(prompt, query):
    text = join_query(prompt, query)
    assert text.endswith(query)
    if "Query:" in prompt or not prompt.strip():
        assert text == prompt + query
    else:  # dataset.py:17-23; the template of run_eval.sh:14, whose line break is real
        assert text == f"Instruct: {prompt}\nQuery: {query}"
    assert join_queries([query, query], [prompt, ""], "own: ")[0] in ([text, "own: " + query], [query, query])


@pytest.mark.parametrize("template", [None, "chat"])
def test_the_texts_and_token_ids_are_the_released_ones(base, data, template):
    """Literals, written down from the released code: dataset.py:271-312 (prompt, reasoning, sampling),
    collator.py:22-44 (template, joining), :47-78 (truncation, special tokens), modeling/laser.py:74-75 (eos)."""
    model = ll.load(base, template=template, prompts={"query": "Query:", "document": ""}, device="cpu")
    method = ll.METHODS["laser-released"]
    batch = Collator(model, method)(training_pairs(data, 1, 0, method.sampling).to_list())
    expected = LITERALS["chat" if template else "card"]
    names = model.tokenizer
    for part in ("query", "document", "explicit"):
        rows = zip(batch[f"{part}_input_ids"], batch[f"{part}_attention_mask"])
        ids = [row[mask.bool()].tolist() for row, mask in rows]
        if part == "document":
            ids = [ids[row] for row in batch["document_rows"]]
        assert ids == expected[part]["ids"]
        assert ["".join(names.convert_ids_to_tokens(row)) for row in ids] == expected[part]["texts"]
    ends = batch["explicit_segment_ends"] - (batch["explicit_attention_mask"] == 0).sum(1)[:, None]
    assert ends.tolist() == expected["states"]  # modeling/laser.py:91-126


def test_the_model_prompt_serves_rows_without_their_own(base, data):
    model = ll.load(base, prompts={"query": "x ", "document": ""}, device="cpu")
    texts, own = [row["query"] for row in ROWS], [row["prompt"] for row in ROWS]
    expected = model.encode(
        [
            "Instruct: Find facts\nQuery: why is the sky blue",
            "Instruct: Answer the question\nQuery: why rain",
            "x sea salt",
            "Instruct: x\nQuery:snow",
        ]
    )
    np.testing.assert_allclose(model.encode_query(texts, prompts=own), expected, atol=1e-5)
    np.testing.assert_allclose(ll.think(model, texts, prompt_name="query", prompts=own).embeddings, expected, atol=1e-5)
    task = RetrievalTask("t", dict(zip("abcd", texts)), {"d": "sea"}, {}, prompts=dict(zip("abcd", own)))
    scores = (expected @ model.encode_document(["sea"]).T).ravel()
    np.testing.assert_allclose(ll.rank(model, task)["score"], scores, atol=1e-5)
    rewriter = ll.rewrite_then_retrieve(model, model, max_new_tokens=2)
    rewritten = [join_query(p, q) if p else "x " + q for p, q in zip(own, rewriter.rewrite(texts))]
    np.testing.assert_allclose(rewriter.encode_query(texts, prompts=own), model.encode(rewritten), atol=1e-5)


def test_long_texts_lose_the_end_of_the_template_and_reasoning_keeps_its_eos(base):
    """collator.py:47-78: the wrapped text is cut at its end, query and reasoning together at 1,024, and eos follows."""
    model = ll.load(base, template="chat", max_length=6, prompts={"query": ""}, device="cpu")
    ids = model.preprocess(["sea salt water"])["input_ids"][0].tolist()
    assert model.tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "user", "\n", "sea", " ", "salt"]
    row = {"id": "q", "query": "sea", "reasoning": ["rain", "snow"], "documents": ["sky"], "document_ids": ["d"]}
    collate = Collator(model, ll.METHODS["laser-released"], explicit_max_length=16)
    ids = collate([row | {"positive_ids": ["d"]}])["explicit_input_ids"][0].tolist()
    assert len(ids) == 17 and model.tokenizer.convert_ids_to_tokens(ids)[-5:] == ["\n\n", " ", "rain", "\n\n", "</s>"]


def test_the_sampling_of_the_released_code(data):
    pairs = training_pairs(data, 2, 0, "first")  # dataset.py:287-306
    assert pairs["documents"][:2] == [
        ["the sky scatters light", "sea water", "rain"],
        ["clouds", "the sky scatters light", "salt"],
    ]
    assert pairs["documents"][2] == ["salt water", "cold snow", "cold snow"] and len(pairs) == 4
    assert len(training_pairs(data, 2, 0)) == 5  # a row per positive


# -- one training step ---------------------------------------------------------------------------------------------


def plain_step(model, names, rows, template, steps=3):
    """The released pipeline from rows to loss, written again in plain torch: its texts, loop, pooling and terms."""

    def wrap(text):
        if template is None:
            return text
        return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def hidden(ids, vectors=None):
        vectors = model.get_input_embeddings()(torch.tensor([ids])) if vectors is None else vectors
        out = model(inputs_embeds=vectors, output_hidden_states=True)
        return vectors, out.hidden_states[-1][0], out.logits[0, -1]

    def think(text):
        ids, vectors, states = names(text, truncation=True, max_length=512)["input_ids"], None, []
        for _ in range(steps):
            vectors, states_now, logits = hidden(ids, vectors)
            states.append(states_now[-1])
            soft = softmax(logits, -1) @ model.get_input_embeddings().weight
            vectors = torch.cat([vectors, soft[None, None]], dim=1)
        return torch.stack(states), len(ids)

    queries, hiddens, documents, teachers, middles = [], [], [], [], []
    for row in rows:
        whole = (
            row["prompt"] if "Query:" in row["prompt"] or not row["prompt"] else f"Instruct: {row['prompt']}\nQuery: "
        )
        text = wrap((whole or "Query:") + row["query"])
        states, start = think(text)
        hiddens.append(states)
        queries.append(normalize(states.mean(0), dim=-1))
        for document in (row["positive_passages"][0], row["negative_passages"][0]):
            documents.append(normalize(think(wrap(document))[0].mean(0), dim=-1))
        reasoning = row["reasoning_query"] if len(row["reasoning_query"]) >= 5 else row["query"]
        ids = names(text + reasoning, truncation=True, max_length=1024)["input_ids"]
        _, states, _ = hidden([*ids, names.eos_token_id])
        ends = [i for i in range(start, len(ids)) if ids[i] == TOKENS.index("\n\n")]
        ends = ends if ends and ends[-1] == len(ids) - 1 else [*ends, len(ids) - 1]
        chosen = torch.linspace(0, len(ends) - 1, steps).long() if len(ends) >= steps else torch.arange(steps)
        middles.append(torch.stack([states[ends[min(i, len(ends) - 1)]] for i in chosen.tolist()]))
        teachers.append(normalize(states[-1], dim=-1))
    queries, documents, teachers = (torch.stack(x) for x in (queries, documents, teachers))
    target = torch.arange(len(rows)) * 2  # a positive and a negative of each row, side by side

    def kl(student, teacher, temperature):
        logs = log_softmax(student @ documents.T / temperature, -1)
        return kl_div(logs, softmax((teacher @ documents.T).detach() / temperature, -1), reduction="batchmean")

    flat = [normalize(torch.cat(x), dim=-1) for x in (hiddens, middles)]
    loss = cross_entropy(queries @ documents.T / 0.02, target) + cross_entropy(teachers @ documents.T / 0.02, target)
    return loss + 10 * kl(queries, teachers, 0.02) + 0.1 * kl(*flat, 0.05)


def gradient(model):
    found = [p.grad.flatten() for p in model.encoder.backbone.model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize("template", [None, "chat"])
def test_one_training_step_has_the_released_gradient(base, data, template):
    model = adapted(base, template=template, query_prompt="Query:")
    method = ll.METHODS["laser-released"]
    plain_step(model.encoder.backbone.model, model.tokenizer, ROWS, template).backward()
    expected = gradient(model)
    cosines = {}
    for name in ("laser-released", "laser"):
        method = ll.METHODS[name].replace(distil_start=0.0, distil_warmup=0.0)
        batch = Collator(model, method)(training_pairs(data, 1, 0, method.sampling).to_list())
        parts = [
            {key.removeprefix(f"{part}_"): value for key, value in batch.items() if key.startswith(f"{part}_")}
            for part in ("query", "document", "explicit")
        ]
        sum(DualViewLoss(model, method)(parts).values()).backward()
        cosines[name] = torch.nn.functional.cosine_similarity(gradient(model), expected, dim=0).item()
    assert cosines["laser-released"] >= 0.9999 and cosines["laser"] < 0.999, cosines


# -- round trip ----------------------------------------------------------------------------------------------------


def test_prompts_and_template_survive_training_saving_and_mteb(base, data, tmp_path):
    model = ll.load(base, template="chat", query_prompt="Find facts", device="cpu")
    settings = dict(max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, lora=dict(r=2), use_cpu=True)
    ll.train(model, data, "laser-released", output_dir=tmp_path, disable_tqdm=True, save_strategy="no", **settings)
    (lora,) = model.encoder.backbone.model.peft_config.values()
    assert lora.lora_dropout == 0.1
    again = ll.load(tmp_path / "final", device="cpu")
    assert again.encoder.template == "chat" and "'template': 'chat'" in repr(again)
    assert again.prompts["query"] == "Instruct: Find facts\nQuery: "
    bare = ll.load(tmp_path / "final", template=None, device="cpu")
    assert bare.encoder.template is None and np.abs(bare.encode(["sea"]) - again.encode(["sea"])).max() > 1e-3

    texts = sorted({text for row in ROWS for text in (*row["positive_passages"], *row["negative_passages"])})
    task = RetrievalTask(
        name="local",
        queries={str(i): row["query"] for i, row in enumerate(ROWS)},
        corpus={f"d{i}": text for i, text in enumerate(texts)},
        qrels={str(i): {f"d{texts.index(row['positive_passages'][0])}": 1} for i, row in enumerate(ROWS)},
        prompts={str(i): row["prompt"] for i, row in enumerate(ROWS) if row["prompt"]},
    )
    scores = {}
    for name, one in {"chat": again, "none": bare}.items():
        wrapped = mteb_model(one)
        assert wrapped.mteb_model_meta.experiment_kwargs["template"] == name
        seen = {}
        kept = one.encode

        def encode(inputs, *args, seen=seen, kept=kept, **kwargs):
            seen[kwargs["task"]] = kept(inputs, *args, **kwargs)
            return seen[kwargs["task"]]

        one.encode = encode
        how = dict(cache=None, show_progress_bar=False, co2_tracker=False)
        found = mteb.evaluate(wrapped, as_mteb_task(task), encode_kwargs={"show_progress_bar": False}, **how)
        one.encode = kept
        scores[name] = found.task_results[0].scores["test"][0]["ndcg_at_10"]
        assert scores[name] == pytest.approx(ll.evaluate(one, task)["ndcg@10"], abs=1e-4)
        ours = one.encode_query(list(task.queries.values()), prompts=task.query_prompts)
        np.testing.assert_allclose(seen["query"], ours, atol=1e-5)


# -- adapters ------------------------------------------------------------------------------------------------------


def test_gircse_adapters_give_the_released_embeddings(tmp_path):
    """embedding/base.py:35-47, 85-89 (texts, no special tokens) and embedding/trainer.py:120-201 (encode)."""
    base = base_folder(tmp_path / "base", bos=True, chat=False)
    adapted(base).encoder.backbone.model.save_pretrained(tmp_path / "adapter")
    how = dict(pooling="generated", query_prompt="Instruct: Find facts\nQuery:", add_special_tokens=False)
    model = ll.load(base, adapter=tmp_path / "adapter", device="cpu", **how)
    plain, names = model.encoder.backbone.model, model.tokenizer
    texts = ["why rain", "sea salt water is cold"]
    expected = []
    for text in texts:
        ids = names(f"Instruct: Find facts\nQuery:{text}", add_special_tokens=False)["input_ids"]
        assert ids[0] == TOKENS.index("Instruct")
        vectors, states = plain.get_input_embeddings()(torch.tensor([ids])), []
        with torch.no_grad():
            for _ in range(3 + 1):
                out = plain(inputs_embeds=vectors, output_hidden_states=True)
                states.append(out.hidden_states[-1][0, -1])
                soft = softmax(out.logits[0, -1], -1) @ plain.get_input_embeddings().weight
                vectors = torch.cat([vectors, soft[None, None]], dim=1)
        expected.append(normalize(torch.stack(states[1:]).mean(0), dim=-1).numpy())
    assert ((model.encode_query(texts) * np.stack(expected)).sum(1) >= 0.99999).all()
    model.save_pretrained(str(tmp_path / "saved"))
    again = ll.load(tmp_path / "saved", device="cpu")
    assert again.encoder.add_special_tokens is False and "'add_special_tokens': False" in repr(again)
    np.testing.assert_allclose(again.encode_query(texts), model.encode_query(texts), atol=1e-5)
    with_bos = ll.load(tmp_path / "saved", add_special_tokens=True, device="cpu")
    assert ((with_bos.encode_query(texts) * np.stack(expected)).sum(1) < 0.9999).all()


def test_unmerged_adapters_of_the_released_trainer(base, tmp_path, recwarn):
    """trainer.py:33-41 saves names behind "encoder.", which merge_lora.py:38-45 takes away again."""
    model = adapted(base)
    model.encoder.backbone.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({f"encoder.{name}": weight for name, weight in weights.items()}, tmp_path / "adapter_model.safetensors")
    again = ll.load(base, adapter=tmp_path, device="cpu")
    np.testing.assert_allclose(again.encode(["sea salt"]), model.encode(["sea salt"]), atol=1e-5)
    assert not [w for w in recwarn if "adapter keys" in str(w.message)]
    save_file({f"other.{name}": weight for name, weight in weights.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="weights match nothing"):
        ll.load(base, adapter=tmp_path, device="cpu")


# -- bad input -----------------------------------------------------------------------------------------------------


def test_bad_templates_and_prompts(base, tmp_path):
    with pytest.raises(ValueError, match="template must be None or 'chat', got 'card'"):
        ll.load(base, template="card", device="cpu")
    bare = base_folder(tmp_path / "bare", chat=False)
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template, and this one has none"):
        ll.load(bare, template="chat", device="cpu")
    for how in ({"query_prompt": 3}, {"prompts": {"query": 3}}):
        with pytest.raises(TypeError, match="a prompt must be a string, got int: 3"):
            ll.load(base, device="cpu", **how)
    model = ll.load(base, device="cpu")
    for how in ({"prompt": 3}, {"prompts": [3, ""]}):
        with pytest.raises(TypeError, match="a prompt must be a string, got int: 3"):
            model.encode(["sea", "salt"], **how)
    with pytest.raises(ValueError, match="2 queries need as many prompts, got 1"):
        model.encode_query(["sea", "salt"], prompts=["x"])


@pytest.mark.parametrize(
    "bad", [{"sampling": "last"}, {"explicit_format": "paper"}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1}]
)
def test_bad_rows_of_the_table(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ll.METHODS["laser"].replace(**bad)
