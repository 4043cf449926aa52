"""What a result's key covers: the source that it can reach, and nothing else."""

import json

from laser_lab.lab import provenance
from laser_lab.lab.provenance import code_version, imports, modules, reachable, versions


def write(package, **files):
    package.mkdir(exist_ok=True)
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    code_version.cache_clear()


def test_a_line_two_imports_away_makes_a_new_key(tmp_path):
    package = tmp_path / "toy"
    write(
        package, __init__="", top="from toy import middle\n", middle="def f():\n    from toy.low import x\n", other=""
    )
    write(package, low="x = 1\n")
    assert reachable("toy.top", package=package) == ["toy.low", "toy.middle", "toy.top"]
    first = code_version("toy.top", package=package)
    write(package, low="x = 2\n")
    assert code_version("toy.top", package=package) != first
    write(package, low="x = 1  # why\n", other="y = 3\n")
    assert code_version("toy.top", package=package) == first, "comments and modules out of reach do not count"


def test_imports_for_type_checking_do_not_count(tmp_path):
    package = tmp_path / "toy"
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.low import x\nelse:\n    import toy.other\n"
    )
    write(package, __init__="", top=text, low="", other="")
    assert imports("toy.top", package) == {"toy.other"}


def test_the_keys_of_cells_and_rows_reach_what_they_read():
    wanted = "data.readers data.hopworld vision thinking losses methods training.objectives".split()
    for name, more in (("cells", "probing.vocabulary"), ("entailment", "rewriting")):
        found = set(reachable(f"laser_lab.lab.{name}"))
        assert {f"laser_lab.{part}" for part in (*wanted, more)} <= found, name
        assert not any(name.startswith("laser_lab.explorer") for name in found)
    assert "laser_lab" in modules()


def test_every_reachable_module_has_a_version_of_its_own(tmp_path):
    package = tmp_path / "toy"
    write(package, __init__="", top="from toy import low\n", low="x = 1\n", other="")
    first = versions("toy.top", package=package)
    write(package, low="x = 2  # other\n", other="y = 1\n")
    second = versions("toy.top", package=package)
    assert list(first) == ["toy.low", "toy.top"]
    assert first["toy.top"] == second["toy.top"] and first["toy.low"] != second["toy.low"]


def test_a_version_that_is_shown_to_be_equal_keeps_the_earlier_name(tmp_path, monkeypatch):
    package = tmp_path / "toy"
    write(package, __init__="", top="x = 1\n")
    first = code_version("toy.top", package=package)
    write(package, top="x = 2 - 1\n")
    second = code_version("toy.top", package=package)
    monkeypatch.setattr(provenance, "EQUAL", tmp_path / "equal.json")
    provenance.EQUAL.write_text(json.dumps({second: {"equals": first}}))
    code_version.cache_clear()
    assert code_version("toy.top", package=package) == first != second
    write(package, top="x = 3\n")
    assert code_version("toy.top", package=package) not in (first, second), "only that version"


def test_a_module_that_is_shown_to_be_equal_keeps_the_earlier_name(tmp_path, monkeypatch):
    """And so does all that reaches it, as long as nothing else changes."""
    package, equal = tmp_path / "toy", tmp_path / "equal.json"
    write(package, __init__="", top="from toy import low\n", low="x = 1\n")
    first, whole = versions("toy.top", package=package), code_version("toy.top", package=package)
    write(package, low="x = 2 - 1\n")
    equal.write_text(json.dumps({versions("toy.low", package=package)["toy.low"]: {"equals": first["toy.low"]}}))
    monkeypatch.setattr(provenance, "EQUAL", equal)
    code_version.cache_clear()
    assert versions("toy.top", package=package) == first and code_version("toy.top", package=package) == whole
    write(package, top="from toy import low\ny = low.x\n")
    assert code_version("toy.top", package=package) != whole


def test_every_equal_version_says_what_changed_and_how_it_is_shown():
    listed = json.loads(provenance.EQUAL.read_text())
    assert all(entry["changed"] and entry["shown"] and entry["equals"] not in listed for entry in listed.values())
