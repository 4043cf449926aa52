"""The command line: ``laser-lab think MODEL QUESTION``, and the same for every other verb of the laboratory.

A failure is one line on stderr and exit code 1; ``--debug`` shows where it came from. Wrong usage is exit code 2.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laser_lab.corpus import encode_corpus, open_corpus
from laser_lab.corpus.encode import ENGINES, SHARD_SIZE
from laser_lab.corpus.source import open_source
from laser_lab.data.hopworld import HopWorld
from laser_lab.data.readers import BadRows, RetrievalTask, mini, read_task
from laser_lab.encoder import LatentRetriever, think
from laser_lab.index.folder import DTYPES
from laser_lab.loading import load
from laser_lab.methods import METHODS
from laser_lab.probing.vocabulary import nearest_tokens, readable
from laser_lab.training.run import main as train_from
from laser_lab.weights import BUILT_IN

BUILT_IN_TASKS = {"mini": mini, "hopworld": lambda: HopWorld().task("test")}

EXIT_CODES = "Exit codes: 0 done, 1 failed (one line says why; --debug shows the traceback), 2 wrong usage."
EXAMPLES = {
    None: """
  laser-lab think lexical-entailment-bank "why is the sky blue" --steps 3
  laser-lab explore gemma-3-270m mini --adapter lexical-entailment-bank --html thoughts.html
  laser-lab COMMAND --help""",
    "think": """
  laser-lab think lexical-entailment-bank "why is the sky blue" --steps 3
  laser-lab think hopworld "mother of neighbour of teacher of nelapi ? think" --steps 3
  laser-lab think runs/laser/final "why is the sky blue" "why is the sea green" --top 10""",
    "explore": """
  laser-lab explore gemma-3-270m mini --adapter lexical-entailment-bank --html thoughts.html
  laser-lab explore runs/laser/final corpus.jsonl --question "why is the sky blue" --html thoughts.html""",
    "train": f"""
  laser-lab train config.yaml

CONFIG holds the arguments of laser_lab.train as YAML, for example
  model: gemma-3-270m
  dataset: FOLDER        # corpus.jsonl, train.jsonl; or a .jsonl file, a hub id, hopworld
  dev: true              # also FOLDER's dev.jsonl; the best checkpoint by it is kept
  method: laser
  output_dir: runs/laser
  max_steps: 400
