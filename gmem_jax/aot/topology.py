"""Machines that are elsewhere: devices to compile for.

TPUs need libtpu (the extra `tpu-aot`), NVIDIA GPUs jax-cuda12-plugin and
jax-cuda12-pjrt; neither needs a driver or a chip. Without the latter a program
can still be lowered for GPUs, but not compiled.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from gmem_jax.aot import chips

_N = r"[1-9]\d*"
_NAME = re.compile(
  rf"(?P<tpu>v4|v5e|v5p|v6e):(?P<shape>{_N}(?:x{_N}){{1,2}})"
  rf"(?:x(?P<slices>{_N})slices)?"
  rf"|(?P<gpu>h100|h200):(?:(?P<hosts>{_N})x)?(?P<each>{_N})"
)
HELP = (
  "v4:XxYxZ, v5e:XxY, v5p:XxYxZ or v6e:XxY (chips along each axis), each with"
  " x2slices at its end for two of them, h100:N or h100:HOSTSxN, as h200"
)

# What libtpu asks of a machine that has no TPU; without the last two it would
# fill the temporary directory with logs, and only one process could use it.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_LOG_DIR": "disabled",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# The H100 SXM as XLA describes it to itself; without a driver nothing else can.
# The H200 has the same processor with other memory, here as it is published.
_HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: %(bandwidth)d l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: %(memory)d cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "%(name)s"
"""
_GPUS = {
  "h100": {
    "name": "NVIDIA H100 80GB HBM3",
    "memory": 84_929_347_584,
    "bandwidth": 3_352_320_000_000,
  },
  "h200": {
    "name": "NVIDIA H200",
    "memory": 141_000_000_000,
    "bandwidth": 4_800_000_000_000,
  },
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine to compile for.

  Attributes:
    count: Number of chips, of all slices.
    slices: Slices with a fast network of their own; a slow one joins them.
    platform: "tpu" or "cuda".
    devices: Its devices; CPUs as stand-ins if there is no compiler for it.
    compiler: The compiler and its version; "" if none is installed.
    options: Options of the compiler.
  """

  name: str
  chip: chips.Chip
  count: int
  slices: int
  platform: str
  devices: tuple[Any, ...]
  compiler: str
  options: dict[str, str]

  @property
  def has_cudnn(self) -> bool:
    """Whether programs with cuDNN's attention can be compiled for it."""
    if self.platform != "cuda" or not self.compiler:
      return False
    try:
      importlib.metadata.version("nvidia-cudnn-cu12")
    except importlib.metadata.PackageNotFoundError:
      return False
    return True


def describe(name: str) -> Topology:
  """Finds the devices of a machine; this process then computes on the CPU.

  Args:
    name: See `HELP`.

  Raises:
    ValueError: On an unknown name, or a shape that no such pod has.
    ModuleNotFoundError: If libtpu is needed and not installed.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise ValueError(f"--topology={name!r}: must be {HELP}")
  jax.config.update("jax_platforms", "cpu")
  if match["tpu"]:
    shape = [int(n) for n in match["shape"].split("x")]
    return _tpu(name, match["tpu"], shape, int(match["slices"] or 1))
  return _gpu(name, match["gpu"], int(match["hosts"] or 1), int(match["each"]))


def _tpu(name: str, kind: str, shape: list[int], slices: int) -> Topology:
  try:
    version = importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    raise ModuleNotFoundError(
      f"--topology={name}: compiling for a TPU needs libtpu:"
      " pip install 'gmem_jax[tpu-aot]'"
    ) from None
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  # What was compiled for an absent machine cannot be read back: jax would warn.
  jax.config.update("jax_enable_compilation_cache", False)
  # Chips of v4 have two cores, which programs see as one device.
  extra: dict[str, Any] = (
    {"chip_config_name": "megacore"} if kind == "v4" else {}
  )
  if slices > 1:
    extra["num_slices"] = slices
  try:
    topology = topologies.get_topology_desc(
      f"{kind}:{'x'.join(map(str, shape))}", platform="tpu", **extra
    )
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    message = str(error).splitlines()[0]
    raise ValueError(f"--topology={name}: {message}") from None
  return Topology(
    name=name,
    chip=chips.CHIPS[kind],
    count=slices * math.prod(shape),
    slices=slices,
    platform="tpu",
    devices=tuple(topology.devices),
    compiler=f"libtpu {version}",
    options={},
  )


def _gpu(name: str, kind: str, hosts: int, each: int) -> Topology:
  try:
    version = importlib.metadata.version("jax-cuda12-pjrt")
    importlib.metadata.version("jax-cuda12-plugin")
  except importlib.metadata.PackageNotFoundError:
    devices, compiler = _stand_ins(name, hosts * each), ""
  else:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    topology = topologies.get_topology_desc(
      platform="cuda",
      target_config=_HOPPER % _GPUS[kind],
      topology=f"1x{hosts}x{each}",
    )
    devices, compiler = tuple(topology.devices), f"jax-cuda12-pjrt {version}"
  return Topology(
    name=name,
    chip=chips.CHIPS[kind],
    count=hosts * each,
    slices=1,
    platform="cuda",
    devices=devices,
    compiler=compiler,
    # Autotuning would have to run kernels, and untuned Triton matmuls do not
    # compile for every shape: cuBLAS takes them.
    options={
      "xla_gpu_autotune_level": "0",
      "xla_gpu_enable_triton_gemm": "False",
    },
  )


def _stand_ins(name: str, count: int) -> tuple[Any, ...]:
  """CPUs of this process, to lower for in place of GPUs."""
  with contextlib.suppress(RuntimeError):  # JAX has started: too late to add.
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise ValueError(
      f"--topology={name}: JAX already runs with {len(devices)} devices here:"
      " compile in a process of its own"
    )
  return tuple(devices[:count])
