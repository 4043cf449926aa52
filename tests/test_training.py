"""Training end to end on a tiny model: every method, resume, crashes, several processes."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import WORDS, free_port
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformerTrainingArguments

import laser_lab as ll
from laser_lab.data.readers import RetrievalTask, features
from laser_lab.methods import LatentMethod, method_of
from laser_lab.training import objectives, run, trainer
from laser_lab.training.batches import Collator, training_pairs
from laser_lab.training.objectives import DualViewLoss
from laser_lab.training.resume import COMPLETE, STARTED, fingerprint, last_checkpoint
from laser_lab.training.run import train
from laser_lab.training.trainer import LatentTrainer, NonFiniteLoss

FAST = dict(
    lora=dict(r=4, lora_alpha=8),
    learning_rate=1e-3,
    max_steps=4,
    per_device_train_batch_size=4,
    logging_steps=1,
    save_steps=2,
    disable_tqdm=True,
    use_cpu=True,
)


def rows(count=12):
    return [
        {
            "id": f"q{i}",
            "query": f"why {WORDS[i % 10]} {WORDS[(3 * i) % 17]}",
            "reasoning": [WORDS[(i + 1) % 20], f"{WORDS[(i + 5) % 20]} {WORDS[i % 7]}"],
            "positives": [f"the {WORDS[(7 * i) % 20]}"],
            "negatives": [f"{WORDS[(2 * i + 1) % 20]} water"],
            "positive_ids": [f"d{(7 * i) % 20}"],
            "negative_ids": [f"n{(2 * i + 1) % 20}"],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data():
    return Dataset.from_list(rows(), features=features())


@pytest.fixture(scope="module")
def dev(data):
    return RetrievalTask(
        "dev",
        dict(zip(data["id"], data["query"])),
        {i: t for row in data for i, t in zip(row["positive_ids"], row["positives"])},
        {row["id"]: dict.fromkeys(row["positive_ids"], 1) for row in data},
    )


def load(tiny_folder, seed=0):
    return ll.load(tiny_folder, prompts={"query": "", "document": ""}, device="cpu")


TERMS = {
    "lexical": {"contrastive", "lexical"},
    "laser-lexical": {"contrastive", "explicit", "output", "trajectory", "lexical"},
    "laser-halting": {"contrastive", "explicit", "output", "trajectory", "lexical"},
    "latent-halting": {"contrastive"},
    "lexical-no-halting": {"contrastive", "lexical"},
    "lexical-no-novelty": {"contrastive", "lexical"},
    "lexical-no-idf": {"contrastive", "lexical"},
    "lexical-no-eos": {"contrastive", "lexical"},
    "basic": {"contrastive"},
    "latent": {"contrastive"},
    "gircse": {"stepwise", "monotonicity"},
    "laser": {"contrastive", "explicit", "output", "trajectory"},
    "laser-released": {"contrastive", "explicit", "output", "trajectory"},
    "rewrite": {"explicit"},
    "laser-no-explicit": {"contrastive"},
    "laser-no-latent": {"contrastive", "explicit", "output", "trajectory"},
    "laser-no-trajectory": {"contrastive", "explicit", "output"},
    "laser-no-output": {"contrastive", "explicit", "trajectory"},
    "laser-no-colearning": {"contrastive", "explicit", "output", "trajectory"},
    "lame": {"contrastive", "reconstruction", "diversity"},
    "lame-no-decoder": {"contrastive", "diversity"},
    "lame-no-diversity": {"contrastive", "reconstruction"},
    "lame-no-warmup": {"contrastive", "reconstruction", "diversity"},
}


@pytest.mark.parametrize("method", ll.METHODS)
def test_every_method_trains_saves_and_loads(tiny_folder, data, tmp_path, method):
    before = load(tiny_folder).encode(["why sea"], thinking_steps=2)
    arguments = FAST | dict(max_steps=2, save_strategy="no")
    model = ll.train(load(tiny_folder), data, method, output_dir=tmp_path / "run", **arguments)
    logged = set().union(*(entry.keys() for entry in model.history))
    assert TERMS[method] == logged & set().union(*TERMS.values()) and "loss" in logged
    after = model.encode(["why sea"])
    again = ll.load(tmp_path / "run" / "final", device="cpu")
    np.testing.assert_allclose(again.encode(["why sea"]), after, atol=1e-5)
    assert again.encoder.thinking_steps == ll.METHODS[method].thinking_steps
    thinking = {name: getattr(again.encoder, name) for name in ll.METHODS[method].thinking}
    assert thinking == ll.METHODS[method].thinking
    assert np.abs(model.encode(["why sea"], thinking_steps=2) - before).max() > 1e-4
    card = json.loads((tmp_path / "run" / "final" / "run_card.json").read_text())
    assert card["method"] == ll.METHODS[method].as_dict() and card["seed"] == 0 and card["steps"] == 2
    assert card["dataset"] == {"rows": 12, "fingerprint": fingerprint(data)} and card["versions"]["torch"]


def test_dev_quality_where_documents_have_a_budget_of_one(tiny_folder, data, dev, tmp_path):
    model = train(load(tiny_folder), data, "lexical", output_dir=tmp_path / "run", dev=dev, **FAST | dict(save_steps=2))
    best = max(entry["eval_ndcg@10"] for entry in model.history if "eval_ndcg@10" in entry)
    assert ll.evaluate(model, dev)["ndcg@10"] == pytest.approx(best, abs=1e-6)


def test_full_fine_tuning_and_dev_quality(tiny_folder, data, dev, tmp_path):
    arguments = FAST | dict(lora=False, save_steps=2)
    model = train(load(tiny_folder), data, "latent", output_dir=tmp_path / "run", dev=dev, **arguments)
    assert not hasattr(model.encoder.backbone.model, "peft_config")
    scores = [entry for entry in model.history if "eval_ndcg@10" in entry]
    assert len(scores) == 2 and all(f"eval_ndcg@10_step{k}" in scores[0] for k in (1, 2, 3))
    card = json.loads((tmp_path / "run" / "final" / "run_card.json").read_text())
    assert card["best"]["ndcg@10"] == max(entry["eval_ndcg@10"] for entry in scores)
    assert ll.evaluate(model, dev)["ndcg@10"] == pytest.approx(card["best"]["ndcg@10"], abs=1e-6)


def test_gradient_checkpointing_and_accumulation(tiny_folder, data, tmp_path):
    losses = []
    for name, extra in {
        "plain": {},
        "checkpointing": dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}),
    }.items():
        model = train(load(tiny_folder), data, "laser", output_dir=tmp_path / name, **FAST, **extra)
        losses.append([entry["loss"] for entry in model.history if "loss" in entry])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    arguments = FAST | dict(max_steps=2, gradient_accumulation_steps=2)
    model = train(load(tiny_folder), data, "laser", output_dir=tmp_path / "accumulated", **arguments)
    assert model.history[-1]["step"] == 2


# -- resume --------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def interrupted(model, data, method, folder, step, **arguments):
    """Train and be cut off right after the checkpoint of `step`."""
    from transformers import TrainerCallback

    class Cut(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            self.saved = state.global_step

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step >= step:
                raise Stop

    original = run.LatentTrainer.__init__

    def patched(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Cut())

    run.LatentTrainer.__init__ = patched
    try:
        with pytest.raises(Stop):
            train(model, data, method, output_dir=folder, **arguments)
    finally:
        run.LatentTrainer.__init__ = original


def check_resumed_like_unbroken(folder, data, method, tmp_path):
    """Of four steps the run is cut off after the third; its checkpoint lies at step 2."""
    whole = train(load(folder), data, method, output_dir=tmp_path / "whole", **FAST)
    interrupted(load(folder), data, method, tmp_path / "broken", 3, **FAST)
    assert last_checkpoint(tmp_path / "broken").name == "checkpoint-2"
    resumed = train(load(folder), data, method, output_dir=tmp_path / "broken", resume=True, **FAST)
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["laser", "gircse", "laser-no-colearning"])
def test_a_resumed_run_ends_like_an_unbroken_one(tiny_folder, data, tmp_path, method):
    check_resumed_like_unbroken(tiny_folder, data, method, tmp_path)
    assert json.loads((tmp_path / "broken/final/run_card.json").read_text())["resumed_from_step"] == 2


def test_half_checkpoints_are_never_loaded(tiny_folder, data, tmp_path):
    train(load(tiny_folder), data, "basic", output_dir=tmp_path / "run", **FAST)
    newest = tmp_path / "run" / "checkpoint-4"
    (newest / COMPLETE).rename(newest / STARTED)
    (newest / "adapter_model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2" and not newest.exists()
    resumed = train(load(tiny_folder), data, "basic", output_dir=tmp_path / "run", resume=True, **FAST)
    assert np.isfinite(resumed.encode(["sea"])).all()


def test_sigkill_in_the_middle_of_a_checkpoint_write(tiny_folder, data, tmp_path):
    """The process dies while checkpoint 4 is being written; the run goes on from checkpoint 2 to the same result."""
    data.to_json(tmp_path / "data.jsonl")
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_training import FAST, load
        from laser_lab.data.readers import read_dataset
        from laser_lab.training.run import train
        from laser_lab.encoder import LatentEncoder
        save, calls = LatentEncoder.save, []
        def dying(self, path, *args, **kwargs):
            save(self, path, *args, **kwargs)
            calls.append(path)
            if "checkpoint-4" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
        LatentEncoder.save = dying
        train(load({tiny_folder!r}), read_dataset({str(tmp_path / "data.jsonl")!r}), "laser",
              output_dir={str(tmp_path / "run")!r}, **FAST)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (tmp_path / "run" / "checkpoint-4").exists() and not (tmp_path / "run" / "checkpoint-4" / COMPLETE).exists()
    resumed = train(load(tiny_folder), data, "laser", output_dir=tmp_path / "run", resume=True, **FAST)
    whole = train(load(tiny_folder), data, "laser", output_dir=tmp_path / "whole", **FAST)
    np.testing.assert_allclose(resumed.encode(["why sea"]), whole.encode(["why sea"]), atol=1e-5)


def test_an_old_run_is_not_overwritten(tiny_folder, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="resume=True"):
        train(load(tiny_folder), data, "basic", output_dir=tmp_path / "run", **FAST)


def test_a_nan_stops_the_run_and_keeps_the_checkpoint(tiny_folder, data, tmp_path, monkeypatch):
    forward = DualViewLoss.forward
    calls = []

    def poisoned(self, features, labels=None):
        terms = forward(self, features, labels)
        calls.append(1)
        if len(calls) == 4:
            terms["trajectory"] = terms["trajectory"] * float("nan")
        return terms

    monkeypatch.setattr(DualViewLoss, "forward", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"loss term trajectory is not finite at step 3 \(batch ids \['q\d"):
        train(load(tiny_folder), data, "laser", output_dir=tmp_path / "run", **FAST)
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"


# -- batches and losses --------------------------------------------------------------------------------------------


def test_pairs_and_padding_negatives(data):
    pairs = training_pairs(data, hard_negatives=3, seed=1)
    assert len(pairs) == 12 and all(len(row["documents"]) == 4 == len(row["document_ids"]) for row in pairs)
    assert pairs["documents"] == training_pairs(data, 3, 1)["documents"] != training_pairs(data, 3, 2)["documents"]
    with pytest.raises(ValueError, match="lacks reasoning"):
        training_pairs(data.remove_columns("reasoning"))
    with pytest.raises(ValueError, match="empty"):
        training_pairs(data.select([]))


def test_no_reasoning_is_said_at_the_door(tiny_folder, data, tmp_path):
    bare = data.map(lambda row: {"reasoning": []}, features=features())
    with pytest.raises(ValueError, match="the data has none"):
        train(load(tiny_folder), bare, "laser", output_dir=tmp_path / "run", **FAST)


def batch_of(model, data, method):
    method = method_of(method)
    batch = Collator(model, method, data["reasoning"])(list(training_pairs(data, 1, sampling=method.sampling)))
    parts = ("query", "document", "explicit")
    return [
        {k.removeprefix(f"{part}_"): v for k, v in batch.items() if k.startswith(part)}
        for part in parts
        if f"{part}_input_ids" in batch
    ]


def test_false_negatives_in_a_batch_change_nothing(tiny_folder):
    """Two queries with the same positive: the twin of a query's positive is no negative of it."""
    model = load(tiny_folder)
    some = rows(3)
    for row in some:
        row["positives"], row["positive_ids"] = ["the sea"], ["same"]
    with torch.no_grad():
        loss = DualViewLoss(model, ll.METHODS["basic"])
        shared = loss(batch_of(model, Dataset.from_list(some, features=features()), "basic"))["contrastive"]
        queries = model.encode([r["query"] for r in some], thinking_steps=1, convert_to_tensor=True)
        negatives = model.encode([r["negatives"][0] for r in some], thinking_steps=1, convert_to_tensor=True)
        positive = model.encode("the sea", thinking_steps=1, convert_to_tensor=True)
        logits = torch.cat([queries @ positive[:, None], queries @ negatives.T], dim=1) / 0.02
    torch.testing.assert_close(shared, -logits.log_softmax(-1)[:, 0].mean(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("moved", [False, True])
def test_the_distillation_moves_no_teacher_and_documents_only_if_asked(tiny_folder, data, moved, monkeypatch):
    monkeypatch.setattr(objectives, "CALLS_WORTH", -1)  # a rollout each, to tell them apart
    model = load(tiny_folder)
    only = LatentMethod(thinking_steps=2, contrastive=0.0, output=1.0, trajectory=1.0, distil_documents=moved)
    features_ = batch_of(model, data, "laser")
    features_[2]["segment_ends"] = features_[2]["segment_ends"][:, :2]
    seen = {}
    forward = model.encoder.forward

    def keep(features, **kwargs):
        out = forward(features, **kwargs)
        view = "explicit" if "segment_ends" in kwargs else ("latent", "document")["latent" in seen]
        for name in ("states", "sentence_embedding"):
            out[name].retain_grad()
            seen.setdefault(view, {})[name] = out[name]
        return out

    model.encoder.forward = keep
    terms = DualViewLoss(model, only)(features_)
    sum(terms.values()).backward()
    grads = {view: [value.grad is not None for value in values.values()] for view, values in seen.items()}
    assert grads == {"explicit": [False] * 2, "document": [moved] * 2, "latent": [True] * 2}


def gradients(model, loss, features_):
    """Loss terms and the gradient of everything that is trained."""
    model.zero_grad()
    terms = loss([dict(part) for part in features_])
    sum(terms.values()).backward()
    return terms, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def adapted(tiny_folder):
    """A model in double precision with an adapter that is not zero."""
    model = load(tiny_folder)
    torch.manual_seed(0)
    run.add_lora(model, dict(r=4, lora_alpha=8, init_lora_weights=False))
    model.encoder.backbone.model.double()
    return model.train()


@pytest.mark.parametrize("method", ["laser", "gircse", "basic"])
def test_shortcuts_change_no_loss_and_no_gradient(adapted, data, method, monkeypatch):
    """One rollout for queries and documents, one encoding per different document, and folded adapters."""
    row = ll.METHODS[method].replace(distil_start=0.0, distil_warmup=0.0)
    loss = DualViewLoss(adapted, row)
    features_ = batch_of(adapted, data, method)
    documents = features_[1]
    assert len(documents["input_ids"]) < len(documents["rows"]) == len(documents["keys"])
    every = dict(documents) | {key: documents[key][documents["rows"]] for key in objectives.IDS}
    every["rows"] = torch.arange(len(documents["rows"]))
    monkeypatch.setattr(objectives, "CALLS_WORTH", -1)
    apart = gradients(adapted, loss, [features_[0], every, *features_[2:]])
    assert all(grad.dtype == torch.float64 for grad in apart[1].values())
    monkeypatch.setattr(objectives, "CALLS_WORTH", float("inf"))
    calls = []
    adapted.encoder.register_forward_hook(lambda *given: calls.append(given))
    together = gradients(adapted, loss, features_)
    assert len(calls) == len(features_) - 1
    layer = adapted.encoder.backbone.causal_lm.model.layers[0].mlp.up_proj
    with trainer.folded(adapted):
        assert "forward" in vars(layer)
        folded = gradients(adapted, loss, features_)
    assert "forward" not in vars(layer)
    for found in (together, folded):
        torch.testing.assert_close(found, apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["laser", "laser-lexical", "laser-no-colearning", "gircse", "basic"])
@pytest.mark.parametrize("joint", [False, True])
def test_groups_of_like_length_change_no_loss_and_no_gradient(adapted, method, joint, monkeypatch):
    """A text in a call of its own, without padding, is read as in the whole batch: of queries, documents and views,
    by a frozen teacher, and before there is one."""
    some = rows(8)
    for i, row in enumerate(some):
        row["query"] += " sea" * (3 * i % 8)
        row["reasoning"] += ["water wind"] * (i % 3)
        row["positives"] = [f"{row['positives'][0]}{' sun' * (5 * i % 7)}"]
        row["positive_ids"] = [f"p{i}"]
    row = ll.METHODS[method].replace(distil_start=0.0, distil_warmup=0.0, halting=method == "laser-no-colearning")
    run.set_method(adapted, row)
    loss = DualViewLoss(adapted, row)
    features_ = batch_of(adapted, Dataset.from_list(some, features=features()), row)
    teacher = copy.deepcopy(adapted).eval().requires_grad_(False) if row.teacher_first else None
    widths = []
    for model in filter(None, (adapted, teacher)):
        model.encoder.register_forward_hook(lambda model, given, out: widths.append(out["attention_mask"]))
    for loss.progress in (0.0, 0.9):
        loss.teacher = teacher if loss.progress else None
        monkeypatch.undo()
        monkeypatch.setattr(objectives, "CALLS_WORTH", float("inf") if joint else -1)
        widths.clear()
        whole = gradients(adapted, loss, features_)
        calls, padding = len(widths), sum(int((mask == 0).sum()) for mask in widths)
        assert calls <= 5 and padding  # a small model reads a batch at once
        widths.clear()
        monkeypatch.setattr(objectives, "GROUP_WORTH", 0.0)
        monkeypatch.setattr(objectives, "READING_WORTH", 0)
        grouped = gradients(adapted, loss, features_)
        assert len(widths) > 2 * calls and not any((mask == 0).any() for mask in widths)
        torch.testing.assert_close(grouped, whole, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(0, 300))
def test_groups_hold_every_text_once_and_are_cut_where_it_pays(lengths, worth):
    groups = objectives.groups_of_like_length(lengths, worth)
    assert sorted(sum(groups, [])) == list(range(len(lengths)))
    widths = [max(lengths[row] for row in group) for group in groups]
    assert widths == sorted(widths)
    saved = len(lengths) * max(lengths) - sum(len(group) * width for group, width in zip(groups, widths))
    assert saved >= (len(groups) - 1) * worth
    for group, width in zip(groups, widths):
        of = sorted(lengths[row] for row in group)
        assert all(at * (width - of[at - 1]) <= worth for at in range(1, len(of)))


def test_no_hopworld_model_is_large_enough_for_groups():
    """So its trainings give, to the bit, the weights that they gave before there were groups."""
    model = ll.load("hopworld", device="cpu")  # as large as that of any cell of a notebook
    loss = DualViewLoss(model, ll.METHODS["laser"])
    batch, longest = 128, 64  # documents and tokens
    assert objectives.GROUP_WORTH / loss.parameter_count > batch * longest


def test_only_what_is_plain_and_small_is_folded(adapted, monkeypatch):
    layer = adapted.encoder.backbone.causal_lm.model.layers[0].mlp.up_proj

    def is_folded():
        with trainer.folded(adapted):
            return "forward" in vars(layer)

    assert is_folded()
    adapted.encoder.backbone.model.disable_adapter_layers()
    assert not is_folded()
    adapted.encoder.backbone.model.enable_adapter_layers()
    with monkeypatch.context() as context:
        context.setattr(trainer, "FOLDED", layer.base_layer.weight.numel() - 1)
        assert not is_folded()
    layer.lora_dropout["default"] = torch.nn.Dropout(0.1)
    assert not is_folded()


def test_distillation_weights_rise():
    loss = DualViewLoss(
        torch.nn.Identity(), ll.METHODS["laser"].replace(distil_start=0.0, distil_warmup=0.5, teacher_first=0.2)
    )
    shares = []
    for loss.progress in (0.0, 0.1, 0.2, 0.45, 0.7, 1.0):
        shares.append((loss.explicit_only, round(loss.distil_share, 6)))
    assert shares == [(True, 0), (True, 0), (False, 0), (False, 0.5), (False, 1), (False, 1)]


def terms_and_gradients(folder, rank=0, world=1):
    """{method: [loss terms, gradient]} of one process's share of eight rows; of all of them, with one process."""
    every = rows(8)
    for row in every[4:6]:  # a positive shared across the two processes
        row["positives"], row["positive_ids"] = every[0]["positives"], every[0]["positive_ids"]
    share = len(every) // world
    mine = Dataset.from_list(every[rank * share : (rank + 1) * share], features=features())
    torch.manual_seed(0)
    model = load(folder)
    found = {}
    for method in ("basic", "gircse", "laser"):
        model.zero_grad()
        row = ll.METHODS[method].replace(distil_start=0.0, distil_warmup=0.0)
        terms = DualViewLoss(model, row)(batch_of(model, mine, method))
        sum(terms.values()).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[method] = [{name: value.item() for name, value in terms.items()}, gradient.tolist()]
    return found


WORKER = """
import json, sys
sys.path.insert(0, {tests!r})
import torch.distributed as dist
from test_training import terms_and_gradients
dist.init_process_group("gloo")
json.dump(terms_and_gradients({folder!r}, dist.get_rank(), 2), open(f"{out}/{{dist.get_rank()}}.json", "w"))
dist.destroy_process_group()
"""


def two_processes(code):
    """Two that run `code` as one job of torch.distributed."""
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [subprocess.Popen([sys.executable, "-c", code], env=shared | {"RANK": r}) for r in "01"]


def test_two_processes_equal_one(tiny_folder, tmp_path):
    """Loss and gradient of two gloo processes with half the batch each, against one with the whole."""
    code = WORKER.format(tests=os.path.dirname(__file__), folder=tiny_folder, out=tmp_path)
    processes = two_processes(code)
    one = terms_and_gradients(tiny_folder)
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    halves = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01"]
    two = {
        method: [
            {term: np.mean([half[method][0][term] for half in halves]) for term in one[method][0]},
            np.mean([half[method][1] for half in halves], axis=0),
        ]
        for method in one
    }
    # the batches differ in shape: in one process positives and negatives stand in another order
    for method in one:
        for term, value in one[method][0].items():
            assert two[method][0][term] == pytest.approx(value, rel=1e-5, abs=1e-5), (method, term)
        scale = np.abs(one[method][1]).max()
        np.testing.assert_allclose(np.array(two[method][1]) / scale, np.array(one[method][1]) / scale, atol=1e-4)


UNLIKE = """
import sys
sys.path.insert(0, {tests!r})
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_training import DualViewLoss, Dataset, batch_of, features, ll, load, objectives, rows
dist.init_process_group("gloo")
model, some = load({folder!r}).train(), rows(4)
if dist.get_rank():
    some[0]["query"] += " sea" * 9
    some[1]["positives"] = ["the sea" + " sea" * 9]
objectives.CALLS_WORTH = float("-inf" if dist.get_rank() else "inf")
objectives.GROUP_WORTH = objectives.READING_WORTH = 0
for method in ("latent", "laser"):
    loss = DualViewLoss(model, ll.METHODS[method])
    loss.model = DistributedDataParallel(model, find_unused_parameters=True)  # as the trainer does
    terms = loss(batch_of(model, Dataset.from_list(some, features=features()), method))
    sum(terms.values()).backward()
dist.destroy_process_group()
"""


def test_processes_with_unlike_batches_do_not_wait_for_each_other(tiny_folder):
    """Every call of a process waits for a call of the others: all make as many, whatever saves one of them padding."""
    code = UNLIKE.format(tests=os.path.dirname(__file__), folder=tiny_folder)
    processes = two_processes(code)
    try:
        assert [p.wait(timeout=120) for p in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def config(tiny_folder, data, tmp_path):
    """A configuration file of a short run; its folder is `tmp_path` / run."""
    data.to_json(tmp_path / "data.jsonl")
    said = dict(model=tiny_folder, dataset=str(tmp_path / "data.jsonl"), method="laser", output_dir=f"{tmp_path}/run")
    (tmp_path / "config.yaml").write_text(json.dumps(said | FAST))  # JSON is YAML
    return str(tmp_path / "config.yaml")


def test_a_run_from_a_file_is_the_same_run(config, tiny_folder, data, tmp_path, capsys):
    assert run.main([config]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["output"] == str(tmp_path / "run" / "final")
    trained = train(tiny_folder, data, "laser", output_dir=tmp_path / "other", **FAST)
    again = ll.load(tmp_path / "run" / "final", device="cpu")
    np.testing.assert_allclose(again.encode(["why sea"]), trained.encode(["why sea"]), atol=1e-5)


@pytest.mark.slow
def test_one_command_for_several_processes(config, tmp_path):
    # `accelerate launch` starts one process per GPU; several on the CPU need torchrun (or MPI)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(free_port())]
    done = subprocess.run([*launch, "-m", "laser_lab.training", config], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    card = json.loads((tmp_path / "run" / "final" / "run_card.json").read_text())
    assert card["processes"] == 2 and card["steps"] == 4
    assert np.isfinite(ll.load(tmp_path / "run" / "final", device="cpu").encode(["sea"])).all()


@pytest.mark.parametrize("text", ["model: x", "[]"])
def test_bad_config(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert run.main([str(tmp_path / "c.yaml")]) == 2 and run.main([]) == 2


def test_bfloat16_with_batches_by_length(tiny_folder, data, tmp_path):
    """Frozen weights in bfloat16 under autocast, the adapter in float32; questions of like length share a batch."""
    model = ll.load(tiny_folder, prompts={"query": "", "document": ""}, device="cpu", dtype="bfloat16")
    options = FAST | {"bf16": True, "train_sampling_strategy": "group_by_length"}
    del options["use_cpu"]  # follows where there is no accelerator
    train(model, data, "lexical", output_dir=tmp_path / "run", **options)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert all(np.isfinite(entry["loss"]) for entry in model.history if "loss" in entry)
    loaded = ll.load(tmp_path / "run" / "final", device="cpu")
    assert loaded.encoder.backbone.embedding_table.dtype == torch.float32


def test_batches_by_length_are_less_wide(tiny_folder, data, tmp_path):
    def widths(strategy: str) -> list[int]:
        model, method = load(tiny_folder), method_of("basic")
        args = SentenceTransformerTrainingArguments(
            str(tmp_path / strategy), per_device_train_batch_size=3, train_sampling_strategy=strategy,
            remove_unused_columns=False, report_to="none", use_cpu=True,
        )  # fmt: skip
        uneven = [row | {"query": " ".join(["sea"] * (1 + 7 * i % 12))} for i, row in enumerate(rows(24))]
        pairs = training_pairs(Dataset.from_list(uneven, features=features()))
        trainer = LatentTrainer(
            model=model, args=args, train_dataset=pairs, loss=DualViewLoss(model, method),
            data_collator=Collator(model, method),
        )  # fmt: skip
        every = [batch["query_input_ids"].shape for batch in trainer.get_train_dataloader()]
        assert sum(count for count, _ in every) == len(pairs)
        return [width for _, width in every]

    assert sum(widths("group_by_length")) < sum(widths("random"))
