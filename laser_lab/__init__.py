"""laser_lab: research on latent thinking in dense retrieval. The public names, nothing else."""

from laser_lab.evaluation import evaluate, rank
from laser_lab.probing.vocabulary import nearest_tokens
from laser_lab.retriever import LatentRetriever, load, query_prompt, think
from laser_lab.thinking import Thoughts

__all__ = ["LatentRetriever", "Thoughts", "evaluate", "load", "nearest_tokens", "query_prompt", "rank", "think"]
