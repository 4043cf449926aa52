"""The explorer without a browser: its answers against plain computation, bad input, the widget's messages, the file."""

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_backbone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.explorer import Change, Explorer
from laser_lab.explorer.answers import DOCUMENTS, TOKENS
from laser_lab.explorer.changes import KINDS, STEPS
from laser_lab.explorer.page import SCRIPTS, script, style
from laser_lab.probing.causal import noise
from laser_lab.probing.vocabulary import token_id
from laser_lab.thinking import pool

QUERIES = {"q1": "why is the sky blue", "q2": "sea", "q3": "rain and snow"}
CORPUS = {f"d{i}": text for i, text in enumerate(
    ["light scatters", "water water", "snow", "green sea light", "long question", "the sky", "blue", "because rain",
     "not very", "or a sea", "is it", "why not", "sky blue sky", "and snow and rain"])}  # fmt: skip
TASK = RetrievalTask("tiny", QUERIES, CORPUS, {"q1": {"d5": 1, "d6": 0}, "q2": {"d3": 2, "d9": 1}})
QUERY = QUERIES["q1"]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ll.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def explorer(model):
    return Explorer(model, TASK)


def ranks(answer, field="ranks"):
    return {d["id"]: d[field] for d in answer["documents"]}


def test_every_k_of_one_answer_is_what_that_k_alone_gives(model, explorer):
    answer = explorer.answer(QUERY)
    for k in range(1, STEPS + 1):
        query = model.encode_query(QUERY, thinking_steps=k)
        scores = model.encode_document(list(CORPUS.values()), thinking_steps=k) @ query
        first = [list(CORPUS)[i] for i in np.argsort(-scores)]
        found = sorted(answer["documents"], key=lambda d, k=k: d["ranks"][k - 1])
        assert [d["id"] for d in found if d["ranks"][k - 1] <= DOCUMENTS] == first[:DOCUMENTS]
        for d in found:
            assert d["scores"][k - 1] == pytest.approx(scores[list(CORPUS).index(d["id"])], abs=1e-4)
    assert [d["id"] for d in answer["documents"] if d["relevant"]] == ["d5"] and answer["judged"]
    assert {d["id"] for d in explorer.answer("sea")["documents"] if d["relevant"]} == {"d3", "d9"}
    assert not explorer.answer("blue sea")["judged"]


def test_a_model_that_thinks_in_one_pass(tiny_folder):
    """K ends at the learned tokens, the embedding is the model's own, and a change acts on the token it names."""
    from laser_lab.methods import method_of
    from laser_lab.training.run import set_method

    torch.manual_seed(0)
    model = ll.load(tiny_folder, device="cpu")
    set_method(model, method_of("lame", thinking_steps=3))
    explorer = Explorer(model, TASK)
    answer = explorer.answer(QUERY)
    assert len(answer["tokens"]) == 3 and explorer.settings["steps"] == 3
    for k in (1, 2, 3):
        scores = model.encode_document(list(CORPUS.values()), thinking_steps=k) @ model.encode_query(
            QUERY, thinking_steps=k
        )
        for d in answer["documents"]:
            assert d["scores"][k - 1] == pytest.approx(scores[list(CORPUS).index(d["id"])], abs=1e-4)
    changed = explorer.answer(QUERY, Change(2, "token", "snow"))
    assert changed["tokens"][0] == answer["tokens"][0] and changed["tokens"][1] != answer["tokens"][1]
    knocked = explorer.answer(QUERY, Change(1, "knock-out"))
    assert None not in knocked["path"]  # no state is pooled, so none can be missing
    with pytest.raises(ValueError, match="at most 3 steps"):
        explorer.answer(QUERY, Change(3, "noise"))
    assert {c.step for c in explorer.sides[0].presets(QUERY, "sea")} == {1, 2}


