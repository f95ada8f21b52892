"""Real processes that watch each other; what they do is in `member`."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gmem_jax.parallel import jobs, watch
from tests import job as job_lib, tiny

HEARTBEAT = 8.0  # as in `member`


class Members:
  """Two processes, and what they print."""

  def __init__(self, folder, work, cards=((), ())):
    port = job_lib.free_port()
    self.outputs = [folder / f"{i}.txt" for i in range(2)]
    self.processes = []
    for i, card in enumerate(cards):
      command = [sys.executable, "-m", "tests.parallel.member"]
      with self.outputs[i].open("w") as output:
        self.processes.append(
          subprocess.Popen(
            [*command, str(port), "2", str(i), work, *card],
            cwd=tiny.ROOT,
            env=dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=""),
            stdout=output,
            stderr=subprocess.STDOUT,
          )
        )

  def send(self, i, number):
    """Sends a signal to a process that has begun; returns when."""
    deadline = time.monotonic() + 120
    while "begun" not in self.output(i):
      assert time.monotonic() < deadline, self.output(i)
      time.sleep(0.05)
    self.processes[i].send_signal(number)
    return time.monotonic()

  def output(self, i):
    return self.outputs[i].read_text()

  def end(self, i):
    """A process's status, and its one line."""
    status = self.processes[i].wait(120)
    lines = self.output(i).splitlines()
    (line,) = [x for x in lines if x.startswith("gmem_jax: ")]
    assert "Traceback" not in self.output(i)
    return status, line.removeprefix("gmem_jax: ")

  def kill(self):
    for process in self.processes:
      process.kill()
      process.wait()


@pytest.fixture
def members(tmp_path):
  started = []

  def start(*args):
    started.append(Members(tmp_path, *args))
    return started[-1]

  yield start
  for found in started:
    found.kill()


process = pytest.mark.process


@process
def test_another_config_is_refused_without_its_values(members):
  job = members("steps", (["hunter2"], ["hunter3"]))
  for i in range(2):
    status, line = job.end(i)
    assert status == 2
    assert line.startswith("config.key_500: process 1 was given another")
    assert "hunter" not in job.output(i)


@process
def test_a_failure_is_told_to_all(members):
  job = members("fail")
  assert job.end(1) == (2, "row 7 is no image")
  # Nobody's word ends another process with a status that is final.
  assert job.end(0) == (watch.AGAIN, "process 1: row 7 is no image")


@process
def test_a_killed_process_is_named(members):
  job = members("steps")
  began = job.send(1, signal.SIGKILL)
  status, line = job.end(0)
  assert time.monotonic() - began < HEARTBEAT
  assert (status, line) == (watch.AGAIN, watch.gone([1]))


@process
@pytest.mark.slow
def test_a_process_that_stands_still_is_named(members):
  """Nothing fails: neither a collective nor a connection."""
  job = members("stand_still")
  began = job.send(1, signal.SIGSTOP)
  status, line = job.end(0)
  assert time.monotonic() - began < HEARTBEAT + 2
  assert (status, line) == (watch.AGAIN, watch.gone([1]))


@process
@pytest.mark.slow
def test_without_process_0_jax_or_we_end_the_others(members):
  job = members("stand_still")
  began = job.send(0, signal.SIGKILL)
  status = job.processes[1].wait(60)
  assert time.monotonic() - began < HEARTBEAT
  if status == watch.AGAIN:
    assert watch.gone([0]) in job.output(1)
  else:
    assert status == -signal.SIGABRT
    assert "the leader task was preempted" in job.output(1)


@process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_all_at_one_step(number, members):
  """In the second loop; orbax's service would have counted the first, too."""
  job = members("stop")
  job.send(1, number)
  assert [p.wait(120) for p in job.processes] == [0, 0], job.output(1)
  said = {job.output(i).partition("stopped at ")[2].strip() for i in range(2)}
  assert len(said) == 1
  assert int(said.pop()) > 3


@process
@pytest.mark.slow
def test_who_has_finished_waits_for_the_others(members):
  job = members("long_work")  # longer than the heartbeat
  assert [p.wait(120) for p in job.processes] == [0, 0], job.output(0)


@pytest.mark.parametrize(
  ("news", "expected"),
  [
    ('["process 1: no", 2, ""]', "process 1: no"),
    ('["\\u001b[31m red\\n", 2, ""]', " [31m red "),
    ('["no", 2, "\\u00ff"]', "no"),
    ("[1]", "the job was ended"),
    ("{}", "the job was ended"),
    ("{", "the job was ended"),
    ('["' + "x" * 9999 + '", 0, null]', "x" * 2000),
  ],
)
def test_news_may_be_anybodys(news, expected, monkeypatch):
  for secret in ("", "hunter2"):
    monkeypatch.setenv("GMEM_SECRET", secret)
    assert watch._heard(news) == (expected, watch.AGAIN)


def test_a_status_is_believed_with_the_secret(monkeypatch):
  monkeypatch.setenv("GMEM_SECRET", "hunter2")
  said = ["no", 2]
  news = json.dumps([*said, jobs.sign(json.dumps(said))])
  assert watch._heard(news) == ("no", 2)
  monkeypatch.setenv("GMEM_SECRET", "hunter3")
  assert watch._heard(news) == ("no", watch.AGAIN)


def test_several_that_are_gone():
  assert watch.gone([1, 2]).startswith("process(es) 1, 2 are gone (killed, ")
