"""The explicit view: segments of reasoning and their states (docs/method.md, section 2)."""

from collections.abc import Sequence
from itertools import islice

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor

from laser_lab.base.inputs import in_batches
from laser_lab.base.numbers import named_rows
from laser_lab.data.prompts import join_queries
from laser_lab.data.segments import downsample
from laser_lab.encoder import LatentEncoder

EXPLICIT_MAX_LENGTH = 1024  # LaSER, appendix: the explicit view's limit in training


def explicit_features(
    encoder: LatentEncoder,
    queries: Sequence[str],
    reasonings: Sequence[Sequence[str]],
    *,
    prompt: str = "",
    steps: int = 1,
    rule: str = "released",
    max_length: int = EXPLICIT_MAX_LENGTH,
) -> dict[str, Tensor]:
    """Model input of the explicit view: [q ; segment 1 ; ... ; segment M ; eos], left-padded, the query in its
    template. A blank line precedes each segment, and each is tokenized alone. What exceeds `max_length` is cut; the eos
    stays.

    Returns:
        ``input_ids`` and ``attention_mask``, (B, T), and ``segment_ends``, (B, K): per thinking step the position of
        its segment's last token, or of the eos where there is no reasoning.
    """
    tokenizer = encoder.tokenizer
    rows, ends = [], []
    starts = encoder.token_ids(encoder.wrapped([prompt + query for query in queries]), encoder.max_length)
    parts = ["\n\n" + segment for reasoning in reasonings for segment in reasoning]
    following = iter(tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else [])
    for start, reasoning in zip(starts, reasonings, strict=True):
        ids, last_tokens = list(start), []
        for tokens in islice(following, len(reasoning)):
            ids += tokens
            last_tokens.append(len(ids) - 1)
        ids = ids[: max_length - 1] + [tokenizer.eos_token_id]
        last_tokens = [i for i in last_tokens if i < len(ids) - 1] or [len(ids) - 1]
        rows.append(ids)
        ends.append([last_tokens[j] - len(ids) for j in downsample(len(last_tokens), steps, rule)])
    batch = tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
    positions = torch.tensor(ends).reshape(len(rows), steps) + batch["input_ids"].shape[1]
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "segment_ends": positions}


def explicit_thoughts(
    model: SentenceTransformer,
    queries: Sequence[str],
    reasonings: Sequence[Sequence[str]],
    *,
    steps: int = 1,
    prompts: Sequence[str] = (),
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """The explicit view of queries, without gradients: an upper bound, as it sees the reasoning. `prompts` is empty, or
    has one per query (:meth:`laser_lab.encoder.LatentRetriever.encode`).

    Returns:
        (B, D) teacher embeddings of unit length, and (B, K, D) segment states, float32.
    """
    encoder: LatentEncoder = model[0]
    size = encoder.get_embedding_dimension()
    embeddings, states = torch.zeros(len(queries), size), torch.zeros(len(queries), steps, size)
    queries, prompt = join_queries(queries, prompts, model.prompts.get("query") or "")
    model.eval()
    with torch.inference_mode():
        for rows in in_batches(queries, batch_size):
            some = [queries[i] for i in rows], [reasonings[i] for i in rows]
            features = explicit_features(encoder, *some, prompt=prompt, steps=steps)
            features = batch_to_device(features, model.device)
            with named_rows(rows.__getitem__):
                out = encoder(features, segment_ends=features.pop("segment_ends"))
            embeddings[rows], states[rows] = out["sentence_embedding"].cpu(), out["states"].float().cpu()
    return embeddings, states
