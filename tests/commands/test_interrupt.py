"""Ctrl-C, as real processes get it."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from gmem_jax.files import atomic
from tests import tiny

pytestmark = pytest.mark.process

# A program says that it has begun, then waits in one of several ways.
PROGRAM = """
import ctypes, os, sys, threading, time
from gmem_jax.commands import interrupt

def begin():
  print("begun", flush=True)
  time.sleep(60)

def stubborn():
  try:
    begin()
  except KeyboardInterrupt:
    begin()

def compiled():
  # The second lock of one mutex never returns, nor does a signal end the wait.
  mutex = ctypes.create_string_buffer(256)
  lock = ctypes.CDLL(None).pthread_mutex_lock
  lock(mutex)
  # Said from inside of the wait: before it, Python would take the signal.
  threading.Timer(1, print, ["begun"], {{"flush": True}}).start()
  # Or a test that fails would wait for ever.
  threading.Timer(60, os._exit, [9]).start()
  lock(mutex)

sys.exit(interrupt.run({work}))
"""


def start(work):
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM.format(work=work)],
    cwd=tiny.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "begun\n"
  return process


def test_the_first_is_one_line_and_status_130():
  process = start("begin")
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 130
  # A slow machine may say before that a second one ends it at once.
  assert stderr.splitlines()[-1] == "gmem_jax: interrupted"
  assert "Traceback" not in stderr


def test_the_second_ends_what_did_not_end():
  process = start("stubborn")
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "begun\n"
  process.send_signal(signal.SIGINT)
  # Also by the line of the first kind, if the main thread is faster.
  _, stderr = process.communicate(timeout=60)
  assert (process.returncode, "Traceback" in stderr) == (130, False)


def test_the_second_ends_compiled_code():
  process = start("compiled")
  process.send_signal(signal.SIGINT)
  # It has said so after a second.
  assert "Ctrl-C again ends it at once" in process.stderr.readline()
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert (process.returncode, stderr) == (130, "")


def test_prepare_ends_in_one_line_with_nothing_half_written(tmp_path):
  for i in range(64):
    (tmp_path / f"{i}.png").write_bytes(b"no image")
  out = tmp_path / "out"
  process = subprocess.Popen(
    [
      sys.executable, "-m", "gmem_jax.main", "--mode=prepare",
      f"--config={tiny.ROOT}/configs/digits.py", "--config.data.holdout=0",
      "--config.data.source=folder", f"--config.data.path={tmp_path}",
      f"--config.data.prepared={out}", "--config.data.tokens=none",
      "--config.loss.projection_weight=0.0",
    ],
    cwd=tiny.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip
  while process.poll() is None and not (out / "schema.json").exists():
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 130
  assert stderr.splitlines()[-1] == "gmem_jax: interrupted"
  assert "Traceback" not in stderr
  assert not atomic.leftovers(out)


# Runs a command as the leader of a terminal's session, as a login shell would.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_closed_terminal_does_not_lose_the_run(tmp_path):
  workdir = tmp_path / "run"
  ours, theirs = pty.openpty()
  process = subprocess.Popen(
    [
      sys.executable, "-c", IN_TERMINAL, sys.executable, "-m", "gmem_jax.main",
      f"--config={tiny.ROOT}/configs/digits.py", f"--workdir={workdir}",
      *tiny.flags(
        train__steps=100_000, optim__decay_steps=0, checkpoint__every=1000
      ),
      "--stopped_status=75",
    ],
    cwd=tiny.ROOT,
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
  )  # fmt: skip
  os.close(theirs)
  metrics = workdir / "metrics.jsonl"
  while process.poll() is None and not (
    metrics.exists() and metrics.stat().st_size
  ):
    # Read, or the terminal fills up and the process waits.
    if select.select([ours], [], [], 0.05)[0]:
      os.read(ours, 65536)
  os.close(ours)
  assert process.wait(timeout=120) == 75
  (saved,) = (int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert saved > 0
