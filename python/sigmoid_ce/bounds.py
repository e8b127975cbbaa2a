"""The error bounds that the project states, each once.

docs/numerics.md repeats them in a table of rows `| name | value |`; test_accuracy.py compares the
two. An ulp is the spacing of the floating-point numbers in the binade of the exact value, and the
spacing of the subnormals at the least.
"""

from __future__ import annotations

# exp(-a) and log1p(z) by themselves (cpp/math/exp_log1p.h): half an ulp of the last rounding, and
# what is left of the ones before it.
EXP_ULP = 0.9
LOG1P_ULP = 0.9
LOG_ULP = 1.2  # of log(y), in ulp of the larger of 1 and the result

# Loss and gradient of an element, every score, t = 0 or 1, no weights. Three roundings of half an
# ulp would be 1.5; the polynomials and the quotient take the rest.
FLOAT32_ULP = 2.0
FLOAT64_ULP = 2.0

# Any targets, weights w and pos_weight p: with U = |1 - t| + |p t|,
#   |loss - exact| <= K (eps w (a |u| + U log1p(exp(-a))) + tiny (1 + w U + w (1 + a) [p is used]))
#   |grad - exact| <= K (eps w (|u| + U sigmoid(-a)) + tiny (1 + w U + w [p is used]))
# where eps is the distance from 1 to the next number and tiny the smallest subnormal: log1p,
# sigmoid, p t and, with p, sums of such terms are rounded to a multiple of tiny before U, w or a
# multiplies them. A plain ulp would be no bound: the terms cancel where the loss of a target
# outside [0, 1] changes sign, or the gradient of a soft one.
LOSS_TERMS_EPS = 4.0
GRADIENT_TERMS_EPS = 4.0

# Loss, gradient, Hessian and target gradient with any options, targets in [0, 1] and class weights
# as they are after their rounding. Relative to the sizes of the terms (docs/numerics.md lists them)
# times 1 + gamma (1 + L), L = -log r: r^gamma is exp(-gamma L), where r and L have errors of about
# 1 and L eps. Without a focal factor that is 1.
FAMILY_TERMS_EPS = 4.0

# The reduced loss, rounded to float32: N(0, 3) scores at 2^24 elements, where the errors of the
# elements average out; and any scores without weights, where all elements may err alike: targets in
# [0, 1] without pos_weight, or targets 0 and 1 with a pos_weight p (and a loss of p times a normal
# number at least). Soft targets with pos_weight have the bounds above.
MEAN_FLOAT32_ULP = 1.0
MEAN_WORST_FLOAT32_ULP = 2.5

# Data cut elsewhere than at multiples of 4096 elements: the blocks differ, so the float64 sums
# inside them round differently. Ulp of the sum, in the type of the scores; all losses of one sign.
CUT_FLOAT32_ULP = 1.0
CUT_FLOAT64_ULP = 25.0

TABLE = {
    "EXP_ULP": EXP_ULP,
    "LOG1P_ULP": LOG1P_ULP,
    "LOG_ULP": LOG_ULP,
    "FLOAT32_ULP": FLOAT32_ULP,
    "FLOAT64_ULP": FLOAT64_ULP,
    "LOSS_TERMS_EPS": LOSS_TERMS_EPS,
    "GRADIENT_TERMS_EPS": GRADIENT_TERMS_EPS,
    "FAMILY_TERMS_EPS": FAMILY_TERMS_EPS,
    "MEAN_FLOAT32_ULP": MEAN_FLOAT32_ULP,
    "MEAN_WORST_FLOAT32_ULP": MEAN_WORST_FLOAT32_ULP,
    "CUT_FLOAT32_ULP": CUT_FLOAT32_ULP,
    "CUT_FLOAT64_ULP": CUT_FLOAT64_ULP,
}
