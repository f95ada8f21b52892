import os
import pathlib
import subprocess
import sys

import pytest

from gmem_jax import compile_cache

RUN = pathlib.Path("/runs/a")


@pytest.mark.parametrize(
  ("key", "workdir", "directory"),
  [
    ("compiled", RUN, RUN / "compiled"),
    ("/cache", RUN, pathlib.Path("/cache")),
    ("/cache", None, pathlib.Path("/cache")),
    ("compiled", None, None),
    ("", RUN, None),
    ("~/cache", None, pathlib.Path.home() / "cache"),
  ],
)
def test_where_programs_are_kept(key, workdir, directory):
  assert compile_cache.directory_of(key, workdir) == directory


@pytest.mark.parametrize("variable", ["", "theirs"])
def test_a_small_program_is_kept(tmp_path, variable):
  code = (
    "import pathlib, jax\n"
    "from gmem_jax import compile_cache\n"
    f"compile_cache.keep(pathlib.Path({str(tmp_path / 'ours')!r}))\n"
    "jax.jit(lambda x: x * 2)(1.0)\n"
  )
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))
  }
  if variable:
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / variable)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  subprocess.run(
    [sys.executable, "-c", code],
    env=environment,
    check=True,
    cwd=pathlib.Path(__file__).parents[1],
  )
  made = {path.name for path in tmp_path.iterdir()}
  assert made == {variable or "ours"}
  assert any((tmp_path / (variable or "ours")).iterdir())
