"""MTEB runs any retriever, agrees with our own measures, and its numbers stand beside the paper's."""

import importlib
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from conftest import SMALL, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.backbone import Backbone
from laser_lab.data.readers import RetrievalTask, mini
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.evaluation import score_run
from laser_lab.lab.published import published
from laser_lab.loading import query_prompt

mteb = pytest.importorskip("mteb")
from mteb_tasks import as_mteb_task  # noqa: E402

from laser_lab.lab import benchmarks  # noqa: E402
from laser_lab.lab.benchmarks import BENCHMARKS, library_instruction, mteb_model, report, run  # noqa: E402

INSTRUCTION = "Given a post, retrieve relevant passages that help answer the post."


@pytest.fixture(scope="module")
def task():
    return mini()


@pytest.fixture(scope="module")
def model(task):
    """A tiny random model that knows the words of the bundled task: texts differ, so rankings have no ties."""
    words = {
        w: None for t in (*task.queries.values(), *task.corpus.values(), query_prompt(INSTRUCTION)) for w in t.split()
    }
    tokenizer = word_tokenizer(words)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SMALL | dict(vocab_size=len(tokenizer), max_position_embeddings=256))
    backbone = Backbone(transformers.AutoModelForCausalLM.from_config(config).eval(), tokenizer, name="some/tiny")
    encoder = LatentEncoder(backbone, thinking_steps=2, max_length=128)
    prompts = {"query": query_prompt(), "document": ""}
    return LatentRetriever(modules=[encoder], device="cpu", prompts=prompts, similarity_fn_name="cosine")


def instructed(task, name):
    """Queries twice, the second time with an instruction, as FollowIR has them: a task of p-MRR and its changes."""
    some = dict(list(task.queries.items())[:8])
    queries = {f"{q}-{end}": text for q, text in some.items() for end in ("og", "changed")}
    qrels = {f"{q}-{end}": dict(task.qrels[q]) for q in some for end in ("og", "changed")}
    changed = {q: [next(iter(task.qrels[q]))] for q in some}
    words = " ".join(task.corpus.values()).split()
    instructions = {q: " ".join(words[i * 7 : i * 7 + 5]) for i, q in enumerate(queries)}
    data = RetrievalTask(name, queries, task.corpus, qrels)
    return as_mteb_task(data, instructions=instructions, changed=changed), data, instructions, changed


def quiet(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, show_progress_bar=False, **kwargs)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_retriever_runs_as_it_is_and_agrees_with_evaluate(model, task, steps):
    encode = {"thinking_steps": steps, "batch_size": 16, "show_progress_bar": False}
    result = quiet(mteb.evaluate, model, as_mteb_task(task), encode_kwargs=encode, cache=None)
    (scores,) = result.task_results[0].scores["test"]
    ours = ll.evaluate(model, task, thinking_steps=steps)
    assert scores["ndcg_at_10"] == pytest.approx(ours["ndcg@10"], abs=1e-5)  # MTEB rounds to five places
    assert scores["recall_at_100"] == pytest.approx(ours["recall@100"], abs=1e-5)
    assert 0 < ours["ndcg@10"] < 1


def test_documents_keep_their_own_budget_and_halting_is_on_record(model, task):
    encoder = LatentEncoder(model.encoder.backbone, thinking_steps=3, document_steps=1)
    model = LatentRetriever(modules=[encoder], prompts={"query": "", "document": ""}, device="cpu")
    result = quiet(mteb.evaluate, mteb_model(model), as_mteb_task(task), cache=None)
    (scores,) = result.task_results[0].scores["test"]
    assert scores["ndcg_at_10"] == pytest.approx(ll.evaluate(model, task)["ndcg@10"], abs=1e-5)
    revisions = {mteb_model(model).mteb_model_meta.revision}
    encoder.set_thinking(3, 1, halting=True)
    revisions.add(mteb_model(model).mteb_model_meta.revision)
    encoder.set_thinking(3, 2, halting=True)
    revisions.add(mteb_model(model).mteb_model_meta.revision)
    assert len(revisions) == 3, "MTEB's cache must not take one of these for another"


def test_wrapped_results_record_k_and_tell_weights_apart(model, task, tmp_path):
    local, cache = as_mteb_task(task), mteb.ResultCache(tmp_path)
    for steps in (1, 3):
        quiet(mteb.evaluate, mteb_model(model, thinking_steps=steps), local, cache=cache)
    kept = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob(f"{task.name}.json"))
    assert len(kept) == 2 and "thinking_steps_1" in kept[0] and "thinking_steps_3" in kept[1]
    before = mteb_model(model).mteb_model_meta
    weight = next(model.parameters())
    with torch.no_grad():
        weight.mul_(2)
        after = mteb_model(model).mteb_model_meta
        weight.div_(2)
    assert before.revision != after.revision and before.name == after.name == "laser_lab/tiny"
    assert mteb_model(model).mteb_model_meta.revision == before.revision
    assert mteb_model(model, instructions={"x": "y"}).mteb_model_meta.revision != before.revision


