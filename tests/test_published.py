"""The papers' own numbers: internally consistent, and never in one column with measured ones."""

import pandas as pd
import pytest

from laser_lab.lab.published import beside, contradictions, everything, is_approximate, published


def test_bright_averages_are_the_means_of_their_subsets():
    table = published("table3_bright")
    subsets = table.filter(like="ndcg_at_10")
    assert subsets.shape[1] == 12
    gaps = (subsets.mean(axis=1) - table["average"]).abs()
    assert (gaps < 0.11).all(), table[gaps >= 0.11]


def test_tables_agree_where_they_overlap():
    full = published("table5_ablation").set_index("variant").loc["LaSER (Qwen3-0.6B)", "bright_ndcg_at_10"]
    table = published("table3_bright").set_index("model")["average"]
    assert full == pytest.approx(table["LaSER (Qwen3-0.6B)"], abs=0.05)
    frontier = published("figure1_latency_utility").set_index("model")["bright"]
    assert frontier["LaSER (0.6B)"] == pytest.approx(full, abs=0.05)
    steps = published("figure5_steps").set_index(["train_steps", "thinking_steps"])["bright"]
    assert steps[3, 3] == pytest.approx(frontier["LaSER (8B)"], abs=0.05)


def test_defaults_are_the_papers():
    from laser_lab.methods import METHODS

    paper, laser = everything()["training"], METHODS["laser"]
    assert (laser.explicit, laser.output, laser.trajectory) == (paper["lambda1"], paper["lambda2"], paper["lambda3"])
    assert (laser.thinking_steps, laser.temperature) == (paper["K"], paper["temperature"])


def test_the_released_row_is_the_released_code():
    from laser_lab.data.prompts import query_prompt
    from laser_lab.explicit import EXPLICIT_MAX_LENGTH
    from laser_lab.methods import METHODS
    from laser_lab.training.run import LORA, training_settings

    settings = everything()["training_released"]
    assert all(set(entry) == {"value", "source"} and entry["source"] for entry in list(settings.values())[1:])
    code = {name: entry["value"] for name, entry in settings.items() if name != "source"}
    row, ours = METHODS["laser-released"], training_settings({}, has_dev=False)
    assert [getattr(row, name) for name in ("explicit", "output", "trajectory", "trajectory_temperature")] == [
        code[name] for name in ("lambda1", "lambda2", "lambda3", "trajectory_temperature")
    ]
    assert (row.thinking_steps, row.temperature, row.lora_dropout) == (code["K"], code["temperature"], 0.1)
    assert (LORA["r"], LORA["lora_alpha"], row.lora_dropout) == tuple(
        code[f"lora_{name}"] for name in ("r", "alpha", "dropout")
    )
    assert (ours["learning_rate"], ours["num_train_epochs"], ours["warmup_steps"], EXPLICIT_MAX_LENGTH) == (
        *(code[name] for name in ("learning_rate", "epochs", "warmup_ratio", "explicit_max_length")),
    )
    written = code["query_format"].replace("\\n", "\n")  # what its evaluation has there
    assert query_prompt("x") == written.format(instruct="x", query="")


def test_figure_3_agrees_with_the_tables():
    drawn = published("figure3_backbones").set_index("backbone")
    full = published("table3_bright").set_index("model")["average"]
    names = {"basic": "Fair Baseline", "laser": "LaSER"}
    for size in ("0.6B", "8B"):
        for column, name in names.items():
            assert drawn.loc[f"Qwen3-{size}", column] == pytest.approx(full[f"{name} (Qwen3-{size})"], abs=0.06)
    assert is_approximate("figure3_backbones") and (drawn["laser"] > drawn[["basic", "gircse"]].max(axis=1)).all()


def test_columns_stay_apart():
    measured = pd.DataFrame({"method": ["laser", "basic", "mine"], "ndcg@10": [0.9, 0.2, 0.5]})
    on = {"laser": "LaSER (Qwen3-0.6B)", "basic": "Basic Contrastive Learn."}
    table = beside(measured, "table5_ablation", on)
    assert set(table.columns.get_level_values(0)) == {"measured", "published"}
    assert table.loc["basic", ("published", "bright_ndcg_at_10")] == 18.25
    assert set(table["measured", "template"]) == {"none"}
    assert set(beside(measured, "table5_ablation", on, "chat")["measured", "template"]) == {"chat"}
    assert table["published"].loc["mine"].drop("variant").isna().all()
    with pytest.raises(KeyError, match="no measured row 'gone'"):
        beside(measured, "table5_ablation", {"gone": "w/o Latent View"})
    with pytest.raises(KeyError, match="no published row"):
        beside(measured, "table5_ablation", {"laser": "LaSER"})


def test_names_and_contradictions():
    with pytest.raises(KeyError, match="figure5_steps"):
        published("figure9")
    assert is_approximate("figure5_steps") and not is_approximate("table3_bright")
    assert contradictions("temperature") and len(contradictions()) > len(contradictions("temperature"))
