"""Real processes: killed ones continue exactly, two of them share the work."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gmem_jax.data import pipeline, store
from tests.data import loader_child, prepared

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "d"
  prepared.write(path)
  return path


@pytest.fixture(scope="module")
def expected(directory):
  """Every batch, loaded here and by one process: field -> bytes."""
  dataset = pipeline.make_dataset(
    store.PreparedRecords(store.open_store(directory)),
    fields=("row", "tokens", "mean"),
    seed=1,
    mirror_seed=2,
    batch_size=loader_child.BATCH,
    steps_per_dispatch=1,
    process_index=0,
    process_count=1,
  )
  return [dataset[step] for step in range(STEPS)]


def start(directory, notes, steps, *job):
  command = [sys.executable, "-m", "tests.data.loader_child"]
  arguments = [str(x) for x in (directory, notes, steps, *job)]
  return subprocess.Popen(
    command + arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True
  )


def finish(process):
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors


def read(notes):
  """The notes that are whole, and what they say of a step."""
  text = notes.read_text() if notes.exists() else ""
  return [json.loads(x) for x in text.splitlines(keepends=True) if "\n" in x]


def check(notes, expected):
  assert [n["step"] for n in notes] == list(range(STEPS))
  for note, batch in zip(notes, expected, strict=True):
    assert note["whole"] == {k: v.tobytes().hex() for k, v in batch.items()}


def test_a_killed_loader_continues_exactly(directory, expected, tmp_path):
  notes, kills = tmp_path / "notes", (5, 17)
  for least in kills:
    process = start(directory, notes, 10**6)
    while len(read(notes)) < least:
      assert process.poll() is None, process.communicate()[1]
      time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # What was taken but not noted is taken again, as after a checkpoint.
    whole = "".join(json.dumps(n) + "\n" for n in read(notes)[: least + 3])
    notes.write_text(whole)
  finish(start(directory, notes, STEPS))
  check(read(notes), expected)


def test_two_processes_load_disjoint_complete_shares(
  directory, expected, tmp_path
):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  paths = [tmp_path / f"notes{i}" for i in range(2)]
  processes = [
    start(directory, path, STEPS, port, 2, i) for i, path in enumerate(paths)
  ]
  for process in processes:
    finish(process)
  both = [read(path) for path in paths]
  for notes in both:
    check(notes, expected)  # Together: what one process would have loaded.
  for step, batch in enumerate(expected):
    mine, other = (notes[step]["mine"] for notes in both)
    assert len(mine) == len(other) == loader_child.BATCH // 2
    np.testing.assert_array_equal(mine + other, batch["row"][0])
  # An epoch shows every image once, to one of the two.
  images = len(store.PreparedRecords(store.open_store(directory)))
  seen = np.concatenate([b["row"][0] for b in expected])[:images]
  assert sorted(seen.tolist()) == list(range(images))
