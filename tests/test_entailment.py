"""The experiment on real text, on a tiny model and a data folder of a few made-up lines."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

import laser_lab as ll
from laser_lab import adapters
from laser_lab.data.readers import read_dataset, read_task
from laser_lab.lab import export, language
from laser_lab.lab.entailment import main, rows_of
from laser_lab.lab.export import export_adapter
from laser_lab.lab.records import best_settings, write_records
from laser_lab.lab.rows import Row, named_documents
from laser_lab.weights import BUILT_IN


@pytest.fixture(scope="module")
def bank(tiny_bank, tmp_path_factory):
    """The small table run to its end, in a cache of its own."""
    folder = tmp_path_factory.mktemp("bank-run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LASER_LAB_CACHE", str(folder / "cache"))
        # a base that others have, too: an adapter of a folder here could not be given away
        config = json.loads(open(tiny_bank["CONFIG"]).read())
        patch.setitem(BUILT_IN, "tiny", partial(str, config["model"]))
        config["model"] = "tiny"
        (folder / "config.yaml").write_text(json.dumps(config))
        call = [str(folder / "config.yaml"), "--data", tiny_bank["DATA"], "--out", str(folder / "bank.csv")]
        assert main(call) == 0
        yield {"folder": folder, "config": config, "data": tiny_bank["DATA"], "call": call}


def test_rows_go_seed_by_seed_and_readings_follow_what_they_read(tiny_bank):
    config = json.loads(open(tiny_bank["CONFIG"]).read())
    rows = rows_of(config, "")
    assert [row.seed for row in rows] == sorted(row.seed for row in rows)
    assert {row.system for row in rows if row.seed == 1} == {
        "basic",
        "latent",
        "gircse",
        "laser",
        "rewrite",
        "explicit",
    }
    rates = {(row.system, row.seed): row.training["learning_rate"] for row in rows}
    assert rates["laser", 1] == rates["explicit", 1] == 2e-3 and rates["basic", 0] == rates["rewrite", 0] == 1e-3
    assert {row.corpus for row in rows} == {"pooled"}
    assert {row.corpus for row in rows_of(config, "", corpus="full")} == {"full"}


def test_the_search_gives_every_trained_system_the_same_trials(tiny_bank):
    config = json.loads(open(tiny_bank["CONFIG"]).read()) | {"search": {"max_steps": 7, "learning_rate": [1, 2, 3]}}
    rows = rows_of(config, "", search=True, corpus="full")
    assert {row.system for row in rows} == {"basic", "latent", "gircse", "laser"}
    assert {row.training["max_steps"] for row in rows} == {7} and {row.corpus for row in rows} == {"pooled"}
    trials = pd.Series([row.training["learning_rate"] for row in rows]).groupby([row.system for row in rows]).agg(list)
    assert trials.map(lambda tried: tried == [1, 2, 3]).all()
    assert len({row.system for row in rows[:4]}) == 4, "a search that is cut has tried the same values for all"


def test_unknown_rows_are_refused():
    for wrong in ({"system": "magic"}, {"system": "laser", "corpus": "half"}, {"system": "explicit"}):
        with pytest.raises(ValueError):
            Row(data="", **wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"system": "basic"}, {"system": "basic", "changes": {"lora_dropout": 0.1}}]}, "tell them apart"),
        ({"rows": [{"system": "st", "model": "a/final"}, {"system": "st", "model": "b/final"}]}, "tell them apart"),
        ({"rows": [{"system": "latent", "changes": {"thinking_steps": 2}}]}, "thinking_steps: not for training"),
        ({"rows": [{"system": "latent", "search": {"thinking_steps": [1, 2]}}]}, "thinking_steps: not for training"),
        ({"rows": [{"system": "latent", "training": {"seed": 3}}]}, "seed: not for training"),
        ({"search": {"thinking_steps": [1, 3]}}, "thinking_steps: not for training"),
        ({"rows": [{"system": "latent", "search": {"learning_rate": [1e-3, 2e-3]}}]}, "no meaning for learning_rate"),
        ({"rows": [{"system": "lexical", "changes": {"lexcal": 0.1}}]}, "no meaning for lexcal"),
        ({"rows": [{"system": "bm25", "changes": {"lexical": 0.1}}]}, "no meaning for lexical"),
        ({"search": {"lora": [{"r": 8}, {"r": 16}]}}, "of lora tries {'r': 8}"),
        ({"search": {"learning_rate": [1e-3, None]}}, "of learning_rate tries None"),
        ({"search": {"learning_rate": ["fast"]}}, "learning_rate must be a number"),
        ({"search": {"learning_rate": ["1e-3", 1e-3]}}, "tell them apart"),
    ],
)
def test_what_a_table_cannot_tell_apart_is_refused(tiny_bank, changes, message):
    """Before anything is trained: two rows of one name would be averaged as if they were one."""
    config = json.loads(open(tiny_bank["CONFIG"]).read()) | changes
    with pytest.raises(ValueError, match=message):
        rows_of(config, "", search="search" in changes)


def test_numbers_that_yaml_reads_as_texts_are_numbers(tiny_bank):
    config = json.loads(open(tiny_bank["CONFIG"]).read()) | {"search": {"learning_rate": ["1e-3", 5e-4]}}
    assert {row.setting("learning_rate") for row in rows_of(config, "", search=True)} == {1e-3, 5e-4}


def test_a_method_without_a_searched_weight_stands_beside_one_with_it(tiny_bank):
    config = json.loads(open(tiny_bank["CONFIG"]).read())
    config["rows"] = [{"system": "lame"}, {"system": "lexical", "search": {"lexical": [0.1, 0.5]}}]
    rows = rows_of(config, "", search=True)
    assert sorted((row.system, row.setting("lexical")) for row in rows[:3]) == [
        ("lame", 0.0),
        ("lexical", 0.1),
        ("lexical", 0.5),
    ]


def test_records_are_whole_and_name_no_machine(bank):
    stem = bank["folder"] / "bank"
    table = pd.read_csv(f"{stem}.csv")
    frame = pd.read_csv(f"{stem}_per_query.csv", dtype={"query_id": str})
    runs = json.loads((bank["folder"] / "bank_runs.json").read_text())
    expected = rows_of(bank["config"], bank["data"])
    assert len(runs) == len(expected) and set(table["system"]) == {row.system for row in expected}
    assert (table.set_index("system").loc["laser", "seeds"] == 2).all()
    key = ["system", "train_steps", "seed", "corpus", "query_id", "thinking_steps"]
    assert not frame.duplicated(key).any() and frame["query_id"].nunique() == 12
    own = frame[(frame["system"] == "laser") & (frame["thinking_steps"] == 3)]["ndcg@10"].mean()
    row = table[(table["system"] == "laser") & (table["thinking_steps"] == 3)].iloc[0]
    assert row["ndcg@10"] == pytest.approx(own, abs=1e-4) and row["low"] <= row["ndcg@10"] <= row["high"]
    assert (table["ms_per_query"] > 0).all()
    cards = [run["training"] for run in runs if "training" in run]
    assert len(cards) == 8 and all(card["history"] and card["seconds"] >= 0 for card in cards)
    for file in bank["folder"].glob("bank*"):
        assert str(bank["folder"].parent) not in file.read_text()
        assert "scatters" not in file.read_text(), "no text of the data"


def test_a_cut_run_leaves_what_is_finished(bank, tmp_path, monkeypatch):
    """Rows that are not there yet are left out, and a second call runs nothing anew."""
    more = bank["config"] | {"rows": [*bank["config"]["rows"], {"system": "laser-no-output"}]}
    table = write_records(rows_of(more, bank["data"]), tmp_path / "cut.v1")
    assert {file.name for file in tmp_path.iterdir()} == {"cut.v1.csv", "cut.v1_per_query.csv", "cut.v1_runs.json"}
    assert "laser-no-output" not in set(table["system"]) and "laser" in set(table["system"])
    monkeypatch.setattr("laser_lab.lab.rows.retriever", lambda row: pytest.fail("trained again"))
    before = (bank["folder"] / "bank_per_query.csv").read_bytes()
    assert main([*bank["call"], "--only", "laser", "--seeds", "1"]) == 0
    assert (bank["folder"] / "bank_per_query.csv").read_bytes() == before


def test_rows_run_side_by_side_are_the_same(bank, tiny_bank, tmp_path, monkeypatch):
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "bank.csv"
    call = [tiny_bank["CONFIG"], *bank["call"][1:3], "--out", str(out), "--only", "basic"]
    assert main([*call, "--workers", "2"]) == 0
    alone, both = (pd.read_csv(f"{stem}_per_query.csv") for stem in (bank["folder"] / "bank", tmp_path / "bank"))
    alone = alone[alone["system"] == "basic"].reset_index(drop=True)
    assert both["seed"].nunique() == 2
    pd.testing.assert_frame_equal(alone, both, check_dtype=False)
    with pytest.raises(ValueError, match="--workers must be a positive integer"):
        main([*call, "--workers", "0"])


def test_records_of_another_machine_stay_in_the_files(bank, tmp_path, monkeypatch, capsys):
    """With an empty cache nothing is run again and nothing is lost; a row that changed is run, and replaces its own."""
    call = [*bank["call"][:-1], str(tmp_path / "bank.csv")]
    shutil.copytree(bank["folder"] / "cache", tmp_path / "first")
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "first"))
    assert main(call) == 0 and language.main([*call[:3], "--out", str(tmp_path / "bank")]) == 0

    def written():
        return {file.name: file.read_bytes() for file in tmp_path.glob("bank_*")}

    before, table = written(), pd.read_csv(tmp_path / "bank.csv")
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "empty"))
    with monkeypatch.context() as patch:
        patch.setattr(Row, "run", lambda row: pytest.fail("run again"))
        for more in ([], ["--finished"]):
            assert main([*call, *more]) == 0
            assert "15 rows that were run elsewhere" in capsys.readouterr().out
        assert language.main([*call[:3], "--out", str(tmp_path / "bank")]) == 0
        assert "zero-shot, K=3, seed 0: as in the files" in capsys.readouterr().out
    assert written() == before
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "bank.csv"), table, rtol=1e-4)
    runs = json.loads((tmp_path / "bank_runs.json").read_text())
    (tmp_path / "bank_runs.json").write_text(json.dumps([runs[0] | {"misread": 3}, *runs[1:]]))
    assert runs[0]["row"]["system"] == "bm25" and main([*call, "--finished"]) == 0
    assert "misread" in (tmp_path / "bank_runs.json").read_text(), "it stays until it is run again"
    capsys.readouterr()
    assert main(call) == 0 and "14 rows that were run elsewhere" in capsys.readouterr().out
    assert "misread" not in (tmp_path / "bank_runs.json").read_text()
    changed = json.loads((bank["folder"] / "config.yaml").read_text())
    next(row for row in changed["rows"] if row["system"] == "latent")["training"] = {"learning_rate": 5e-3}
    (tmp_path / "changed.yaml").write_text(json.dumps(changed))
    assert main([str(tmp_path / "changed.yaml"), *call[1:], "--only", "latent"]) == 0
    old, new = pd.read_csv(tmp_path / "bank_per_query.csv"), json.loads((tmp_path / "bank_runs.json").read_text())
    assert len(old) == len(pd.read_csv(bank["folder"] / "bank_per_query.csv")) and len(new) == 15
    assert {r["row"]["training"]["learning_rate"] for r in new if r["row"]["system"] == "latent"} == {5e-3}
    shutil.copytree(bank["data"], tmp_path / "elsewhere")
    again = [call[0], "--data", str(tmp_path / "elsewhere"), *call[3:], "--finished"]
    assert main(again) == 0 and "run elsewhere" in capsys.readouterr().out, "the folder's name does not count"
    dev = tmp_path / "elsewhere" / "dev.jsonl"
    dev.write_text(dev.read_text().replace("dev_3", "dev_99"))
    with pytest.raises(ValueError, match="is of other questions than"):
        main(again)


def test_both_corpora_share_a_training_and_readings_the_documents(bank, tmp_path, monkeypatch):
    call = [*bank["call"][:-1], str(tmp_path / "full.csv"), "--corpus", "full", "--only", "laser", "explicit"]
    monkeypatch.setattr("laser_lab.training.run.train", lambda *a, **k: pytest.fail("trained again"))
    assert main(call) == 0
    runs = json.loads((tmp_path / "full_runs.json").read_text())
    assert {run["row"]["system"] for run in runs} == {"laser", "explicit"} and {run["documents"] for run in runs} == {
        60
    }
    pooled = json.loads((bank["folder"] / "bank_runs.json").read_text())
    assert {run["documents"] for run in pooled} < set(range(60))


def test_intermediate_rows_read_the_reasoning_without_its_last_sentence(bank, tmp_path, monkeypatch):
    folder = tmp_path / "cut"
    shutil.copytree(bank["data"], folder)
    questions = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    lines = [json.dumps(question | {"reasoning": question["reasoning"][:-1]}) for question in questions]
    (folder / "dev.jsonl").write_text("\n".join(lines) + "\n")
    explicit = next(row for row in rows_of(bank["config"], bank["data"]) if row.system == "explicit")
    final = explicit.trained
    monkeypatch.setattr(Row, "trained", property(lambda row: final))  # one model reads both folders
    for whole in (Row(bank["data"], "bm25-reasoning"), explicit):
        intermediate = replace(whole, system=whole.system.replace("-reasoning", "") + "-intermediate")
        cut = replace(whole, data=str(folder))
        for row in (whole, intermediate, cut):
            row.run()
        assert intermediate.frame()["ndcg@10"].tolist() == cut.frame()["ndcg@10"].tolist()
        assert intermediate.frame()["ndcg@10"].tolist() != whole.frame()["ndcg@10"].tolist()


def test_reading_is_that_of_evaluate(bank):
    """The table's numbers are those that the public functions give for the trained model."""
    row = next(r for r in rows_of(bank["config"], bank["data"], corpus="pooled") if r.system == "latent")
    task = named_documents(read_task(bank["data"], "dev"), read_dataset(bank["data"], "dev"))
    values = ll.evaluate(ll.load(row.trained / "final"), task, per_query=True)
    frame = row.frame()
    ours = frame[frame["thinking_steps"] == row.steps]["ndcg@10"].to_numpy()
    assert ours == pytest.approx(values["ndcg@10"].to_numpy(), abs=1e-6)


