"""The config: a flat recipe in, frozen dataclasses out.

`configs/*.py` return a complete ConfigDict. `resolve` turns it into `Config`,
checking that every key is there, none is unknown, every type and every
enumerated value fits, and that the sections agree; nothing is allocated before
that. No other module sees a ConfigDict.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from gmem_jax.bank import sharding as bank_sharding
from gmem_jax.config import sections, strict
from gmem_jax.diffusion import losses, samplers
from gmem_jax.models import build, retrieval
from gmem_jax.parallel import sharding
from gmem_jax.train import checkpoint, optimizer as optim


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run. See the sections.

  Attributes:
    seed: Seed of parameters, data order, noise and encoders.
    compile_cache: Directory of compiled programs, which a second start need not
      compile again; a relative one lies in the run's directory. "" for none.
      The environment's JAX_COMPILATION_CACHE_DIR wins.
  """

  seed: int
  compile_cache: str
  data: sections.DataConfig
  encoder: sections.EncoderConfig
  bank: bank_sharding.BankConfig
  model: build.ModelConfig
  retrieval: retrieval.RetrievalConfig
  loss: losses.LossConfig
  optim: optim.OptimConfig
  train: sections.TrainConfig
  mesh: sharding.MeshConfig
  checkpoint: checkpoint.CheckpointConfig
  sampler: samplers.SamplerConfig
  sample: sections.SampleConfig
  eval: sections.EvalConfig
  report: sections.ReportConfig


