"""A corpus beyond memory: read it in shards, encode each once, search it. The vectors' folder is ``index``'s."""

from laser_lab.corpus.encode import encode_corpus
from laser_lab.corpus.opened import Corpus, open_corpus

__all__ = ["Corpus", "encode_corpus", "open_corpus"]
