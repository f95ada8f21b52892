"""A run's directory: whose it is, what may change there, when it is done."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax

from gmem_jax.config import resolve, sections
from gmem_jax.files import atomic, paths
from gmem_jax.parallel import processes, sharding
from gmem_jax.train import checkpoint, state as train_state

_log = logging.getLogger(__name__)

RECORD = "config.json"

# Keys, or beginnings of keys, that a continued run may change: they decide how
# long and where it runs and what is shown of it, not what is computed.
FREE = (
  "compile_cache", "train.steps", "train.steps_per_dispatch",
  "train.accumulation", "train.log_every", "train.allow_changes", "mesh.",
  "checkpoint.", "sampler.", "sample.", "data.path", "data.prepared",
  "data.shard_size", "data.device_batch", "bank.placement",
  "encoder.tokenizer_weights", "encoder.features_weights",
  "encoder.snippet_weights", "eval.", "log.", "report.", "prior.",
  "model.scan_layers", "model.remat", "model.attention",
)  # fmt: skip

# Those that decide how it trains: they may change with `train.allow_changes`,
# as the state has the same arrays, and sampling does not depend on them.
TRAINING = (
  "optim.", "train.batch_size", "train.ema_decay", "model.residual_dtype",
)  # fmt: skip

# What runs did that were started before a key existed.
BEFORE = {
  "data.truncated": "skip",
  "data.holdout_groups": [],
  "encoder.tokenizer_patch": 8,
  "encoder.tokenizer_channels": 32,
  "encoder.snippet_weights": "",
  "encoder.snippet_width": 768,
  "bank.storage": "float32",
  "model.cross_every": 1,
  "model.float8": False,
  "retrieval.neighbours": 8,
  "retrieval.exclude_own": True,
  "retrieval.dropout": 0.1,
  "eval.repeats": 0,
  "eval.heldout": "",
  "eval.thresholds": [],
  "train.init_from": "",
  "log.wandb": "",
  "log.profile": "",
}


def claim(config: sections.Config, workdir: paths.Path) -> None:
  """Makes a directory this run's; config.json records what is in force.

  Training alone calls it.

  Raises:
    ValueError: See `check_training`.
  """
  changes = check_training(config, workdir)
  # Before the first write: a process with a directory of its own would only
  # fail much later, when it looks for checkpoints.
  processes.check_shared(workdir, "--workdir")
  for change in changes:
    _log.info("%s", change)
  if processes.is_main():
    atomic.write_json(workdir / RECORD, dataclasses.asdict(config))


def check_training(config: sections.Config, workdir: paths.Path) -> list[str]:
  """Checks that the run of a directory may train on; writes nothing.

  A directory belongs to a run from its first checkpoint on: before that nothing
  is lost, and whatever ended the first try can be mended in the config.

  Returns:
    A line for each change that `train.allow_changes`, or a raised
    `train.steps`, makes to the training.

  Raises:
    ValueError: If it belongs to a run of another config; names the keys that
      differ.
  """
  checkpoints = workdir / "checkpoints"
  if not checkpoint.exist(checkpoints) or not (workdir / RECORD).exists():
    return []
  allowed = TRAINING if config.train.allow_changes else ()
  stored, given = _settings(workdir, config)
  _refuse(workdir, stored, given, (*FREE, *allowed))
  changes = [
    f"changed on purpose: {line.strip()}"
    for line in atomic.differences(
      stored, given, prefix="config.", ignored=FREE
    )
  ]
  before, now = stored.get("train.steps"), config.train.steps
  step = max(checkpoint.steps(checkpoints), default=0)
  to_end = given["optim.decay_steps"] == stored.get("optim.decay_steps") == 0
  if config.optim.schedule == "cosine" and to_end and before != now > step:
    rate = train_state.learning_rates(config.optim, now)[step]
    changes.append(
      f"config.train.steps: {before} there, {now} now: the learning rate decays"
      f" until step {now}, and goes on from {rate:.3g} at step {step}"
    )
  return changes


def check(config: sections.Config, workdir: paths.Path) -> None:
  """Checks that the run of a directory can be sampled with a config.

  Raises:
    ValueError: If it belongs to a run of another config; names the keys that
      differ.
  """
  stored, given = _settings(workdir, config)
  _refuse(workdir, stored, given, (*FREE, *TRAINING))


def finished(
  config: sections.Config, workdir: paths.Path, mesh: jax.sharding.Mesh
) -> int | None:
  """The last step of a run that has nothing left to train; else None.

  Raises:
    ValueError: See `check_training`; or no checkpoint can be read.
  """
  check_training(config, workdir)
  checkpoints = workdir / "checkpoints"
  if max(checkpoint.steps(checkpoints), default=0) < config.train.steps:
    return None
  # Read, not only listed: from a damaged one the run goes back, and trains on.
  step, _ = checkpoint.load_part(
    checkpoints, "ema", lambda shapes: sharding.state_shardings(shapes, mesh)
  )
  return step if step >= config.train.steps else None


def config_of(workdir: paths.Path) -> sections.Config:
  """The config of a run, as its directory records it.

  Raises:
    ValueError: If there is no run, or the record does not fit.
  """
  stored = _recorded(workdir)
  try:
    return resolve.resolve(flax.traverse_util.unflatten_dict(stored, sep="."))
  except ValueError as error:
    raise ValueError(f"{workdir / RECORD}: {error}") from None


def _recorded(workdir: paths.Path) -> dict[str, Any]:
  """The recorded config by dotted keys, with those that came later."""
  stored = BEFORE | resolve.flatten(atomic.read_json(workdir / RECORD))
  # Before the key existed, the residual stream had the dtype of the matmuls.
  stored.setdefault("model.residual_dtype", stored.get("model.dtype"))
  return stored


def _settings(
  workdir: paths.Path, config: sections.Config
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The recorded config and the given one by dotted keys, to compare them."""
  stored = _recorded(workdir)
  given = resolve.flatten(resolve.to_json(config))
  key = "optim.decay_steps"
  if stored.get(key) != given[key]:
    # A cosine until `train.steps` is one setting, whatever their number.
    for settings in (stored, given):
      if settings.get(key) == settings.get("train.steps"):
        settings[key] = 0
  return stored, given


def _refuse(
  workdir: paths.Path,
  stored: Mapping[str, Any],
  given: Mapping[str, Any],
  allowed: Sequence[str],
) -> None:
  """Refuses differences in keys that do not begin with one of `allowed`."""
  differing = atomic.differences(
    stored, given, prefix="config.", ignored=allowed
  )
  if not differing:
    return
  hint = "give these keys their old values, or take another --workdir"
  if not atomic.differences(stored, given, ignored=(*FREE, *TRAINING)):
    hint = (
      "to change them on purpose and keep the optimizer's state, add"
      f" --config.train.allow_changes=True; or {hint}"
    )
  elif stored.get("model.conditioning") != given["model.conditioning"]:
    hint += (
      "; to train on from its parameters with the new conditioning, take"
      f" another --workdir and --config.train.init_from={workdir}"
    )
  lines = "; ".join(line.strip() for line in differing)
  raise ValueError(
    f"--workdir={workdir} belongs to a run of another config: {lines}. To go"
    f" on, {hint}"
  )
