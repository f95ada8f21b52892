import glob
import os
import pathlib
import subprocess
import sys

import pytest

from gmem_jax.commands import startup

SCRIPT = """
import os, sys
from gmem_jax.commands import startup
print("begins", flush=True)
{before}
startup.restart()
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:])
print(sys._xoptions)
"""
ROOT = pathlib.Path(__file__).parents[2]

available = pytest.mark.skipif(
  not startup.SWITCH.exists() or "[madvise]" not in startup.SWITCH.read_text(),
  reason="huge pages are not opt-in on this system",
)


def untouched():
  """The environment as if nobody had asked yet."""
  ours = (startup.NAME, startup.RESTARTED)
  return {k: v for k, v in os.environ.items() if k not in ours}


def start(tmp_path, tunables=None, before=""):
  script = tmp_path / "script.py"
  script.write_text(SCRIPT.format(before=before))
  env = untouched() | {"PYTHONPATH": str(ROOT)}
  if tunables is not None:
    env[startup.NAME] = tunables
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
    f"{startup.SETTING} {pid} ['--a b', 'c']",
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
    f'#!/bin/sh\nunset {startup.NAME}\nexec {sys.executable} "$@"\n'
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
  monkeypatch.setattr(startup, "SWITCH", switch)
  for name in (startup.NAME, startup.RESTARTED):
    monkeypatch.delenv(name, raising=False)
  assert not startup.may_help()
  switch.write_text("always [madvise] never")
  assert startup.may_help()


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
  assert run.stderr.count("gmem_jax.commands.startup") == 2
  assert "jax._src" not in run.stderr


@pytest.mark.parametrize(
  ("given", "expanded"),
  [
    ("--workdir=~/run", "--workdir=/home/me/run"),
    ("-workdir=~", "-workdir=/home/me"),
    ("--interpolate=3,~/b.png", "--interpolate=3,/home/me/b.png"),
    ("--config=~/own.py:small", "--config=/home/me/own.py:small"),
    ("--workdir=runs/~", "--workdir=runs/~"),
    # Not a path; keys of the config are `resolve`'s.
    ("--mode=~", "--mode=~"),
    ("--config.data.path=~/a", "--config.data.path=~/a"),
    ("~/run", "~/run"),
  ],
)
def test_a_flag_that_is_a_path_knows_the_home(monkeypatch, given, expanded):
  monkeypatch.setenv("HOME", "/home/me")
  names = ("config", "workdir", "interpolate")
  assert startup.expand_home(given, names) == expanded


RUN = pathlib.Path("/runs/a")


@pytest.mark.parametrize(
  ("key", "workdir", "directory"),
  [
    ("compiled", RUN, RUN / "compiled"),
    ("/cache", RUN, pathlib.Path("/cache")),
    ("/cache", None, pathlib.Path("/cache")),
    ("compiled", None, None),
    ("", RUN, None),
  ],
)
def test_where_programs_are_kept(key, workdir, directory):
  assert startup.cache_directory(key, workdir) == directory


def compile_something(directory, **variables):
  """A process that keeps what it compiles; what it prints on stderr."""
  code = (
    "import pathlib, jax\n"
    "from gmem_jax.commands import startup\n"
    f"startup.keep_compiled(pathlib.Path({str(directory)!r}))\n"
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


def without_platforms():
  """The environment of someone who has asked JAX for nothing."""
  return {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_PLATFORMS", "JAX_FORCE_TPU", "TPU_"))
  }


@pytest.mark.process
@pytest.mark.parametrize(
  ("variables", "loaded"),
  [({}, False), ({"TPU_WORKER_ID": "0"}, True), ({"JAX_PLATFORMS": ""}, True)],
)
def test_libtpu_is_left_alone_where_no_tpu_is(tmp_path, variables, loaded):
  """A library of that name, which tells when JAX wants to load it."""
  if any(map(glob.glob, startup.TPU_CHIPS)):
    pytest.skip("this machine has a TPU")
  package = tmp_path / "libtpu"
  package.mkdir()
  (package / "__init__.py").write_text(
    "def get_library_path():\n  print('libtpu is asked for')\n"
  )
  run = subprocess.run(
    [
      sys.executable, "-m", "gmem_jax.main", "--config=configs/digits.py",
      f"--workdir={tmp_path / 'none'}", "--mode=sample",
    ],
    env=without_platforms()
    | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    | variables,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )  # fmt: skip
  # It found its devices, and then no run.
  assert "no run was trained there" in run.stderr
  assert ("libtpu is asked for" in run.stdout) is loaded


# Each in a child of a process that has imported JAX, and with it libtpu, as
# nearly all of our programs have when they start to work.
PROGRAMS = """
import contextlib, os, runpy, sys
import jax

for words in {programs}:
  if not os.fork():
    sys.argv = words.split()
    with open(os.devnull, "w") as nothing:
      with contextlib.redirect_stdout(nothing), contextlib.suppress(SystemExit):
        runpy.run_module(words.split()[0], run_name="__main__", alter_sys=True)
    path = os.environ.get("TPU_LIBRARY_PATH")
    away = sys.modules["libtpu"] is None and path is None
    print(away or jax.config.jax_platforms == "cpu", words, flush=True)
    os._exit(0)
  os.wait()
"""


@pytest.mark.process
def test_every_program_leaves_libtpu_alone(tmp_path):
  if any(map(glob.glob, startup.TPU_CHIPS)):
    pytest.skip("this machine has a TPU")
  package = tmp_path / "libtpu"
  package.mkdir()
  # The library tells JAX where it is as soon as it is imported.
  (package / "__init__.py").write_text(
    "import os\n"
    "def get_library_path():\n"
    "  return __file__.replace('__init__.py', 'libtpu.so')\n"
    "os.environ.setdefault('TPU_LIBRARY_PATH', get_library_path())\n"
  )
  (package / "libtpu.so").touch()
  programs = [
    "gmem_jax.bank info --help",
    "gmem_jax.bench lookup --help",
    "gmem_jax.commands.export --help",
    "gmem_jax.convert --help",
    "gmem_jax.data.emoji --help",
    "gmem_jax.evaluate --help",
    "gmem_jax.studio --help",
  ]
  run = subprocess.run(
    [sys.executable, "-c", PROGRAMS.format(programs=programs)],
    env=without_platforms()
    | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert run.stdout.splitlines() == [f"True {each}" for each in programs]


def test_chips_of_a_tpu_are_seen(tmp_path, monkeypatch):
  for name in ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setitem(sys.modules, "libtpu", "kept")
  chips = (f"{tmp_path}/accel*", f"{tmp_path}/vfio/[0-9]*")
  monkeypatch.setattr(startup, "TPU_CHIPS", chips)
  (tmp_path / "vfio").mkdir()
  chip = tmp_path / "vfio" / "0"
  chip.touch()
  startup.skip_libtpu()
  assert sys.modules["libtpu"] == "kept"
  chip.rename(tmp_path / "vfio" / "vfio")  # Of any virtual machine.
  startup.skip_libtpu()
  assert sys.modules["libtpu"] is None
