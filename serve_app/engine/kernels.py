"""Loops over images in bfloat16, compiled by numba: each reads and writes every value once.

Importing this module compiles them, or loads what an earlier import compiled. A kernel takes addresses, and counts and
strides in values, and knows no tensors; see `passes.CompiledPasses`. It is called as a C function, so it runs without
Python's lock. A bfloat16 is handled as a uint16, the upper half of a float32.

Counts are unsigned: for an index that might be negative, numba compiles a branch, and then nothing is vectorised.
"""

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

Function = Callable[..., Any]

BLOCK = np.uintp(8192)  # values that are summed in float32; the sums of blocks are summed in float64
START = np.uintp(0)
LETTERS = {"p": types.voidptr, "n": types.uintp, "f": types.float32}


def kernel(arguments: str) -> Callable[[Function], Function]:
    """Returns a decorator that compiles a C function without a result.

    Args:
        arguments: a letter for each: p for an address, n for a count or a stride, f for a float32.
    """
    signature = types.void(*(LETTERS[letter] for letter in arguments))

    def decorate(function: Function) -> Function:
        try:
            compiled = numba.cfunc(signature, cache=True)(function)
        except RuntimeError:  # it found no folder that it may write to
            logger.info("numba has nowhere to keep its compiled code (NUMBA_CACHE_DIR), so it compiles at each start")
            compiled = numba.cfunc(signature)(function)
        callable_function: Function = compiled.ctypes
        return callable_function

    return decorate


@numba.njit(inline="always")
def widen(half: Any) -> Any:
    """Returns a bfloat16, given as uint16, in float32."""
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


@numba.njit(inline="always")
def narrow(value: Any) -> Any:
    """Returns a float32 rounded to bfloat16, ties to even, as uint16."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(inline="always")
def keep(value: Any) -> Any:
    """Returns a float32 as it is."""
    return value


@numba.njit(inline="always")
def normalise_with(
    store: Any, values: Any, results: Any, scale: Any, shift: Any,
    n: Any, h: Any, w: Any, c: Any, sn: Any, sy: Any, sx: Any, tn: Any, ty: Any, tx: Any, slope: Any,
) -> None:  # fmt: skip
    """Writes what `store` makes of LeakyReLU(values * scale + shift), computed in float32.

    The images are (n, h, w, c) with strides, scale and shift (n, c) in float32.
    """
    scales, shifts = carray(scale, (n * c,), np.float32), carray(shift, (n * c,), np.float32)
    for image in range(n):
        for y in range(h):
            for x in range(w):
                s, t, at = image * sn + y * sy + x * sx, image * tn + y * ty + x * tx, image * c
                for k in range(c):
                    value = widen(values[s + k]) * scales[at + k] + shifts[at + k]
                    results[t + k] = store(max(value, value * slope))


@kernel("ppppnnnnnnnnnnf")
def normalise(
    source: Any, target: Any, scale: Any, shift: Any,
    n: Any, h: Any, w: Any, c: Any, sn: Any, sy: Any, sx: Any, tn: Any, ty: Any, tx: Any, slope: Any,
) -> None:  # fmt: skip
    """Normalises and activates from bfloat16 to bfloat16, rounding once."""
    values, results = carray(source, (n * sn,), np.uint16), carray(target, (n * tn,), np.uint16)
    normalise_with(narrow, values, results, scale, shift, n, h, w, c, sn, sy, sx, tn, ty, tx, slope)


@kernel("ppppnnnnnnnnnnf")
def normalise_to_float32(
    source: Any, target: Any, scale: Any, shift: Any,
    n: Any, h: Any, w: Any, c: Any, sn: Any, sy: Any, sx: Any, tn: Any, ty: Any, tx: Any, slope: Any,
) -> None:  # fmt: skip
    """Does the same from bfloat16 to float32, without rounding."""
    values, results = carray(source, (n * sn,), np.uint16), carray(target, (n * tn,), np.float32)
    normalise_with(keep, values, results, scale, shift, n, h, w, c, sn, sy, sx, tn, ty, tx, slope)


@numba.njit(fastmath={"reassoc", "contract"})
def block_sums(values: Any, start: Any, count: Any) -> Any:
    """Returns the sum of some values and of their squares, added in any order: in theirs, nothing is vectorised."""
    total, squares = np.float32(0), np.float32(0)
    for k in range(count):
        value = widen(values[start + k])
        total += value
        squares += value * value
    return total, squares


@kernel("ppn")
def sums(source: Any, result: Any, count: Any) -> None:
    """Writes the sum of the values and the sum of their squares as two float64."""
    values, totals = carray(source, (count,), np.uint16), carray(result, (2,), np.float64)
    totals[0] = totals[1] = 0
    for start in range(START, count, BLOCK):
        total, squares = block_sums(values, np.uintp(start), np.uintp(min(BLOCK, count - start)))
        totals[0] += total
        totals[1] += squares
