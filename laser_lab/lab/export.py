"""Write the adapter of a trained row as the package ships it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from laser_lab.base.files import atomic_folder, read_json
from laser_lab.lab.records import training_record
from laser_lab.lab.rows import Row, without_paths
from laser_lab.weights import BUILT_IN

ADAPTER_LIMIT = 20e6
"""Bytes."""

CONFIGS = ("adapter_config.json", "laser_lab.json", "config_sentence_transformers.json", "modules.json")
WRITTEN = ("adapter_model.safetensors", "run_card.json", "README.md")

CARD = """\
---
base_model: {base}
library_name: peft
license: {license}
pipeline_tag: sentence-similarity
tags: [sentence-transformers, dense-retrieval, latent-thinking, lora]
---

# {name}

A LoRA adapter (bfloat16) that makes `{base}` a dense retriever that {thinks}: method `{method}`, trained by
laser_lab on the training questions of `{data}` ({rows} of them). Where the method learns from reasoning, it saw the
human one.

    import laser_lab as ll
    model = ll.load("{base}", adapter="{name}")

Without laser_lab, `peft.PeftModel.from_pretrained(base, folder)` puts it on a `transformers` model of the same weights;
the thinking loop is laser_lab's.

## Measured

nDCG@10 on the {queries} dev questions, on which the settings were chosen too, seed {seed}:

{results}

The settings, the versions and the losses are in `run_card.json`. With so few questions it is a demonstration, not a
general retriever.

## Terms

{source}No text of the training data is in here.
{terms}
"""
SOURCES = {
    "entailment_bank": "EntailmentBank (science questions in English): Dalvi et al., EMNLP 2021, arXiv 2104.08661. ",
    "strategyqa": "StrategyQA (questions in English): Geva et al., TACL 2021, arXiv 2101.02235. ",
}
GEMMA_TERMS = """\
The adapter is a modification of Gemma. Gemma is provided under and subject to the Gemma Terms of Use found at
ai.google.dev/gemma/terms, which also restrict its use (ai.google.dev/gemma/prohibited_use_policy)."""


def export_adapter(rows: Sequence[Row], folder: str | os.PathLike[str]) -> Path:
    """Write the adapter of a trained row as :func:`laser_lab.load` takes it: bfloat16, without a tokenizer, without a
    path of this machine, with the run card and a model card that measures those `rows` (of one training, on several
    corpora) that are finished. An adapter that an export wrote before is replaced.

    Raises:
        FileNotFoundError: It is not trained yet.
        FileExistsError: `folder` is there and is no adapter that an export wrote.
        ValueError: Not one trained row, its base is no name that others have, or it is too large to be committed.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if len({row.trained for row in rows}) != 1 or not rows[0].is_trained:
        raise ValueError("one trained row is exported at a time")
    row, folder = rows[0], Path(folder)
    if folder.exists() and {file.name for file in folder.iterdir()} != {*CONFIGS, *WRITTEN}:
        raise FileExistsError(f"{folder} is no adapter that an export wrote: name a folder that is not there")
    card, final = training_record(row), row.trained / "final"
    base = read_json(final / "laser_lab.json")["base"]
    if Path(base).exists():
        raise ValueError(f"the base of the adapter is the folder {base}: nobody else could load it")
    with atomic_folder(folder, replaces=lambda name: True) as temporary:
        weights = load_file(final / "adapter_model.safetensors")
        half = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
        save_file(half, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        for name in CONFIGS:
            content = without_paths(read_json(final / name))
            if name == "adapter_config.json":
                # PEFT asks the hub about any name here; ours of a built-in stands in laser_lab.json alone
                content["base_model_name_or_path"] = None if base in BUILT_IN else base
            (temporary / name).write_text(json.dumps(content, indent=1) + "\n")
        (temporary / "run_card.json").write_text(json.dumps(card, indent=1) + "\n")
        (temporary / "README.md").write_text(_model_card(rows, base, folder.name, card["dataset"]["rows"]))
        size = sum(file.stat().st_size for file in temporary.iterdir())
        if size > ADAPTER_LIMIT:
            raise ValueError(f"the adapter takes {size / 1e6:.1f} MB, more than {ADAPTER_LIMIT / 1e6:.0f}")
    return folder


def _model_card(rows: Sequence[Row], base: str, name: str, trained_on: int) -> str:
    row, queries, results = rows[0], 0, []
    for finished in (r for r in rows if r.done):
        own = finished.frame().query("thinking_steps == train_steps")
        queries, documents = len(own), finished.record["documents"]
        results.append(f"- {finished.corpus} corpus ({documents:,} facts): {own['ndcg@10'].mean():.3f}")
    gemma, data = base.startswith("gemma"), Path(row.data).resolve().name
    return CARD.format(
        base=base,
        name=name,
        method=row.system,
        thinks=f"thinks silently in {row.steps} steps" if row.steps > 1 else "reads in one pass",
        data=data,
        source=SOURCES.get(data, ""),
        rows=f"{trained_on:,}",
        queries=queries,
        seed=row.seed,
        results="\n".join(results) or "- not read yet",
        license="gemma" if gemma else "other",
        terms=GEMMA_TERMS if gemma else "The base has terms of its own.",
    )
