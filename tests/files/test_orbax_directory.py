"""Directories of orbax's that are damaged, or made to take all memory."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.files import orbax_directory, weights
from tests.convert import helpers

ARRAYS = {f"a{k}": np.full(40, float(k), np.float32) for k in range(4)}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  path = tmp_path_factory.mktemp("original") / "bank"
  weights.save_converted(path, {"bank": ARRAYS}, helpers.metadata("bank"))
  return path


def _largest(folder: pathlib.Path) -> pathlib.Path:
  return max(
    (p for p in folder.rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )


def _cut(path):
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])


def _grow(path):
  with path.open("r+b") as file:
    file.truncate((8 << 20) + 1)


def _link(path):
  path.unlink()
  path.symlink_to("/dev/zero")


DAMAGES = {
  "an array is cut": lambda p: _cut(_largest(p / "bank")),
  "arrays are gone": lambda p: shutil.rmtree(p / "bank" / "d"),
  "a tree is gone": lambda p: shutil.rmtree(p / "bank"),
  "its description is deep": lambda p: (p / "bank/_METADATA").write_text(
    "[" * 100_000
  ),
  "its description is no object": lambda p: (p / "bank/_METADATA").write_text(
    "3"
  ),
  "its description is huge": lambda p: _grow(p / "bank/_METADATA"),
  "its description never ends": lambda p: _link(p / "bank/_METADATA"),
  "all is described as nothing": lambda p: (
    p / "_CHECKPOINT_METADATA"
  ).write_text("{"),
}


def test_damage_is_one_line_that_names_the_directory(original, tmp_path):
  """As a process: what libraries log, or write behind Python's back, shows."""
  paths = []
  for number, name in enumerate(DAMAGES):
    path = tmp_path / str(number)
    shutil.copytree(original, path)
    DAMAGES[name](path)
    paths.append(str(path))
  program = (
    "import sys; from gmem_jax.commands import bank;"
    " print([bank.main(['info', path]) for path in sys.argv[1:]])"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, *paths],
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
  )
  assert done.stdout.strip() == str([2] * len(paths))
  lines = done.stderr.splitlines()
  assert len(lines) == len(paths), done.stderr
  for path, line in zip(paths, lines, strict=True):
    assert line.startswith(f"gmem_jax: {path}"), line
    assert len(line) < 600


def test_what_orbax_leaves_unread_says_nothing(tmp_path):
  """Arrays are read at once; once one fails, nobody waits for the others."""
  path = tmp_path / "memory"
  weights.save_tree(path, jax.tree.map(jnp.asarray, ARRAYS), {})
  (sharding,) = path.rglob("_sharding")
  shardings = json.loads(sharding.read_text())
  last = list(shardings)[-1]
  sharding.write_text(json.dumps(shardings | {last: "{"}))
  program = '''
import asyncio, gc, pathlib, sys
from gmem_jax.files import orbax_directory, weights

try:
  weights.load_tree(pathlib.Path(sys.argv[1]), None)
except ValueError as error:
  print(error)
gc.collect()
loop = asyncio.new_event_loop()
task = loop.create_task(asyncio.sleep(1))
loop.call_soon(loop.stop)
loop.run_forever()
loop.close()
del task, loop
left = """
async def left():
  try:
    await asyncio.sleep(0)
  finally:
    raise ValueError("of a file")
"""
exec(compile(left, orbax_directory.__dict__["_ORBAX"] + "/x.py", "exec"))
coroutine = left()
coroutine.send(None)
del coroutine
gc.collect()
'''
  done = subprocess.run(
    [sys.executable, "-c", program, path],
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
  )
  assert f"{path} is damaged" in done.stdout
  assert not done.stderr


def test_arrays_that_are_larger_than_their_directory(original, monkeypatch):
  huge = {"a": jax.ShapeDtypeStruct((1 << 40,), np.float32), "b": "text"}
  with pytest.raises(ValueError, match=f"have {1 << 42:,} bytes, many times"):
    orbax_directory.check_size(original, huge)
  assert len(weights.load_converted(original, "bank")[0]) == len(ARRAYS)
  # Every reader asks.
  monkeypatch.setattr(orbax_directory, "UNPACKED", -(1 << 30))
  with pytest.raises(ValueError, match="many times its own"):
    weights.load_converted(original, "bank")


def test_a_runs_tree_that_is_larger_than_its_directory(tmp_path, monkeypatch):
  path = tmp_path / "memory"
  weights.save_tree(path, ARRAYS, {"info": {}})
  tree, _ = weights.load_tree(path, None)
  np.testing.assert_array_equal(tree["a3"], ARRAYS["a3"])
  assert weights.holds_tree(path)
  monkeypatch.setattr(orbax_directory, "UNPACKED", -(1 << 30))
  with pytest.raises(ValueError, match=r"memory.* many times its own"):
    weights.load_tree(path, None)
  _grow(path / "_CHECKPOINT_METADATA")
  with pytest.raises(ValueError, match=r"_CHECKPOINT_METADATA has 8,388,609"):
    weights.read_tree_metadata(path)
  assert not weights.holds_tree(path)
