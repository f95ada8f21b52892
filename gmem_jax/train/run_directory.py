"""A run's directory belongs to one config."""

import pathlib

from gmem_jax.config import resolve, sections
from gmem_jax.files import atomic
from gmem_jax.parallel import processes

# Keys, or beginnings of keys, that a continued run may change: they decide how
# long and where it runs and what is shown of it, not what is computed.
FREE = (
  "compile_cache", "train.steps", "train.steps_per_dispatch",
  "train.accumulation", "train.log_every", "mesh.", "checkpoint.", "sampler.",
  "sample.", "data.path", "data.prepared", "data.shard_size",
  "data.device_batch", "bank.placement", "encoder.tokenizer_weights",
  "encoder.features_weights", "eval.", "report.", "model.scan_layers",
  "model.remat", "model.attention",
)  # fmt: skip

# What runs did that were started before a key existed.
BEFORE = {
  "bank.storage": "float32",
  "model.cross_every": 1,
  "model.float8": False,
  "retrieval.neighbours": 8,
  "retrieval.exclude_own": True,
  "retrieval.dropout": 0.1,
  "train.init_from": "",
}


def claim(config: sections.Config, workdir: pathlib.Path) -> None:
  """Makes a directory this run's, or checks that it already is.

  Raises:
    ValueError: If it belongs to a run of another config; lists the keys that
      differ. Keys in `FREE` may differ; the new values are noted.
  """
  path = workdir / "config.json"
  if path.exists():
    stored = BEFORE | resolve.flatten(atomic.read_json(path))
    given = resolve.flatten(resolve.to_json(config))
    differing = atomic.differences(
      stored, given, prefix="config.", ignored=FREE
    )
    if differing:
      hint = "\nTake another --workdir, or give these keys their old values."
      if stored.get("model.conditioning") != given["model.conditioning"]:
        hint += (
          "\nTo train on from its parameters with the new conditioning, take"
          f" another --workdir and --config.train.init_from={workdir}"
        )
      raise ValueError(
        f"--workdir={workdir} belongs to a run of another config:\n"
        + "\n".join(differing)
        + hint
      )
  # Before the first write: a process with a directory of its own would only
  # fail much later, when it looks for checkpoints.
  processes.check_shared(workdir, "--workdir")
  if processes.is_main():
    atomic.write_json(path, resolve.to_json(config))
