"""The explorer's second edition without a browser: statistics, layers, effects, two columns, traits, big corpora."""

import json
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_backbone
from test_explorer import CORPUS, QUERIES, QUERY, TASK, Page

import laser_lab as ll
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.explorer import Change, Explorer
from laser_lab.explorer.answers import LAYER_TOKENS, NEIGHBOURS
from laser_lab.explorer.changes import KINDS, STEPS
from laser_lab.probing.causal import blend, replace, soft_tokens, steer
from laser_lab.probing.lens import fit_lens
from laser_lab.probing.tracing import think_layers
from laser_lab.probing.vocabulary import logit_lens, token_embeddings


def retriever(seed: int = 0, **options) -> LatentRetriever:
    encoder = LatentEncoder(tiny_backbone(seed=seed), thinking_steps=3, **options)
    return LatentRetriever(modules=[encoder], device="cpu", prompts={"query": "", "document": ""})


@pytest.fixture(scope="module")
def model():
    return retriever()


@pytest.fixture(scope="module")
def lens(model):
    return fit_lens(model, list(CORPUS.values()), max_steps=5, show_progress_bar=False)


@pytest.fixture(scope="module")
def explorer(model, lens):
    kinds = {doc: {"kind": "water" if "sea" in text else "other", "size": len(text)} for doc, text in CORPUS.items()}
    return Explorer(model, TASK, second_model=retriever(seed=1), lens=lens, metadata=kinds)


@pytest.fixture(autouse=True)
def as_it_was(request):
    """Tests set the traits of one explorer."""
    yield
    if "explorer" in request.fixturenames:
        selection = {"documents": [], "tokens": []}
        request.getfixturevalue("explorer").show(QUERY, 3, selection=selection)


# -- numbers -------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_distribution(model, explorer):
    answer = explorer.answer(QUERY)
    states = ll.think(model, [QUERY], STEPS, prompt_name="query").states[0]
    p = model[0].backbone.logits(states).softmax(-1).double()
    entropy = -(p * p.log()).sum(-1)
    found = answer["statistics"]
    assert found["entropy"] == pytest.approx(entropy.tolist(), abs=1e-4)
    assert found["effective_tokens"] == pytest.approx(entropy.exp().tolist(), abs=1e-3)
    assert found["top_probability"] == pytest.approx(p.amax(-1).tolist(), abs=1e-4)
    divergence = (p[:-1] * (p[:-1] / p[1:]).log()).sum(-1)
    assert found["divergence"][:-1] == pytest.approx(divergence.tolist(), abs=1e-4) and found["divergence"][-1] is None
    for k in range(STEPS):
        scores = {d["id"]: d["scores"][k] for d in answer["documents"]}
        assert found["best"][k] == pytest.approx(max(scores.values()), abs=1e-4)
        assert found["relevant"][k] == pytest.approx(scores["d5"], abs=1e-4)
    assert "weight" not in found, "nothing ends here"
    assert "relevant" not in explorer.answer("blue sea")["statistics"]


def test_courses_follow_tokens(model, explorer):
    answer = explorer.answer(QUERY, pins=["snow"])
    first = list(dict.fromkeys(step[0]["name"] for step in answer["tokens"]))
    assert [course["name"] for course in answer["courses"]] == list(dict.fromkeys([*first, "snow"]))
    states = ll.think(model, [QUERY], STEPS, prompt_name="query").states[0]
    p = model[0].backbone.logits(states).softmax(-1)
    for course in answer["courses"]:
        token = model[0].tokenizer.convert_tokens_to_ids(course["name"])
        assert course["p"] == pytest.approx(p[:, token].tolist(), abs=1e-5)
        assert course["rank"] == [1 + int((row > row[token]).sum()) for row in p]


