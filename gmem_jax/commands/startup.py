"""Keeps compiled programs on disk, so that a second start need not compile.

JAX's own persistent cache. Its keys hold the program, the versions, the flags
and the devices with their features, so that one directory serves any of them.
"""

import os
import pathlib

import jax


def directory_of(key: str, workdir: pathlib.Path | None) -> pathlib.Path | None:
  """Where a config's compiled programs are kept.

  Args:
    key: The config's `compile_cache`.
    workdir: The run's directory, or None where there is none.

  Returns:
    The directory, or None where nothing is kept.
  """
  if not key:
    return None
  path = pathlib.Path(key).expanduser()
  if path.is_absolute():
    return path
  return None if workdir is None else workdir / path


def keep(directory: pathlib.Path | None) -> None:
  """Lets JAX keep there, from now on, whatever it compiles.

  What the environment says wins: JAX_COMPILATION_CACHE_DIR, and
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, which is 0 otherwise: a start
  compiles many small programs that together take seconds.

  Args:
    directory: Made if need be; None to keep nothing. Only those who may run
      code as this user should be able to write there.
  """
  if directory is None or jax.config.jax_compilation_cache_dir:  # pyright: ignore
    return
  jax.config.update("jax_compilation_cache_dir", str(directory))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
