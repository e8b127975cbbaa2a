"""Fit the polynomials of cpp/math/exp_log1p.h and print them as C++ constants.

    python tools/fit_polynomials.py            # needs mpmath; a few seconds

Two functions, each for float32 and float64:

    exp(-r)  = 1 + r E(r)            |r| <= ln(2) / 2 and a little, for the reduction's rounding
    log1p(z) = z + z L(z - 1/2)      0 <= z <= 1

Each fit is a least-squares fit, in 60 digits, of the relative error of the whole right-hand side at
Chebyshev nodes, which comes close to the smallest largest error. Coefficients are rounded to the
target format one by one, lowest order first, and the rest fitted again each time, so that the
rounding of the early ones is made up for by the later ones.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp

mp.mp.dps = 60

Real = mp.mpf


def round_to(value: Real, bits: int) -> Real:
    """`value` rounded to `bits` significant bits (no exponent limits: none is near)."""
    mantissa, exponent = mp.frexp(value)
    return mp.ldexp(mp.nint(mp.ldexp(mantissa, bits)), int(exponent) - bits)


def least_squares(
    target: Callable[[Real], Real],
    weight: Callable[[Real], Real],
    powers: list[int],
    nodes: list[Real],
) -> list[Real]:
    """Coefficients c minimising the sum over nodes of (weight (target - sum c_k x^p_k))^2."""
    n = len(powers)
    normal = mp.matrix(n, n)
    right = mp.matrix(n, 1)
    for x in nodes:
        w = weight(x)
        row = [w * x**power for power in powers]
        value = w * target(x)
        for i in range(n):
            right[i] += row[i] * value
            for k in range(n):
                normal[i, k] += row[i] * row[k]
    solution = mp.lu_solve(normal, right)
    return [solution[k] for k in range(n)]


def fit(
    target: Callable[[Real], Real],
    weight: Callable[[Real], Real],
    degree: int,
    low: Real,
    high: Real,
    bits: int,
) -> tuple[list[Real], Real]:
    """Coefficients of order 0..degree, of `bits` significant bits each, and their largest error."""
    fixed: list[Real] = []
    count = 8 * (degree + 1)
    nodes = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * count))
        for i in range(count)
    ]

    def rest(x: Real) -> Real:
        return target(x) - sum(c * x**k for k, c in enumerate(fixed))

    for order in range(degree + 1):
        free = list(range(order, degree + 1))
        coefficients = least_squares(rest, weight, free, nodes)
        fixed.append(round_to(coefficients[0], bits))
    worst = max(
        abs(weight(low + (high - low) * i / 4000) * rest(low + (high - low) * i / 4000))
        for i in range(1, 4000)
    )
    return fixed, worst


def literal(value: Real, bits: int) -> str:
    """The shortest decimal that reads back as the same number (C++14 has no hexadecimal floats)."""
    if bits == 53:
        return repr(float(value))
    for digits in range(1, 10):
        text = f"{float(value):.{digits}g}"
        if round_to(mp.mpf(text), bits) == value:
            return text + "f"
    raise AssertionError("nine digits identify every float32")


def report(name: str, coefficients: list[Real], worst: Real, bits: int) -> None:
    print(f"{name}: largest relative error 2^{float(mp.log(worst, 2)):.2f}")
    for order, c in enumerate(coefficients):
        print(f"  [{order}] {literal(c, bits):>24}  // {float.hex(float(c))}")


def exp_target(r: Real) -> Real:
    return mp.mpf(-1) if r == 0 else mp.expm1(-r) / r


def exp_weight(r: Real) -> Real:
    return max(abs(r), mp.mpf("1e-30")) * mp.exp(r)


def log_target(v: Real) -> Real:
    z = v + mp.mpf(1) / 2
    return -z / 2 + z * z / 3 if z < mp.mpf("1e-12") else mp.log1p(z) / z - 1


def log_weight(v: Real) -> Real:
    z = v + mp.mpf(1) / 2
    return mp.mpf(1) if z < mp.mpf("1e-12") else z / mp.log1p(z)


def main() -> None:
    half = mp.log(2) / 2 * mp.mpf("1.0001")
    for bits, exp_degree, log_degree in ((24, 5, 9), (53, 10, 20)):
        print(f"--- {bits} bits")
        coefficients, worst = fit(exp_target, exp_weight, exp_degree, -half, half, bits)
        report("E", coefficients, worst, bits)
        coefficients, worst = fit(
            log_target, log_weight, log_degree, mp.mpf(-1) / 2, mp.mpf(1) / 2, bits
        )
        report("L", coefficients, worst, bits)


if __name__ == "__main__":
    main()
