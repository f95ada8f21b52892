"""Several processes: start-up, agreement, stopping, and how a job ends.

With one process every collective is a no-op.
"""

import faulthandler
import hashlib
import itertools
import json
import os
import pathlib
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from gmem_jax.parallel import jobs, roll_call, watch

_watch: watch.Watch | None = None  # Over the other processes; None: alone.

# Seconds in which all who answered the roll call reach jax's service.
_CONNECT = 60


def start(
  job: jobs.Job, *, seconds: float, card: Mapping[str, Any], heartbeat: float
) -> None:
  """Connects the processes; afterwards jax sees the devices of all.

  From then on a process that fails or is killed ends all of them, each with one
  message.

  Args:
    job: From `jobs.find`.
    seconds: How long to wait for processes that have not started yet.
    card: Settings that must be the same on all of them; JSON.
    heartbeat: Seconds without a sign of life after which a process is gone.

  Raises:
    ValueError: Naming the processes that are missing, or the first setting that
      differs.
    roll_call.Incomplete: If another process says so.
  """
  global _watch
  roll_call.hold(job, seconds)
  # `StopRequest` has a service of its own: orbax reports its steps to this one.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    job.coordinator,
    job.count,
    job.index,
    local_device_ids=None
    if job.local_devices is None
    else list(job.local_devices),
    initialization_timeout=_CONNECT,
    coordinator_bind_address=job.bind_address,
    # Our watch names the process that is gone, so it comes first. This one is
    # left where Python does not run.
    heartbeat_timeout_seconds=int(2 * heartbeat),
    shutdown_timeout_seconds=_CONNECT,
  )
  # When process 0 is gone jax mostly aborts this one before our line is out.
  # absl would then print the stack of every thread.
  faulthandler.enable(all_threads=False)
  _watch = watch.Watch(
    _client(), job.index, job.count, heartbeat=heartbeat, on_end=end_process
  )
  _compare(job, dict(card) | {"jax": jax.__version__})


def _client() -> Any:
  """The connection of jax to its key-value store and barriers."""
  # Private, as jax has no public function for either; orbax takes it from here,
  # too. tests/parallel/test_watch.py fails when this moves.
  from jax._src import distributed

  return distributed.global_state.client


def _compare(job: jobs.Job, card: Mapping[str, Any]) -> None:
  """Refuses settings that differ between the processes; names one, no value."""
  client, milliseconds = _client(), 1000 * _CONNECT
  digests = {key: _digest(value) for key, value in card.items()}
  client.key_value_set(f"gmem_jax/card/{job.index}", _digest(digests))
  client.wait_at_barrier("gmem_jax/cards", milliseconds)
  whole = [
    client.blocking_key_value_get(f"gmem_jax/card/{i}", milliseconds)
    for i in range(job.count)
  ]
  other = next((i for i, d in enumerate(whole) if d != whole[0]), None)
  if other is None:
    return
  if job.index in (0, other):
    client.key_value_set(f"gmem_jax/keys/{job.index}", json.dumps(digests))
  ours, theirs = (
    json.loads(
      client.blocking_key_value_get(f"gmem_jax/keys/{i}", milliseconds)
    )
    for i in (0, other)
  )
  key = min(
    k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)
  )
  raise ValueError(
    f"{key}: process {other} was given another than process 0; give all"
    " processes the same command, and the same version of gmem_jax and jax"
  )


def _digest(value: Any) -> str:
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def end_process(message: str, status: int) -> None:
  """Ends this process at once, with a message and an exit status."""
  # Not sys.exit: a thread that waits in a collective would never return.
  sys.stdout.flush()
  print(f"\ngmem_jax: {message}", file=sys.stderr, flush=True)
  os._exit(status)


def finish() -> None:
  """Ends a job that succeeded: waits for the others, then disconnects."""
  global _watch
  if _watch is not None:
    _watch.leave(jax.distributed.shutdown)
    _watch = None


