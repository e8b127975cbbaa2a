"""Objectives for gradient boosting: gradient and second derivative of the loss in one pass.

XGBoost and LightGBM ask a custom objective for both, per row, of the sum of the losses. Neither is
imported here: an `Objective` has a method for each way in which they call one.

    objective = Objective(gamma=2.0, alpha=0.25)
    xgboost.train({"base_score": 0.0, ...}, data, obj=objective.xgboost)
    xgboost.XGBClassifier(objective=objective.sklearn, base_score=0.5)
    lightgbm.train({"objective": objective.lightgbm, ...}, data)
    lightgbm.LGBMClassifier(objective=objective.sklearn)

Boosting starts from the score 0 with these values of base_score (as it does in LightGBM by itself).
XGBClassifier takes its own for a probability and predicts probabilities; the other models predict
scores, which `probabilities` turns into probabilities.

Sources: Chen and Guestrin, XGBoost: a scalable tree boosting system, 2016 (what second derivatives
are for); Lin et al., Focal loss for dense object detection, 2017 (gamma, alpha); Wang, Deng and
Wang, Imbalance-XGBoost, 2020 (the focal loss in boosting).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sigmoid_ce import api

Array = NDArray[Any]


class Objective:
    """Sigmoid cross-entropy of raw scores and labels, with the options of `sigmoid_ce.forward`.

    Parameters
    ----------
    pos_weight, ignore_label, uncertain, label_smoothing, balance, balance_per_channel,
    negative_scale, gamma, alpha
        See `sigmoid_ce.forward`. Each is an attribute of that name in `options`. With an option of
        one value per channel, or a balance "image", the scores need a second axis: several labels
        per row. Weights of the rows are those of the data set.
    min_hessian : number >= 0
        The second derivative is no less: a leaf's value is -sum of gradients / (sum of second
        derivatives + lambda), and a focal loss is not convex everywhere. The default is that of
        XGBoost's own objectives.

    All methods return arrays of the dtype and shape of the scores, and raise what
    `sigmoid_ce.forward_backward` raises. Objects can be pickled with the models that have them.
    """

    def __init__(
        self,
        *,
        pos_weight: ArrayLike | None = None,
        ignore_label: int | None = None,
        uncertain: api.Uncertain = "soft",
        label_smoothing: float = 0.0,
        balance: api.Balance | None = "none",
        balance_per_channel: bool = False,
        negative_scale: float = 1.0,
        gamma: float = 0.0,
        alpha: float | None = None,
        min_hessian: float = 1e-16,
    ) -> None:
        self.options: dict[str, Any] = {
            "pos_weight": pos_weight,
            "ignore_label": ignore_label,
            "uncertain": uncertain,
            "label_smoothing": label_smoothing,
            "balance": balance,
            "balance_per_channel": balance_per_channel,
            "negative_scale": negative_scale,
            "gamma": gamma,
            "alpha": alpha,
        }
        if isinstance(min_hessian, bool) or not isinstance(min_hessian, (int, float, np.number)):
            raise TypeError(f"min_hessian: expected a number, got {type(min_hessian).__name__}")
        if not 0 <= min_hessian < np.inf:
            raise ValueError(f"min_hessian: expected a finite number >= 0, got {min_hessian!r}")
        self.min_hessian = min_hessian

    def xgboost(self, scores: Array, data: Any) -> tuple[Array, Array]:
        """For `obj` of xgboost.train: raw scores and a DMatrix with labels and perhaps weights."""
        return self._derivatives(scores, data.get_label(), data.get_weight())

    def lightgbm(self, scores: Array, data: Any) -> tuple[Array, Array]:
        """For the parameter "objective" of lightgbm.train: raw scores and its Dataset."""
        return self._derivatives(scores, data.get_label(), data.get_weight())

    def sklearn(
        self, labels: Array, scores: Array, sample_weight: Array | None = None
    ) -> tuple[Array, Array]:
        """For `objective` of the scikit-learn estimators of both, which go by the names here."""
        return self._derivatives(scores, labels, sample_weight)

    def _derivatives(
        self, scores: Array, labels: Array, weight: Array | None
    ) -> tuple[Array, Array]:
        scores = np.asarray(scores)
        targets = np.asarray(labels)
        if targets.dtype.kind not in "b" and targets.dtype != scores.dtype:
            targets = targets.astype(scores.dtype)
        if targets.size == scores.size:  # several labels per row come flat
            targets = targets.reshape(scores.shape)
        factor: Array | None = None
        if weight is not None and np.size(weight) > 0:  # XGBoost: empty where there is none
            factor = np.asarray(weight).astype(scores.dtype, copy=False)
            factor = factor.reshape(factor.shape + (1,) * (scores.ndim - factor.ndim))
        results = api.forward_backward(
            scores, targets, weight=factor, normalization="none", hessian=True, **self.options
        )
        gradient, hessian = results[1], results[-1]
        np.maximum(hessian, self.min_hessian, out=hessian)
        return gradient, hessian


def probabilities(scores: ArrayLike) -> Array:
    """sigmoid(scores), in float32 for float32 scores, else in float64: what a model with such an
    objective lacks, since it predicts scores."""
    x = np.asarray(scores)
    if x.dtype != np.float32:
        x = x.astype(np.float64)
    # The gradient for targets of 0 is sigmoid(x), without an overflow.
    found: Array = api.backward(x, np.zeros(x.shape, np.bool_), normalization="none")
    return found
