"""Search in an encoded corpus: exact and by IVF-PQ, by words and by vectors, and inside evaluations."""

import builtins

import numpy as np
import pytest
from conftest import WORDS
from mteb_tasks import as_mteb_task
from test_benchmarks import model as task_model  # noqa: F401  a fixture
from test_benchmarks import quiet, task  # noqa: F401
from test_corpus import encode, rows

import laser_lab as ll
from laser_lab.data.prompts import query_prompt
from laser_lab.data.readers import RetrievalTask
from laser_lab.evaluation import score_run
from laser_lab.index import ivfpq
from laser_lab.index.folder import Shard, VectorFolder
from laser_lab.index.search import VectorIndex
from laser_lab.lab.benchmarks import library_instruction, run

faiss = pytest.importorskip("faiss")
faiss.omp_set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tiny_folder, tmp_path_factory):
    model = ll.load(tiny_folder, device="cpu", thinking_steps=2, prompts={"query": "why ", "document": "the "})
    folder = tmp_path_factory.mktemp("corpus") / "out"
    encode(model, {row["id"]: row["text"] for row in rows()}, folder)
    return model, folder


def test_exact_search_is_the_sorted_cosine(corpus):
    model, folder = corpus
    queries = model.encode_query(["the sky", "rain and snow"])
    found = ll.open_corpus(folder).search(queries, top=5)
    assert found.columns.tolist() == ["query_id", "rank", "doc_id", "score"]
    assert found["query_id"].tolist() == [0] * 5 + [1] * 5 and found["rank"].tolist() == [1, 2, 3, 4, 5] * 2
    scores = queries @ model.encode_document([row["text"] for row in rows()]).T
    np.testing.assert_allclose(found["score"], -np.sort(-scores, axis=1)[:, :5].ravel(), atol=2e-4)
    wanted = scores[[0] * 5 + [1] * 5, [int(name[1:]) for name in found["doc_id"]]]
    np.testing.assert_allclose(found["score"], wanted, atol=2e-4)
    assert len(ll.open_corpus(folder).search(queries, top=1000)) == 2 * len(rows())


def test_queries_may_be_words_or_have_ids(corpus):
    model, folder = corpus
    by_vector = ll.open_corpus(folder).search(model.encode_query(["the sky"]), top=3)
    for queries in ("the sky", ["the sky"]):
        assert ll.open_corpus(folder, model).search(queries, top=3).equals(by_vector)
    opened = ll.open_corpus(folder)  # loads the model that the folder names
    named = opened.search({"a": "the sky", "b": "rain"}, top=3, thinking_steps=2)
    assert named["query_id"].tolist() == ["a"] * 3 + ["b"] * 3
    assert named["doc_id"].tolist()[:3] == by_vector["doc_id"].tolist()
    deeper = opened.search({"a": "the sky"}, top=3, thinking_steps=5)
    assert not np.allclose(deeper["score"], named["score"][:3], atol=1e-4)
    both = opened.search({"a": model.encode_query("the sky")}, top=3)
    assert both["query_id"].tolist() == ["a"] * 3


