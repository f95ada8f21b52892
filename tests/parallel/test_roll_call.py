"""The roll call; here each process is a thread."""

import socket
import threading
import time

import pytest

from gmem_jax.parallel import jobs, roll_call
from tests import job as job_lib


def call(port, *present, seconds=20.0):
  """Lets (index, count) join at once; returns each one's error, or None."""
  errors = {}

  def one(key, index, count):
    try:
      roll_call.hold(jobs.Job(f"127.0.0.1:{port}", count, index), seconds)
      errors[key] = None
    except (ValueError, roll_call.Incomplete) as error:
      errors[key] = error

  threads = [
    threading.Thread(target=one, args=(key, *who))
    for key, who in enumerate(present)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return errors


@pytest.fixture
def port():
  return job_lib.free_port()


def test_all_are_there(port):
  assert call(port, (0, 3), (1, 3), (2, 3)) == dict.fromkeys(range(3))


def test_the_missing_are_named_to_all_who_are_there(port):
  errors = call(port, (0, 4), (2, 4), seconds=1.0)
  expected = "process(es) 1, 3 of 4 did not join within 1 s; present: 0, 2"
  assert {str(error) for error in errors.values()} == {expected}
  # What another process says is never final.
  assert isinstance(errors[0], ValueError)
  assert isinstance(errors[1], roll_call.Incomplete)


def test_a_missing_process_0_is_named(port):
  errors = call(port, (1, 2), seconds=0.5)
  assert f"process 0 did not answer process 1 at 127.0.0.1:{port}" in str(
    errors[0]
  )


def test_other_counts_are_said_to_both(port):
  errors = call(port, (0, 2), (1, 3))
  expected = "process 1 was told of 3 processes, process 0 of 2"
  assert [str(error) for error in errors.values()] == [expected] * 2
  assert all(isinstance(e, roll_call.Incomplete) for e in errors.values())


def test_two_of_one_number(port):
  errors = call(port, (0, 3), (1, 3), (1, 3))
  assert {str(error) for error in errors.values()} == {
    "two processes call themselves process 1"
  }


def test_a_port_in_use_is_said(port):
  with socket.create_server(("127.0.0.1", port)):
    errors = call(port, (0, 2), seconds=1.0)
  assert f"cannot listen on port {port} (Address already in use)" in str(
    errors[0]
  )


def speak(port, line):
  """A connection that sends bytes."""
  deadline = time.monotonic() + 10
  while True:
    try:
      stranger = socket.create_connection(("127.0.0.1", port))
      break
    except OSError:
      assert time.monotonic() < deadline
      time.sleep(0.01)
  stranger.sendall(line)
  return stranger


def test_strangers_do_not_count(port, monkeypatch):
  monkeypatch.setenv("GMEM_SECRET", "hunter2")
  found = {}
  host = threading.Thread(target=lambda: found.update(call(port, (0, 2))))
  host.start()
  forged = roll_call._line(1, 2).replace(b" 1 2", b" 1 3")
  lines = [b"GET / HTTP/1.1\r\n\r\n", b"x" * 10_000, b"\xff 1 2\n", b"", forged]
  monkeypatch.setenv("GMEM_SECRET", "another")
  lines.append(roll_call._line(1, 2))
  strangers = [speak(port, line + b"\n") for line in lines]
  monkeypatch.setenv("GMEM_SECRET", "hunter2")
  time.sleep(0.3)
  assert call(port, (1, 2)) == {0: None}
  host.join()
  assert found == {0: None}
  for stranger in strangers:
    stranger.close()


def test_who_dies_while_it_waits_may_come_again(port):
  found = {}
  host = threading.Thread(target=lambda: found.update(call(port, (0, 3))))
  host.start()
  speak(port, roll_call._line(1, 3) + b"\n").close()
  time.sleep(0.5)
  assert call(port, (1, 3), (2, 3)) == {0: None, 1: None}
  host.join()
  assert found == {0: None}


def test_where_process_0_listens(monkeypatch):
  def at(host):
    return jobs.Job(f"{host}:1", 2, 0)

  assert at("127.0.0.1").bind_address == "127.0.0.1:1"
  assert at("localhost").interface in ("127.0.0.1", "::1")
  assert at("192.0.2.1").interface == ""  # not this machine's
  assert at("no.such.host.invalid").bind_address is None

  def loopback(host, port, **_):
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]

  monkeypatch.setattr(socket, "getaddrinfo", loopback)
  assert at("node03").interface == ""  # others could not reach it