def fail(message: str, status: int) -> int:
  """Reports why this process ends; all others end with it, and report it, too.

  Returns:
    The status, for a process alone; one of several ends here.
  """
  if _watch is not None:
    _watch.fail(message, status)
  print(f"gmem_jax: {message}", file=sys.stderr, flush=True)
  return status


def is_joined() -> bool:
  """Whether this process is one of several."""
  return _watch is not None


def index() -> int:
  """The number of this process; alone, no device is looked for."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
  """Whether this is the process that writes what only one may write."""
  return jax.process_index() == 0


def hardware() -> dict[str, str]:
  """What computes here, for records: {"backend": "gpu", "device": its kind}."""
  return {
    "backend": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
  }


def hardware_line() -> str:
  """The same as text: "gpu, NVIDIA H100"."""
  return ", ".join(hardware().values())


def agree(value: Any) -> Any:
  """Process 0's value, a number or an array of one shape, on all processes."""
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(value)


def everywhere(value: bool) -> bool:
  """Whether `value` is true on all processes."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.array(value)).all())


def wait_for_all(name: str) -> None:
  """Waits until all processes are here; `name` is the same on all."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def check_shared(
  directory: pathlib.Path | epath.Path, key: str, seconds: float = 30.0
) -> None:
  """Checks that all processes see one directory; creates it if needed.

  Args:
    directory: Its path on this process.
    key: The flag that names it, for the message.
    seconds: How long a slow network file system may take.

  Raises:
    ValueError: On all processes, if one of them does not see what process 0
      writes.
  """
  directory.mkdir(parents=True, exist_ok=True)
  if jax.process_count() == 1:
    return
  number = int(agree(np.int32(uuid.uuid4().int & 0x7FFFFFFF)))
  token = directory / f".shared-{number}"
  if is_main():
    token.write_text("seen by all processes of a run\n")
  wait_for_all("token")
  deadline, seen = time.monotonic() + seconds, False
  while not seen and time.monotonic() < deadline:
    # Listed, not opened: NFS caches that a file is absent.
    seen = token.name in [path.name for path in directory.iterdir()]
    time.sleep(0 if seen else 0.2)
  seeing = multihost_utils.process_allgather(np.array(seen)).reshape(-1)
  if is_main():
    token.unlink(missing_ok=True)
  if not seeing.all():
    blind = ", ".join(str(i) for i in np.flatnonzero(~seeing)[:16])
    raise ValueError(
      f"{key}={directory}: must be shared by all processes, but process(es)"
      f" {blind} do not see what process 0 writes there"
    )


class StopRequest:
  """Notes signals on any process, so that the loop can save before it ends.

  Attributes:
    cause: The name of the signal.
  """

  # SIGINT is Ctrl-C, SIGHUP a terminal that was closed.
  _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

  def __init__(self):
    self._received = False
    self._manager: Any = None  # Agrees with the other processes.
    self._calls = itertools.count(1)
    self.cause = "SIGTERM"  # What jax hears of other processes.

  def __enter__(self) -> "StopRequest":
    self._previous = {
      number: signal.signal(number, self._handle)
      for number in self._SIGNALS
      # nohup, and shells for what runs in the background, have one ignored.
      if signal.getsignal(number) is not signal.SIG_IGN
    }
    if _watch is not None:
      # What is behind `multihost_utils.reached_preemption_sync_point`, where
      # orbax counts, too: in steps, and again for checkpoints long begun. The
      # common stop is one number exactly, so all must count alike. This takes
      # SIGTERM over from here on.
      from jax._src.lib import _jax

      self._manager = _jax.create_preemption_sync_manager()
      self._manager.initialize(_client())
    return self

  def __exit__(self, *_) -> None:
    if self._manager is not None:
      self._manager.shutdown()
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, _: Any) -> None:
    if not self._received:
      self._received, self.cause = True, signal.Signals(number).name
    if self._manager is not None:
      signal.raise_signal(signal.SIGTERM)  # The signal that jax listens to.

  def reached(self) -> bool:
    """Whether to stop now; all processes call this once a dispatch."""
    if self._manager is None:
      return self._received
    return self._manager.reached_sync_point(next(self._calls))
