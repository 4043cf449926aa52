"""The tuned lens (Belrose et al., 2023): an affine map per layer, so that the LM head can read every layer."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from tqdm.auto import tqdm

from laser_lab.backbone import Backbone
from laser_lab.base.files import atomic_file
from laser_lab.base.inputs import Input
from laser_lab.probing.tracing import final_norm, think_layers


class TunedLens(nn.Module):
    """x + W_l x + b_l of the residual stream x at layer l, for L `layers` of width D = `size`. The last stays as it
    is."""

    def __init__(self, layers: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, size, size))
        """(L, D, D), by what enters the first layer and leaves all but the last"""
        self.bias = nn.Parameter(torch.zeros(layers, size))
        """(L, D)"""
        self.divergences: pd.DataFrame | None = None
        """``layer``, ``logit_lens``, ``tuned_lens``: the mean KL (nats) of each to the last layer on texts that the
        fit has not seen"""

    def forward(self, stream: Tensor) -> Tensor:
        """(..., L+1, D) residual streams to where the last layer would put them, same shape. ValueError: the lens was
        fitted for other layers or another width."""
        if stream.shape[-2:] != (len(self.weight) + 1, self.weight.shape[-1]):
            layers, size = stream.shape[-2] - 1, stream.shape[-1]
            raise ValueError(
                f"this lens reads {len(self.weight)} layers of width {self.weight.shape[-1]}, not {layers} of {size}"
            )
        moved = [self.layer(layer, stream[..., layer, :]) for layer in range(len(self.weight))]
        return torch.stack([*moved, stream[..., -1, :]], dim=-2)

    def layer(self, layer: int, states: Tensor) -> Tensor:
        """(..., D) residual streams at `layer` (0: before the first) to where the last one would have put them."""
        x = states.to(self.weight)
        return (x + x @ self.weight[layer].T + self.bias[layer]).to(states.dtype)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        told = "" if self.divergences is None else self.divergences.to_json(orient="records")
        with atomic_file(path) as temporary:
            tensors = {"weight": self.weight.detach().contiguous(), "bias": self.bias.detach().contiguous()}
            save_file(tensors, temporary, metadata={"divergences": told})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What :meth:`save` wrote. ValueError: the file holds something else."""
        with safe_open(Path(path), "pt") as file:
            if set(file.keys()) != {"weight", "bias"}:
                raise ValueError(f"{path} is no tuned lens: it holds {', '.join(sorted(file.keys())) or 'nothing'}")
            lens = cls(*file.get_slice("bias").get_shape())
            lens.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
            if told := (file.metadata() or {}).get("divergences"):
                lens.divergences = pd.DataFrame(json.loads(told))
        return lens.requires_grad_(False)


def fit_lens(
    model: SentenceTransformer,
    texts: Sequence[Input],
    *,
    thinking_steps: int | None = None,
    prompt_name: str | None = "query",
    max_steps: int = 60,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    show_progress_bar: bool = True,
) -> TunedLens:
    """Fit a tuned lens on the thoughts about `texts` (at least two, else a ValueError): per layer, KL(last layer ||
    lens), by `max_steps` updates of Adam over `batch_size` points (one per text and thinking step). A tenth of the
    texts, at least one, is held out for :attr:`TunedLens.divergences`. The model is not changed."""
    if len(texts) < 2:
        raise ValueError("a lens needs at least two texts: one is held out")
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    traced = think_layers(model, [texts[i] for i in order], thinking_steps, prompt_name=prompt_name)
    held_out = max(1, len(texts) // 10)
    seen = traced.layers[held_out:].flatten(0, 1)  # (points, L+1, D)
    backbone = model[0].backbone
    norm = final_norm(backbone)
    device = backbone.embedding_table.device
    lens = TunedLens(seen.shape[1] - 1, seen.shape[2]).to(device)
    optimizer = torch.optim.Adam(lens.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=max_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(max_steps), desc="Fitting the lens", disable=not show_progress_bar):
        points = seen[torch.randint(len(seen), (batch_size,), generator=generator)].to(device)
        optimizer.zero_grad()
        for loss in _divergences(backbone, norm, points, lens):  # one layer's B x V logits at a time
            loss.backward(inputs=list(lens.parameters()))
        optimizer.step()
        schedule.step()
    unseen = traced.layers[:held_out].flatten(0, 1).to(device)
    with torch.no_grad():
        columns = {"logit_lens": None, "tuned_lens": lens}
        found = {name: list(map(float, _divergences(backbone, norm, unseen, by))) for name, by in columns.items()}
    lens.divergences = pd.DataFrame({"layer": range(len(lens.weight))} | found)
    return lens.cpu().requires_grad_(False)


def _divergences(backbone: Backbone, norm: nn.Module, stream: Tensor, lens: TunedLens | None) -> Iterator[Tensor]:
    """Per earlier layer the mean KL of the last layer's reading to its own, over (points, L+1, D) streams."""
    table = backbone.embedding_table
    with torch.no_grad():
        target = backbone.logits(norm(stream[:, -1].to(table))).log_softmax(-1)
        share = target.exp()
    for layer in range(stream.shape[1] - 1):
        moved = stream[:, layer] if lens is None else lens.layer(layer, stream[:, layer])
        read = backbone.logits(norm(moved.to(table))).log_softmax(-1)
        yield (share * (target - read)).sum(-1).mean()
