"""What the studio refuses before it serves, and where it keeps programs."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import gmem_jax
from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.files import hub
from gmem_jax.studio import __main__ as studio_main, open as open_lib
from tests import layout, tiny


def save_bank(path, like, rows, **about):
  """A bank like another, with other rows or another origin."""
  bank = bank_lib.MemoryBank(rows)
  info = bank_lib.BankInfo(
    **{
      **dataclasses.asdict(bank_files.read(like).info),
      "size": len(rows),
      "width": rows.shape[1],
      "digest": bank_lib.digest(bank),
      **about,
    }
  )
  bank_files.write(path, bank_files.Stored(bank, info))
  return path


@pytest.fixture
def refused(capsys):
  """The line that flags are refused with."""

  def main(*flags):
    assert studio_main.main(flags) == 2
    said = capsys.readouterr()
    assert "http://" not in said.out
    assert said.err.count("\n") == 1
    return said.err.removeprefix("gmem_jax: ")

  return main


def test_a_bank_that_does_not_fit_is_refused(workdir, tmp_path, refused):
  start = f"--workdir={workdir}"
  said = refused(start, "--bank=gone")
  assert said.startswith("--bank=gone: "), said
  rows = np.array(bank_files.read(workdir).bank.rows)
  narrow = save_bank(tmp_path / "narrow", workdir, rows[:, 1:].copy())
  said = refused(start, f"--bank={workdir}", f"--bank={narrow}")
  width = rows.shape[1]
  assert said == (
    f"--bank={narrow}: its rows are {width - 1} wide, the network takes"
    f" {width}\n"
  )
  other = save_bank(tmp_path / "other", workdir, rows, encoder="of others")
  said = refused(start, f"--bank={other}")
  assert re.match(rf"--bank={other}: .*made by of others", said), said
  (tmp_path / "narrow" / "metadata.json").write_text("{")
  said = refused(start, f"--bank={narrow}")
  assert said.startswith(f"--bank={narrow}: "), said


def test_so_is_one_of_another_fitted_layout(tmp_path, refused):
  emoji = gmem_jax.load("emoji")
  path = emoji.config.sample.bank
  own = bank_files.read(path).info.encoder
  fitted = re.search(r"layout_pca\(sha256=(\w+)\)", own)
  assert fitted, own
  rows = np.array(emoji.source.require_bank().rows)
  other = save_bank(
    tmp_path / "other", path, rows, encoder=own.replace(fitted[1], "0" * 12)
  )
  said = refused("--workdir=emoji", f"--bank={other}")
  assert said.startswith(f"--bank={other}: "), said
  assert fitted[1] in said
  assert "0" * 12 in said


def test_another_run_that_cannot_be_loaded_is_refused(
  workdir, tmp_path, refused
):
  start = f"--workdir={workdir}"
  said = refused(start, f"--against={workdir}", "--against=gone")
  assert said.startswith("--against=gone: there is no such directory"), said
  young = tmp_path / "young"
  tiny.save_run(young)
  (young / "checkpoints").rename(tmp_path / "away")
  said = refused(start, f"--against={young}")
  assert said == f"--against={young}: the run has no checkpoint yet\n"
  said = refused(start, "--change=sampler.stepz=3")
  assert said.startswith("--config.sampler.stepz"), said


def test_programs_are_kept_in_own_runs_alone(workdir, tmp_path, monkeypatch):
  kept = []
  monkeypatch.setattr(open_lib.startup, "keep_compiled", kept.append)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  local = hub.local
  monkeypatch.setattr(
    hub,
    "local",
    lambda path: workdir if hub.is_remote(path) else local(path),
  )
  for path in (str(workdir), "hf://me/digits", "emoji"):
    studio = open_lib.open_studio(path, (), None, "", device_batch=8)
    assert not list(pathlib.Path().glob("emoji")), studio
  mine = tmp_path / "cache" / "gmem_jax" / "compiled"
  assert kept == [workdir / "compiled", mine, mine]


def test_gradio_is_imported_without_its_stubs(tmp_path):
  for name in ("within", "outside"):
    source = "import gradio\n\nclass Own(gradio.File):\n  pass\n"
    (tmp_path / f"{name}.py").write_text(source)
  code = (
    "import inspect\n"
    "from gmem_jax.studio import stubs\n"
    "before = inspect.getfile\n"
    "with stubs.unwritten():\n"
    "  import within\n"
    "assert inspect.getfile is before\n"
    "import outside\n"
  )
  environment = os.environ | {"PYTHONPATH": f"{layout.ROOT}:{tmp_path}"}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)
  # What Gradio does where nobody keeps it from it.
  assert [path.stem for path in tmp_path.glob("*.pyi")] == ["outside"]
