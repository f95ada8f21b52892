import os
import pathlib
import subprocess
import sys

import pytest

from gmem_jax.commands import startup

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
  assert startup.directory_of(key, workdir) == directory


def compile_something(directory, **variables):
  """A process that keeps what it compiles; what it prints on stderr."""
  code = (
    "import pathlib, jax\n"
    "from gmem_jax.commands import startup as compile_cache\n"
    f"compile_cache.keep(pathlib.Path({str(directory)!r}))\n"
    "assert jax.jit(lambda x: x * 2)(1.0) == 2\n"
  )
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))
  }
  run = subprocess.run(
    [sys.executable, "-c", code],
    env=environment | variables,
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
    stderr=subprocess.PIPE,
    text=True,
  )
  return run.stderr


@pytest.mark.parametrize("variable", ["", "theirs"])
def test_a_small_program_is_kept(tmp_path, variable):
  variables = {}
  if variable:
    variables["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / variable)
    variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  compile_something(tmp_path / "ours", **variables)
  made = {path.name for path in tmp_path.iterdir()}
  assert made == {variable or "ours"}
  assert any((tmp_path / (variable or "ours")).iterdir())


def test_a_program_cut_off_by_a_kill_is_named_and_compiled_anew(tmp_path):
  said = compile_something(tmp_path)
  assert "compilation cache entry" not in said
  assert "compilation cache entry" not in compile_something(tmp_path)
  for path in tmp_path.iterdir():
    path.write_bytes(path.read_bytes()[:-100])
  said = compile_something(tmp_path)
  assert "Error reading persistent compilation cache entry for 'jit__" in said
