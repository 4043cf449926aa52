"""The objectives, one class each; they know no tokenizer and no model.

Shapes: B queries, N documents (of the batch on all devices), K thinking steps, D hidden size. Embeddings are float32 of
unit length, states are raw. ``positives`` (B,) is each query's row among the documents; ``ignored`` (B, N) marks
documents that are no negatives.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, relu, softmax

from laser_lab.thinking import at_least_float32, pool


class InfoNCE(nn.Module):
    """Contrastive loss over all documents of the batch (LaSER, eq. 3), mean over queries.

    >>> queries, documents = torch.eye(2, 4), torch.eye(3, 4)  # query i is document i
    >>> nothing = torch.zeros(2, 3, dtype=torch.bool)
    >>> round(InfoNCE(temperature=1.0)(queries, documents, torch.tensor([0, 1]), nothing).item(), 3)  # log(1 + 2/e)
    0.551
    """

    def __init__(self, temperature: float = 0.02) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, queries: Tensor, documents: Tensor, positives: Tensor, ignored: Tensor) -> Tensor:
        """(B, D), (N, D), (B,), (B, N) bool to a scalar. A query's own positive is never ignored."""
        keep = ignored.scatter(1, positives[:, None], False)
        scores = (queries @ documents.T / self.temperature).masked_fill(keep, float("-inf"))
        return cross_entropy(scores, positives)


class OutputKL(nn.Module):
    """Output distillation (LaSER, eq. 6): KL of the teacher's ranking distribution from the student's, batchmean. The
    teacher carries no gradient; one with document vectors of its own ranks those.

    >>> student, documents = torch.eye(2, 4), torch.eye(3, 4)
    >>> kl = OutputKL(temperature=1.0)
    >>> kl(student, student, documents).item()
    0.0
    >>> round(kl(student, student.flip(0), documents).item(), 3)  # a teacher that prefers the other document
    0.364
    """

    def __init__(self, temperature: float = 0.02) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, documents: Tensor, teacher_documents: Tensor | None = None):
        """Unit-length (..., D), (..., D), (N, D) to a scalar: the mean over all leading dimensions."""
        other = documents if teacher_documents is None else teacher_documents
        target = softmax((teacher @ other.T / self.temperature).detach(), dim=-1)
        logs = log_softmax(student @ documents.T / self.temperature, dim=-1)
        return kl_div(logs.flatten(0, -2), target.flatten(0, -2), reduction="batchmean")


class TrajectoryAlignment(nn.Module):
    """Trajectory alignment (LaSER, eq. 10: KL_mid, λ3): :class:`OutputKL` of each step's state against its segment's;
    mean over queries and steps.

    >>> states = 7 * torch.eye(2, 4)[None]  # one query, two steps
    >>> round(TrajectoryAlignment(temperature=1.0)(states, states.flip(1), torch.eye(3, 4)).item(), 3)
    0.364
    """

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.kl = OutputKL(temperature)

    def forward(self, states: Tensor, segments: Tensor, documents: Tensor, teacher_documents: Tensor | None = None):
        """(B, K, D) latent states, (B, K, D) segment states, (N, D) documents to a scalar."""
        states, segments = (normalize(at_least_float32(x), dim=-1) for x in (states, segments))
        return self.kl(states, segments, documents, teacher_documents)


class LexicalAlignment(nn.Module):
    """Cross-entropy of what each step should say and what it says, softmax(W h_k) (ours; docs/method.md, section 5);
    mean over steps that have a target.

    >>> said = torch.tensor([[[0.5, 0.25], [0.9, 0.1]]]).log()  # one query, two steps, two words
    >>> targets = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # the second step has no target
    >>> round(LexicalAlignment()(said, targets).item(), 3)  # -log 0.5
    0.693
    """

    def forward(self, log_probabilities: Tensor, targets: Tensor) -> Tensor:
        """(B, K, N) log-probabilities and target probabilities (0: padding) to a scalar; 0 if no step has a target."""
        losses = -(log_probabilities.masked_fill(targets == 0, 0.0) * targets).sum(-1)
        return losses.sum() / (targets.sum(-1) > 0).sum().clamp(min=1)


class StepwiseContrastive(nn.Module):
    """GIRCSE's loss (section 3.3): mean_k CL(first k states), and the penalty mean_k relu(log L_{k+1} - log L_k).

    >>> documents = torch.eye(2, 4)[:, None].expand(2, 2, 4)
    >>> states = torch.stack([torch.eye(2, 4), torch.eye(2, 4).flip(0)], dim=1)  # the second step takes the first back
    >>> nothing = torch.zeros(2, 2, dtype=torch.bool)
    >>> loss, penalty = StepwiseContrastive(temperature=1.0)(states, documents, torch.arange(2), nothing)
    >>> round(loss.item(), 3), round(penalty.item(), 3)
    (0.503, 0.794)
    """

    def __init__(self, temperature: float = 0.02) -> None:
        super().__init__()
        self.contrastive = InfoNCE(temperature)

    def forward(
        self, states: Tensor, document_states: Tensor, positives: Tensor, ignored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, K, D), (N, K, D), (B,), (B, N) to (stepwise loss, monotonicity penalty), both scalars."""
        steps = torch.stack(
            [
                self.contrastive(pool(states[:, :k]), pool(document_states[:, :k]), positives, ignored)
                for k in range(1, states.shape[1] + 1)
            ]
        )
        logs = (steps + 1e-8).log()  # as released: an InfoNCE of exactly 0 has no logarithm
        penalty = relu(logs.diff()).mean() if len(steps) > 1 else steps.sum() * 0
        return steps.mean(), penalty
