"""The kernels lower for TPU and GPU, compile for TPU, and need little scratch.

No accelerator takes part: `jax.export` lowers on any machine, and libtpu
compiles for chips that are not there (pip install libtpu).
"""

import contextlib
import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from gmem_jax.bank import bank, lookup
from gmem_jax.bank.kernels import (
  topk_gpu,
  topk_reference,
  topk_tpu,
  topk_xla,
)
from tests.bank.kernels import arg_specs

M = arg_specs.IMAGENET
HOPPER = "NVIDIA H100 80GB HBM3"


def arguments(q, m, dtype, query_dtype=jnp.float32, d=768, sharding=None):
  def shape(size, kind):
    return jax.ShapeDtypeStruct(size, kind, sharding=sharding)

  scales = shape((m,), jnp.float32) if dtype == "int8" else None
  return shape((q, d), query_dtype), shape((m, d), dtype), scales


def exported(module, platform, k, *args):
  function = jax.jit(module.top_k, static_argnums=3)
  return jax.export.export(function, platforms=[platform])(*args, k)


@pytest.mark.parametrize("dtype", arg_specs.DTYPES)
@pytest.mark.parametrize("k", arg_specs.NEIGHBOURS)
def test_tpu_kernels_lower(dtype, k):
  args = arguments(64, M, dtype)
  text = exported(topk_tpu, "tpu", k, *args).mlir_module()
  assert "bank_bin_maxima" in text
  assert "bank_rescore" in text


@pytest.mark.parametrize("q", [3, 200])
@pytest.mark.parametrize("query_dtype", [jnp.float32, jnp.bfloat16])
def test_gpu_kernel_lowers(q, query_dtype):
  args = arguments(q, M + 1, "bfloat16", query_dtype)
  if jax.__version_info__ < (0, 11):
    with pytest.raises(NotImplementedError, match=r"jax 0\.10.*needs 0\.11"):
      exported(topk_gpu, "cuda", 10, *args)
    return
  with hopper():
    text = exported(topk_gpu, "cuda", 10, *args).mlir_module()
  assert "mosaic_gpu" in text
  assert "triton" not in text.lower()


@contextlib.contextmanager
def hopper():
  """A machine with one Hopper GPU, to lower for."""
  from jax.sharding import AbstractMesh
  from jax._src.mesh import AbstractDevice  # isort: skip

  mesh = AbstractMesh(
    (1,), ("d",), abstract_device=AbstractDevice(HOPPER, 132, "gpu")
  )
  with jax.sharding.use_abstract_mesh(mesh):
    yield


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
@pytest.mark.parametrize("dtype", arg_specs.DTYPES)
def test_plain_xla_lowers_everywhere(platform, dtype):
  args = arguments(64, M, dtype)
  for module in (topk_reference, topk_xla):
    text = exported(module, platform, 10, *args).mlir_module()
    assert 'custom_call_target = "tpu_custom_call"' not in text


@pytest.mark.parametrize(
  ("platform", "dtype", "m", "kernel"),
  [
    ("tpu", "bfloat16", M, "tpu_custom_call"),
    ("tpu", "bfloat16", 200, None),
    ("cuda", "bfloat16", M, None),
    ("cuda", "bfloat16", M + 1, "mosaic_gpu"),
    ("cuda", "float32", M, None),
    ("cpu", "bfloat16", M, None),
  ],
)
def test_none_takes_the_best_for_the_platform(platform, dtype, m, kernel):
  query, rows, _ = arguments(8, m, dtype)

  def search(query, rows):
    return lookup.nearest(query, bank.MemoryBank(rows), 10)

  with hopper() if platform == "cuda" else contextlib.nullcontext():
    export = jax.export.export(jax.jit(search), platforms=[platform])
    text = export(query, rows).mlir_module()
  if kernel == "mosaic_gpu" and jax.__version_info__ < (0, 11):
    kernel = None
  for name in ("tpu_custom_call", "mosaic_gpu"):
    assert (name in text) == (name == kernel), name


def temporary_bytes(function, *args):
  compiled = jax.jit(function).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_scratch_of_two_stages_is_small():
  args = arguments(4096, M, "float32")[:2]
  ours, plain = (
    temporary_bytes(lambda q, r, f=f: f.top_k(q, r, None, 10), *args)
    for f in (topk_xla, topk_reference)
  )
  assert plain >= 4 * 4096 * M
  assert ours <= plain / 25


def chip(topology):
  """One device of a TPU that is not there."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs libtpu (extra tpu-aot)")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  found = topologies.get_topology_desc(topology, platform="tpu").devices[0]
  return jax.sharding.SingleDeviceSharding(found)


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.parametrize(
  "topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
)
@pytest.mark.parametrize("dtype", arg_specs.DTYPES)
def test_tpu_kernels_compile(topology, dtype):
  """The two kernels alone; the selection between them is plain XLA."""
  sharding = chip(topology)
  query, rows, scales = arguments(64, M, dtype, sharding=sharding)
  bins = jax.ShapeDtypeStruct((64, 16), jnp.int32, sharding=sharding)
  assert temporary_bytes(topk_tpu.bin_maxima, query, rows, scales) < 2**28
  assert temporary_bytes(topk_tpu.rescore, query, rows, bins) < 2**28


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.parametrize("k", [10, 64])
def test_scratch_on_tpu_is_small(k):
  """The whole search, fallback and all."""
  args = arguments(
    4096, M, "bfloat16", jnp.bfloat16, sharding=chip("v5p:2x2x1")
  )
  search = functools.partial(topk_tpu.top_k, scales=None, k=k)
  # The plain search does not fit any chip: its scores alone are 21 GB.
  assert temporary_bytes(search, *args[:2]) <= 4 * 4096 * M / 25
