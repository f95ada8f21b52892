"""A process of a job that does no more than its tests ask for.

python tests/parallel/member.py PORT COUNT INDEX WORK [SECRET-CARD]
"""

import os
import signal
import sys
import time

import numpy as np

from gmem_jax.parallel import jobs, processes


def steps(stop=None):
  """Steps that all processes take together; returns the last one."""
  for step in range(600):
    processes.everywhere(True)
    if stop is not None and stop.reached():
      return step
    if step == 3:
      print("begun", flush=True)
    time.sleep(0.05)
  raise ValueError("nothing happened")


def stand_still():
  print("begun", flush=True)
  time.sleep(60)


def fail():
  if processes.index() == 1:
    time.sleep(1)
    raise ValueError("row 7 is no image")
  steps()


def stop():
  """Stops where all stop; a second loop, as a run has two networks."""
  with processes.StopRequest():
    pass
  with processes.StopRequest() as request:
    print("stopped at", steps(request), flush=True)
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def long_work():
  """One process is done long before the other."""
  processes.agree(np.int32(1))
  if processes.index() == 1:
    time.sleep(12)


def main():
  port, count, index, work, *card = sys.argv[1:]
  job = jobs.Job(f"127.0.0.1:{port}", int(count), int(index))
  settings = {f"config.key_{i}": "x" * 200 for i in range(1000)}
  status = 0
  try:
    processes.start(
      job,
      seconds=float(os.environ.get("JOIN", "60")),
      card=settings | {"config.key_500": card},
      heartbeat=8.0,
    )
    globals()[work]()
    processes.finish()
  except (ValueError, RuntimeError) as error:
    status = processes.fail(str(error), 2)
  sys.exit(status)


if __name__ == "__main__":
  main()
