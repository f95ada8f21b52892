"""A process that loads batches and notes what it saw; tests kill it.

  python -m tests.data.loader_child DIRECTORY NOTES STEPS [PORT COUNT INDEX]

Continues after the last step in the notes, as training does after its newest
checkpoint: by the number of the step alone.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from gmem_jax.data import pipeline, store
from gmem_jax.parallel import sharding

BATCH = 8


def main(directory: str, notes: str, steps: str, *job: str) -> None:
  """Loads batches up to a step."""
  flags.FLAGS.mark_as_parsed()
  jax.config.update("jax_num_cpu_devices", 2)
  if job:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    port, count, index = map(int, job)
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
  reader = store.PreparedRecords(store.open_store(pathlib.Path(directory)))
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  dataset = pipeline.make_dataset(
    reader,
    fields=("row", "tokens", "mean"),
    seed=1,
    mirror_seed=2,
    batch_size=BATCH,
    steps_per_dispatch=1,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  path = pathlib.Path(notes)
  done = len(path.read_text().splitlines()) if path.exists() else 0
  batches = pipeline.batches(
    dataset, done, sharding.batch_sharding(mesh, steps_axis=True)
  )
  with path.open("a") as file:
    for step in range(done, int(steps)):
      note = {"step": step} | _note(next(batches))
      file.write(json.dumps(note) + "\n")
      file.flush()


def _note(batch) -> dict:
  """The rows of this process, and the whole batch."""
  here = [s.data for s in batch["row"].addressable_shards]
  whole = jax.tree.map(
    lambda x: multihost_utils.process_allgather(x, tiled=True), batch
  )
  return {
    "mine": np.concatenate(here, axis=1).reshape(-1).tolist(),
    "whole": {k: np.asarray(v).tobytes().hex() for k, v in whole.items()},
  }


if __name__ == "__main__":
  main(*sys.argv[1:])