def test_layers_are_the_logit_lens(model, lens, explorer):
    for name, fitted in {"head": None, "tuned": lens}.items():
        found = explorer.sides[0].layers(QUERY, lens=name)["cells"]
        assert len(found) == 3 and {len(row) for row in found} == {STEPS}
        frame = logit_lens(model, think_layers(model, [QUERY], STEPS, prompt_name="query"), LAYER_TOKENS, fitted)
        for (layer, step), rows in frame.groupby(["layer", "step"]):
            cell = found[layer][step - 1]
            assert [token["text"] for token in cell["tokens"]] == rows["token"].tolist()
            assert cell["entropy"] == pytest.approx(rows["entropy"].iloc[0], abs=1e-3)
            assert cell["rank"] == rows["last_rank"].iloc[0]
    plain, tuned = (explorer.sides[0].layers(QUERY, lens=name)["cells"] for name in ("head", "tuned"))
    assert plain[-1] == tuned[-1] and plain[0] != tuned[0]
    changed = explorer.sides[0].layers(QUERY, Change(2, "token", "snow"))["cells"]
    assert [row[:2] for row in changed] == [row[:2] for row in plain] and changed[0][2] != plain[0][2]
    with pytest.raises(ValueError, match="no such lens"):
        explorer.sides[1].layers(QUERY, lens="tuned")


def test_effects_are_changes_in_rank(explorer):
    changes = [Change(step, kind, "snow" if kind == "token" else "sea" if kind == "query" else "")
               for step in (1, 2) for kind in KINDS]  # fmt: skip
    for query, wanted in {QUERY: "d5", "blue sea": None}.items():
        plain = explorer.ranking(query)
        for change in changes:
            effect = explorer.sides[0].effect(query, change)
            frame = explorer.ranking(query, change)
            for k in range(1, STEPS + 1):
                at = plain[plain["thinking_steps"] == k].set_index("doc_id")["rank"]
                doc = wanted or at.idxmin()
                assert effect["before"][k - 1] == at[doc]
                after = frame[frame["thinking_steps"] == k].set_index("doc_id")["rank"]
                assert effect["after"][k - 1] == (after[doc] if len(after) else None)


def test_presets_reach_every_soft_token(explorer):
    reply = Page(explorer).ask(op="presets", query=QUERY)["answer"]
    assert {(change["step"], change["kind"]) for change in reply} == {
        (k, kind) for k in range(1, STEPS) for kind in KINDS
    }


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_a_strength_moves_part_of_the_way(model, explorer, strength):
    value = token_embeddings(model, ["snow"])[0]
    for mode, edit in (("interpolate", blend(2, value, strength)), ("steer", steer(2, value, strength))):
        found = explorer.sides[0].thoughts(QUERY, Change(2, "token", "snow", strength, mode)).states
        expected = ll.think(model, [QUERY], STEPS, prompt_name="query", edit=edit).states
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    same = ll.think(model, [QUERY], STEPS, prompt_name="query").states
    noisy = explorer.sides[0].thoughts(QUERY, Change(2, "noise", "1", strength, "steer")).states
    assert torch.equal(noisy, same) == (strength == 0)


def test_bad_strengths():
    for strength, mode, message in (
        (1.5, "interpolate", "from 0 to 1 to interpolate"),
        (-0.1, "interpolate", "from 0 to 1"),
        (2.5, "steer", "from -2 to 2 to steer"),
        (math.nan, "steer", "from -2 to 2"),
        (True, "steer", "from -2 to 2"),
        ("1", "interpolate", "from 0 to 1"),
        (1, "boil", "mode must be interpolate or steer"),
    ):
        with pytest.raises(ValueError, match=message):
            Change(1, "mean", "", strength, mode)
    with pytest.raises(ValueError, match="knocked out as a whole"):
        Change(1, "knock-out", "", 0.5)
    assert Change(1, "token", "snow", 0.25).label == "soft token 1 → 25 % the token “snow”"
    assert Change(1, "mean", "", -0.5, "steer").label == "soft token 1 − 0.5 × the mean thought"