Methods: {", ".join(METHODS)}.
Several processes: accelerate launch -m laser_lab.training CONFIG""",
    "encode": """
  laser-lab encode gemma-3-270m corpus.jsonl vectors --steps 1
  laser-lab encode gemma-3-270m corpus.jsonl vectors --steps 1        # again: goes on where it stopped""",
    "search": """
  laser-lab search vectors "why is the sky blue" --steps 3 --top 5""",
    "figures": """
  laser-lab figures            # what `make figures` runs: the notebooks whose figures are not up to date
  laser-lab figures 03 06      # these notebooks, in any case""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command, debug, name = (options.pop(key) for key in ("run", "debug", "command"))
    logging.getLogger("laser_lab").addHandler(logging.StreamHandler())
    try:
        return command(**options) or 0
    except KeyboardInterrupt:
        print(f"laser-lab {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `laser-lab ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at the end
        return 0
    except Exception as error:
        if debug:
            raise
        text = str(error) if isinstance(error, BadRows) else " ".join(str(error).split())  # bad rows are a list
        print(f"laser-lab {name}: {type(error).__name__}: {text}", file=sys.stderr)
        return 1


# -- commands ------------------------------------------------------------------------------------------------------


def _think(questions: list[str], steps: int | None, top: int, **model: Any) -> None:
    """What the model thinks about each question: the most probable tokens of every step."""
    retriever = _load(model)
    thoughts = think(retriever, questions, steps, prompt_name="query")
    tokens = nearest_tokens(retriever, thoughts, top=top)
    for index, question in enumerate(questions):
        print(question)
        for step, found in tokens[tokens["text"] == index].groupby("step"):
            weight = float(thoughts.weights[index, step - 1])
            words = "  ".join(f"{readable(row.token)} {row.probability:.2f}" for row in found.itertuples())
            print(f"  step {step}{'' if weight == 1 else f' (weight {weight:.2f})'}:  {words}")


def _load(how: dict[str, Any]) -> LatentRetriever:
    return load(dtype=how.pop("model_dtype"), **how)


def _explore(corpus: str, html: str, questions: list[str], **model: Any) -> None:
    """Write the explorer of a corpus as one HTML file."""
    from laser_lab.explorer import explore  # needs a package of the notebooks

    task = _task(corpus)
    if not questions and not task.queries:
        raise ValueError(f"{corpus} has no questions of its own (dev.jsonl): give --question")
    print(explore(_load(model), task, questions or None).to_html(html))


def _task(corpus: str) -> RetrievalTask:
    """A built-in task, a folder with questions, or the documents that `laser-lab encode` reads."""
    if corpus in BUILT_IN_TASKS:
        return BUILT_IN_TASKS[corpus]()
    if Path(corpus, "dev.jsonl").is_file():
        return read_task(corpus)
    file = Path(corpus, "corpus.jsonl")
    source = open_source(str(file) if file.is_file() else corpus, shard_size=sys.maxsize)  # one shard: held whole
    found = source.read(0)
    if found.problems:
        raise BadRows(found.problems)
    return RetrievalTask(Path(corpus).stem, {}, dict(zip(found.ids, found.texts)), {})


def _train(config: str) -> int:
    return train_from([config])


def _encode(source: str, folder: str, **how: Any) -> None:
    model = _load({key: how.pop(key) for key in ("name", "adapter", "device", "model_dtype", "max_length")})
    how["id_column"] = how["id_column"] or None
    found = encode_corpus(model, source, folder, **how)
    print(
        f"{found['documents']} documents in {folder}, {found['skipped']} bad rows skipped, {found['mean_steps']:.2f} "
        f"thinking steps a document; {found['encoded']} encoded now in {found['seconds']:.0f} s"
    )


def _search(folder: str, questions: list[str], steps: int | None, top: int) -> None:
    found = open_corpus(folder).search(questions, top, thinking_steps=steps)
    for number, rows in found.groupby("query_id"):
        print(questions[number])
        for row in rows.itertuples():
            print(f"{row.rank:4d}  {row.score:.4f}  {row.doc_id}")


def _figures(names: list[str], preset: str) -> int:
    from laser_lab.lab import notebooks  # needs packages of the notebooks

    return notebooks.main([*names, "--preset", preset])


# -- arguments -----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laser-lab", **_texts(None, "retrievers that think: look inside, train, search")
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, **_texts(name, text))
        added.set_defaults(run=run)
        added.add_argument("--debug", action="store_true", help="show the traceback of a failure")
        return added

    one = command("think", _think, "print what a model thinks about a question, step by step, as its nearest tokens")
    _model_arguments(one)
    one.add_argument("questions", nargs="+", metavar="QUESTION")
    one.add_argument("--steps", type=_count, metavar="K", help="thinking steps; default: the model's own")
    one.add_argument("--top", type=_count, default=5, help="tokens of each step (default: 5)")

    one = command("explore", _explore, "write an explorer of a model's thoughts and rankings as one HTML file")
    _model_arguments(one)
    tasks = " or ".join(BUILT_IN_TASKS)
    one.add_argument("corpus", metavar="CORPUS", help=f"{tasks}; a folder with corpus.jsonl; or what encode reads")
    one.add_argument("--html", required=True, metavar="FILE", help="where to write")
    text = "may be repeated; default: the first of the corpus's own"
    one.add_argument("--question", action="append", default=[], dest="questions", help=text)

    one = command("train", _train, "train a retriever as a YAML file says")
    one.add_argument("config", metavar="CONFIG", type=_file)

    one = command("encode", _encode, "encode a corpus of any size; run it again to go on")
    _encode_arguments(one)

    one = command("search", _search, "search a corpus that encode made, with the model that made it")
    one.add_argument("folder", metavar="FOLDER")
    one.add_argument("questions", nargs="+", metavar="QUESTION")
    one.add_argument("--steps", type=_count, metavar="K", help="thinking steps of the questions")
    one.add_argument("--top", type=_count, default=10, help="documents of each question (default: 10)")

    one = command("figures", _figures, "run the notebooks that make the figures")
    one.add_argument("names", nargs="*", metavar="NOTEBOOK", help="the start of its name; default: all not up to date")
    one.add_argument("--preset", default="default", help="default or full")
    return parser


def _texts(name: str | None, text: str) -> dict[str, Any]:
    """What the help of a command says above and below its arguments."""
    return {
        "description": f"{text[0].upper()}{text[1:]}.",
        "epilog": f"examples:{EXAMPLES[name]}\n\n{EXIT_CODES}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    text = f"a hub id, a folder, a GGUF file, or a built-in: {', '.join(BUILT_IN)}"
    parser.add_argument("name", metavar="MODEL", help=text)
    parser.add_argument("--adapter", help="a PEFT adapter on top of the model")
    parser.add_argument("--device", help="cpu, cuda, ...; default: an accelerator if there is one")
    text = (
        "of the weights: bfloat16 is faster on a processor with AMX or AVX512-BF16 and slower on others, auto takes it "
        "where the processor has these; default: float32 on a CPU, the checkpoint's own on a GPU"
    )
    parser.add_argument("--model-dtype", choices=("float32", "bfloat16", "float16", "auto"), help=text)


def _encode_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument("source", metavar="SOURCE", help="a .jsonl or .parquet file, a folder or glob, or a hub id")
    parser.add_argument("folder", metavar="FOLDER", help="for the vectors; what is there already is not made again")
    parser.add_argument("--max-length", type=_count, help="tokens of the longest document")
    text = "thinking steps; default: the model's own for documents"
    parser.add_argument("--steps", type=_count, metavar="K", dest="thinking_steps", help=text)
    parser.add_argument("--prompt", help="before each document; default: the model's own")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--workers", type=_count, help="Ray's; default: one for each GPU, else for each core")
    parser.add_argument("--batch-size", type=_count, default=32)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the vectors on disk")
    parser.add_argument("--shard-size", type=_count, default=SHARD_SIZE, help="documents of a file of vectors")
    parser.add_argument("--text-column", nargs="+", default=["text"], help="several are joined by a space")
    parser.add_argument("--id-column", default="id", help="'' for the row number")
    parser.add_argument("--split", default="train", help="of a hub id")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out and count them")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number, not {text!r}")
    return int(text)


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