def test_bad_searches(corpus, tmp_path, monkeypatch):
    folder = corpus[1]
    opened = ll.open_corpus(folder)
    with pytest.raises(ValueError, match=r"shape \(Q, 32\), got \(2, 7\)"):
        opened.search(np.zeros((2, 7)))
    with pytest.raises(ValueError, match="top must be a positive integer"):
        opened.search(np.zeros((1, 32)), top=0)
    with pytest.raises(FileNotFoundError, match="no corpus was encoded"):
        ll.open_corpus(tmp_path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("faiss"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"laser_lab\[scale\]"):
        ll.open_corpus(folder).search(np.zeros((1, 32)))


# -- IVF-PQ --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clustered(tmp_path):
    """2,000 vectors of 8 numbers around 40 centres, in shards of 250, and 50 more of the same kind as queries."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 8))
    made = centres[random.integers(40, size=2050)] + 0.5 * random.normal(size=(2050, 8))
    made = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    folder = VectorFolder(tmp_path / "vectors")
    folder.begin({"dimension": 8, "similarity": "cosine"}, {})
    for number in range(8):
        ids = [f"d{i}" for i in range(250 * number, 250 * number + 250)]
        vectors = made[250 * number : 250 * number + 250].astype(np.float16)
        folder.write_shard(number, Shard(ids, vectors, np.ones(250, np.int16), 0).to_bytes())
    folder.finish(folder.totals(8))
    return folder, made[2000:]


def test_ivfpq_is_built_by_block_and_near_to_exact(clustered, monkeypatch, capfd):
    folder, queries = clustered
    monkeypatch.setattr(ivfpq, "BLOCK", 600)
    exact = VectorIndex(folder.path)
    near = VectorIndex(folder.path, exact_up_to=100)
    assert exact.is_exact and not near.is_exact
    found, wanted = near.search(queries, top=50), exact.search(queries, top=50)
    printed = capfd.readouterr().out
    assert "IVF-PQ of 2000 vectors: 32 lists, 8 bytes a vector" in printed and "recall@100" in printed
    shared = found.merge(wanted, on=["query_id", "doc_id"])
    assert len(shared) / len(wanted) >= 0.95
    assert (shared["score_x"] - shared["score_y"]).abs().mean() < 0.01  # scores of short codes are approximate
    again = VectorIndex(folder.path, exact_up_to=100).search(queries, top=50)
    printed = capfd.readouterr().out
    assert again.equals(found) and not printed  # built once
    moved = folder.path.rename(folder.path.with_name("moved"))
    assert VectorIndex(moved, exact_up_to=100).search(queries, top=50).equals(found)
    moved.rename(folder.path)
    assert sorted(file.name for file in (folder.path / "ivfpq-8").iterdir()) == [
        "ids.arrow", "lists.index", "lists.ivfdata", "note.json",
    ]  # fmt: skip
    assert not (folder.path / "ivfpq-8-parts").exists()


def test_a_killed_build_goes_on_with_the_blocks_that_are_there(clustered, monkeypatch):
    folder, queries = clustered
    monkeypatch.setattr(ivfpq, "BLOCK", 600)
    real, made = faiss.write_index, []

    def stop_at_the_third(index, name):
        made.append(name)
        if len(made) == 3:
            raise KeyboardInterrupt
        real(index, name)

    monkeypatch.setattr(faiss, "write_index", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        VectorIndex(folder.path, exact_up_to=100).search(queries)
    assert sorted(p.name for p in (folder.path / "ivfpq-8-parts").iterdir()) == ["00000.index", "trained.index"]
    assert len(VectorIndex(folder.path, exact_up_to=100).search(queries)) == 50 * 100
    assert len(made) == 3 + 3  # two blocks and the lists


def test_exact_search_by_shard_is_exact(clustered):
    folder, queries = clustered
    index = VectorIndex(folder.path)
    for mine, whole in zip(index.exactly(queries, 20), index.nearest(queries, 20)):
        np.testing.assert_allclose(mine, whole, atol=1e-6)


@pytest.mark.parametrize("dimension, width", [(32, 32), (64, 64), (640, 320), (1024, 512), (7, 7), (130, 65)])
def test_codes_divide_the_vector(dimension, width):
    assert ivfpq.code_bytes(dimension) == width


# -- evaluations ---------------------------------------------------------------------------------------------------


def test_evaluate_reads_documents_from_a_folder(corpus, tmp_path):
    model, folder = corpus
    documents = {row["id"]: row["text"] for row in rows()}
    queries = {f"q{i}": text for i, text in enumerate([WORDS[3], "rain and snow", "the sky"])}
    data = RetrievalTask("t", queries, documents, {q: {f"d{7 * i}": 1} for i, q in enumerate(queries)})
    assert ll.evaluate(model, data, corpus=folder) == pytest.approx(ll.evaluate(model, data), abs=1e-9)
    called = []
    real, model.encode_document = model.encode_document, lambda *args, **kwargs: called.append(1)
    try:
        frame = ll.evaluate(model, data, thinking_steps=4, per_query=True, corpus=folder)
    finally:
        model.encode_document = real
    assert not called and frame["query_id"].tolist() == list(queries)
    with pytest.raises(ValueError, match="holds 70 documents and the corpus of t 69"):
        few = dict(list(documents.items())[:-1])
        ll.evaluate(model, RetrievalTask("t", queries, few, {"q0": {"d0": 1}}), corpus=folder)
    other = ll.load(model.encoder.base, device="cpu")
    next(other.parameters()).data.mul_(2)
    with pytest.raises(ValueError, match="weights is"):
        ll.evaluate(other, data, corpus=folder)


def test_a_benchmark_encodes_its_documents_once(task_model, task, tmp_path):  # noqa: F811
    local = as_mteb_task({"gold_only": task, "gold_and_evidence": task}, "BrowseCompPlusRetrieval")
    plain = quiet(run, task_model, "browsecomp-plus", tasks=[local])
    stored = quiet(run, task_model, "browsecomp-plus", tasks=[local], corpus=tmp_path / "vectors")
    prompt = query_prompt(library_instruction(local))
    queries = task_model.encode(list(task.queries.values()), prompt=prompt)
    index = VectorIndex(tmp_path / "vectors" / "BrowseCompPlusRetrieval" / "gold_only-test")
    measured = score_run(index.run(dict(zip(task.queries, queries)), 1000), task)["recall@100"].mean()
    assert stored["value"][1] == pytest.approx(100 * measured, abs=1e-3)
    # a random model's scores lie close together: float16 turns some
    assert stored["value"].tolist() == pytest.approx(plain["value"].tolist(), abs=5)
    assert (stored["document_steps"] == 2).all() and "document_steps" not in plain
    called = []
    real, task_model.encode_document = task_model.encode_document, lambda *a, **k: called.append(1)
    try:
        deeper = quiet(run, task_model, "browsecomp-plus", tasks=[local], corpus=tmp_path / "vectors", thinking_steps=5)
    finally:
        task_model.encode_document = real
    assert not called and (deeper["thinking_steps"] == 5).all()