# -- halting -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halting():
    """A model whose thoughts end before K = 8."""
    model = retriever(halting=True, halting_threshold=0.8)
    explorer = Explorer(model, TASK)
    taken = {q: explorer.answer(q)["taken"] for q in QUERIES.values()}
    assert min(taken.values()) < STEPS, "some thought ends"
    return explorer


def test_the_end_of_a_thought_is_told(halting):
    model = halting.model
    for query in QUERIES.values():
        answer = halting.answer(query)
        thoughts = ll.think(model, [query], STEPS, prompt_name="query")
        taken = int(thoughts.steps_taken[0])
        assert answer["taken"] == taken
        assert [len(step) > 0 for step in answer["tokens"]] == [k < taken for k in range(STEPS)]
        assert answer["statistics"]["weight"][:taken] == pytest.approx(thoughts.weights[0, :taken].tolist(), abs=1e-4)
        p = model[0].backbone.logits(thoughts.states[0]).softmax(-1)[:, model[0].end_token]
        assert answer["statistics"]["end_probability"][:taken] == pytest.approx(p[:taken].tolist(), abs=1e-4)
        for name in ("entropy", "end_probability", "top_probability"):
            assert set(answer["statistics"][name][taken:]) <= {None}
        assert all(course["p"][taken:] == [None] * (STEPS - taken) for course in answer["courses"])
        cells = halting.sides[0].layers(query)["cells"]
        assert all((row[k] is None) == (k >= taken) for row in cells for k in range(STEPS))
        if taken < STEPS:  # nobody reads what comes after the end
            late = halting.answer(query, Change(min(taken, STEPS - 1), "noise", "1"))
            plain = {d["id"]: d["ranks"] for d in answer["documents"]}
            assert {d["id"]: d["ranks"] for d in late["documents"]} == plain


def test_documents_with_a_k_of_their_own_are_an_index_that_stays():
    model = retriever(document_steps=2)
    explorer = Explorer(model, TASK)
    vectors = model.encode_document(list(CORPUS.values()))
    assert np.allclose(vectors, model.encode_document(list(CORPUS.values()), thinking_steps=2), atol=1e-6)
    answer = explorer.answer(QUERY)
    for k in (1, 5):
        scores = dict(zip(CORPUS, vectors @ model.encode_query(QUERY, thinking_steps=k)))
        for d in answer["documents"]:
            assert d["scores"][k - 1] == pytest.approx(scores[d["id"]], abs=1e-4)
    assert (explorer.sides[0].places == explorer.sides[0].places[:1]).all()


# -- instructions ------------------------------------------------------------------------------------------------


