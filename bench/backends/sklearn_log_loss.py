"""scikit-learn's log_loss, where it is comparable."""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn
from scipy.special import expit
from sklearn.metrics import log_loss

from ..plan import IGNORED_TARGET, POS_WEIGHT, Case, Option, Work
from .base import Backend, Form, Tolerance, Unsupported, no_family, no_halves, usual_tolerance


class SklearnLogLoss(Backend):
    """log_loss of expit(x): it takes probabilities, which the call computes. One thread.

    A metric: no gradient, and no losses of elements. Targets are classes, 0 or 1. pos_weight and
    ignore_label are sample weights, made in the call.
    """

    @property
    def version(self) -> str:
        return f"scikit-learn {sklearn.__version__}"

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        no_family(case)
        if case.work is Work.ELEMENTWISE:
            raise Unsupported("log_loss returns one number")
        if case.work is not Work.FORWARD:
            raise Unsupported("log_loss has no gradient")
        no_halves(case, "log_loss computes in float32 or float64")
        x, t = scores.ravel(), targets.ravel()
        w = None if weight is None else weight.ravel()
        labels = [0, 1]

        def run() -> Any:
            p = expit(x)
            if case.option is Option.IGNORE:
                mask = t != IGNORED_TARGET
                # Any class will do where the weight is 0, but a third one is refused.
                return log_loss(np.maximum(t, 0), p, sample_weight=mask, labels=labels)
            if case.option is Option.POS_WEIGHT:
                # It would divide by the sum of the weights.
                factors = 1 + (POS_WEIGHT - 1) * t
                total = log_loss(t, p, sample_weight=factors, normalize=False, labels=labels)
                return total / t.size
            if case.option is Option.WEIGHT:
                total = log_loss(t, p, sample_weight=w, normalize=False, labels=labels)
                return total / t.size
            return log_loss(t, p, labels=labels)

        return [Form("log_loss(t, expit(x))", run, lambda loss: (float(loss), None))]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)
