"""What encoding costs: systems timed side by side, in one run, in interleaved order.

``python -m laser_lab.latency`` times three ways to encode on the same weights and batches: the loop as the published
model card writes it, ours, and one basic pass.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from laser_lab.backbones import Backbone
from laser_lab.thinking import latent_thinking

if TYPE_CHECKING:
    import pandas as pd


def measure(systems: dict[str, Callable[[], Any]], *, repeats: int = 20, warmup: int = 3) -> pd.DataFrame:
    """Time every system once a round, so that whatever else the machine does meets all of them alike.

    Args:
        systems: Name to a call that does the whole work (and waits for its device).
        repeats: Rounds that are kept.
        warmup: Rounds before them that are not.

    Returns:
        ``name, repeat, seconds``, a row per system and round.

    Raises:
        ValueError: There is nothing to time, or `repeats` is not positive.
    """
    import pandas as pd

    if not systems or repeats < 1:
        raise ValueError("measure needs at least one system and one repeat")
    rows = []
    for repeat in range(-warmup, repeats):
        for name, call in systems.items():
            started = time.perf_counter()
            call()
            rows.append((name, repeat, time.perf_counter() - started))
    frame = pd.DataFrame(rows, columns=["name", "repeat", "seconds"])
    return frame[frame["repeat"] >= 0].reset_index(drop=True)


def summary(times: pd.DataFrame) -> pd.DataFrame:
    """``name, median, p95`` in milliseconds, from :func:`measure`'s frame."""
    grouped = times.assign(ms=1000 * times["seconds"]).groupby("name", sort=False)["ms"]
    return grouped.agg(median="median", p95=lambda values: values.quantile(0.95)).reset_index()


def published_loop(backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, thinking_steps: int) -> Tensor:
    """The loop in the steps of the published model card, for comparison: the whole causal LM at every step, with all
    hidden states and the logits of all positions; softmax; probabilities times the embedding matrix; a growing cache.

    Arguments and result as :func:`laser_lab.thinking.latent_thinking`.
    """
    model = backbone.causal_lm
    embedding = model.get_input_embeddings()
    scale = getattr(embedding, "embed_scale", 1.0)  # the card's code lacks it: its backbones do not scale
    states: list[Tensor] = []
    inputs, mask, cache = embedding(input_ids), attention_mask, None
    while True:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        out = model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            output_hidden_states=True,
            use_cache=True,
        )
        states.append(out.hidden_states[-1][:, -1])
        if len(states) == thinking_steps:
            return torch.stack(states, dim=1)
        cache = out.past_key_values
        probabilities = torch.softmax(out.logits[:, -1].float(), dim=-1).to(embedding.weight.dtype)
        inputs = (probabilities @ embedding.weight * scale)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def compare_loops(
    backbone: Backbone,
    shapes: Sequence[tuple[int, int, int]],
    *,
    repeats: int = 10,
    warmup: int = 2,
    show_progress_bar: bool = True,
) -> pd.DataFrame:
    """Time the published loop, ours and one basic pass on random tokens.

    Args:
        shapes: (batch, tokens, K) each.

    Returns:
        ``batch, tokens, thinking_steps, name, median, p95`` (milliseconds) and ``to_basic``, ``to_published``: the
        medians' ratios in the same run.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    frames = []
    device = backbone.embedding_table.device
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for batch, tokens, steps in tqdm(list(shapes), desc="Timing", disable=not show_progress_bar):
            ids = torch.randint(5, backbone.config.get_text_config().vocab_size, (batch, tokens), generator=generator)
            ids = ids.to(device)
            mask = torch.ones_like(ids)

            def call(loop: Callable[..., Tensor], k: int, ids: Tensor = ids, mask: Tensor = mask) -> None:
                loop(backbone, ids, mask, k)
                if device.type == "cuda":
                    torch.cuda.synchronize()

            systems = {
                "published": lambda call=call, k=steps: call(published_loop, k),
                "ours": lambda call=call, k=steps: call(latent_thinking, k),
                "basic": lambda call=call: call(latent_thinking, 1),
            }
            frame = summary(measure(systems, repeats=repeats, warmup=warmup))
            medians = frame.set_index("name")["median"]
            frame["to_basic"] = frame["median"] / medians["basic"]
            frame["to_published"] = frame["median"] / medians["published"]
            for name, value in (("thinking_steps", steps), ("tokens", tokens), ("batch", batch)):
                frame.insert(0, name, value)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the published loop, ours and one basic pass."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="gemma-3-270m", help="what laser_lab.load takes")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--steps", type=int, nargs="+", default=[3], help="K")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", help="CSV to write")
    options = parser.parse_args(arguments)
    from laser_lab.retriever import load

    backbone = load(options.model).encoder.backbone
    shapes = [(b, t, k) for b in options.batch for t in options.tokens for k in options.steps]
    table = compare_loops(backbone, shapes, repeats=options.repeats)
    table.insert(0, "model", Path(options.model).name)
    print(f"{backbone.embedding_table.device}, {backbone.embedding_table.dtype}, {torch.get_num_threads()} threads")
    print(table.round(3).to_string(index=False))
    if options.out:
        temporary = Path(f"{options.out}.part")
        table.to_csv(temporary, index=False, float_format="%.4g")
        temporary.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