def test_search_records_every_trial_and_the_best(bank, tmp_path, capsys):
    call = [*bank["call"][:-1], str(tmp_path / "search.csv"), "--search", "--only", "basic", "latent"]
    assert main(call) == 0
    table = pd.read_csv(tmp_path / "search.csv")
    assert set(zip(table["system"], table["learning_rate"])) == {
        (s, r) for s in ("basic", "latent") for r in (1e-3, 2e-3)
    }
    assert set(table["max_steps"]) == {1}
    best = best_settings(table, ["learning_rate"]).set_index("system")
    own = table[(table["train_steps"] == table["thinking_steps"]) & (table["system"] == "latent")]
    assert best.loc["latent", "ndcg@10"] == own["ndcg@10"].max()
    assert "best on dev" in capsys.readouterr().out
    assert language.main([*bank["call"][:3], "--out", str(tmp_path / "trials"), "--search"]) == 0
    said = language.read_table(tmp_path / "trials_bm25.csv").query("ranking == 'dense'")
    ours = said.groupby(["system", "learning_rate"])["ndcg@10"].mean()
    shown = table[table["train_steps"] == table["thinking_steps"]].set_index(["system", "learning_rate"])["ndcg@10"]
    for trial in ours.index.intersection(shown.index):
        assert ours[trial] == pytest.approx(shown[trial], abs=1e-4)
    assert len(ours.index.intersection(shown.index)) == 4
    before = (tmp_path / "search.csv").read_bytes()
    with pytest.raises(ValueError, match="of another table or search: name another file"):
        main([*bank["call"][:-1], str(tmp_path / "search.csv"), "--finished"])
    assert (tmp_path / "search.csv").read_bytes() == before