def test_prompts_per_task(model, task):
    prompts = dict(model.prompts)
    local = as_mteb_task(task)
    told = quiet(mteb.evaluate, mteb_model(model, instructions={task.name: INSTRUCTION}), local, cache=None)
    assert model.prompts == prompts
    queries = model.encode(list(task.queries.values()), prompt=query_prompt(INSTRUCTION))
    documents = model.encode(list(task.corpus.values()), prompt="")
    from laser_lab.evaluation import score

    expected = score(queries, documents, task)["ndcg@10"]
    assert told.task_results[0].scores["test"][0]["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(ll.evaluate(model, task)["ndcg@10"], abs=1e-5)


def test_p_mrr_equals_a_plain_computation(model, task):
    local, data, instructions, changed = instructed(task, "instructed")
    result = quiet(mteb.evaluate, mteb_model(model), local, cache=None)
    (scores,) = result.task_results[0].scores["test"]
    texts = [f"{text} {instructions[q]}" for q, text in data.queries.items()]
    similarity = model.encode_query(texts) @ model.encode_document(list(data.corpus.values())).T
    ids, documents = list(data.queries), list(data.corpus)
    changes = []
    for query, docs in changed.items():
        ranks = []
        for end in ("og", "changed"):
            row = similarity[ids.index(f"{query}-{end}")]
            ranks.append(1 + int((row > row[documents.index(docs[0])]).sum()))
        old, new = ranks
        changes.append(1 - old / new if new > old else new / old - 1)
    # positive where the document that the instruction rules out falls
    assert scores["p-MRR"] == pytest.approx(np.mean(changes), abs=1e-5)
    assert scores["p-MRR"] != 0


def test_followir_in_one_call_beside_the_paper(model, task):
    names = [f"{name}InstructionRetrieval" for name in ("Robust04", "News21", "Core17")]
    local = [instructed(task, name)[0] for name in names]
    frame = quiet(run, model, "followir", tasks=local, thinking_steps=3)
    values = frame.set_index("column")["value"]
    assert list(values.index[:2]) == ["robust04_map_at_5", "robust04_p_mrr"]
    assert values["followir_score"] == pytest.approx(values.filter(regex="at_5$").mean())
    assert (frame["thinking_steps"] == 3).all() and frame["instruction"][0] == "Retrieve text based on user query."
    table = report({"mine": frame}, {"mine": "LaSER (Qwen3-0.6B)"})
    assert table.loc["mine", ("published", "news21_ndcg_at_5")] == 25.0
    assert table.loc["mine", ("measured", "news21_ndcg_at_5")] == values["news21_ndcg_at_5"]
    assert ("published", "browsecomp_plus_recall_at_5") not in table.columns


def test_bright_and_browsecomp_in_one_call(model, task):
    subsets = [subset for _, subset, _ in BENCHMARKS["bright"].columns.values()]
    parts = {}
    for i, subset in enumerate(subsets):
        queries = dict(list(task.queries.items())[3 * i : 3 * i + 3])
        qrels = {q: task.qrels[q] for q in queries}
        corpus = {d: task.corpus[d] for d in [*{d for docs in qrels.values() for d in docs}, *list(task.corpus)[:20]]}
        parts[subset] = RetrievalTask(subset, queries, corpus, qrels)
    frame = quiet(run, model, "bright", tasks=[as_mteb_task(parts, "BrightRetrieval")])
    values = frame.set_index("column")["value"]
    assert len(values) == 13 and values["average"] == pytest.approx(values[:-1].mean())
    assert set(frame["instruction"].dropna()) == {INSTRUCTION}
    table = report({"mine": frame, "other": frame}, {"mine": "LaSER (Qwen3-8B)"})
    assert table.loc["mine", ("published", "average")] == 29.3
    assert np.isnan(table.loc["other", ("published", "average")])

    both = {"gold_only": task, "gold_and_evidence": task}
    frame = quiet(run, model, "browsecomp-plus", tasks=[as_mteb_task(both, "BrowseCompPlusRetrieval")])
    assert frame["value"].tolist() == sorted(frame["value"]) and frame["value"].iloc[-1] == 100  # 132 documents
    with pytest.raises(ValueError, match="one benchmark"):
        report({"a": frame, "b": frame.assign(benchmark="bright")}, {})


def test_tasks_and_columns_exist_in_the_library_and_the_paper():
    for benchmark in BENCHMARKS.values():
        columns = set(published(benchmark.table).columns)
        assert {*benchmark.columns, *benchmark.means} <= columns
        for name, subset, measure in benchmark.columns.values():
            known = mteb.get_task(name)
            assert subset in known.hf_subsets
            assert measure == "p-MRR" or int(measure.rsplit("_", 1)[1]) in known.k_values
            assert library_instruction(known)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_measures_are_the_librarys_on_random_runs_with_ties(data):
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    docs = [f"d{i}" for i in range(data.draw(st.integers(2, 40)))]
    queries = ["q0", "q1", "q2"]
    grades = {q: data.draw(st.dictionaries(st.sampled_from(docs), st.integers(1, 3), min_size=1)) for q in queries}
    few = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # so that scores tie
    found = {q: {d: data.draw(few) for d in docs} for q in queries}
    ours = score_run(found, RetrievalTask("t", dict.fromkeys(queries, "?"), dict.fromkeys(docs, "."), grades))
    theirs = calculate_retrieval_scores(found, grades, [10, 100]).all_scores
    for row in ours.itertuples(index=False):
        assert row[1] == pytest.approx(theirs[row.query_id]["ndcg_cut_10"], abs=1e-9)
        assert row[2] == pytest.approx(theirs[row.query_id]["recall_10"], abs=1e-9)
        assert row[3] == pytest.approx(theirs[row.query_id]["recall_100"], abs=1e-9)


def test_bad_requests(model, task, monkeypatch):
    with pytest.raises(KeyError, match="there are bright"):
        run(model, "beir")
    with pytest.raises(ValueError, match="positive integer"):
        mteb_model(model, thinking_steps=0)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ModuleNotFoundError, match=r"laser_lab\[benchmarks\]"):
        importlib.reload(benchmarks)
