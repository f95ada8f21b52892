"""Which processes there are: by flags, by environment, or by the cluster."""

import contextlib
import dataclasses
import functools
import hmac
import ipaddress
import os
import socket
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Job:
  """The processes that train one network.

  Attributes:
    coordinator: HOST:PORT of process 0.
    count: Number of processes.
    index: Number of this process.
    local_devices: The devices that this process takes; None for all it sees.
  """

  coordinator: str
  count: int
  index: int
  local_devices: tuple[int, ...] | None = None

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise ValueError(
        f"--coordinator={self.coordinator!r}: must be HOST:PORT, with a PORT"
        " below 65536"
      )
    if not 0 <= self.index < self.count:
      raise ValueError(
        f"--process={self.index}: must be in [0, --processes={self.count})"
      )

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the coordinator."""
    host, _, port = self.coordinator.rpartition(":")
    # An IPv6 address has brackets in HOST:PORT, but not in a socket's address.
    return host.strip("[]"), int(port)

  @functools.cached_property
  def interface(self) -> str:
    """Where process 0 listens: the coordinator's IP address, or "" for any."""
    host, _ = self.address
    with contextlib.suppress(OSError):
      found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
      family, *_, (address, *_) = found[0]
      given = host == "localhost" or host == address
      # Some systems give a host's own name the address of its loopback.
      if given or not ipaddress.ip_address(address).is_loopback:
        with socket.socket(family) as probe:
          probe.bind((address, 0))
        return str(address)
    return ""  # An address that is not this machine's own: a router's.

  @property
  def bind_address(self) -> str | None:
    """The same for `jax.distributed.initialize`; None for any."""
    address, port = self.interface, self.address[1]
    if not address:
      return None
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def sign(text: str) -> str:
  """A text's MAC, whose key is the variable GMEM_SECRET; "" without one.

  What carries it was said by a process of this job, if all its hosts, and no
  others, know the secret.
  """
  key = os.environ.get("GMEM_SECRET", "").encode()
  return hmac.digest(key, text.encode(), "sha256").hex() if key else ""


def listed(numbers: Sequence[int]) -> str:
  """Numbers as text, e.g. "1, 2, 5"; only the first 16."""
  shown = ", ".join(str(n) for n in numbers[:16])
  return shown + (f" … ({len(numbers)})" if len(numbers) > 16 else "")


def find(
  coordinator: str | None, count: int | None, index: int | None
) -> Job | None:
  """Finds the job that this process belongs to; None if it is alone.

  What is None comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, else from the cluster (Cloud TPU, GKE, SLURM, Open MPI).

  Raises:
    ValueError: If only a part of it is known.
  """
  coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
  count = _number(count, "JAX_NUM_PROCESSES")
  index = _number(index, "JAX_PROCESS_ID")
  devices = None
  if count != 1 and None in (coordinator, count, index):
    coordinator, count, index, devices = _detect(coordinator, count, index)
  if count == 1 or (count is None and coordinator is None and index is None):
    return None
  known = {"coordinator": coordinator, "processes": count, "process": index}
  missing = [f"--{name}" for name, value in known.items() if value is None]
  if missing:
    raise ValueError(
      f"{', '.join(missing)}: needed to start several processes by hand, beside"
      f" {', '.join(f'--{n}' for n, v in known.items() if v is not None)}"
    )
  return Job(str(coordinator), int(count), int(index), devices)  # type: ignore


def _number(given: int | None, variable: str) -> int | None:
  if given is not None or variable not in os.environ:
    return given
  try:
    return int(os.environ[variable])
  except ValueError:
    raise ValueError(
      f"{variable}={os.environ[variable]!r}: must be a number"
    ) from None


def _detect(coordinator, count, index):
  """Fills in what is not given from the cluster, as jax does."""
  # Private, as jax has no public function that only looks: initialize() also
  # connects, and aborts over a process that is missing, before we can name it.
  # tests/parallel/test_jobs.py fails when this moves.
  from jax._src import clusters

  detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
  try:
    coordinator, count, index, devices = detect(
      coordinator_address=coordinator,
      num_processes=count,
      process_id=index,
      local_device_ids=None,
      cluster_detection_method=None,
      initialization_timeout=60,
    )
  except Exception as error:
    raise ValueError(
      f"the cluster does not say who takes part ({error}); give --coordinator,"
      " --processes and --process"
    ) from error
  visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
  if devices and len(visible) == 1 and visible[0]:
    devices = None  # The launcher already gave this process its one device.
  return coordinator, count, index, devices and tuple(devices)
