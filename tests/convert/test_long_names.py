"""Names out of files, of any length, in messages that stay short."""

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy

from gmem_jax.commands import bank as bank_command
from gmem_jax.convert import __main__ as convert, rules
from gmem_jax.evaluate import statistics
from gmem_jax.files import atomic, shown, weights
from gmem_jax.train import init_from
from tests.convert import helpers

LONG = "x" * 100_000
ARRAY = np.ones((4, 4), np.float32)
BANK = {"bank": {"rows": ARRAY}}


def _converted(path, trees, **changed):
  metadata = helpers.metadata("bank") | changed
  weights.save_converted(path, trees, metadata, "safetensors")


def _info(path):
  bank_command.main(["info", str(path)])


def _dry_run(path):
  convert.main([str(path), "--dry-run"])


def _to_torch(path):
  convert.main([str(path), str(path.with_name("out")), "--to-torch"])


def _statistics(path):
  try:
    statistics.load(path)
  except ValueError as error:
    print(error)


# What has the long name -> how to write the file, and what reads it.
CASES: dict[
  str, tuple[Callable[[pathlib.Path], object], Callable[[pathlib.Path], None]]
] = {
  "a tree": (lambda p: _converted(p, {LONG: {"a": ARRAY}}), _info),
  "a kind": (lambda p: _converted(p, {"params": {}}, kind=LONG), _info),
  "a kind of statistics": (
    lambda p: weights.save_converted(
      p, {"params": {"a": ARRAY}}, helpers.metadata(LONG)
    ),
    _statistics,
  ),
  "a parameter": (
    lambda p: _converted(p, {"bank": {"rows": ARRAY, LONG: ARRAY}}),
    _to_torch,
  ),
  "a tensor": (
    lambda p: safetensors.numpy.save_file({LONG: ARRAY}, p), _dry_run
  ),
  "a tensor of a wrapper": (
    lambda p: safetensors.numpy.save_file(
      {LONG: ARRAY, f"module.{LONG}": ARRAY}, p
    ),
    _dry_run,
  ),
  "an array beside": (
    lambda p: np.savez(
      p, mu=np.zeros(4), sigma=np.eye(4), **{LONG[:9999]: ARRAY}
    ),
    _dry_run,
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_long_name_is_cut(case, tmp_path, capsys):
  write, read = CASES[case]
  path = tmp_path / ("f.npz" if "array" in case else "f.safetensors")
  write(path)
  read(path)
  out, err = capsys.readouterr()
  assert "xxx" in out + err
  assert len(out + err) < 1500 + 5 * len(str(path))


def test_a_reason_stands_behind_a_long_name():
  with pytest.raises(rules.NamesError) as caught:
    rules.refuse("a file", [f"{LONG}: unexpected"])
  assert str(caught.value).endswith("xxx: unexpected")
  assert len(str(caught.value)) < 300
  with pytest.raises(ValueError, match="xxx: unknown now") as caught:
    init_from.merge({"a": ARRAY}, {"a": ARRAY, LONG: ARRAY}, "it")
  assert len(str(caught.value)) < 300


def test_differences_of_long_keys_are_short():
  (line,) = atomic.differences({LONG: 1}, {})
  assert line.endswith("...: 1 there, None now")
  assert len(line) < 300


def test_some_names_are_the_first_four():
  assert shown.some("abcd") == "a, b, c, d"
  assert shown.some("abcde") == "a, b, c, d, .."
  assert shown.some([LONG, 3]).endswith("..., 3")
