"""LaME: thinking in one pass with learned reason tokens."""

from laser_lab.lame.encoder import (
    WEIGHTS_FILE,
    ReasonEncoder,
    ReasonThoughts,
    one_pass_thinking,
    reconstruct,
    use_reason_tokens,
)
from laser_lab.lame.heads import (
    TARGET_LENGTH,
    BottleneckDecoder,
    Diversity,
    ReasonTokens,
    cosines,
    step_rank,
    targets,
)

__all__ = [
    "TARGET_LENGTH",
    "WEIGHTS_FILE",
    "BottleneckDecoder",
    "Diversity",
    "ReasonEncoder",
    "ReasonThoughts",
    "ReasonTokens",
    "cosines",
    "one_pass_thinking",
    "reconstruct",
    "step_rank",
    "targets",
    "use_reason_tokens",
]
