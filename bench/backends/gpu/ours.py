"""This project, through its Python API, on PyTorch tensors."""

from __future__ import annotations

from typing import Any

import torch

import sigmoid_ce

from ...gpu_data import DTYPES, POS_WEIGHT, Arrays, ignored_label
from ...gpu_plan import GpuCase
from ...plan import Work
from ..base import Tolerance
from .base import GpuBackend, GpuForm


class Ours(GpuBackend):
    """The gradient goes into `out=`."""

    @property
    def version(self) -> str:
        return str(sigmoid_ce.__version__)

    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        options: dict[str, Any] = {"normalization": "full"}
        if case.options == "pos_weight":
            options["pos_weight"] = POS_WEIGHT
        elif case.options == "ignore_label":
            options = {"normalization": "valid", "ignore_label": ignored_label(case)}
        if case.work is Work.FORWARD:

            def forward(i: int) -> Any:
                return sigmoid_ce.forward(sets[i].scores, sets[i].targets, **options)

            return [GpuForm("sigmoid_ce.forward", forward, lambda loss: (loss, None))]
        options["loss_weight"] = case.loss_weight
        if case.work is Work.BACKWARD:

            def backward(i: int) -> Any:
                a = sets[i]
                return sigmoid_ce.backward(a.scores, a.targets, out=a.gradient, **options)

            return [GpuForm("sigmoid_ce.backward", backward, lambda result: (None, result))]

        def both(i: int) -> Any:
            a = sets[i]
            return sigmoid_ce.forward_backward(a.scores, a.targets, out=a.gradient, **options)

        return [GpuForm("sigmoid_ce.forward_backward", both, lambda result: result)]

    def tolerance(self, case: GpuCase) -> Tolerance:
        """Loss: 1 float32 ulp. Gradient: 2 ulp, then the roundings of the scale and of the product;
        of a half type half an ulp after that. In float64 the reference, which sums in float64 and
        rounds some ten times per element, is off by more than that."""
        epsilon = torch.finfo(DTYPES[case.dtype]).eps
        if case.dtype == "float64":
            return Tolerance(loss=100 * epsilon, gradient=16 * epsilon)
        single = torch.finfo(torch.float32).eps
        rounding = epsilon / 2 if epsilon > single else 0.0
        relative = rounding + 4 * single
        # With pos_weight and a hard target there is still one term only.
        return Tolerance(loss=single, gradient=0.0, gradient_relative=relative)
