"""The config: a flat recipe in, frozen dataclasses out.

`configs/*.py` return a complete ConfigDict. `resolve` turns it into `Config`,
checking that every key is there, none is unknown, every type and every
enumerated value fits, and that the sections agree; nothing is allocated before
that. No other module sees a ConfigDict.
"""

import dataclasses
import json
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

from gmem_jax import checkpoint, optim, sharding
from gmem_jax.diffusion import losses, samplers
from gmem_jax.models import build


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The images.

  Attributes:
    source: "digits": scikit-learn's handwritten digits.
    holdout: Images kept out of training and of the bank.
  """

  source: Literal["digits"]
  holdout: int


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The frozen networks.

  Attributes:
    tokenizer: "identity": latents are pixels.
    features: "random_conv": fixed random convolutions, 768 wide.
  """

  tokenizer: Literal["identity"]
  features: Literal["random_conv"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop.

  Attributes:
    steps: Steps of the whole run.
    batch_size: Global batch size.
    steps_per_dispatch: Steps per call of the compiled function; a few help
      where a step takes milliseconds.
    ema_decay: Decay of the parameters' moving average per step.
    log_every: Steps between log lines.
  """

  steps: int
  batch_size: int
  steps_per_dispatch: int
  ema_decay: float
  log_every: int


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """What `--mode=sample` makes.

  Attributes:
    seed: Image i depends on (seed, i) alone.
    count: Number of images.
    batch_size: Images at a time, over all devices.
    weights: Which parameters: "ema" or "params".
  """

  seed: int
  count: int
  batch_size: int
  weights: Literal["ema", "params"]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation during and after training.

  Attributes:
    every: Steps between evaluations; 0: only at the end.
    count: Images sampled for one evaluation.
    grid: Images in the sample picture.
  """

  every: int
  count: int
  grid: int


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What is made when the run ends.

  Attributes:
    unconditional: Also train the same network without memory for as many
      steps, and compare.
  """

  unconditional: bool


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run. See the sections.

  Attributes:
    seed: Seed of parameters, data order, noise and encoders.
  """

  seed: int
  data: DataConfig
  encoder: EncoderConfig
  model: build.ModelConfig
  loss: losses.LossConfig
  optim: optim.OptimConfig
  train: TrainConfig
  mesh: sharding.MeshConfig
  checkpoint: checkpoint.CheckpointConfig
  sampler: samplers.SamplerConfig
  sample: SampleConfig
  eval: EvalConfig
  report: ReportConfig


# Keys that a continued run may change: they decide how long and where it runs
# and what is shown of it, not what is computed.
FREE = (
  "train.steps",
  "train.steps_per_dispatch",
  "train.log_every",
  "mesh.",
  "checkpoint.",
  "sampler.",
  "sample.",
  "eval.",
  "report.",
  "model.scan_layers",
  "model.remat",
  "model.attention",
)


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
  config = _build(Config, tree, prefix="")
  _check(config)
  return config


def _build(cls: type, tree: Mapping[str, Any], prefix: str) -> Any:
  """Builds a dataclass from a mapping with exactly its keys."""
  hints = typing.get_type_hints(cls)
  names = [f.name for f in dataclasses.fields(cls)]
  where = f" in config.{prefix[:-1]}" if prefix else " in the config"
  unknown = sorted(set(tree) - set(names))
  if unknown:
    raise ValueError(f"unknown key(s) {unknown}{where}; known: {names}")
  missing = [n for n in names if n not in tree]
  if missing:
    raise ValueError(f"missing key(s) {missing}{where}")
  return cls(
    **{n: _value(hints[n], tree[n], prefix + n) for n in names}  # type: ignore
  )


def _value(hint: Any, value: Any, key: str) -> Any:
  """Checks one value against its type hint."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, Mapping):
      raise ValueError(f"config.{key}={value!r}: a section is expected")
    return _build(typing.cast(type, hint), value, key + ".")
  if origin is Literal:
    if value not in args:
      raise ValueError(f"config.{key}={value!r}: allowed are {list(args)}")
    return value
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    (inner,) = (a for a in args if a is not type(None))
    return _value(inner, value, key)
  if origin is tuple:
    return tuple(_value(args[0], v, key) for v in value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise ValueError(
      f"config.{key}={value!r}: expected {hint.__name__},"
      f" got {type(value).__name__}"
    )
  return value


def _check(config: Config) -> None:
  """Cross-field checks, one error each."""
  train, k = config.train, config.train.steps_per_dispatch
  for key in ("steps", "batch_size", "steps_per_dispatch", "log_every"):
    if getattr(train, key) < 1:
      raise ValueError(
        f"config.train.{key}={getattr(train, key)}: must be positive"
      )
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
  for key, value in (
    ("sample.count", config.sample.count),
    ("sample.batch_size", config.sample.batch_size),
    ("eval.count", config.eval.count),
    ("eval.grid", config.eval.grid),
  ):
    if value < 1:
      raise ValueError(f"config.{key}={value}: must be positive")
  for key in ("path", "prediction"):
    ours, theirs = getattr(config.sampler, key), getattr(config.loss, key)
    if ours != theirs:
      raise ValueError(
        f"config.sampler.{key}={ours!r} must be config.loss.{key}={theirs!r}:"
        " a network samples as it was trained"
      )
  if config.model.depth < config.model.projector_depth and (
    config.loss.projection_weight
  ):
    raise ValueError(
      f"config.model.projector_depth={config.model.projector_depth} exceeds"
      f" config.model.depth={config.model.depth}"
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


def claim_workdir(config: Config, workdir: pathlib.Path) -> None:
  """Makes a directory this run's, or checks that it already is.

  Args:
    config: The run's config.
    workdir: The run's directory; made if need be.

  Raises:
    ValueError: If it belongs to a run of another config; lists the keys that
      differ. Keys in `FREE` may differ; the new values are noted.
  """
  path = workdir / "config.json"
  if path.exists():
    theirs, ours = (
      flatten(json.loads(path.read_text())),
      flatten(to_json(config)),
    )
    differing = [
      f"  config.{key}: {theirs.get(key)!r} there, {ours.get(key)!r} now"
      for key in sorted(theirs.keys() | ours.keys())
      if theirs.get(key) != ours.get(key) and not key.startswith(FREE)
    ]
    if differing:
      raise ValueError(
        f"--workdir={workdir} belongs to a run of another config:\n"
        + "\n".join(differing)
        + "\nTake another --workdir, or give these keys their old values."
      )
  workdir.mkdir(parents=True, exist_ok=True)
  checkpoint.write_json(path, to_json(config))
