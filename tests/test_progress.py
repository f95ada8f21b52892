import logging
import os
import pty
import subprocess
import sys
import termios

import pytest

from gmem_jax import progress


def test_progress_off_a_terminal_is_a_log_line(caplog):
  line = progress.Progress("train", 0, 100)
  with caplog.at_level(logging.INFO, logger="gmem_jax"):
    line.update(50)  # Metrics are fetched late.
    line.report(40, 12.0, {"train/loss": 0.5})
  line.close()
  assert "train 40/100 steps" in caplog.text
  assert "ETA 00:05" in caplog.text
  assert "loss 0.5" in caplog.text


def test_a_log_file_is_not_left_without_a_word(caplog, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  line = progress.Progress("sample", 0, 100, unit="image")
  with caplog.at_level(logging.INFO, logger="gmem_jax"):
    now[0] = 300.0  # Compiling.
    line.update(10)
    now[0] += progress.SILENCE / 2
    line.update(15)
    assert not caplog.messages
    now[0] += progress.SILENCE / 2
    line.update(30)
  line.close()
  (message,) = caplog.messages
  # 20 images in 20 seconds, after those that waited for the compiler.
  assert "sample 30/100 images  1.0 images/s  ETA 01:10" in message


def test_bytes_are_counted_in_larger_units(caplog):
  line = progress.Progress("convert", 0, 2_000_000, "B")
  with caplog.at_level(logging.INFO, logger="gmem_jax"):
    line.report(1_000_000, 5e4, {})
  line.close()
  assert "convert 1.00M/2.00M B  50.0k B/s  ETA 00:20" in caplog.text


def test_phases_off_a_terminal_are_a_log_line_each(caplog):
  with (
    caplog.at_level(logging.INFO, logger="gmem_jax"),
    progress.phases("sampler") as begin,
  ):
    begin("tracing")
    begin("compiling")
  assert caplog.messages == [
    "sampler: tracing, 00:00 so far",
    "sampler: compiling, 00:00 so far",
  ]


WORK = """
import time
from gmem_jax import progress
with progress.phases("sampler") as begin:
  begin("compiling")
  time.sleep(2.5)
  raise ValueError
"""


@pytest.mark.process
def test_phases_tick_on_a_terminal():
  """Though nothing but time goes on; an error ends the ticking."""
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  child = subprocess.run(
    [sys.executable, "-c", WORK], stderr=theirs, timeout=60, check=False
  )
  shown = os.read(ours, 10_000).decode()
  assert child.returncode == 1
  for seconds in range(3):
    assert f"sampler: compiling  00:0{seconds}" in shown
  assert "ValueError" in shown
