"""Float32 linear layers on the CPU by the library that is fast there: the same numbers up to rounding.

PyTorch sends a float32 linear layer on an x86 CPU to MKL, which on CPUs of other makers than Intel is about half as
fast as the oneDNN kernels that PyTorch ships for compiled graphs. On Intel's MKL is as fast on large matrices and up to
four times faster on small ones (docs/speed.md), so all stays with PyTorch's own kernels there.
"""

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

AVAILABLE = (  # without MKL there is nothing to replace
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def processor_maker() -> str:
    """``"GenuineIntel"``, ``"AuthenticAMD"``, ...; where the system does not say it so, what it calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()  # on Windows the maker is a part of it
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), platform.machine())


PREFERRED = AVAILABLE and "GenuineIntel" not in processor_maker()
"""Whether :func:`linear` goes to oneDNN."""


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16 (AMX or AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: (..., I) and (O, I) to (..., O)."""
    if not _usable(x, weight, bias):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def _usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        PREFERRED
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # they do not support this kind of Function
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """The product; its gradients are products again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # with `setup_context` PyTorch would inspect this signature at every call
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)  # frozen weights need no inputs
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            linear(grad, weight.T) if ctx.needs_input_grad[0] else None,
            linear(rows.T, x.reshape(-1, x.shape[-1]).T) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class Linear(nn.Linear):
    """``nn.Linear`` through :func:`linear`, with the same state dict."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def use_fast_linear(model: nn.Module, fast: bool = True) -> None:
    """Let every plain ``nn.Linear`` of `model` use :func:`linear`, or, with ``fast=False``, PyTorch's own. A new
    layer takes over the parameters and the name of each, so ties, adapters, saving and training do not change."""
    before, after = (nn.Linear, Linear) if fast else (Linear, nn.Linear)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is before:
                with torch.device("meta"):
                    twin = after(layer.in_features, layer.out_features, bias=False)
                twin.weight, twin.bias = layer.weight, layer.bias
                setattr(parent, name, twin.train(layer.training))