def resolve(tree: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
  """Checks a config and freezes it.

  Args:
    tree: A ConfigDict, or nested dicts.

  Returns:
    The config as frozen dataclasses.

  Raises:
    ValueError: Naming the key, its value and what is allowed.
  """
  if isinstance(tree, ml_collections.ConfigDict):
    tree = tree.to_dict()
  config = strict.build(Config, tree)
  _check(config)
  return config


def _check(config: Config) -> None:
  """Cross-field checks, one error each."""
  train, k = config.train, config.train.steps_per_dispatch
  for key, value in (
    ("train.steps", train.steps),
    ("train.batch_size", train.batch_size),
    ("train.accumulation", train.accumulation),
    ("train.steps_per_dispatch", k),
    ("train.log_every", train.log_every),
    ("sample.count", config.sample.count),
    ("sample.batch_size", config.sample.batch_size),
    ("sample.device_batch", config.sample.device_batch),
    ("sample.per_row", config.sample.per_row),
    ("sample.points", config.sample.points),
    ("data.shard_size", config.data.shard_size),
    ("data.device_batch", config.data.device_batch),
    ("encoder.image_size", config.encoder.image_size),
    ("eval.count", config.eval.count),
    ("eval.grid", config.eval.grid),
    ("eval.device_batch", config.eval.device_batch),
  ):
    if value < 1:
      raise ValueError(f"config.{key}={value}: must be positive")
  if not 0 <= train.ema_decay < 1:
    raise ValueError(
      f"config.train.ema_decay={train.ema_decay}: must lie in [0, 1)"
    )
  if train.log_every % k or train.steps % k:
    raise ValueError(
      f"config.train.log_every={train.log_every} and config.train.steps="
      f"{train.steps} must be multiples of config.train.steps_per_dispatch={k}"
    )
  for key, value in (
    ("checkpoint.every", config.checkpoint.every),
    ("eval.every", config.eval.every),
  ):
    if value % train.log_every:
      raise ValueError(
        f"config.{key}={value} must be a multiple of"
        f" config.train.log_every={train.log_every}"
      )
  for key in ("path", "prediction"):
    ours, theirs = getattr(config.sampler, key), getattr(config.loss, key)
    if ours != theirs:
      raise ValueError(
        f"config.sampler.{key}={ours!r} must be config.loss.{key}={theirs!r}:"
        " a network samples as it was trained"
      )
  if config.model.float8 and config.model.dtype != "bfloat16":
    raise ValueError(
      f"config.model.dtype={config.model.dtype!r}: must be 'bfloat16' with"
      " config.model.float8=True"
    )
  _check_data(config)
  _check_eval(config)
  _check_sample(config)
  if config.model.depth < config.model.projector_depth and (
    config.loss.projection_weight
  ):
    raise ValueError(
      f"config.model.projector_depth={config.model.projector_depth} exceeds"
      f" config.model.depth={config.model.depth}"
    )


def _check_eval(config: Config) -> None:
  """Cross-field checks of the evaluation, one error each."""
  for key in ("audit", "save_every"):
    value = getattr(config.eval, key)
    if value < 0:
      raise ValueError(f"config.eval.{key}={value}: must not be negative")
  if config.report.unconditional and "frechet" not in config.eval.scores:
    raise ValueError(
      f"config.eval.scores={config.eval.scores}: config.report.unconditional"
      " needs 'frechet' among them"
    )


def _check_data(config: Config) -> None:
  """Cross-field checks of the data, one error each."""
  data = config.data
  where = f"with config.data.source={data.source!r}"
  for key, sources in (
    ("path", ("folder", "upstream")),
    ("tfds", ("tfds",)),
    ("split", ("tfds",)),
    ("prepared", ("folder", "tfds")),
  ):
    if data.source in sources and not getattr(data, key):
      raise ValueError(f"config.data.{key} is empty: it is needed {where}")
  if data.holdout and (data.source != "digits" or data.prepared):
    raise ValueError(
      f"config.data.holdout={data.holdout}: must be 0 but for"
      " config.data.source='digits' with config.data.prepared=''"
    )
  if data.independent_flips and not data.mirror:
    raise ValueError(
      "config.data.independent_flips=True needs config.data.mirror=True"
    )
  if data.source in ("none", "upstream"):
    return
  if data.latents == "posterior" and config.encoder.tokenizer == "identity":
    raise ValueError(
      "config.data.latents='posterior': config.encoder.tokenizer='identity' has"
      " none, take 'sample'"
    )
  if config.loss.projection_weight and data.tokens == "none":
    raise ValueError(
      f"config.loss.projection_weight={config.loss.projection_weight}: must be"
      " 0 with config.data.tokens='none', there is nothing to project to"
    )


def _check_sample(config: Config) -> None:
  """Cross-field checks of what sampling reads, one error each."""
  chosen, encoder = config.sample, config.encoder
  if chosen.grid < 0:
    raise ValueError(f"config.sample.grid={chosen.grid}: must not be negative")
  if any(row < 0 for row in chosen.rows):
    raise ValueError(
      f"config.sample.rows={chosen.rows}: bank rows are numbered from 0"
    )
  if chosen.draw == "noise" and (chosen.rows or chosen.per_row > 1):
    raise ValueError(
      f"config.sample.draw='noise' lets every image choose its row, so"
      f" config.sample.rows={chosen.rows} must be () and"
      f" config.sample.per_row={chosen.per_row} must be 1"
    )
  if chosen.interpolation in ("linear", "spherical") and chosen.points < 2:
    raise ValueError(
      f"config.sample.points={chosen.points}: must be at least 2 with"
      f" config.sample.interpolation={chosen.interpolation!r}"
    )
  if config.model.conditioning == "none" and config.sampler.guidance.on:
    raise ValueError(
      f"config.sampler.guidance.scale={config.sampler.guidance.scale}: must be"
      " 1 with config.model.conditioning='none', there is nothing to guide"
    )
  if encoder.features == "dinov2" and encoder.image_size < 256:
    raise ValueError(
      f"config.encoder.image_size={encoder.image_size}: must be at least 256"
      " with config.encoder.features='dinov2'"
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts to dotted keys.

  Args:
    tree: Nested dicts.
    prefix: Put before every key.
  """
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def to_json(config: Config) -> dict[str, Any]:
  """The config as nested dicts of JSON values.

  Args:
    config: The config.
  """
  return json.loads(json.dumps(dataclasses.asdict(config)))
