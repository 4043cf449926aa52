"""A fingerprint of what decides an embedding: weights, and the settings beside them."""

import hashlib
import json
from typing import Any

from torch import nn


def fingerprint(*modules: nn.Module, settings: Any = None) -> str:
    """Twelve hexadecimal digits that differ where weights or `settings` (anything JSON holds) differ.

    Of every weight 64 entries are read: training changes all of them, and reading billions would take minutes.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for module in modules:
        for name, weight in module.state_dict().items():
            some = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
            digest.update(name.encode() + some.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
