"""A flat recipe in, a checked and frozen config out.

`configs/*.py` return a complete ConfigDict. `resolve` turns it into
`sections.Config`: every key is there, none is unknown, every type and every
enumerated value fits, and the sections agree. Nothing is allocated before that,
and no other module sees a ConfigDict.
"""

import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import flax.traverse_util
import ml_collections

from gmem_jax.config import checks, recipe, sections


def get_config(text: str, *changes: str) -> sections.Config:
  """The config of a recipe: as `--config=TEXT --config.KEY=VALUE` gives it.

  Args:
    text: A name, e.g. "digits"; or FILE.py; with ":OPTION" after it or without.
    *changes: Each KEY=VALUE, e.g. "train.steps=2000".

  Raises:
    ValueError: Naming what is unknown or does not fit.
  """
  tree = recipe.load(text)
  for each in changes:
    recipe.set_key(tree, each)
  return resolve(tree)


def change(config: sections.Config, *changes: str) -> sections.Config:
  """A config with some keys changed; see `get_config`."""
  tree = ml_collections.ConfigDict(to_json(config))
  optim = config.optim
  if optim.schedule == "cosine" and optim.decay_steps == config.train.steps:
    recipe.set_key(
      tree, "optim.decay_steps=0"
    )  # It goes on ending with the run.
  for each in changes:
    recipe.set_key(tree, each)
  return resolve(tree)


def resolve(
  tree: ml_collections.ConfigDict | Mapping[str, Any],
) -> sections.Config:
  """Checks a config, a ConfigDict or nested dicts, and freezes it.

  Raises:
    ValueError: Naming the key, its value and what is allowed.
  """
  if isinstance(tree, ml_collections.ConfigDict):
    tree = tree.to_dict()
  config = _decaying_to_end(_build(sections.Config, tree))
  _check(config)
  return config


def _decaying_to_end(config: sections.Config) -> sections.Config:
  """Fills in the `optim.decay_steps` of a cosine that ends with the run."""
  optim = config.optim
  if optim.schedule == "cosine" and not optim.decay_steps:
    optim = dataclasses.replace(optim, decay_steps=config.train.steps)
  return dataclasses.replace(config, optim=optim)


def _check(config: sections.Config) -> None:
  """Checks between sections, one error each; a section checks its own keys."""
  for key, value in (
    ("checkpoint.every", config.checkpoint.every),
    ("eval.every", config.eval.every),
  ):
    # The loop saves and evaluates only when it also fetches the metrics.
    if value % config.train.log_every:
      raise ValueError(
        f"config.{key}={value} must be a multiple of"
        f" config.train.log_every={config.train.log_every}"
      )
  optim, steps = config.optim, config.train.steps
  if optim.schedule == "cosine" and optim.decay_steps < steps:
    raise ValueError(
      f"config.optim.decay_steps={optim.decay_steps}: the learning rate is zero"
      f" from there on, and config.train.steps={steps} would learn nothing in"
      " the rest; with config.optim.decay_steps=0 it decays until"
      " config.train.steps"
    )
  for key in ("path", "prediction"):
    ours, theirs = getattr(config.sampler, key), getattr(config.loss, key)
    if ours != theirs:
      raise ValueError(
        f"config.sampler.{key}={ours!r} must be config.loss.{key}={theirs!r}:"
        " a network samples as it was trained"
      )
  if config.model.conditioning == "none" and config.sampler.guidance.on:
    raise ValueError(
      f"config.sampler.guidance.scale={config.sampler.guidance.scale}: must be"
      " 1 with config.model.conditioning='none', there is nothing to guide"
    )
  if config.sample.draw == "prior" and config.model.conditioning != "adaln":
    raise ValueError(
      f"config.sample.draw='prior' needs config.model.conditioning='adaln', not"
      f" {config.model.conditioning!r}: a network that takes a memory, and"
      " attends to no bank"
    )
  if config.report.unconditional and "frechet" not in config.eval.scores:
    raise ValueError(
      f"config.eval.scores={config.eval.scores}: config.report.unconditional"
      " needs 'frechet' among them"
    )
  if config.loss.projection_weight:
    _check_projection(config)
  if (
    config.data.source not in ("none", "upstream")
    and config.data.latents == "posterior"
    and config.encoder.tokenizer in ("identity", "patch_pca")
  ):
    raise ValueError(
      f"config.data.latents='posterior': config.encoder.tokenizer="
      f"{config.encoder.tokenizer!r} has none, take 'sample'"
    )


def _check_projection(config: sections.Config) -> None:
  """The projection loss needs targets, and a block to read from."""
  if config.model.depth < config.model.projector_depth:
    raise ValueError(
      f"config.model.projector_depth={config.model.projector_depth} exceeds"
      f" config.model.depth={config.model.depth}"
    )
  if config.data.tokens == "none" and (
    config.data.source not in ("none", "upstream")
  ):
    raise ValueError(
      f"config.loss.projection_weight={config.loss.projection_weight}: must be"
      " 0 with config.data.tokens='none', there is nothing to project to"
    )


def _build(cls: type, tree: Mapping[str, Any], prefix: str = "") -> Any:
  """Builds a dataclass from a mapping with exactly its keys.

  A key that has a default may be missing, as it is in recipes and runs from
  before it. `prefix` is what stands before the keys in errors, with a dot at
  the end.
  """
  hints = typing.get_type_hints(cls, include_extras=True)
  fields = dataclasses.fields(cls)
  names = [f.name for f in fields]
  where = f" in config.{prefix[:-1]}" if prefix else " in the config"
  unknown = sorted(set(tree) - set(names))
  if unknown:
    raise ValueError(f"unknown key(s) {unknown}{where}; known: {names}")
  needed = (f.name for f in fields if f.default is dataclasses.MISSING)
  missing = [n for n in needed if n not in tree]
  if missing:
    raise ValueError(f"missing key(s) {missing}{where}")
  return cls(
    **{n: _value(hints[n], tree[n], prefix + n) for n in names if n in tree}  # type: ignore
  )


def _value(hint: Any, value: Any, key: str) -> Any:
  """Checks one value against its type hint."""
  # JSON and the command line know lists, ints and strings; anything closer to
  # the annotation is refused, so that a typo cannot pass for a value.
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, Mapping):
      raise ValueError(f"config.{key}={value!r}: a section is expected")
    return _build(typing.cast(type, hint), value, key + ".")
  if hint is checks.FilePath:
    # No shell expands the ~ of --config.data.path=~/photos.
    return os.path.expanduser(_value(str, value, key))
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
    if not isinstance(value, (tuple, list)):
      raise ValueError(f"config.{key}={value!r}: a tuple is expected")
    return tuple(_value(args[0], v, key) for v in value)
  if hint is float and type(value) in (int, float):
    # JSON, in which a run keeps its config, has neither infinity nor NaN.
    if not abs(value) <= sys.float_info.max:
      raise ValueError(f"config.{key}={value}: must be finite")
    return float(value)
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise ValueError(
      f"config.{key}={value!r}: expected {hint.__name__},"
      f" got {type(value).__name__}"
    )
  return value


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts to dotted keys."""
  return flax.traverse_util.flatten_dict(tree, sep=".")


def to_json(config: sections.Config) -> dict[str, Any]:
  """The config as nested dicts of JSON values."""
  return json.loads(json.dumps(dataclasses.asdict(config)))
