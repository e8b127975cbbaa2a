"""The objectives for gradient boosting, in real XGBoost and LightGBM."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from sigmoid_ce.boosting import Objective, probabilities

ROUNDS = 30

# Both libraries compute their own logistic loss as 1 / (1 + exp(-x)) - t, XGBoost in float32, which
# is off by some 1e-7; predictions were seen to differ by that. A split between two nearly equal
# gains may fall the other way, which moves the rows of one leaf.
SAME_PREDICTIONS = 1e-4  # of 99 in 100 rows
SAME_QUALITY = 2e-3  # of the mean log loss, 0.1


def data(positive: float = 0.4) -> tuple[Any, Any, Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.make_classification(
        3000, 12, n_informative=6, weights=[1 - positive], flip_y=0.03, random_state=4
    )
    return x[:2000], y[:2000], x[2000:], y[2000:]


def log_loss(y: Any, scores: Any) -> float:
    return float(sce.forward(np.asarray(scores, np.float64), y.astype(bool)))


def assert_alike(own: Any, built_in: Any, y: Any) -> None:
    """Two arrays of raw scores for rows with labels y."""
    difference = np.abs(probabilities(own) - probabilities(built_in))
    assert np.quantile(difference, 0.99) < SAME_PREDICTIONS, difference.max()
    assert abs(log_loss(y, own) - log_loss(y, built_in)) < SAME_QUALITY
    assert log_loss(y, own) < 0.5  # where 0.69 is chance


# ---- Without the libraries ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_derivatives_are_those_of_the_loss(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, 500).astype(dtype)
    labels = (rng.random(500) < 0.3).astype(np.float32)
    weight = rng.uniform(0, 2, 500).astype(np.float32)
    for options in ({}, {"pos_weight": 2.0, "label_smoothing": 0.1}, {"balance": "batch_mean"}):
        objective = Objective(**options)
        gradient, hessian = objective.sklearn(labels, scores, weight)
        _, g, h = sce.forward_backward(
            scores,
            labels.astype(dtype),
            weight=weight.astype(dtype),
            normalization="none",
            hessian=True,
            **options,
        )
        np.testing.assert_array_equal(gradient, g)
        np.testing.assert_array_equal(hessian, np.maximum(h, 1e-16))
        assert gradient.dtype == hessian.dtype == dtype
    plain = Objective().sklearn(labels.astype(int), scores)
    np.testing.assert_array_equal(plain, Objective().sklearn(labels, scores, np.empty(0)))


def test_focal_hessian_is_kept_positive() -> None:
    scores = np.linspace(-8, 8, 200)
    labels = np.ones(200)
    raw = sce.forward_backward(scores, labels, normalization="none", hessian=True, gamma=5.0)[2]
    assert (raw < 0).any()
    hessian = Objective(gamma=5.0, min_hessian=1e-6).sklearn(labels, scores)[1]
    np.testing.assert_array_equal(hessian, np.maximum(raw, 1e-6))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"^min_hessian: expected a finite number >= 0, got"):
            Objective(min_hessian=bad)
    for other in ("a", None, True):
        with pytest.raises(TypeError, match=r"^min_hessian: expected a number, got"):
            Objective(min_hessian=other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^gamma: expected a number from 0 to 1e6, got -1"):
        Objective(gamma=-1).sklearn(labels, scores)


def test_several_labels_per_row() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, (40, 3)).astype(np.float32)
    labels = rng.integers(0, 2, (40, 3)).astype(np.float32)
    weight = rng.uniform(1, 2, 40).astype(np.float32)
    objective = Objective(pos_weight=[1.0, 2.0, 3.0])
    gradient, _ = objective.sklearn(labels.ravel(), scores, weight)
    expected = sce.backward(
        scores, labels, pos_weight=[1.0, 2.0, 3.0], weight=weight[:, None], normalization="none"
    )
    np.testing.assert_array_equal(gradient, expected)


def test_probabilities() -> None:
    x = np.array([-1000.0, -30.0, 0.0, 30.0, 1000.0])
    got = probabilities(x)
    np.testing.assert_allclose(got, [0, 9.357622968839299e-14, 0.5, 1 - 9.36e-14, 1], rtol=1e-15)
    assert probabilities(x.astype(np.float32)).dtype == np.float32
    assert probabilities([0, 1]).dtype == np.float64


def test_pickle() -> None:
    objective = pickle.loads(pickle.dumps(Objective(gamma=2.0, alpha=0.25).sklearn))
    scores, labels = np.linspace(-2, 2, 9), np.ones(9)
    wanted = Objective(gamma=2.0, alpha=0.25).sklearn(labels, scores)
    np.testing.assert_array_equal(objective(labels, scores), wanted)


# ---- XGBoost ----

XGBOOST = {"max_depth": 4, "eta": 0.3, "tree_method": "hist", "nthread": 1, "seed": 0}


def train_xgboost(objective: Any, rows: Any, y: Any, weight: Any = None) -> Any:
    xgboost = pytest.importorskip("xgboost")
    matrix = xgboost.DMatrix(rows, y, weight=weight)
    if objective is None:
        parameters = {**XGBOOST, "objective": "binary:logistic", "base_score": 0.5}
        return xgboost.train(parameters, matrix, ROUNDS)
    return xgboost.train({**XGBOOST, "base_score": 0.0}, matrix, ROUNDS, obj=objective.xgboost)


def xgboost_scores(model: Any, rows: Any) -> Any:
    xgboost = pytest.importorskip("xgboost")
    return model.predict(xgboost.DMatrix(rows), output_margin=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_xgboost(weighted: bool) -> None:
    rows, y, test_rows, test_y = data()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y)) if weighted else None
    own = xgboost_scores(train_xgboost(Objective(), rows, y, weight), test_rows)
    built_in = xgboost_scores(train_xgboost(None, rows, y, weight), test_rows)
    assert_alike(own, built_in, test_y)


def test_xgboost_estimator() -> None:
    xgboost = pytest.importorskip("xgboost")
    rows, y, test_rows, test_y = data()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    settings = {"n_estimators": ROUNDS, "max_depth": 4, "n_jobs": 1, "random_state": 0}
    own = xgboost.XGBClassifier(objective=Objective().sklearn, base_score=0.5, **settings)
    built_in = xgboost.XGBClassifier(base_score=0.5, **settings)
    for model in (own, built_in):
        model.fit(rows, y, sample_weight=weight)
    scores = [m.predict(test_rows, output_margin=True) for m in (own, built_in)]
    assert_alike(*scores, test_y)
    # The estimator keeps its link: float32 of the same scores.
    found = own.predict_proba(test_rows)[:, 1]
    np.testing.assert_allclose(found, probabilities(scores[0]), rtol=1e-5)


def test_xgboost_pos_weight_is_its_scale_pos_weight() -> None:
    xgboost = pytest.importorskip("xgboost")
    rows, y, test_rows, test_y = data(0.1)
    matrix = xgboost.DMatrix(rows, y)
    parameters = {**XGBOOST, "objective": "binary:logistic", "base_score": 0.5}
    built_in = xgboost.train({**parameters, "scale_pos_weight": 9.0}, matrix, ROUNDS)
    own = train_xgboost(Objective(pos_weight=9.0), rows, y)
    scores = [xgboost_scores(m, test_rows) for m in (own, built_in)]
    assert_alike(*scores, test_y)


# ---- LightGBM ----

LIGHTGBM = {"num_leaves": 15, "learning_rate": 0.2, "num_threads": 1, "seed": 0, "verbosity": -1}
LIGHTGBM |= {"deterministic": True, "force_col_wise": True}


def train_lightgbm(objective: Any, rows: Any, y: Any, weight: Any = None, **more: Any) -> Any:
    lightgbm = pytest.importorskip("lightgbm")
    dataset = lightgbm.Dataset(rows, y, weight=weight, params={"verbosity": -1})
    if objective is None:
        more = {"objective": "binary", "boost_from_average": False, **more}
    else:
        more = {"objective": objective.lightgbm, **more}
    return lightgbm.train({**LIGHTGBM, **more}, dataset, ROUNDS)


@pytest.mark.parametrize("weighted", [False, True])
def test_lightgbm(weighted: bool) -> None:
    rows, y, test_rows, test_y = data()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y)) if weighted else None
    own = train_lightgbm(Objective(), rows, y, weight).predict(test_rows, raw_score=True)
    built_in = train_lightgbm(None, rows, y, weight).predict(test_rows, raw_score=True)
    assert_alike(own, built_in, test_y)


def test_lightgbm_estimator() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    rows, y, test_rows, test_y = data()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    settings = {"n_estimators": ROUNDS, "random_state": 0, "n_jobs": 1, "verbosity": -1}
    own = lightgbm.LGBMClassifier(objective=Objective().sklearn, **settings)
    built_in = lightgbm.LGBMClassifier(boost_from_average=False, **settings)
    for model in (own, built_in):
        model.fit(rows, y, sample_weight=weight)
    scores = [m.predict(test_rows, raw_score=True) for m in (own, built_in)]
    assert_alike(*scores, test_y)
    again = pickle.loads(pickle.dumps(own))
    np.testing.assert_array_equal(again.predict(test_rows, raw_score=True), scores[0])


# ---- Options ----


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_options_find_rare_rows(library: str) -> None:
    """Of one row in ten, a balanced loss finds more than the plain one; focal losses learn too."""
    rows, y, test_rows, test_y = data(0.1)

    def scores(objective: Objective) -> Any:
        if library == "xgboost":
            return xgboost_scores(train_xgboost(objective, rows, y), test_rows)
        return train_lightgbm(objective, rows, y).predict(test_rows, raw_score=True)

    rare = test_y == 1
    plain, balanced = scores(Objective()), scores(Objective(balance="batch_mean"))
    assert ((balanced > 0) & rare).sum() > ((plain > 0) & rare).sum()
    metrics = pytest.importorskip("sklearn.metrics")
    for objective in (
        Objective(gamma=2.0, alpha=0.75, min_hessian=1e-3),
        Objective(balance="batch"),
    ):
        # The order of the scores; the plain loss has 0.9 here.
        found, usual = (metrics.roc_auc_score(test_y, s) for s in (scores(objective), plain))
        assert found > usual - 0.03
