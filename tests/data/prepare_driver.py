"""Prepares the digits in processes of its own; started by the tests beside it.

  python -m tests.data.prepare_driver kill OUT SEED
  python -m tests.data.prepare_driver share OUT PORT INDEX COUNT

The last line of its output is JSON.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import jax

from gmem_jax.commands import prepare as prepare_command
from gmem_jax.data import pipeline, shards, store
from tests import tiny

KILLS = 5


def prepare(out: pathlib.Path) -> None:
  prepare_command.prepare_mode(
    tiny.make_config(
      data__prepared=str(out),
      data__holdout=0,
      data__shard_size=20,
      data__device_batch=8,
    )
  )


def kill(out: pathlib.Path, seed: int) -> dict:
  """Kills a run five times, each time further on; then lets one finish."""
  chance = random.Random(seed)
  killed, partial = [], 0
  for _ in range(KILLS):
    start = whole(out)
    # Forked, so that all of them share the seconds of the imports.
    child = os.fork()
    if not child:
      prepare(out)
      os._exit(0)
    goal = start + chance.randint(1, 12)
    while whole(out) < goal:
      assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
      time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the kill came too late"
    killed.append(whole(out))
    partial += len(list(out.rglob(".*.tmp*")))
    for path in out.glob("train-*.json"):
      size = json.loads(path.read_text())["bytes"]
      assert path.with_suffix(".array_record").stat().st_size == size
  assert not (out / store.REPORT).exists()
  prepare(out)
  return {"killed_at": killed, "partial": partial}


def whole(out: pathlib.Path) -> int:
  return len(list(out.glob("train-*.json")))


def share(out: pathlib.Path, port: int, index: int, count: int) -> dict:
  """Prepares and then loads this process's share."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
  written, writing = [], shards.writing

  def noted(directory, schema, number):
    written.append(number)
    return writing(directory, schema, number)

  shards.writing = noted
  prepare(out)
  opened = store.open_store(out)
  batches = pipeline.make_dataset(
    store.PreparedRecords(opened),
    fields=("row",),
    seed=0,
    mirror_seed=None,
    batch_size=count,
    steps_per_dispatch=1,
    process_index=index,
    process_count=count,
  )
  rows = [int(batches[j]["row"][0, 0]) for j in range(opened.images // count)]
  return {"written": written, "rows": rows}


if __name__ == "__main__":
  mode, directory, *numbers = sys.argv[1:]
  result = {"kill": kill, "share": share}[mode](
    pathlib.Path(directory), *map(int, numbers)
  )
  print(json.dumps(result), flush=True)
