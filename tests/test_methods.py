"""The table of methods and its door."""

import re
from pathlib import Path

import pytest

import laser_lab as ll
from laser_lab.methods import method_of


def test_the_rows_of_the_paper():
    assert {"basic", "latent", "gircse", "laser"} < set(ll.METHODS)
    laser = ll.METHODS["laser"]
    assert laser.explicit > 0 and laser.output > 0 and laser.trajectory > 0 and laser.thinking_steps == 3
    removed = {
        "laser-no-explicit": {"explicit": 0.0, "output": 0.0, "trajectory": 0.0},
        "laser-no-latent": {"thinking_steps": 1},
        "laser-no-trajectory": {"trajectory": 0.0},
        "laser-no-output": {"output": 0.0},
    }
    for name, changes in removed.items():
        assert ll.METHODS[name] == laser.replace(**changes), name
    assert ll.METHODS["laser-no-colearning"].teacher_first > 0
    assert ll.METHODS["basic"].thinking_steps == 1 and not ll.METHODS["basic"].needs_reasoning


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thinking_steps": 0}, "positive integer"),
        ({"output": -1.0}, "must not be negative"),
        ({"contrastive": 0.0}, "one must be positive"),
        ({"temperature": 0.0}, "temperatures must be positive"),
        ({"distil_warmup": 1.0}, "share of the steps"),
        ({"teacher_first": -0.1}, "share of the steps"),
    ],
)
def test_bad_rows(changes, message):
    with pytest.raises(ValueError, match=message):
        ll.METHODS["latent"].replace(**changes)


def test_lookup():
    assert method_of("laser", thinking_steps=6).thinking_steps == 6
    assert method_of(ll.METHODS["basic"]) is ll.METHODS["basic"]
    with pytest.raises(ValueError, match="no method 'lasr'; there are basic, latent"):
        method_of("lasr")


def test_every_row_is_explained():
    text = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| \**`([a-z-]+)`\** \|", text, flags=re.M))
    assert ll.METHODS.keys() <= explained, f"write into docs/method.md: {sorted(ll.METHODS.keys() - explained)}"


def test_documents_have_the_budget_of_the_queries_unless_they_have_their_own():
    assert ll.METHODS["laser"].index_steps == 3 and ll.METHODS["lexical"].index_steps == 1
    assert ll.METHODS["lame"].replace(document_steps=2).index_steps == 2