def test_an_exported_adapter_is_the_trained_model(bank, tmp_path, monkeypatch, capsys):
    target = tmp_path / "lexical-entailment-bank"
    full = [*bank["call"][:-1], str(tmp_path / "full.csv"), "--corpus", "full", "--only", "laser", "--seeds", "1"]
    assert main(full) == 0
    assert main([*bank["call"][:3], "--export", "laser", "--seeds", "1", "--to", str(target)]) == 0
    assert str(tmp_path) not in capsys.readouterr().out
    row = next(r for r in rows_of(bank["config"], bank["data"]) if r.system == "laser" and r.seed == 1)
    trained = ll.load(row.trained / "final")
    monkeypatch.setitem(BUILT_IN, "lexical-entailment-bank", lambda: target)  # as if it lay in the package
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    rows = [r for r in rows_of(bank["config"], bank["data"]) if r.system == "laser" and r.seed == 1]
    export_adapter(rows, target)
    again = {file.name: file.read_bytes() for file in target.iterdir()}
    assert {name for name in again if again[name] != before[name]} == {"README.md"}, "replaced; one corpus is measured"
    assert set(again) == set(before)
    loaded = ll.load("tiny", adapter="lexical-entailment-bank")
    assert loaded.encoder.thinking_steps == 3 and loaded.prompts == trained.prompts
    texts = ["why is the sky blue", "a question about rain"]
    expected = torch.as_tensor(trained.encode_query(texts))
    assert torch.as_tensor(loaded.encode_query(texts)) == pytest.approx(expected, abs=0.02), "bfloat16 is near enough"
    assert not torch.equal(expected, torch.as_tensor(ll.load("tiny", thinking_steps=3).encode_query(texts)))
    files = {file.name for file in target.iterdir()}
    assert {"adapter_model.safetensors", "README.md", "run_card.json"} <= files and "tokenizer.json" not in files
    for file in target.iterdir():
        assert str(bank["folder"].parent).encode() not in file.read_bytes(), file.name
    card = (target / "README.md").read_text()
    assert "pooled corpus" in card and f"training questions of `{Path(bank['data']).name}`" in card
    assert "thinks silently in 3 steps" in card and "Dalvi" not in card
    monkeypatch.setattr("laser_lab.adapters.FOLDER", tmp_path / "package")
    shutil.copytree(bank["data"], tmp_path / "entailment_bank")
    monkeypatch.chdir(tmp_path / "entailment_bank")
    assert main([bank["call"][0], "--data", ".", "--export", "basic"]) == 0
    card = (tmp_path / "package" / "basic-entailment-bank" / "README.md").read_text()
    assert "reads in one pass" in card and "training questions of `entailment_bank`" in card and "Dalvi" in card