def test_tokens_are_the_nearest_tokens(model, explorer):
    frame = ll.nearest_tokens(model, ll.think(model, [QUERY], STEPS, prompt_name="query"), top=TOKENS)
    tokens = explorer.answer(QUERY)["tokens"]
    assert [t["text"] for step in tokens for t in step] == frame["token"].tolist()
    assert [t["p"] for step in tokens for t in step] == pytest.approx(frame["probability"].tolist(), abs=1e-4)
    for step in tokens:
        for token in step:  # the name leads back to the token
            back = model[0].tokenizer.convert_ids_to_tokens(token_id(model[0].backbone, token["name"]))
            assert back == token["text"]


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_thought_replaced_by_itself_changes_nothing(explorer, step):
    before, after = explorer.answer(QUERY), explorer.answer(QUERY, Change(step, "query", QUERY))
    for part in ("tokens", "path"):
        assert after[part] == before[part]
    assert ranks(after) == ranks(before) == ranks(after, "before")
    states = [explorer.sides[0].thoughts(QUERY, change).states for change in (None, Change(step, "query", QUERY))]
    assert torch.equal(*states)


@pytest.mark.parametrize("kind, value", [("token", "snow"), ("query", "rain and snow"), ("mean", ""), ("noise", "3")])
def test_a_change_is_felt_after_its_step_only(model, explorer, kind, value):
    step = 3
    change = Change(step, kind, value)
    plain, changed = (explorer.sides[0].thoughts(QUERY, c).states[0] for c in (None, change))
    assert torch.equal(plain[:step], changed[:step])
    assert (plain[step:] - changed[step:]).abs().amax(dim=1).min() > 1e-3

    def expected(k, soft_token, rows):
        if k != step:
            return soft_token
        if kind == "token":
            return model[0].backbone.embed(model[0].tokenizer("snow", return_tensors="pt")["input_ids"])[0]
        if kind == "noise":
            put = noise(step, 1, 32, seed=3)(step, soft_token, [0])
            torch.testing.assert_close(put.norm(dim=1), soft_token.norm(dim=1))
            return put
        texts = [value] if kind == "query" else list(QUERIES.values())
        states = ll.think(model, texts, STEPS, prompt_name="query").states[:, step - 1]
        return model[0].backbone.soft_token(states).mean(0, keepdim=True)

    states = ll.think(model, [QUERY], STEPS, prompt_name="query", edit=expected).states[0]
    torch.testing.assert_close(changed, states, atol=1e-5, rtol=1e-4)
    answer = explorer.answer(QUERY, change)
    told = {"step": 3, "kind": kind, "value": value, "strength": 1.0, "mode": "interpolate", "label": change.label}
    assert answer["change"] == told
    before = ranks(explorer.answer(QUERY))
    assert all(ranks(answer, "before")[d] == before[d] for d in before if d in ranks(answer))


def test_noise_depends_on_its_seed_alone(explorer):
    one, again, two = (explorer.sides[0]._think(QUERY, Change(1, "noise", seed)).states for seed in ("1", "1", "2"))
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_a_knocked_out_step_is_not_pooled(model, explorer):
    change = Change(1, "knock-out")
    answer = explorer.answer(QUERY, change)
    assert answer["path"][0] is None and {d["ranks"][0] for d in answer["documents"]} == {None}
    states = explorer.sides[0].thoughts(QUERY, Change(1, "mean")).states
    for k in range(2, STEPS + 1):
        documents = model.encode_document(list(CORPUS.values()), thinking_steps=k, convert_to_tensor=True)
        scores = dict(zip(CORPUS, (documents @ pool(states[:, 1:k])[0]).tolist()))
        for d in answer["documents"]:
            assert d["scores"][k - 1] == pytest.approx(scores[d["id"]], abs=1e-4)
    frame = explorer.ranking(QUERY, change)
    assert frame["thinking_steps"].unique().tolist() == list(range(2, STEPS + 1))


def test_ranking_is_the_whole_ranking(explorer):
    frame = explorer.ranking(QUERY, Change(2, "mean"))
    assert len(frame) == STEPS * len(CORPUS)
    for _, part in frame.groupby("thinking_steps"):
        assert part["rank"].tolist() == list(range(1, len(CORPUS) + 1))
        assert part["score"].is_monotonic_decreasing and part.loc[part["relevant"], "doc_id"].tolist() == ["d5"]
    answer = ranks(explorer.answer(QUERY, Change(2, "mean")))
    assert answer == {d: frame[frame["doc_id"] == d]["rank"].tolist() for d in answer}


