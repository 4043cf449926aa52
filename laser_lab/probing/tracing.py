"""The residual stream behind every layer while the backbone thinks; layers are found by structure, in any family."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from laser_lab.backbone import Backbone
from laser_lab.base.inputs import Input, label_of
from laser_lab.data.prompts import join_queries
from laser_lab.encoder import LatentEncoder, TextEdit, put_rows, thought_batches
from laser_lab.thinking import Thoughts


@contextmanager
def trace(backbone: Backbone, positions: int = 1) -> Iterator[list[Tensor]]:
    """Within the block, keep the residual stream at the last `positions` of every forward call; changes nothing.

    Yields:
        A list with a (B, L+1, D) tensor per call and position: what enters the first of the L layers, then what leaves
        each, before the final norm; detached, in the backbone's dtype.

    Raises:
        ValueError: The backbone's layers cannot be found.
    """
    stack = layers(backbone)
    calls: list[Tensor] = []
    current: list[Tensor] = []

    def keep(states: Tensor) -> None:
        current.append(states[:, -positions:].detach().clone())

    def entering(module: nn.Module, args: tuple, kwargs: dict) -> None:
        current.clear()  # an interrupted call leaves nothing behind
        keep(args[0] if args else kwargs["hidden_states"])

    def leaving(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        keep(output[0] if isinstance(output, tuple) else output)
        if module is stack[-1]:
            calls.extend(torch.stack(current, dim=1).unbind(2))

    # hooks that return nothing change nothing
    handles = [stack[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [layer.register_forward_hook(leaving) for layer in stack]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def layers(backbone: Backbone) -> nn.ModuleList:
    """The L transformer layers, in order. ValueError: the body has no list of that many modules."""
    count = backbone.config.get_text_config().num_hidden_layers
    body = backbone.causal_lm.get_decoder()  # of a vision-language model, the language model alone
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(body).__name__} has no list of its {count} layers: it cannot be traced")


@torch.no_grad()
def final_norm(backbone: Backbone) -> nn.Module:
    """The module that turns what leaves the last layer into the last state. ValueError: there is no such module."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].shape == output.shape:
            seen.append((module, args[0], output))

    inside = set(layers(backbone).modules())
    body = backbone.causal_lm.base_model
    handles = [module.register_forward_hook(note) for module in body.modules() if module not in inside]
    ids = torch.ones(1, 1, dtype=torch.long, device=backbone.embedding_table.device)
    try:
        with trace(backbone) as calls:
            last = backbone.last_states(backbone.embed(ids), torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    for module, entered, left in seen:
        if torch.equal(entered[:, -1], calls[0][:, -1]) and torch.equal(left[:, -1], last[:, -1]):
            return module
    raise ValueError(f"no module of {type(body).__name__} turns the last layer's output into the last state")


@dataclass(frozen=True)
class LayerThoughts:
    """Thoughts with what every layer held."""

    thoughts: Thoughts

    layers: Tensor
    """(B, K, L+1, D) float32: the residual stream at each state's position, before the first layer (0) and behind each
    of L"""


def think_layers(
    model: SentenceTransformer,
    texts: Sequence[Input],
    thinking_steps: int | None = None,
    *,
    prompt_name: str | None = None,
    prompts: Sequence[str] = (),
    batch_size: int = 32,
    edit: TextEdit | None = None,
) -> LayerThoughts:
    """:func:`laser_lab.think`, and the residual stream of every layer at every step; errors as there and in `trace`."""
    encoder: LatentEncoder = model[0]
    texts = encoder.check_inputs(texts)
    steps = encoder.steps_of(thinking_steps, prompt_name)
    asked, prompt = join_queries(texts, prompts, model._resolve_prompt(None, prompt_name) or "")
    one_pass = encoder.max_steps is not None  # all states come from one call, and its last position is [EMBED]
    found: dict[str, Tensor] = {}
    with torch.inference_mode(), trace(encoder.backbone, steps + 1 if one_pass else 1) as calls:
        # threshold 0: every row stays in every call
        for rows, thought in thought_batches(model, asked, steps, prompt, batch_size, 0.0, edit):
            # pooling "generated" drops the first call's state
            kept = calls[-steps - 1 : -1] if one_pass else calls[-steps:]
            put_rows(found, rows, thought | {"layers": torch.stack(kept, dim=1)}, len(texts))
            calls.clear()
    stream = found.pop("layers")
    return LayerThoughts(encoder.thoughts_class([label_of(text) for text in texts], **found), stream)
