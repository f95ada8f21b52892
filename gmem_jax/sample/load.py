"""From the path of a run or of converted weights to a `Generator`."""

import difflib
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gmem_jax.config import recipe, resolve, sections
from gmem_jax.files import paths, weights as weights_lib
from gmem_jax.models import dit
from gmem_jax.sample import generator as generator_lib
from gmem_jax.train import checkpoint, directory as directory_lib

_log = logging.getLogger(__name__)

# Recipes whose weights come with gmem_jax, as their option "pretrained".
PRETRAINED = ("emoji",)


def load(
  path: str | os.PathLike,
  *changes: str,
  config: str | None = None,
  step: int | None = None,
) -> generator_lib.Generator:
  """Loads a run, or converted weights of a network.

  Args:
    path: The directory, or `hf://OWNER/NAME[@REVISION][/FILE]`; or "emoji", the
      weights that come with gmem_jax.
    *changes: Keys of the config, each KEY=VALUE: "sampler.steps=50".
    config: A recipe, by name or file: "xl_in1k:guided". By default that of the
      run; of converted weights the only one that comes with gmem_jax and has
      such a network, which a warning of the logger names.
    step: Which of the run's checkpoints, see `steps`; by default the newest
      that can be read.

  Raises:
    ValueError: If the directory is neither, or a key does not fit it; if the
      run has no checkpoint of that step; or of converted weights, if not
      exactly one recipe fits.
  """
  if path in PRETRAINED and not os.path.exists(path):
    recipe_name = config or f"{path}:pretrained"
    own = resolve.get_config(recipe_name, *changes)
    return generator_lib.from_config(own, pathlib.Path(path), step)
  where = _local(path)
  if weights_lib.is_converted(where):
    own = _of_converted(where, f"path={path}", changes, config)
  elif not (where / directory_lib.RECORD).exists():
    raise ValueError(f"path={path}: {_missing(str(path), where)}")
  elif config is not None:
    own = resolve.get_config(config, *changes)
  else:
    own = resolve.change(directory_lib.config_of(where), *changes)
  return generator_lib.from_config(own, where, step)


def steps(path: str | os.PathLike) -> list[int]:
  """The steps of a run's checkpoints, oldest first; [] of what has none.

  Raises:
    ValueError: If an address of the hub cannot be read.
  """
  if path in PRETRAINED and not os.path.exists(path):
    return []
  return checkpoint.steps(_local(path) / "checkpoints")


def _local(path: str | os.PathLike) -> paths.Path:
  """The directory on this machine."""
  try:
    # Of a run in a bucket only the parts that are needed are fetched.
    return paths.resolve(os.path.expanduser(path))
  except ValueError as error:
    raise ValueError(f"path={error}") from None


def _missing(name: str, where: paths.Path) -> str:
  """Why a path cannot be loaded, and what may be meant."""
  if where.exists():
    return (
      "is neither the directory of a run nor converted weights"
      f" ({directory_lib.RECORD} is not there)"
    )
  if name in recipe.names():
    return (
      f"there is no such directory; the recipe of this name is trained by"
      f" `python -m gmem_jax.main --config={name} --workdir=runs/{name}`"
    )
  known = ", ".join(map(repr, PRETRAINED))
  near = difflib.get_close_matches(name, PRETRAINED, 1)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return (
    f"there is no such directory. {known} has weights that come with the"
    f" package{hint}"
  )


def _of_converted(
  path: paths.Path, name: str, changes: Sequence[str], config: str | None
) -> sections.Config:
  """The config of converted weights: a recipe's, with changes.

  Raises:
    ValueError: Naming them, if they are no network, or a recipe is needed.
  """
  try:
    metadata = weights_lib.read_metadata(path)
    weights_lib.check_kind(metadata["kind"], tuple(dit.FAMILIES))
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from None
  changes = [f"sample.network={path}", *changes]
  if config is not None:
    return resolve.get_config(config, *changes)
  fitting = _fitting(metadata, changes)
  if len(fitting) != 1:
    found = ", ".join(fitting or recipe.names())
    raise ValueError(
      f"{name}: converted weights need a recipe: config=NAME, one of {found}"
    )
  ((recipe_name, own),) = fitting.items()
  _log.warning("%s: taken to be of the recipe config=%r", name, recipe_name)
  return own


def _fitting(
  metadata: Mapping[str, Any], changes: Sequence[str]
) -> dict[str, sections.Config]:
  """The recipes, with changes, that have the network of converted weights.

  Raises:
    ValueError: If no recipe has such a key or value as the changes name.
  """
  fitting, refused = {}, []
  for name in recipe.names():
    try:
      own = resolve.get_config(name, *changes)
    except ValueError as error:
      refused.append(error)
      continue
    # Recipes of published weights name some; those of runs do not.
    published = bool(recipe.flat(recipe.load(name))["sample.network"])
    if published != metadata.get("exported", False) and not (
      dit.differing_keys(own.model, metadata["model"])
    ):
      fitting[name] = own
  if len(refused) == len(recipe.names()):
    raise refused[0]
  return fitting
