"""Rewrite-then-retrieve is a retriever too."""

import numpy as np
import pytest
from conftest import tiny_backbone

import laser_lab as ll
from laser_lab.rewriting import generate_reasoning


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ll.load(tiny_folder, prompts={"query": ""}, device="cpu")


QUERIES = ["why is the sky blue", "sea", ""]


def test_queries_are_rewritten_and_documents_are_not(model):
    both = ll.rewrite_then_retrieve(model, model, max_new_tokens=4)
    rewritten = both.rewrite(QUERIES)
    assert all(text.startswith(q) for text, q in zip(rewritten, QUERIES)) and rewritten != QUERIES
    np.testing.assert_allclose(both.encode_query(QUERIES), model.encode_query(rewritten), atol=1e-5)
    assert np.abs(both.encode_query(QUERIES) - model.encode_query(QUERIES)).max() > 1e-2
    np.testing.assert_allclose(both.encode_query(QUERIES[0]), model.encode_query(rewritten[0]), atol=1e-5)
    np.testing.assert_allclose(both.encode_document(QUERIES), model.encode_document(QUERIES), atol=1e-5)
    assert both.encode_query([]).shape == (0, 32)
    assert sum(p.numel() for p in both.parameters()) == sum(p.numel() for p in model.parameters())


def test_batched_generation_equals_one_by_one(model, capsys):
    backbone = tiny_backbone("llama")
    options = dict(max_new_tokens=5)
    alone = [generate_reasoning(backbone, [q], **options)[0] for q in QUERIES]
    assert all(alone) and len(set(alone)) == len(QUERIES)
    assert generate_reasoning(backbone, QUERIES, batch_size=2, show_progress_bar=True, **options) == alone
    assert "Rewriting" in capsys.readouterr().err


def test_bad_template(model):
    with pytest.raises(ValueError, match="template must hold"):
        ll.rewrite_then_retrieve(model, model, template="no place")
