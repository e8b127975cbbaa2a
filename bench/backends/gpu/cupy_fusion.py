"""CuPy, its operations fused into kernels."""

from __future__ import annotations

from typing import Any

import cupy
import torch

from ...gpu_data import Arrays
from ...gpu_plan import GpuCase
from ...plan import Work
from .base import GpuBackend, GpuForm, NotHere


class CupyFusion(GpuBackend):
    """cupy.fuse of the loss with its sum, and of (sigmoid(x) - t) / n. It cannot fuse a reduction
    with an array that is kept, so that both passes are two kernels."""

    compiles = True

    @property
    def version(self) -> str:
        return f"cupy {cupy.__version__}"

    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        if case.options:
            raise NotHere("only without options")
        if case.dtype == "bfloat16":
            raise NotHere("no bfloat16 in CuPy's fusion")
        real = cupy.float64 if case.dtype == "float64" else cupy.float32
        dtype = getattr(cupy, case.dtype)
        n, scale = case.elements, case.loss_weight / case.elements

        @cupy.fuse()  # type: ignore[untyped-decorator,unused-ignore]
        def total(x: Any, t: Any) -> Any:
            x, t = x.astype(real), t.astype(real)
            return cupy.sum(cupy.maximum(x, 0) - x * t + cupy.log1p(cupy.exp(-cupy.abs(x))))

        @cupy.fuse()  # type: ignore[untyped-decorator,unused-ignore]
        def gradient(x: Any, t: Any) -> Any:
            x, t = x.astype(real), t.astype(real)
            return ((1 / (1 + cupy.exp(-x)) - t) * scale).astype(dtype)

        arrays = [(cupy.from_dlpack(a.scores), cupy.from_dlpack(a.targets)) for a in sets]

        def run(i: int) -> tuple[Any, Any]:
            x, t = arrays[i]
            loss = total(x, t) / n if case.work is not Work.BACKWARD else None
            return loss, gradient(x, t) if case.work is not Work.FORWARD else None

        def unpack(result: Any) -> tuple[float | None, torch.Tensor | None]:
            loss, slopes = result
            return (
                None if loss is None else float(loss),
                None if slopes is None else torch.from_dlpack(slopes),
            )

        return [GpuForm("cupy.fuse", run, unpack)]
