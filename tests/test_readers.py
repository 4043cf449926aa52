"""Every layout into one schema; bad rows named by line and reason."""

import json
import logging

import pytest
from datasets import Dataset, DatasetDict

from laser_lab.data.json_lines import convert_by
from laser_lab.data.readers import (
    COLUMNS,
    OPTIONAL,
    BadRows,
    RetrievalTask,
    features,
    mini,
    read_corpus,
    read_dataset,
    read_task,
)


def write(file, rows):
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return file


FACTS = [{"id": f"f{i}", "text": f"fact {i}"} for i in range(5)]
QUESTION = {
    "id": "q",
    "query": "why",
    "answer": "so",
    "reasoning": ["a", "b"],
    "positive_ids": ["f1"],
    "negative_ids": ["f2"],
}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "corpus.jsonl", FACTS)
    write(tmp_path / "train.jsonl", [QUESTION, QUESTION | {"query": "again"}])  # the public data repeats ids
    write(tmp_path / "dev.jsonl", [QUESTION])
    return tmp_path


def test_mini_keeps_its_promises():
    task = mini()
    assert len(task.queries) >= 30 and len(task.corpus) >= 120
    data = read_dataset(str(__import__("laser_lab").__path__[0]) + "/data/mini", "dev")
    for row in data:
        assert 2 <= len(row["reasoning"]) <= 5 and row["positives"] and len(row["negatives"]) >= 2
    assert task.reasoning.keys() == task.queries.keys() == task.qrels.keys()


def test_folder_layout(folder):
    data = read_dataset(folder)
    assert data.features == features() and len(data) == 2
    assert data[0] == {
        "id": "q", "query": "why", "reasoning": ["a", "b"], "positives": ["fact 1"], "negatives": ["fact 2"],
        "positive_ids": ["f1"], "negative_ids": ["f2"],
    }  # fmt: skip
    task = read_task(folder, "dev")
    assert task.qrels == {"q": {"f1": 1}} and len(task.corpus) == 5
    with pytest.raises(ValueError, match="more than once"):
        read_task(folder, "train")


RELEASED = {
    "query": "why",
    "reasoning_query": "first thought.\n\nsecond thought.",
    "prompt": "Instruct: x\nQuery: ",
    "positive_passages": [{"docid": "d1", "title": "T", "text": "pos"}],
    "negative_passages": [{"docid": "d2", "text": "neg"}],
}


@pytest.mark.parametrize("as_dict", [False, True])
def test_released_layout_saved_to_disk(tmp_path, as_dict):
    saved = Dataset.from_list([RELEASED | {"positive_passages": [{"docid": "d1", "text": "pos"}]}])
    (DatasetDict(train=saved) if as_dict else saved).save_to_disk(str(tmp_path / "released"))
    (row,) = read_dataset(tmp_path / "released")
    assert (row["query"], row["prompt"]) == ("why", "Instruct: x\nQuery: ")
    assert row["reasoning"] == ["first thought.", "second thought."]
    assert row["reasoning_text"] == RELEASED["reasoning_query"]
    assert (row["positives"], row["positive_ids"], row["negatives"], row["negative_ids"]) == (
        ["pos"],
        ["d1"],
        ["neg"],
        ["d2"],
    )
    if as_dict:
        with pytest.raises(FileNotFoundError, match="no split 'dev'; it has train"):
            read_dataset(tmp_path / "released", "dev")


