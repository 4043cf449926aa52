"""Timing: interleaved, whole, and of loops that compute the same."""

import pytest
import torch
from conftest import FAMILIES, tiny_backbone

from laser_lab import latency
from laser_lab.thinking import latent_thinking


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_loop_computes_the_same(family):
    backbone = tiny_backbone(family)
    ids = torch.randint(4, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    ids[0, :2] = 0
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with torch.no_grad():
        for steps in (1, 3):
            ours = latent_thinking(backbone, ids, mask, steps)
            theirs = latency.published_loop(backbone, ids, mask, steps)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_rounds_are_interleaved_and_warm():
    calls = []
    frame = latency.measure({n: (lambda n=n: calls.append(n)) for n in "abc"}, repeats=4, warmup=2)
    assert calls == list("abc") * 6, "every system once a round"
    assert frame.groupby("name").size().tolist() == [4, 4, 4] and (frame.seconds >= 0).all()
    table = latency.summary(frame)
    assert table.name.tolist() == ["a", "b", "c"] and (table.p95 >= table["median"]).all()
    for bad in (dict(systems={}), dict(systems={"a": print}, repeats=0)):
        with pytest.raises(ValueError, match="at least one"):
            latency.measure(**bad)


def test_the_command_writes_its_table(tiny_folder, tmp_path, capsys):
    out = tmp_path / "latency.csv"
    arguments = ["--model", tiny_folder, "--batch", "2", "--tokens", "4", "--repeats", "2", "--out", str(out)]
    assert latency.main(arguments) == 0
    header, *rows = out.read_text().splitlines()
    assert header.startswith("model,batch,tokens,thinking_steps,name,median,p95") and len(rows) == 3
    assert "published" in capsys.readouterr().out