def test_what_cannot_be_exported(bank, tmp_path, monkeypatch):
    rows = rows_of(bank["config"], bank["data"])
    with pytest.raises(ValueError, match="one trained row"):
        export_adapter([row for row in rows if row.system == "laser"], tmp_path / "a")
    with pytest.raises(ValueError, match="one trained row"):
        export_adapter([row for row in rows if row.system == "explicit"][:1], tmp_path / "a")
    more = bank["config"] | {"rows": [{"system": "laser-no-output"}]}
    with pytest.raises(FileNotFoundError, match="not trained"):
        export_adapter(rows_of(more, bank["data"]), tmp_path / "a")
    monkeypatch.setattr(export, "ADAPTER_LIMIT", 10)
    with pytest.raises(ValueError, match="MB"):
        export_adapter([row for row in rows if row.system == "laser"][:1], tmp_path / "a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no adapter that an export wrote"):
        export_adapter([row for row in rows if row.system == "laser"][:1], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_adapters_of_the_package(tiny_folder):
    """What lies in its folder has a name; another name is refused, and the error lists them."""
    assert {"basic-entailment-bank", "lexical-entailment-bank"} <= {*adapters.NAMES} <= {*BUILT_IN}
    for name in adapters.NAMES:
        assert json.loads((adapters.FOLDER / name / "run_card.json").read_text())["seed"] == 0
        assert sum(file.stat().st_size for file in (adapters.FOLDER / name).iterdir()) <= 8e6
    with pytest.raises(FileNotFoundError, match="no built-in .*lexical-entailment-bank"):
        ll.load(tiny_folder, adapter="lexical-nowhere")


def test_any_sentence_transformer_stands_in_the_table(tiny_bank, stock_folder, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "cache"))
    config = json.loads(open(tiny_bank["CONFIG"]).read())
    config["rows"] = [{"system": "st", "model": stock_folder}]
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    call = [str(tmp_path / "config.yaml"), "--data", tiny_bank["DATA"], "--out", str(tmp_path / "st.csv")]
    assert main(call) == 0
    table = pd.read_csv(tmp_path / "st.csv")
    assert list(table["system"]) == ["st:stock"] and table["queries"].item() == 12
    task = named_documents(read_task(tiny_bank["DATA"], "dev"), read_dataset(tiny_bank["DATA"], "dev"))
    stock = SentenceTransformer(stock_folder, device="cpu")
    assert table["ndcg@10"].item() == pytest.approx(ll.evaluate(stock, task)["ndcg@10"], abs=1e-5)
    runs = (tmp_path / "st_runs.json").read_text()
    assert str(tmp_path) not in runs and str(Path(stock_folder).parent) not in runs