def test_a_query_is_asked_with_its_own_instruction(tmp_path):
    """A task's prompts, and one that is written before the query, reach every answer as they reach encode."""
    model = retriever()
    model.prompts["query"] = "not "
    own = {"q1": "very long", "q2": "Query: so "}
    task = RetrievalTask("own", QUERIES, CORPUS, {"q1": {"d5": 1}, "q2": {"d3": 1}}, prompts=own)
    explorer = Explorer(model, task)
    side = explorer.sides[0]
    documents = model.encode_document(list(CORPUS.values()))
    typed = "Instruct: snow \n Query: blue sea"
    asked = {QUERIES[q]: (QUERIES[q], prompt) for q, prompt in own.items()}
    asked |= {
        QUERIES["q3"]: (QUERIES["q3"], ""),
        typed: ("blue sea", "snow"),
        "Instruct: snow Query:sea": ("sea", "snow"),
    }
    for query, (text, prompt) in asked.items():
        answer = explorer.answer(query)
        thoughts = ll.think(model, [text], STEPS, prompt_name="query", prompts=[prompt])
        assert torch.equal(side.thoughts(query).states, thoughts.states) and side.thoughts(query).texts == [text]
        scores = dict(zip(CORPUS, documents @ model.encode_query([text], prompts=[prompt])[0]))
        assert {d["id"]: d["scores"][2] for d in answer["documents"]} == pytest.approx(
            {d["id"]: scores[d["id"]] for d in answer["documents"]}, abs=1e-4
        )
        names = [layer[0]["tokens"][0]["name"] for layer in side.layers(query)["cells"]]
        assert names[-1] == answer["tokens"][0][0]["name"]
        note = f"Asked with its own instruction: “{prompt}”."
        assert (note in answer["notes"]) == bool(prompt)
        same = side.thoughts("rain", Change(1, "query", query)).states
        soft = soft_tokens(model, [text], STEPS, prompt_name="query", prompts=[prompt])[0, 0]
        expected = ll.think(model, ["rain"], STEPS, prompt_name="query", edit=replace(1, soft)).states
        torch.testing.assert_close(same, expected, atol=1e-5, rtol=1e-4)
    assert [d["id"] for d in explorer.answer("Instruct: snow Query: sea")["documents"] if d["relevant"]] == ["d3"]
    said = soft_tokens(model, [t for t, _ in asked.values()][:3], STEPS, prompt_name="query",
                       prompts=[*own.values(), ""]).mean(0)  # fmt: skip
    torch.testing.assert_close(side.mean, said)
    beside = explorer.answer("sea", beside={"query": "Instruct: snow Query: sea"})
    assert (
        beside["tokens"] == explorer.answer("Instruct: snow Query: sea")["tokens"] != explorer.answer("sea")["tokens"]
    )
    with pytest.raises(ValueError, match="The query is empty"):
        explorer.answer("Instruct: snow Query: ")
    with pytest.raises(ValueError, match="at most 57"):
        explorer.answer(f"Instruct: {'snow ' * 60} Query: sea")
    held = explorer.to_html(tmp_path / "page.html", [typed]).read_text(encoding="utf-8")
    assert "Asked with its own instruction" in held


# -- two columns ---------------------------------------------------------------------------------------------------


def test_another_query_and_another_model_stand_beside(explorer):
    plain = explorer.sides[0].ranks(QUERY)
    other = explorer.answer(QUERY, beside={"query": "sea"})
    alone = explorer.answer("sea")
    assert other["query"] == "sea" and other["tokens"] == alone["tokens"] and other["beside"] == {"query": "sea"}
    second = explorer.answer(QUERY, beside={"model": 1})
    expected = Explorer(explorer.sides[1].model, TASK).answer(QUERY)
    assert second["tokens"] == expected["tokens"] != explorer.answer(QUERY)["tokens"]
    for answer, right in ((other, alone), (second, expected)):
        ranks = {d["id"]: d["ranks"] for d in right["documents"]}
        for d in answer["documents"]:
            assert d["before"] == plain[:, d["row"]].tolist() and d["ranks"] == ranks.get(d["id"], d["ranks"])
    for bad in ({"model": 2}, {"model": 0}, {"query": "sea", "model": 1}, {"other": 1}, {"query": ""}):
        with pytest.raises(ValueError):
            explorer.answer(QUERY, beside=bad)
    with pytest.raises(ValueError, match="not both"):
        explorer.answer(QUERY, Change(1, "mean"), beside={"model": 1})
    with pytest.raises(ValueError, match="no second model"):
        Explorer(explorer.model, TASK).answer(QUERY, beside={"model": 1})


# -- back to Python ------------------------------------------------------------------------------------------------


