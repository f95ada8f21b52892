"""Values out of files in messages: short, whatever they are."""

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.files import shown


def _doubling(make, levels=60):
  value = "ha"
  for _ in range(levels):
    value = make(value)
  return value


@pytest.mark.parametrize(
  "value",
  [
    None, True, 3, -1.5, 2j, "text", b"bytes", (1, "a"), [], [[1], (2,)],
    {"a": 1, "b": [2]}, {1}, float("nan"), np.dtype(np.float32), 2**64,
  ],
  ids=repr,
)  # fmt: skip
def test_short_values_are_shown_as_they_are(value):
  assert shown.value(value) == repr(value)


@pytest.mark.parametrize(
  "value",
  [
    _doubling(lambda x: [x, x]),
    _doubling(lambda x: (x,) * 10),
    _doubling(lambda x: {"a": x, "b": x}),
    _doubling(lambda x: [x], 100_000),
    "x" * 10_000_000,
    b"x" * 10_000_000,
    1 << 10_000_000,
    np.lib.stride_tricks.as_strided(np.zeros(1), (7,) * 21, (0,) * 21),
    [object()] * 5,
  ],
  ids=range(9),
)
def test_others_are_short(value):
  text = shown.value(value)
  assert 4 < len(text) <= 200
  assert "\n" not in text


def test_arrays_and_numbers_are_described():
  array = np.zeros((2, 3), ml_dtypes.bfloat16)
  assert shown.value(array) == "<bfloat16 array of 2 axes>"
  assert shown.value([1 << 300]) == "[<int of 301 bits>]"
  assert shown.value(object()) == "<object>"


def test_the_cause_is_the_first_error_of_a_chain():
  error = ValueError("outer\nlines")
  error.__cause__ = KeyError("x")
  assert shown.cause(error) == "KeyError: 'x'"
  assert shown.cause(ValueError("a\nb")) == "ValueError: a"
  assert shown.cause(MemoryError()) == "MemoryError: no message"