def test_json_lines_in_every_layout(tmp_path):
    texts = {"query": "why", "reasoning": "One. Two!", "positives": ["p"]}
    file = write(tmp_path / "data.jsonl", [RELEASED, texts, ""])
    first, second = read_dataset(file, segment_by="sentence")
    assert first["positives"] == ["T pos"]
    assert second["reasoning"] == ["One.", "Two!"] and second["negatives"] == [] and second["positive_ids"] == ["p"]
    assert set(second) == {*COLUMNS, *OPTIONAL} and (first["prompt"], second["prompt"]) == (RELEASED["prompt"], "")
    without = read_dataset(write(tmp_path / "plain.jsonl", [texts | {"reasoning": ["One."]}]))
    assert set(without.column_names) == set(COLUMNS)  # a column that no row needs is not there


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{broken", "not JSON"),
        ("[1]", "a JSON object is expected, not list"),
        ({"positives": ["p"]}, "query is missing"),
        ({"query": " ", "positives": ["p"]}, "query is empty"),
        ({"query": "q", "positives": []}, "no positive document"),
        ({"query": "q"}, "positives is missing"),
        ({"query": "q", "positives": [3]}, "positives must hold strings only"),
        ({"query": "q", "positives": ["p"], "prompt": 3}, "prompt is a int, expected str"),
        ({"query": "q", "positives": ["p"], "positive_ids": ["1", "2"]}, "1 positives but 2 positive_ids"),
        ({"query": "q", "positive_passages": [{"docid": "1"}]}, "must hold texts"),
        ({"query": "q", "positive_ids": ["f99"]}, "names 'f99', which is not in the corpus"),
    ],
)
def test_bad_rows(tmp_path, caplog, row, reason):
    file = write(tmp_path / "data.jsonl", [{"query": "fine", "positives": ["p"]}, row])
    with pytest.raises(BadRows, match="data.jsonl:2: .*") as caught:
        read_dataset(file)
    assert reason in caught.value.problems[0]
    with caplog.at_level(logging.WARNING):
        assert len(read_dataset(file, skip_bad=True)) == 1
    assert "1 of 2 rows skipped" in caplog.text


def test_a_positive_among_the_negatives_is_dropped_and_named(tmp_path, caplog):
    """By id, and by text under another id; a whole file never fails for it unless asked to."""
    twice = {"id": "q7", "query": "q", "positives": ["p"], "positive_ids": ["d1"]}
    twice |= {"negatives": ["n", "p", "other words"], "negative_ids": ["d2", "d3", "d1"]}
    file = write(tmp_path / "data.jsonl", [{"query": "fine", "positives": ["p"], "negatives": ["n"]}, twice])
    with caplog.at_level(logging.WARNING):
        data = read_dataset(file)
    assert (data["negatives"][:], data["negative_ids"][:]) == ([["n"], ["n"]], [["n"], ["d2"]])
    assert "'d3' of query 'q7' (data.jsonl:2), 'd1' of query 'q7'" in caplog.text
    with pytest.raises(BadRows, match="data.jsonl:2: 'd3' is both positive and negative"):
        read_dataset(file, strict=True)
    assert len(read_dataset(file, strict=True, skip_bad=True)) == 1


def test_nothing_there(tmp_path):
    for source in (tmp_path, tmp_path / "no.jsonl", "/nowhere", "justaword"):
        with pytest.raises(FileNotFoundError):
            read_dataset(source)
    with pytest.raises(BadRows, match="no rows"):
        read_dataset(write(tmp_path / "empty.jsonl", []))
    write(tmp_path / "corpus.jsonl", [FACTS[0], FACTS[0], {"id": 3, "text": 5}])
    with pytest.raises(BadRows, match="2 bad rows") as caught:
        read_corpus(tmp_path)
    assert "there already" in caught.value.problems[0] and "expected str" in caught.value.problems[1]


def test_a_task_refuses_unknown_ids_and_other_prompts():
    with pytest.raises(ValueError, match="unknown ids, e.g. 'ghost'"):
        RetrievalTask("t", {"q": "a"}, {"d": "b"}, {"q": {"ghost": 1}})
    with pytest.raises(ValueError, match="unknown ids, e.g. 'ghost'"):
        RetrievalTask("t", {"q": "a"}, {"d": "b"}, {}, prompts={"ghost": "x"})
    with pytest.raises(TypeError, match="a prompt must be a string, got int"):
        RetrievalTask("t", {"q": "a"}, {"d": "b"}, {}, prompts={"q": 3})


