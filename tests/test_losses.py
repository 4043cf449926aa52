"""Every objective against plain loops, its gradients, and what must not carry any."""

import doctest
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from laser_lab import losses
from laser_lab.losses import InfoNCE, OutputKL, StepwiseContrastive, TrajectoryAlignment


def example(batch=3, documents=7, steps=4, size=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    ignored = torch.rand(batch, documents, generator=generator) < 0.2
    return rand(batch, steps, size), rand(documents, steps, size), torch.arange(batch), ignored


def mean_unit(states):
    total = [sum(float(s[d]) for s in states) / len(states) for d in range(len(states[0]))]
    norm = math.sqrt(sum(x * x for x in total))
    return [x / norm for x in total]


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b))


def plain_infonce(queries, documents, positives, ignored, temperature):
    losses = []
    for i, query in enumerate(queries):
        p = int(positives[i])
        kept = [j for j in range(len(documents)) if j == p or not ignored[i][j]]
        logits = {j: dot(query, documents[j]) / temperature for j in kept}
        top = max(logits.values())
        losses.append(-(logits[p] - top - math.log(sum(math.exp(x - top) for x in logits.values()))))
    return sum(losses) / len(losses)


def plain_distribution(query, documents, temperature):
    logits = [dot(query, d) / temperature for d in documents]
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def plain_kl(student, teacher, documents, temperature):
    p, q = (plain_distribution(x, documents, temperature) for x in (teacher, student))
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 4), extra=st.integers(0, 4), steps=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_losses_equal_plain_loops(batch, extra, steps, seed):
    states, doc_states, positives, ignored = example(batch, batch + extra, steps, 5, seed, torch.float32)
    queries, documents = normalize(states.mean(1), dim=-1), normalize(doc_states.mean(1), dim=-1)
    close = dict(rel=1e-4, abs=1e-5)  # float32 against float64 loops
    found = InfoNCE(0.2)(queries, documents, positives, ignored)
    assert float(found) == pytest.approx(plain_infonce(queries, documents, positives, ignored, 0.2), **close)

    teacher = normalize(torch.randn(batch, 5, generator=torch.Generator().manual_seed(seed + 1)), dim=-1)
    expected = sum(plain_kl(s, t, documents, 0.2) for s, t in zip(queries, teacher)) / batch
    assert float(OutputKL(0.2)(queries, teacher, documents)) == pytest.approx(expected, **close)

    targets = torch.randn(batch, steps, 5, generator=torch.Generator().manual_seed(seed + 2))
    expected = 0.0
    for b in range(batch):
        for k in range(steps):
            student, target = (normalize(x[b, k], dim=0) for x in (states, targets))
            expected += plain_kl(student, target, documents, 0.2) / (batch * steps)
    assert float(TrajectoryAlignment(0.2)(states, targets, documents)) == pytest.approx(expected, **close)

    stepwise, penalty = StepwiseContrastive(0.2)(states, doc_states, positives, ignored)
    per_step = [
        plain_infonce(
            [mean_unit(s[:k]) for s in states], [mean_unit(s[:k]) for s in doc_states], positives, ignored, 0.2
        )
        for k in range(1, steps + 1)
    ]
    assert float(stepwise) == pytest.approx(sum(per_step) / steps, **close)
    if min(per_step) > 1e-3:
        rises = [max(0.0, math.log(b) - math.log(a)) for a, b in zip(per_step, per_step[1:])]
        assert float(penalty) == pytest.approx(sum(rises) / len(rises) if rises else 0.0, rel=1e-3, abs=1e-4)


def test_in_float64_to_1e_6():
    states, doc_states, positives, ignored = example()
    queries, documents = (normalize(x.mean(1), dim=-1) for x in (states, doc_states))
    expected = plain_infonce(queries, documents, positives, ignored, 0.02)
    assert float(InfoNCE()(queries, documents, positives, ignored)) == pytest.approx(expected, abs=1e-6)
    teacher = normalize(states[:, 0], dim=-1)
    expected = sum(plain_kl(s, t, documents, 0.02) for s, t in zip(queries, teacher)) / 3
    assert float(OutputKL()(queries, teacher, documents)) == pytest.approx(expected, abs=1e-6)


def test_gradients():
    states, doc_states, positives, ignored = example(2, 4, 3, 3)
    states, doc_states = states.requires_grad_(), doc_states.requires_grad_()
    queries, documents = (normalize(x.detach().mean(1), dim=-1).requires_grad_() for x in (states, doc_states))
    fixed, teacher = documents.detach().clone(), normalize(states.detach()[:, 0], dim=-1)
    targets = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    check = torch.autograd.gradcheck
    assert check(lambda q, d: InfoNCE(0.5)(q, d, positives, ignored), (queries, documents))
    # the target side is constant: fixed documents of the teacher keep finite differences from moving it
    assert check(lambda q, d: OutputKL(0.5)(q, teacher, d, fixed), (queries, documents))
    assert check(lambda s, d: TrajectoryAlignment(0.5)(s, targets, d, fixed), (states, documents))
    assert check(lambda s, d: StepwiseContrastive(0.5)(s, d, positives, ignored), (states, doc_states))


def test_targets_carry_no_gradient():
    states, doc_states, *_ = example(dtype=torch.float32)
    documents = normalize(doc_states.mean(1), dim=-1)
    teacher = normalize(states[:, 0], dim=-1).requires_grad_()
    student = normalize(states[:, 1], dim=-1).requires_grad_()
    OutputKL()(student, teacher, documents).backward()
    assert teacher.grad is None and student.grad.abs().max() > 0
    targets = states.clone().requires_grad_()
    thought = (states + 1).requires_grad_()
    TrajectoryAlignment()(thought, targets, documents).backward()
    assert targets.grad is None and thought.grad.abs().max() > 0


def test_a_teacher_with_documents_of_its_own():
    states, doc_states, *_ = example(dtype=torch.float32)
    documents, other = (normalize(doc_states[:, k], dim=-1) for k in (0, 1))
    query = normalize(states[:, 0], dim=-1)
    assert float(OutputKL()(query, query, documents)) == pytest.approx(0, abs=1e-6)
    assert float(OutputKL()(query, query, documents, other)) > 0.01


def test_masked_false_negatives_change_nothing():
    states, doc_states, positives, ignored = example(dtype=torch.float32)
    ignored[:] = False
    ignored[:, -2:] = True
    queries, documents = (normalize(x.mean(1), dim=-1) for x in (states, doc_states))
    before = InfoNCE()(queries, documents, positives, ignored)
    documents[-2:] = normalize(torch.randn(2, 5), dim=-1)
    torch.testing.assert_close(InfoNCE()(queries, documents, positives, ignored), before)
    torch.testing.assert_close(InfoNCE()(queries, documents[:-2], positives, ignored[:, :-2]), before)
    # a query's own positive counts even where the mask names it
    own = torch.zeros_like(ignored)
    own[torch.arange(3), positives] = True
    torch.testing.assert_close(
        InfoNCE()(queries, documents, positives, own), InfoNCE()(queries, documents, positives, torch.zeros_like(own))
    )


def test_every_objective_carries_an_example_that_runs():
    found = [c for _, c in inspect.getmembers(losses, inspect.isclass) if c.__module__ == losses.__name__]
    assert len(found) == 5
    for one in found:
        assert ">>>" in one.__doc__ and f"{one.__name__}(" in one.__doc__, f"{one.__name__} has no example"
    assert doctest.testmod(losses).failed == 0
