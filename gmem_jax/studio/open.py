"""Loads what the studio shows."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from gmem_jax.commands import startup
from gmem_jax.files import bucket, errors, paths
from gmem_jax.sample import load as load_lib
from gmem_jax.sample.generator import Generator
from gmem_jax.studio import context
from gmem_jax.train import checkpoint, directory

# How the library names what the flags name.
_ARGUMENT = re.compile(r"(?:path|--workdir)(?:=.*?)?: ")


def without_checkpoint(path: str) -> pathlib.Path | None:
  """The directory of a run that has no checkpoint yet; None of all else."""
  where = pathlib.Path(os.path.expanduser(path))
  if (where / directory.RECORD).exists() and not checkpoint.exist(
    where / "checkpoints"
  ):
    return where
  return None


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
    ValueError: If something does not fit, or there is no bank; of `banks` and
      `others`, too, so that nobody finds out later.
  """
  # All images have a line, not only those of a contact sheet.
  changes = ["sample.grid=0", *changes]
  with _naming("--workdir", path):
    generator = load_lib.load(path, *changes, config=config)
  own = generator.config.sample.device_batch
  if not any(change.startswith("sample.device_batch=") for change in changes):
    generator = generator.with_config(
      f"sample.device_batch={min(own, device_batch)}"
    )
  generator.source.require_bank()
  studio = context.Studio(
    generator, generator.workdir, _named(banks), _named(others), folder
  )
  for bank in studio.banks.values():
    with _naming("--bank", bank):
      generator.with_bank(bank)
  for name, other in studio.others.items():
    with _naming("--against", other):
      studio.other(name).source.require_bank()
  startup.keep_compiled(
    startup.cache_directory(
      generator.config.compile_cache, _cache_home(path, generator)
    )
  )
  return studio


def _cache_home(path: str, generator: Generator) -> paths.Path:
  """The run's directory; the user's, if it is no run or not the user's own.

  The hub's cache holds what the hub sent, and nothing else.
  """
  own = not (generator.config.sample.network or paths.is_remote(path))
  if own and os.access(generator.workdir, os.W_OK):
    return generator.workdir
  return bucket.user_cache()


@contextlib.contextmanager
def _naming(flag: str, path: str) -> Iterator[None]:
  """Makes errors name the flag that gave a path."""
  try:
    yield
  except (ValueError, OSError) as error:
    text = errors.describe(error)
    named = _ARGUMENT.match(text)
    if named is None and flag == "--workdir":
      raise  # About a key, which it names.
    rest = text[named.end() :] if named else text
    raise ValueError(f"{flag}={path}: {rest}") from None


def _named(paths: Sequence[str]) -> dict[str, str]:
  """What visitors call the paths: the last part, with a number if need be."""
  found: dict[str, str] = {}
  for path in paths:
    name = pathlib.Path(path).name
    if name in found:
      name = f"{name} ({len(found) + 1})"
    found[name] = os.path.expanduser(path)
  return found
