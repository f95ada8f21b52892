"""Loads what the studio shows."""

from collections.abc import Sequence

from gmem_jax.commands import startup
from gmem_jax.sample import generator as generator_lib
from gmem_jax.studio import context


def open_studio(
  path: str,
  changes: Sequence[str],
  config: str | None,
  folder: str,
  *,
  device_batch: int,
) -> context.Studio:
  """Loads the network and its bank.

  Args:
    path: See `generator.load`; so are `changes` and `config`.
    changes: Keys of the config.
    config: A recipe.
    folder: See `context.Studio`.
    device_batch: Images in a call at most, unless `changes` say otherwise:
      images of few appear sooner.

  Raises:
    ValueError: If something does not fit, or there is no bank.
  """
  # All images have a line, not only those of a contact sheet.
  changes = ["sample.grid=0", *changes]
  generator = generator_lib.load(path, *changes, config=config)
  own = generator.config.sample.device_batch
  if not any(change.startswith("sample.device_batch=") for change in changes):
    generator = generator.with_config(
      f"sample.device_batch={min(own, device_batch)}"
    )
  generator.source.require_bank()
  cache = generator.config.compile_cache
  startup.keep_compiled(startup.cache_directory(cache, generator.workdir))
  return context.Studio(generator, generator.workdir, {}, {}, folder)