def test_generated_pooling_changes_the_soft_token_that_the_step_is_read_as():
    """GIRCSE's first pooled state is the second state: what its reading shows is soft token 2."""
    encoder = LatentEncoder(tiny_backbone(), pooling="generated", thinking_steps=3)
    explorer = Explorer(LatentRetriever(modules=[encoder], prompts={"query": "", "document": ""}, device="cpu"), TASK)
    plain, own, other = (
        explorer.sides[0].thoughts(QUERY, change).states[0]
        for change in (None, Change(2, "query", QUERY), Change(2, "token", "snow"))
    )
    assert torch.equal(plain, own) and torch.equal(plain[:2], other[:2]) and not torch.equal(plain[2], other[2])


def test_corpora(model):
    for corpus in (CORPUS, list(CORPUS.values()), tuple(CORPUS.values())):
        explorer = Explorer(model, corpus)
        answer = explorer.answer(QUERY)
        assert not answer["judged"] and explorer.examples == []
        with pytest.raises(ValueError, match="mean thought needs at least two example queries"):
            explorer.answer(QUERY, Change(1, "mean"))
        assert len(answer["documents"]) >= DOCUMENTS
    assert Explorer(model, ["one document"], ["sea"]).answer("sea")["documents"][0]["ranks"] == [1] * STEPS
    assert Explorer(model, CORPUS, "sea").examples == ["sea"]
    for empty in ([], {}):
        with pytest.raises(ValueError, match="the corpus is empty"):
            Explorer(model, empty)
    for wrong in ("one text", [1, 2], {"a": None}):
        with pytest.raises(TypeError):
            Explorer(model, wrong)
    with pytest.raises(ValueError, match="The query is empty"):
        Explorer(model, CORPUS, ["sea", " "])


@pytest.mark.parametrize("query, message", [
    ("", "The query is empty"),
    ("  \n", "The query is empty"),
    ("x" * 10_000, "The query has 10,000 characters; at most 2,000"),
    ("sky " * 60, r"The query has \d+ tokens, its prompt included; this model reads at most 57"),
])  # fmt: skip
def test_bad_queries(explorer, query, message):
    with pytest.raises(ValueError, match=message):
        explorer.answer(query)
    with pytest.raises(ValueError, match=message):
        explorer.ranking(query)
    with pytest.raises(ValueError, match=message):
        explorer.answer(QUERY, Change(1, "query", query))


def test_the_longest_query_that_fits_is_answered(explorer):
    prompt = len(explorer.model[0].tokenizer(explorer.sides[0]._prompt)["input_ids"])
    assert explorer.answer(" ".join(["sky"] * (57 - prompt)))["tokens"]
    with pytest.raises(ValueError, match="58 tokens"):
        explorer.answer(" ".join(["sky"] * (58 - prompt)))


def test_bad_changes(explorer):
    for step in (0, STEPS, -1, 1.0, "1", True, None):
        with pytest.raises(ValueError, match="The step must be from 1 to 7"):
            Change(step, "mean")
    with pytest.raises(ValueError, match="can be replaced by token, query, mean, noise, knock-out"):
        Change(1, "tea leaves")
    for seed in ("x", "-1", "1.5", "9" * 10):
        with pytest.raises(ValueError, match="The seed of the noise"):
            Change(1, "noise", seed)
    for name, message in {
        "": "Name a token",
        "snwo": "“snwo” is no token of this model. Did you mean “snow”",
        "xyzzy": "“xyzzy” is no token of this model.$",
        "sky blue": "is not one token but 2: “sky”, “blue”",
        "#10000": r"There is no token #10000: the ids go from #0 to #\d+",
    }.items():
        with pytest.raises(ValueError, match=message):
            explorer.answer(QUERY, Change(1, "token", name))
    assert token_id(explorer.model[0].backbone, "<unk>") == explorer.model[0].tokenizer.unk_token_id


