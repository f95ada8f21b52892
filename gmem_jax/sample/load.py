"""From the path of a run or of converted weights to a `Generator`."""

import os
import pathlib

from gmem_jax.config import recipe, resolve
from gmem_jax.files import hub, weights as weights_lib
from gmem_jax.sample import generator as generator_lib
from gmem_jax.train import directory as directory_lib

# Recipes whose weights come with gmem_jax, as their option "pretrained".
PRETRAINED = ("emoji",)


def load(
  path: str | os.PathLike, *changes: str, config: str | None = None
) -> generator_lib.Generator:
  """Loads a run, or converted weights of a network.

  Args:
    path: The directory, or `hf://OWNER/NAME[@REVISION][/FILE]`; or "emoji", the
      weights that come with gmem_jax.
    *changes: Keys of the config, each KEY=VALUE: "sampler.steps=50".
    config: A recipe, by name or file: "xl_in1k:guided". Of a run, by default
      its own config; converted weights have none.

  Raises:
    ValueError: If the directory is neither, or a key does not fit it.
  """
  if path in PRETRAINED and not os.path.exists(path):
    recipe_name = config or f"{path}:pretrained"
    own = resolve.get_config(recipe_name, *changes)
    return generator_lib.from_config(own, pathlib.Path(path))
  path = hub.local(os.path.expanduser(path))
  converted = weights_lib.is_converted(path)
  if not converted and not (path / directory_lib.RECORD).exists():
    raise ValueError(
      f"path={path}: expected is the directory of a run, or output of"
      " `python -m gmem_jax.convert`"
    )
  if config is not None:
    network = [f"sample.network={path}"] if converted else []
    own = resolve.get_config(config, *network, *changes)
    return generator_lib.from_config(own, path)
  if converted:
    raise ValueError(
      f"path={path}: converted weights need a recipe: config=NAME, one of"
      f" {', '.join(recipe.names())}"
    )
  own = resolve.change(directory_lib.config_of(path), *changes)
  return generator_lib.from_config(own, path)
