"""LaME: thinking in one pass with learned reason tokens."""

from laser_lab.lame.encoder import ReasonEncoder, reconstruct, use_reason_tokens
from laser_lab.lame.heads import Diversity, cosines, step_rank, targets

__all__ = ["Diversity", "ReasonEncoder", "cosines", "reconstruct", "step_rank", "targets", "use_reason_tokens"]
