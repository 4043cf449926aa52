"""The machine that a measurement was made on, as columns of its record."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from laser_lab.base.kernels import PREFERRED, processor_maker
from laser_lab.base.processes import free_cores

IMITATING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Variables of the environment by which a processor does without some of its instructions, as a lesser one would."""


def machine(device: str = "cpu", label: str | None = None) -> dict[str, Any]:
    """``machine`` (`label`, default: from the rest), ``processor``, ``isa`` (of PyTorch's own kernels), ``bfloat16``
    (``amx``, ``avx512``, ``gpu`` or empty), ``imitated`` (what the environment takes away from it, if anything),
    ``products`` (the library of float32 linear layers), ``cores``, ``threads``, ``wait`` (of OpenMP's threads),
    ``torch``, ``transformers``, ``load`` (of the last minute) and ``free`` cores at the start."""
    imitated = " ".join(f"{name}={os.environ[name]}" for name in IMITATING if name in os.environ)
    if device == "cpu":
        processor, isa = _processor(), torch.backends.cpu.get_cpu_capability()
        has = {"amx": torch.cpu._is_amx_tile_supported(), "avx512": torch.cpu._is_avx512_bf16_supported()}
        kinds, products = " ".join(name for name, there in has.items() if there), "oneDNN" if PREFERRED else "PyTorch"
    else:
        processor, isa = (
            torch.cuda.get_device_name(device),
            f"sm_{''.join(map(str, torch.cuda.get_device_capability()))}",
        )
        kinds, products = "gpu", "PyTorch"
    short = re.sub(r"\(\w+\)|processor|\d+-core", "", processor, flags=re.I)
    found = re.sub(r"[^a-z0-9]+", "-", f"{short} {isa}{' imitated' if imitated else ''}".lower()).strip("-")
    return {
        "machine": label or found,
        "processor": processor,
        "isa": isa,
        "bfloat16": kinds,
        "imitated": imitated,
        "products": products,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait": os.environ.get("OMP_WAIT_POLICY", ""),
        **{name: version(name) for name in ("torch", "transformers")},
        "load": round(os.getloadavg()[0], 2),
        "free": free_cores(),
    }


def _processor() -> str:
    """Maker, name, family and model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return processor_maker()
    found = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    said = [found.get("model name", processor_maker())]
    return " ".join(said + [f"{name} {found[name]}" for name in ("cpu family", "model") if name in found])