def test_traits_follow_the_page_and_can_be_set(explorer):
    seen = []
    explorer.observe(lambda event: seen.append((event.name, event.new)), ["query", "change", "ranking_frame"])
    page = Page(explorer)
    page.ask(op="answer", query="sea", change=None)
    assert explorer.query == "sea" and explorer.thoughts.texts == ["sea"] and ("query", "sea") in seen
    page.ask(op="answer", query="sea", change={"step": 1, "kind": "token", "value": "snow", "label": "any"})
    assert explorer.change == Change(1, "token", "snow")
    frame = explorer.ranking_frame
    assert frame["change"].unique().tolist() == [explorer.change.label] and len(frame) == len(CORPUS)
    expected = explorer.ranking("sea", explorer.change)
    expected = expected[expected["thinking_steps"] == 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, expected)
    explorer.thinking_steps = 5
    assert explorer.ranking_frame["thinking_steps"].unique().tolist() == [5]
    explorer.beside = {"model": 1}
    assert explorer.change is None, "the second column shows one thing"
    explorer.change = Change(2, "mean")
    assert explorer.beside == {}
    explorer.query = QUERY
    assert explorer.change is None and explorer.thoughts.texts == [QUERY]
    page.ask(op="answer", query="sea", take=False)
    assert explorer.query == QUERY, "the page only follows"
    assert explorer.get_state()["change"] is None
    explorer.change = Change(2, "mean")
    assert explorer.get_state()["change"] == explorer.change.as_dict()
    explorer.set_state({"change": None})
    assert explorer.change is None


def test_what_cannot_be_shown_is_refused_and_changes_nothing(explorer):
    explorer.show(QUERY, 3, change=Change(1, "token", "snow"), selection={"documents": ["d1"], "tokens": ["snow"]})
    before = {name: getattr(explorer, name) for name in ("query", "thinking_steps", "change", "beside", "selection")}
    for name, value in [
        ("query", ""),
        ("query", "x" * 10_000),
        ("thinking_steps", 0),
        ("thinking_steps", STEPS + 1),
        ("change", "mean"),
        ("change", Change(1, "token", "xyzzy")),
        ("beside", {"model": 7}),
        ("selection", {"documents": ["nowhere"]}),
        ("selection", {"planets": []}),
    ]:
        with pytest.raises(ValueError):
            setattr(explorer, name, value)
        assert {name: getattr(explorer, name) for name in before} == before
    with pytest.raises(ValueError):
        explorer.show("sea", change=Change(1, "token", "xyzzy"))
    assert {name: getattr(explorer, name) for name in before} == before


def test_a_model_that_fails_leaves_everything_as_it_was(explorer, monkeypatch):
    page = Page(explorer)
    page.ask(op="answer", query="sea")
    think = LatentEncoder.think

    def fails(how):
        def broken(self, features, *args, **kwargs):
            if isinstance(how, Exception):
                raise how
            found = think(self, features, *args, **kwargs)
            return found | {"states": found["states"] * float("nan")}

        return broken

    for number, (how, message) in enumerate([
        ("nan", "is not finite"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "The model ran out of memory"),
        (MemoryError(), "The model ran out of memory"),
        (RuntimeError("device-side assert\nlong trace"), "The model failed: RuntimeError: device-side assert."),
    ]):  # fmt: skip
        monkeypatch.setattr(LatentEncoder, "think", fails(how))
        for request in (
            {"query": f"snow {'and ' * number}rain"},
            {"query": "sea", "change": {"step": 1, "kind": "mean"}},
        ):
            reply = page.ask(op="answer", **request)
            assert reply.keys() == {"id", "error"} and message in reply["error"] and "\n" not in reply["error"]
            assert explorer.query == "sea" and explorer.change is None and explorer.thoughts.texts == ["sea"]
        monkeypatch.setattr(LatentEncoder, "think", think)
        assert "answer" in page.ask(op="answer", query="sea", change={"step": 1, "kind": "noise", "value": str(number)})
        page.ask(op="answer", query="sea")


def test_documents_that_are_not_finite_are_refused(model, monkeypatch):
    think = LatentEncoder.think

    def broken(self, *args, **options):
        found = think(self, *args, **options)
        return found | {"states": found["states"] * float("nan")}

    monkeypatch.setattr(LatentEncoder, "think", broken)
    with pytest.raises(ValueError, match="is not finite"):
        Explorer(model, CORPUS)


# -- the corpus ----------------------------------------------------------------------------------------------------