def test_labels_show_white_space():
    assert Change(1, "token", " the").label == "soft token 1 → the token “␣the”"
    assert Change(2, "token", "\n\t").label == "soft token 2 → the token “⏎⇥”"
    assert Change(3, "noise").label == "soft token 3 → noise, seed 0"
    assert Change(3, "query", "why not").label == "soft token 3 → the thought of another query “why not”"


def test_unknown_words_are_noted(explorer):
    assert explorer.answer(QUERY)["notes"] == []
    assert explorer.answer("why <b>is</b> xyzzy xyzzy")["notes"] == [
        "Not in this model's vocabulary: “<b>is</b>”, “xyzzy”."
    ]


# -- the widget ----------------------------------------------------------------------------------------------------


class Page:
    """Stands for the widget: keeps what is sent to the page."""

    def __init__(self, explorer):
        self.explorer, self.replies = explorer, []

    def send(self, reply):
        self.replies.append(json.loads(json.dumps(reply, allow_nan=False)))

    def ask(self, **request):
        self.explorer._on_message(self, request, [])
        return self.replies[-1]


def test_messages(explorer):
    page = Page(explorer)
    reply = page.ask(id="a", query=QUERY, change=None)
    assert reply["id"] == "a" and ranks(reply["answer"]) == ranks(explorer.answer(QUERY))
    reply = page.ask(id="b", query=QUERY, change={"step": 1, "kind": "noise", "value": "1"})
    assert ranks(reply["answer"]) == ranks(explorer.answer(QUERY, Change(1, "noise", "1")))
    for request in (
        {"query": ""},
        {"query": None},
        {},
        {"query": QUERY, "change": {}},
        {"query": QUERY, "change": {"step": 1, "kind": "mean", "more": 1}},
        {"query": QUERY, "change": {"step": 1, "kind": ["mean"], "value": ""}},
        {"query": QUERY, "change": {"step": 1, "kind": "token", "value": None}},
        {"query": QUERY, "change": 5},
        {"query": QUERY, "change": {"step": 1, "kind": "mean", "strength": float("nan")}},
        {"query": QUERY, "beside": {"model": 1}},
        {"query": QUERY, "beside": {"query": ""}},
        {"query": QUERY, "beside": {"query": "sea"}, "change": {"step": 1, "kind": "mean"}},
        {"op": "layers", "query": QUERY, "lens": "tuned"},
        {"op": "neighbours", "row": 99, "k": 1},
        {"op": "courses", "query": QUERY, "names": ["xyzzy"]},
        {"op": "__init__"},
    ):
        before = (explorer.query, explorer.change, explorer.beside)
        assert page.ask(**request).keys() == {"id", "error"}
        assert (explorer.query, explorer.change, explorer.beside) == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.text(st.characters(), max_size=30) | st.sampled_from(sorted(QUERIES.values())),
    step=st.integers(-1, STEPS + 1),
    kind=st.sampled_from([*KINDS, "other"]),
    value=st.text(st.characters(), max_size=12) | st.sampled_from(["snow", "#3", "0"]),
)
def test_every_message_gets_an_answer_or_a_reason(explorer, query, step, kind, value):
    page = Page(explorer)
    for change in (None, {"step": step, "kind": kind, "value": value}):
        reply = page.ask(id=1, query=query, change=change)
        assert ("answer" in reply) != bool(reply.get("error"))


def test_explore_shows_a_widget(model):
    explorer = ll.explore(model, TASK, show_progress_bar=False)
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "Explorer of tiny: 14 documents. Run this cell in JupyterLab to use it."
    state = explorer.get_state()
    assert state["settings"]["examples"] == list(QUERIES.values())
    assert state["settings"]["first"]["query"] == QUERY and state["settings"]["start"] == 3
    assert state["_esm"] == script() and "export default" in script() and ".laser-explorer" in state["_css"] == style()
    assert state["documents"]["ids"] == list(CORPUS) and state["documents"]["texts"] == list(CORPUS.values())
    alone = Explorer(model, CORPUS)
    assert alone.settings["first"] is None and alone.query == "" and alone.ranking_frame is None