def test_a_task_reads_the_prompts_of_its_rows(folder):
    write(folder / "dev.jsonl", [QUESTION | {"prompt": "Find facts"}, QUESTION | {"id": "r"}])
    task = read_task(folder)
    assert task.prompts == {"q": "Find facts"} and task.query_prompts == ["Find facts", ""]


def test_the_public_release_of_entailment_bank(tmp_path):
    """Made-up rows in the layout of the release's task 2."""
    from laser_lab.data.entailment_bank import WORLDTREE, convert

    root = tmp_path / "release" / "entailment_trees_v3"
    (root / "dataset" / "task_2").mkdir(parents=True)
    (root / WORLDTREE).parent.mkdir()
    facts = {"u0": "DUMMY", "u1": "ice is frozen water", "u2": "frozen things are cold", "u3": "sand is dry"}
    (root / WORLDTREE).write_text(json.dumps(facts))
    row = {
        "id": "A_1",
        "question": "why is ice cold?",
        "answer": "it is frozen",
        "hypothesis": "ice is cold",
        "meta": {
            "triples": {"sent1": "sand is dry", "sent2": "ice is frozen  water", "sent3": "frozen things are cold",
                        "sent4": "snow is white", "sent5": "ice is frozen water"},
            "distractors": ["sent1", "sent4", "sent5"],
            "intermediate_conclusions": {"int10": "ice is cold", "int2": "ice is a frozen thing"},
        },
    }  # fmt: skip
    for split in ("train", "dev"):
        (root / "dataset" / "task_2" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    assert convert_by(convert, "about", [str(tmp_path / "release"), str(tmp_path / "bank")]) == 0
    task = read_task(tmp_path / "bank", "dev")
    assert sorted(task.corpus.values()) == sorted([*list(facts.values())[1:], "snow is white"])
    assert task.reasoning == {"A_1": ["ice is a frozen thing", "ice is cold"]}
    assert {task.corpus[d] for d in task.qrels["A_1"]} == {"ice is frozen water", "frozen things are cold"}
    (data,) = read_dataset(tmp_path / "bank", "train")
    assert data["query"] == "why is ice cold?" and data["negatives"] == ["sand is dry", "snow is white"]
    assert not list((tmp_path / "bank").glob(".*"))
    with pytest.raises(FileNotFoundError, match="task_2"):
        convert(tmp_path / "bank", tmp_path / "again")


def test_the_public_release_of_strategyqa(tmp_path):
    """Made-up rows in the layout of the release."""
    from laser_lab.data.strategyqa import convert

    facts = [f"fact {i} tells of thing{i} and of water" for i in range(30)]
    rows = [
        {"qid": f"q{i}", "term": "x", "question": f"Is thing{i} like water?", "answer": i % 2 == 0, "evidence": [],
         "facts": [facts[i], facts[(i + 1) % 12], f" {facts[i]}"],
          "decomposition": [f"What is thing{i}?", "Is #1 wet?"]}
        for i in range(12)
    ] + [{"qid": "none", "question": "?", "answer": True, "facts": [], "decomposition": []}]  # fmt: skip
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "strategyqa_train.json").write_text(json.dumps(rows))
    assert convert(tmp_path / "release", tmp_path / "qa") == {"corpus": 12, "train": 10, "dev": 2}
    task = read_task(tmp_path / "qa", "dev")
    assert task.queries == {"q0": "Is thing0 like water?", "q10": "Is thing10 like water?"}
    assert task.reasoning["q10"] == ["What is thing10?", "Is #1 wet?"]
    assert {task.corpus[d] for d in task.qrels["q10"]} == {facts[10], facts[11]}
    first = read_dataset(tmp_path / "qa", "train")[0]
    assert len(first["negatives"]) == 10 and not set(first["negatives"]) & set(first["positives"])
    with pytest.raises(FileNotFoundError, match="strategyqa_train.json"):
        convert(tmp_path / "qa", tmp_path / "again")
