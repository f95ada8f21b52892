"""One job in a directory, with real processes and with files of other hosts."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gmem_jax.parallel import lock

# Holds a directory until it is told to go on, or is killed.
HOLDER = """
import pathlib, sys
from gmem_jax.parallel import lock
lock.BEAT = 0.05
with lock.held(pathlib.Path(sys.argv[1]), "--workdir"):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds `tmp_path`."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """A lock that a process on another machine has left; its silence is short."""
  monkeypatch.setattr(lock, "SILENCE", 1.0)
  path = tmp_path / lock.NAME
  owner = {"pid": 7, "host": "elsewhere", "since": "noon", "boot": "another"}
  path.write_text(json.dumps(owner))
  return path


def enter(directory):
  with lock.held(directory, "--workdir"):
    return json.loads((directory / lock.NAME).read_text())


def test_whoever_holds_it_is_named_and_its_end_frees_it(tmp_path):
  directory = tmp_path / "new" / "run"
  with (
    lock.held(directory, "--workdir"),
    pytest.raises(ValueError, match=f"process {os.getpid()} on .* works"),
  ):
    enter(directory)
  assert not directory.exists()
  directory.mkdir()
  assert enter(directory)["pid"] == os.getpid()
  assert not list(directory.iterdir())


def test_a_killed_process_holds_nothing(holder, tmp_path):
  with pytest.raises(ValueError, match=rf"--workdir=.*process {holder.pid} on"):
    enter(tmp_path)
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == holder.pid
  before = time.monotonic()
  assert enter(tmp_path)["pid"] == os.getpid()
  assert time.monotonic() - before < 1


def test_whose_lock_is_removed_ends(holder, tmp_path):
  (tmp_path / lock.NAME).unlink()
  assert enter(tmp_path)["pid"] == os.getpid()
  assert holder.wait(timeout=30) == 2
  stderr = holder.stderr.read()
  assert "so this job ends" in stderr
  assert "Traceback" not in stderr


def test_another_machine_that_is_silent_is_gone(tmp_path, elsewhere):
  before = time.monotonic()
  assert enter(tmp_path)["pid"] == os.getpid()
  assert time.monotonic() - before >= 1


def test_another_machine_that_gives_signs_of_life_is_named(tmp_path, elsewhere):
  timer = threading.Timer(0.3, os.utime, [elsewhere])
  timer.start()
  match = "process 7 on elsewhere, since noon, .* no launcher starts it again"
  with pytest.raises(ValueError, match=match):
    enter(tmp_path)
  timer.join()
  assert json.loads(elsewhere.read_text())["pid"] == 7


def test_another_machine_that_ends_is_not_waited_for(tmp_path, elsewhere):
  lock.SILENCE = 60.0
  timer = threading.Timer(0.3, elsewhere.unlink)
  timer.start()
  before = time.monotonic()
  assert enter(tmp_path)["pid"] == os.getpid()
  assert time.monotonic() - before < 30
  timer.join()


def test_this_machine_before_it_was_started_anew_is_another(
  tmp_path, elsewhere
):
  owner = {**lock._describe_self(), "boot": "before"}
  elsewhere.write_text(json.dumps(owner))
  assert enter(tmp_path)["boot"] != "before"


def test_a_server_may_keep_the_lock_of_a_machine_that_is_gone(
  tmp_path, elsewhere
):
  with elsewhere.open("r+") as kept:
    fcntl.flock(kept, fcntl.LOCK_EX)
    assert enter(tmp_path)["pid"] == os.getpid()


def test_a_disk_without_locks_goes_by_signs_of_life(
  tmp_path, elsewhere, monkeypatch
):
  def flock(file, operation):
    raise OSError(errno.ENOSYS, "no locks here")

  monkeypatch.setattr(fcntl, "flock", flock)
  elsewhere.write_text(json.dumps(lock._describe_self()))
  timer = threading.Timer(0.3, os.utime, [elsewhere])
  timer.start()
  with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
    enter(tmp_path)
  timer.join()
  # Without a word of anyone there is nobody to wait for.
  elsewhere.write_text("")
  lock.SILENCE = 60.0
  assert enter(tmp_path)["pid"] == os.getpid()
