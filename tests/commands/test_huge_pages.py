import os
import pathlib
import subprocess
import sys

import pytest

from gmem_jax.commands import huge_pages

SCRIPT = """
import os, sys
from gmem_jax import huge_pages
print("begins", flush=True)
{before}
huge_pages.restart()
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:])
print(sys._xoptions)
"""
ROOT = pathlib.Path(__file__).parents[2]

available = pytest.mark.skipif(
  not huge_pages.SWITCH.exists()
  or "[madvise]" not in huge_pages.SWITCH.read_text(),
  reason="this system gives no large pages to who asks",
)


def untouched():
  """The environment as if nobody had asked yet."""
  ours = (huge_pages.NAME, huge_pages.RESTARTED)
  return {k: v for k, v in os.environ.items() if k not in ours}


def start(tmp_path, tunables=None, before=""):
  script = tmp_path / "script.py"
  script.write_text(SCRIPT.format(before=before))
  env = untouched() | {"PYTHONPATH": str(ROOT)}
  if tunables is not None:
    env[huge_pages.NAME] = tunables
  command = [sys.executable, "-X", "dev", str(script), "--a b", "c"]
  with subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, text=True
  ) as process:
    lines = process.communicate(timeout=60)[0].splitlines()
  assert process.returncode == 0
  return process.pid, lines


@available
def test_the_same_command_starts_again_once_in_the_same_process(tmp_path):
  pid, lines = start(tmp_path)
  assert lines == [
    "begins",
    "begins",
    f"{huge_pages.SETTING} {pid} ['--a b', 'c']",
    "{'dev': True}",
  ]


@available
@pytest.mark.parametrize("own", ["", "glibc.malloc.arena_max=1"])
def test_an_own_setting_is_left_alone(tmp_path, own):
  pid, lines = start(tmp_path, own)
  assert lines[:2] == ["begins", f"{own} {pid} ['--a b', 'c']"]


@available
@pytest.mark.parametrize(
  "watch",
  [
    "sys.settrace(lambda *a: None)",
    pytest.param(
      "sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, 'debugger')",
      marks=pytest.mark.skipif(
        sys.version_info < (3, 12), reason="Python 3.12 has sys.monitoring"
      ),
    ),
  ],
)
def test_a_debugger_keeps_its_process(tmp_path, watch):
  pid, lines = start(tmp_path, before=watch)
  assert lines[:2] == ["begins", f"None {pid} ['--a b', 'c']"]


@available
def test_a_lost_variable_makes_no_loop(tmp_path):
  wrapper = tmp_path / "python"
  wrapper.write_text(
    f'#!/bin/sh\nunset {huge_pages.NAME}\nexec {sys.executable} "$@"\n'
  )
  wrapper.chmod(0o755)
  pid, lines = start(tmp_path, before=f"sys.executable = {str(wrapper)!r}")
  assert lines[:2] == ["begins", "begins"]
  assert lines[2] == f"None {pid} ['--a b', 'c']"


@pytest.mark.parametrize("text", ["[always] madvise never", None])
def test_nothing_is_done_where_it_would_not_help(tmp_path, monkeypatch, text):
  switch = tmp_path / "enabled"
  if text is not None:
    switch.write_text(text)
  monkeypatch.setattr(huge_pages, "SWITCH", switch)
  for name in (huge_pages.NAME, huge_pages.RESTARTED):
    monkeypatch.delenv(name, raising=False)
  assert not huge_pages.may_help()
  switch.write_text("always [madvise] never")
  assert huge_pages.may_help()


@available
def test_the_command_line_starts_so():
  env = untouched()
  env |= {"PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
  run = subprocess.run(
    [sys.executable, "-m", "gmem_jax.main", "--help"],
    env=env,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert "Train, sample and compare" in run.stdout
  # Imported twice, by two programs; JAX not at all for --help.
  assert run.stderr.count("gmem_jax.commands.huge_pages") == 2
  assert "jax._src" not in run.stderr