def test_every_script_is_joined_and_short():
    """In order, once, none forgotten; no file over 450 lines."""
    folder = Path(ll.__file__).parent / "explorer"
    assert sorted(f"{name}.js" for name in SCRIPTS) == sorted(path.name for path in folder.glob("*.js"))
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.[jc]s*")}
    assert max(lengths.values()) <= 450, lengths


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    for name in [name for name in sys.modules if name.startswith("laser_lab.explorer")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"anywidget is needed here: pip install 'laser_lab\[lab\]'"):
        ll.explore(None, TASK)


# -- the file ------------------------------------------------------------------------------------------------------


def test_the_file_is_whole_and_needs_nothing_else(model, tmp_path):
    evil = '</script><script>alert(1)</script> <!-- <img src=x onerror="alert(2)"> {STYLE} \u2028'
    task = RetrievalTask("a <b> & c", {"q1": QUERY, "q2": "sea " + evil}, CORPUS | {"bad": evil}, {"q1": {"bad": 1}})
    explorer = Explorer(model, task)
    path = explorer.to_html(tmp_path / "new" / "page.html")
    text = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    assert set(re.findall(r"https?://[^\"\s]+", text)) == {"http://www.w3.org/2000/svg"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    for kind, tag in (("script", '<script type="module">'), ("style", "<style>")):
        inside = text.split(tag)[1].split(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert text.count("</script>") == 2 and "<img" not in text and "<!--" not in text.lower()
    assert "<title>Latent thoughts: a &lt;b&gt; &amp; c</title>" in text
    held = json.loads(re.search(r'id="settings">(.*?)</script>', text, re.S)[1])
    assert held["examples"] == list(task.queries.values()) and held["steps"] == STEPS
    # every kind at every soft token below the model's own K = 3, for every query
    assert [len(changes) for changes in held["presets"]] == [2 * len(KINDS)] * len(task.queries)
    for number, query in enumerate(held["examples"]):
        changes = [None, *(Change(*[c[f] for f in ("step", "kind", "value")]) for c in held["presets"][number])]
        for at, change in enumerate(changes, -1):
            answer = held["replies"][f"answer/{number}" + (f"/change {at}" if change else "")]
            expected = explorer.answer(query, change)
            assert [d["row"] for d in answer["documents"]] == [d["row"] for d in expected["documents"]]
            assert [d["ranks"] for d in answer["documents"]] == [d["ranks"] for d in expected["documents"]]
            shown = {token["name"] for step in answer["tokens"] for token in step}
            assert answer["tokens"] == expected["tokens"] and shown <= {c["name"] for c in answer["courses"]}
        other = 1 - number
        beside = held["replies"][f"answer/{number}/query {other}"]
        plain = explorer.sides[0].ranks(query)
        for d in beside["documents"]:
            assert d["before"] == plain[:, d["row"]].tolist()
        layers = held["replies"][f"layers/{number}/head"]["cells"]
        assert [c["tokens"][0]["name"] for c in layers[-1]] == [s[0]["name"] for s in explorer.answer(query)["tokens"]]
    assert held["documents"]["texts"][-1].startswith("</script>")


def test_the_file_of_chosen_queries(explorer, model, tmp_path):
    one = explorer.to_html(tmp_path / "one.html", ["blue sea"]).read_text(encoding="utf-8")
    held = json.loads(re.search(r'id="settings">(.*?)</script>', one, re.S)[1])
    assert held["examples"] == ["blue sea"] and held["replies"]["answer/0"]["query"] == "blue sea"
    before = (tmp_path / "one.html").read_bytes()
    with pytest.raises(ValueError, match="The query is empty"):
        explorer.to_html(tmp_path / "one.html", ["sea", ""])
    with pytest.raises(ValueError, match="there is no query to write"):
        Explorer(model, CORPUS).to_html(tmp_path / "one.html")
    assert (tmp_path / "one.html").read_bytes() == before
