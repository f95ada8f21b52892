"""The roll call: which processes are there, before jax connects them.

`jax.distributed` aborts a process when another one never comes, without its
number, and crashes on a port that is in use. So process 0 first counts the
others on the port of the coordinator, closes it, and leaves it to jax.

A process sends one line, "MAC INDEX COUNT", and gets one back: "go", or why the
job cannot start. Whose MAC is wrong (see `jobs.sign`) does not take part, and
nobody's line ends a job with a status that is final.
"""

import contextlib
import hmac
import select
import socket
import socketserver
import threading
import time

from gmem_jax.parallel import jobs

# Bytes of a line and of an answer, and seconds for a line to come.
_LINE, _ANSWER, _PATIENCE = 256, 1024, 5.0


class Incomplete(RuntimeError):
  """Another process says that the job cannot start."""


def hold(job: jobs.Job, seconds: float) -> None:
  """Waits until all processes of a job are there.

  Raises:
    ValueError: After so many seconds, naming the processes that are missing; or
      if the coordinator's port is in use.
    Incomplete: On the processes that hear of it from process 0, and where two
      processes do not fit together.
  """
  if job.index == 0:
    _count(job, seconds)
  else:
    _answer(job, seconds)


def _line(index: int, count: int) -> bytes:
  said = f"{index} {count}"
  return f"{jobs.sign(said) or '-'} {said}".encode()


class _Call(socketserver.ThreadingTCPServer):
  """Process 0's side: a thread for each process that has come."""

  allow_reuse_address = daemon_threads = True

  def __init__(self, job: jobs.Job):
    self.count, self.present = job.count, {0}
    self.ended, self.verdict = threading.Event(), "go"
    self.lock, self.answered = threading.Lock(), threading.Semaphore(0)
    if ":" in job.interface:
      self.address_family = socket.AF_INET6
    super().__init__((job.interface, job.address[1]), _Present)

  def end(self, verdict: str) -> None:
    with self.lock:
      if not self.ended.is_set():
        self.verdict = verdict
        self.ended.set()


class _Present(socketserver.StreamRequestHandler):
  """One process that has come, or a stranger."""

  timeout = _PATIENCE
  server: _Call

  def handle(self) -> None:
    call = self.server
    with contextlib.suppress(OSError, ValueError):
      line = self.rfile.readline(_LINE).strip()
      index, count = (int(n) for n in line.split()[1:])
      if not hmac.compare_digest(line, _line(index, count)):
        return
      if count != call.count:
        call.end(
          f"process {index} was told of {count} processes, process 0 of"
          f" {call.count}"
        )
      elif not 0 < index < count or index in call.present:
        call.end(f"two processes call themselves process {index}")
      else:
        call.present.add(index)
        if len(call.present) == call.count:
          call.end("go")
        while not call.ended.wait(0.1):
          if select.select([self.request], [], [], 0)[0]:
            call.present.discard(index)  # It is gone, and may come again.
            return
      self.wfile.write(f"{call.verdict[:_ANSWER]}\n".encode())
      call.answered.release()


def _count(job: jobs.Job, seconds: float) -> None:
  try:
    call = _Call(job)
  except OSError as error:
    raise ValueError(
      f"--coordinator={job.coordinator}: process 0 cannot listen on port"
      f" {job.address[1]} ({error.strerror}); end what uses it, or give another"
    ) from None
  with call:
    threading.Thread(target=call.serve_forever, args=(0.05,)).start()
    late = not call.ended.wait(seconds)
    present = sorted(call.present)
    if late:
      missing = sorted(set(range(job.count)) - call.present)
      call.end(
        f"process(es) {jobs.listed(missing)} of {job.count} did not join within"
        f" {seconds:g} s; present: {jobs.listed(present)}"
      )
    for _ in present[1:]:
      call.answered.acquire(timeout=_PATIENCE)
    call.shutdown()
  if call.verdict != "go":
    raise (ValueError if late else Incomplete)(call.verdict)


def _answer(job: jobs.Job, seconds: float) -> None:
  host, port = job.address
  deadline, problem = time.monotonic() + seconds, "no answer"
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection((host, port), left) as line:
        line.sendall(_line(job.index, job.count) + b"\n")
        # Process 0 decides; its clock may have started later than ours.
        line.settimeout(seconds + 30)
        with line.makefile("rb") as file:
          answer = file.readline(_ANSWER).decode(errors="replace").strip()
    except OSError as error:
      problem = error.strerror or str(error)
    else:
      if answer == "go":
        return
      if answer:
        raise Incomplete(answer)
      problem = "it hung up"
    time.sleep(0.2)
  raise ValueError(
    f"process 0 did not answer process {job.index} at {job.coordinator} within"
    f" {seconds:g} s ({problem})"
  )
