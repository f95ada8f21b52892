"""Preparation in real processes: killed, continued, shared."""

import json
import os
import socket
import subprocess
import sys

import pytest

from gmem_jax.data import store
from tests import tiny

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
pytestmark = pytest.mark.process


def start(*arguments) -> subprocess.Popen:
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.Popen(
    [sys.executable, "-m", "tests.data.prepare_driver", *map(str, arguments)],
    cwd=tiny.ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process: subprocess.Popen) -> dict:
  try:
    out, err = process.communicate(timeout=300)
  finally:
    process.kill()
  assert process.returncode == 0, err
  return json.loads(out.splitlines()[-1])


def contents(directory) -> dict[str, bytes]:
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """What two processes prepared together, and what each of them did."""
  out = tmp_path_factory.mktemp("shared") / "out"
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  processes = [start("share", out, port, i, 2) for i in range(2)]
  try:
    return out, [finish(process) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def test_two_processes_prepare_and_load_disjoint_complete_shares(shared):
  out, (first, second) = shared
  opened = store.open_store(out)
  number = opened.schema.shards
  assert number == 90
  assert first["written"] == list(range(0, number, 2))
  assert second["written"] == list(range(1, number, 2))
  ours, theirs = set(first["rows"]), set(second["rows"])
  assert len(ours) == len(theirs) == opened.images // 2
  assert not ours & theirs
  assert len(ours | theirs) == opened.images - opened.images % 2


def test_five_kills_change_no_byte(shared, tmp_path):
  """Also against the two processes, which nothing disturbed."""
  out = tmp_path / "killed"
  found = finish(start("kill", out, 0))
  assert len(found["killed_at"]) == 5
  assert found["killed_at"] == sorted(set(found["killed_at"]))
  killed, undisturbed = contents(out), contents(shared[0])
  assert killed.keys() == undisturbed.keys()
  assert all(killed[name] == undisturbed[name] for name in killed)