def test_what_thoughts_say_is_kept_by_row_and_gathered(bank, tmp_path, monkeypatch, capsys):
    """A row made elsewhere brings its tables and not its weights; one that brings neither is left out."""
    call = [*bank["call"][:3], "--out", str(tmp_path / "bank")]
    shutil.copytree(bank["folder"] / "cache", tmp_path / "cache")
    for kept in (tmp_path / "cache").glob("entailment/run-*/documents-pooled.pt"):
        kept.unlink()  # as where all rows were read on the full corpus
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "cache"))
    assert language.main(call) == 0
    words, worth, bm25, said = (language.read_table(tmp_path / f"bank_{part}.csv") for part in language.PARTS)
    rows = {("zero-shot", 3, 0)} | {(m, 3, s) for m in ("latent", "gircse", "laser") for s in (0, 1)}
    one_pass = {("basic", 1, s) for s in (0, 1)}
    for table in (words, worth, bm25, said):
        there = set(zip(table["system"], table["train_steps"], table["seed"]))
        assert there == (rows if table is worth else rows | one_pass)
    assert set(words["questions"]) == {"dev", "mini"}
    assert words[["own", "others", "own_mass", "others_mass"]].apply(lambda c: c.between(0, 1)).all(axis=None)
    assert said.groupby(["system", "seed", "query_id", "step"]).size().eq(10).all()
    assert set(said["query_id"]) == {"dev_0", "dev_9"}, "the 1st and the 10th of twelve"
    assert bm25.groupby("ranking").size().eq(9 * 12).all()
    table = pd.read_csv(bank["folder"] / "bank.csv")
    own = table[(table["system"] == "latent") & (table["thinking_steps"] == 3)]["ndcg@10"].item()
    for frame, column, name in ((worth, "condition", "as they are"), (bm25, "ranking", "dense")):
        frame = frame[(frame["system"] == "latent") & (frame[column] == name)]
        assert frame["ndcg@10"].mean() == pytest.approx(own, abs=1e-4)
    plain = table[table["system"] == "bm25"]["ndcg@10"].item()
    assert bm25[bm25["ranking"] == "bm25"]["ndcg@10"].mean() == pytest.approx(plain, abs=1e-4)

    def written():
        return {file.name: file.read_bytes() for file in tmp_path.glob("bank_*")}

    before = written()
    monkeypatch.setattr(language, "tables", lambda row: pytest.fail("read again"))
    for weights in (tmp_path / "cache" / "entailment").glob("run-*/"):
        shutil.rmtree(weights)
    assert language.main(call) == 0 and before == written()
    shutil.copytree(bank["folder"], tmp_path / "records", ignore=shutil.ignore_patterns("cache"))
    assert main([*bank["call"][:-1], str(tmp_path / "records" / "bank.csv"), "--finished"]) == 0
    assert (tmp_path / "records" / "bank_runs.json").read_bytes() == (bank["folder"] / "bank_runs.json").read_bytes()
    once = bank["config"] | {"rows": [row for row in bank["config"]["rows"] if row["system"] == "basic"]}
    (tmp_path / "once.yaml").write_text(json.dumps(once))
    assert language.main([str(tmp_path / "once.yaml"), *call[1:-1], str(tmp_path / "once")]) == 0
    assert {file.stem for file in tmp_path.glob("once_*")} == {"once_words", "once_bm25", "once_said"}
    lost = next(row for row in rows_of(bank["config"], bank["data"]) if row.system == "laser" and row.seed == 1)
    (lost.folder / "words.csv").unlink()
    capsys.readouterr()
    assert language.main(call) == 0
    assert "laser, K=3, seed 1: left out, its weights are not here" in capsys.readouterr().out
    assert set(language.read_table(tmp_path / "bank_words.csv").query("system == 'laser'")["seed"]) == {0}


def test_only_what_is_finished_is_written(bank, tmp_path, monkeypatch):
    monkeypatch.setattr(Row, "run", lambda row: pytest.fail("run"))
    assert main([*bank["call"][:-1], str(tmp_path / "bank.csv"), "--finished"]) == 0
    assert (tmp_path / "bank.csv").read_bytes() == (bank["folder"] / "bank.csv").read_bytes()
    with pytest.raises(ValueError, match="of another table or search: name another file"):
        main([*bank["call"], "--search", "--finished"])
    assert (tmp_path / "bank.csv").read_bytes() == (bank["folder"] / "bank.csv").read_bytes()
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="no row of the configuration is finished"):
        main([*bank["call"][:-1], str(tmp_path / "none.csv"), "--finished"])
