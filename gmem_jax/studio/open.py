"""Loads what the studio shows."""

import os
import pathlib
from collections.abc import Sequence

from gmem_jax.commands import startup
from gmem_jax.sample import load as load_lib
from gmem_jax.studio import context


def open_studio(
  path: str,
  changes: Sequence[str],
  config: str | None,
  folder: str,
  *,
  banks: Sequence[str] = (),
  others: Sequence[str] = (),
  device_batch: int,
) -> context.Studio:
  """Loads the network and its bank.

  Args:
    path: See `load.load`; so are `changes` and `config`.
    changes: Keys of the config.
    config: A recipe.
    folder: See `context.Studio`.
    banks: Other banks that visitors may choose.
    others: Other runs, too.
    device_batch: Images in a call at most, unless `changes` say otherwise:
      images of few appear sooner.

  Raises:
    ValueError: If something does not fit, or there is no bank.
  """
  # All images have a line, not only those of a contact sheet.
  changes = ["sample.grid=0", *changes]
  generator = load_lib.load(path, *changes, config=config)
  own = generator.config.sample.device_batch
  if not any(change.startswith("sample.device_batch=") for change in changes):
    generator = generator.with_config(
      f"sample.device_batch={min(own, device_batch)}"
    )
  generator.source.require_bank()
  cache = generator.config.compile_cache
  startup.keep_compiled(startup.cache_directory(cache, generator.workdir))
  return context.Studio(
    generator, generator.workdir, _named(banks), _named(others), folder
  )


def _named(paths: Sequence[str]) -> dict[str, str]:
  """What visitors call the paths: the last part, with a number if need be."""
  found: dict[str, str] = {}
  for path in paths:
    name = pathlib.Path(path).name
    if name in found:
      name = f"{name} ({len(found) + 1})"
    found[name] = os.path.expanduser(path)
  return found