def test_neighbours_are_the_nearest(model, explorer):
    vectors = model.encode_document(list(CORPUS.values()), thinking_steps=2)
    for row in (0, 7):
        scores = vectors @ vectors[row]
        order = [i for i in np.argsort(-scores) if i != row][:NEIGHBOURS]
        found = explorer.sides[0].neighbours(row, 2)
        assert [d["row"] for d in found] == order
        assert [d["score"] for d in found] == pytest.approx(scores[order].tolist(), abs=1e-4)
    assert Explorer(model, ["alone"], ["sea"]).sides[0].neighbours(0, 1) == []


def test_columns_to_colour_by(model, explorer):
    kind, size = explorer.documents["columns"]
    assert kind == {"name": "kind", "kind": "category", "names": ["other", "water"],
                    "values": [int("sea" in text) for text in CORPUS.values()]}  # fmt: skip
    assert size["kind"] == "number" and size["values"] == [len(t) for t in CORPUS.values()] and size["low"] == 4
    frame = pd.DataFrame({"n": [1.5, None], "many": ["a", None]}, index=["d0", "d1"])
    n, many = Explorer(model, CORPUS, metadata=frame).documents["columns"]
    assert n["values"][:3] == [1.5, None, None] and many["values"][:2] == [0, None]
    codes = pd.DataFrame({"c": [str(i) for i in range(14)]}, index=list(CORPUS))
    [c] = Explorer(model, CORPUS, metadata=codes).documents["columns"]
    assert c["names"][-1] == "other (5)" and max(c["values"]) == 9
    with pytest.raises(ValueError, match="knows no document"):
        Explorer(model, CORPUS, metadata={"elsewhere": {"kind": "x"}})


def test_places_are_what_the_page_draws(explorer):
    for side, held in zip(explorer.sides, explorer.places):
        values = np.frombuffer(held, "<u2").reshape(STEPS, len(CORPUS), 2) / 65535
        places = values * side.bounds[2:] + side.bounds[:2]
        np.testing.assert_allclose(places, side.places, atol=max(side.bounds[2:]) / 60_000)


EVIL = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "`${alert(1)}`",
    "\u202eright to left\u200f",
    "sea" * 3334,
    "👩‍🚀🏳️‍🌈 \u2028",
    "{style} {script} {0} %s",
]


def test_evil_texts_break_nothing(model, tmp_path):
    corpus = {f"{i} {text}": text for i, text in enumerate(EVIL)}
    metadata = {doc: {text[:80]: text for text in EVIL} for doc in corpus}
    queries = {f"q{i}": f"sea {text}"[:200] for i, text in enumerate(EVIL)}
    task = RetrievalTask(EVIL[1], queries, corpus, {"q0": {next(iter(corpus)): 1}})
    explorer = Explorer(model, task, metadata=metadata)
    page = Page(explorer)
    for query in queries.values():
        assert "answer" in page.ask(op="answer", query=query)
        for kind, value in (("token", EVIL[0]), ("query", query)):
            reply = page.ask(op="answer", query=query, change={"step": 1, "kind": kind, "value": value})
            assert ("error" in reply) == (kind == "token")
    text = explorer.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and text.count("<script") == 2 and "<img" not in text and "\x00" not in text


def test_ten_thousand_documents_are_answered_quickly():
    """What comes on top of the model's own time: ranks, places, the frame; below 100 ms."""
    model = retriever()
    count, size = 10_000, 32
    explorer = Explorer(model, list(CORPUS.values()), ["sea", "sky"])
    side = explorer.sides[0]
    corpus = [f"text {i}" for i in range(count)]
    big = object.__new__(type(side))
    big.__dict__ |= side.__dict__
    from laser_lab.explorer.corpus import Corpus

    big.corpus = Corpus(corpus)
    big._documents = np.random.default_rng(0).normal(size=(STEPS, count, size)).astype(np.float32)
    big.thoughts("sea")
    seconds = []
    for k in range(1, 6):
        started = time.process_time()
        big.answer("sea")
        big.ranking("sea", steps=[k])
        big.neighbours(k, k)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.3  # three interactions
    assert len(json.dumps(big.answer("sea"))) < 200_000
