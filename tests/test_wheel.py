"""What a wheel brings, used from a directory that has nothing else."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from gmem_jax.config import recipe
from tests import layout, pages, tiny

pytest.importorskip("setuptools", reason="it builds the wheel")
pytestmark = pytest.mark.process
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


def call(*command, cwd: pathlib.Path, **environment: str) -> str:
  """Runs a command without this checkout; returns what it printed."""
  done = subprocess.run(
    [*map(str, command)],
    cwd=cwd,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Of a copy, as building leaves files beside the sources."""
  directory = tmp_path_factory.mktemp("wheel")
  pages.copy_tree(directory / "source")
  call(
    *PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation",
    directory / "source", "-w", directory, cwd=directory, PYTHONPATH="",
  )  # fmt: skip
  (path,) = directory.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def installed(wheel):
  target = wheel.parent / "installed"
  call(
    *PIP, "install", "--no-deps", "--no-index", "--target", target, wheel,
    cwd=wheel.parent,
  )  # fmt: skip
  return target


@pytest.fixture
def run(installed, tmp_path):
  """Runs a command of the installed package in an empty directory."""

  def run(program: str, *arguments: str) -> str:
    command = [installed / "bin" / program]
    if program == "python":
      command = [sys.executable]
    return call(*command, *arguments, cwd=tmp_path, PYTHONPATH=str(installed))

  return run


def test_it_has_recipes_types_and_licence(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
  recipes = {path.name for path in (layout.ROOT / "configs").glob("*.py")}
  assert recipes == {
    name.removeprefix("gmem_jax/configs/")
    for name in names
    if name.startswith("gmem_jax/configs/")
  }
  assert {"gmem_jax/py.typed", "gmem_jax/data/emoji_kinds.txt"} <= set(names)
  modules = {str(path.relative_to(layout.ROOT)) for path in layout.FILES}
  assert modules <= set(names)
  kept = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
  assert kept == {"LICENSE", "CITATION.cff", "README.md"}
  assert not [name for name in names if name.startswith("tests")]


def test_it_works_from_an_empty_directory(run, installed):
  code = (
    "import gmem_jax; from gmem_jax.config import recipe;"
    "print(gmem_jax.__file__, *recipe.names());"
    "print(gmem_jax.get_config('xl_in1k:guided').sampler.guidance.on)"
  )
  first, second = run("python", "-c", code).splitlines()
  file, *names = first.split()
  assert pathlib.Path(file).is_relative_to(installed)
  assert names == recipe.names()
  assert second == "True"
  assert run("gmem_jax", "--version").startswith("gmem_jax 0.1.0, jax ")


def test_it_trains_and_samples_the_digits(run, tmp_path):
  shared = ("--config=digits", "--workdir=run", *tiny.flags(train__steps=16))
  run("gmem_jax", "train", *shared)
  run("gmem_jax", "sample", *shared, "--config.sample.count=4")
  assert len(list((tmp_path / "run/images").glob("*/0*.png"))) == 4
