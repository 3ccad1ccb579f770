"""`tanh`, `sigmoid`, `exp` and `log` in float32, made of additions, products and fma only.

The bits of a platform's libm differ from machine to machine, so no kernel calls it. The
coefficients are fitted by `benchmarks/fit_activations.py`. tests/kernels/test_activations.py
measures and bounds the errors:

=========  ==========================================  =======================
function   over                                        largest error
=========  ==========================================  =======================
tanh       all                                         5.2 ULP
sigmoid    all                                         1.9e-7 (absolute)
exp        -87 to 88; 0 below (no subnormals)          1.1 ULP
log        positive normal numbers                     0.9 ULP
=========  ==========================================  =======================

All but log take a float or a vector (see `simd`). None leaves its range: |tanh| <= 1,
0 <= sigmoid <= 1, exp >= 0. tanh is odd to the bit, but not monotone in its last bits: a larger
argument may give a result that is up to 7 * 2^-24 smaller. NaN stays NaN in all but log.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.intrinsics import (
    Value,
    bits_from_float,
    float_from_bits,
    fma,
    maximum,
    minimum,
    power_of_two,
    zero_below,
)
from treadle.kernels.jit import jit_value

ZERO = np.float32(0.0)
HALF = np.float32(0.5)
ONE = np.float32(1.0)

_TANH_LIMIT = np.float32(8.202606)  # here the quotient is 1 exactly, and nowhere below is it more
_P0 = np.float32(0.9999999933)
_P1 = np.float32(0.1308316232)
_P2 = np.float32(0.003103007312)
_P3 = np.float32(1.114431542e-05)
_P4 = np.float32(-2.018419118e-08)
_P5 = np.float32(5.257877255e-11)
_P6 = np.float32(-8.436275436e-14)
_Q1 = np.float32(0.4641648929)
_Q2 = np.float32(0.02449140509)
_Q3 = np.float32(0.0002544759685)

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # 10 bits: its product with an exponent is exact
_LN2_LOW = np.float32(-2.12194440054690583e-4)
_ROUNDER = np.float32(12582912.0)  # 1.5 * 2**23: adding it leaves a float without a fraction
_EXP_LOW = np.float32(-87.0)
_EXP_HIGH = np.float32(88.0)
_E0 = np.float32(0.4999999345)
_E1 = np.float32(0.1666652069)
_E2 = np.float32(0.04166838738)
_E3 = np.float32(0.008368710035)
_E4 = np.float32(0.001381461267)

_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_L0 = np.float32(0.3333333171)
_L1 = np.float32(-0.2500082103)
_L2 = np.float32(0.2000122688)
_L3 = np.float32(-0.1662335734)
_L4 = np.float32(0.14201758)
_L5 = np.float32(-0.131601824)
_L6 = np.float32(0.1276157704)
_L7 = np.float32(-0.07634496526)


@jit_value
def tanh(x: Value) -> Value:
    """Returns tanh(x) as x P(x^2) / Q(x^2); NaN stays NaN."""
    x = maximum(minimum(x, _TANH_LIMIT), -_TANH_LIMIT)
    square = x * x
    p = fma(_P6, square, _P5)
    p = fma(p, square, _P4)
    p = fma(p, square, _P3)
    p = fma(p, square, _P2)
    p = fma(p, square, _P1)
    p = fma(p, square, _P0)
    q = fma(_Q3, square, _Q2)
    q = fma(q, square, _Q1)
    q = fma(q, square, ONE)
    y: Value = x * p / q
    return y


@jit_value
def sigmoid(x: Value) -> Value:
    """Returns 1 / (1 + exp(-x)) as (1 + tanh(x / 2)) / 2."""
    y: Value = fma(HALF, tanh(HALF * x), HALF)
    return y


@jit_value
def exp(x: Value) -> Value:
    """Returns exp(x) as 2^n (1 + r + r^2 E(r)), r = x - n ln 2; 0 below -87, exp(88) above 88.

    NaN stays NaN.
    """
    bounded = maximum(minimum(x, _EXP_HIGH), _EXP_LOW)
    rounded = fma(bounded, _LOG2_E, _ROUNDER)
    n = rounded - _ROUNDER
    r = fma(-n, _LN2_HIGH, bounded)
    r = fma(-n, _LN2_LOW, r)
    e = fma(_E4, r, _E3)
    e = fma(e, r, _E2)
    e = fma(e, r, _E1)
    e = fma(e, r, _E0)
    e = fma(e, r * r, r) + ONE
    y: Value = zero_below(x, _EXP_LOW, e * power_of_two(rounded))
    return y


@jit_value
def log(x: np.float32) -> np.float32:
    """Returns ln x of a positive normal number x = 2^n m with m in [sqrt(1/2), sqrt(2))."""
    bits = bits_from_float(x)
    n = np.int32((bits - _SQRT_HALF_BITS) >> np.int32(23))
    f = float_from_bits(np.int32(bits - np.int32(n << np.int32(23)))) - ONE
    square = f * f
    y = fma(_L7, f, _L6)
    y = fma(y, f, _L5)
    y = fma(y, f, _L4)
    y = fma(y, f, _L3)
    y = fma(y, f, _L2)
    y = fma(y, f, _L1)
    y = fma(y, f, _L0)
    y = y * f * square
    exponent = np.float32(n)
    y = fma(exponent, _LN2_LOW, y)
    y = fma(-HALF, square, y)
    result: np.float32 = fma(exponent, _LN2_HIGH, f + y)
    return result
