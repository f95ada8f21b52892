"""Every search against the float64 oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from gmem_jax.bank.kernels import (
  topk_gpu,
  topk_reference,
  topk_tpu,
  topk_xla,
  two_stage,
)
from tests.bank.kernels import arg_specs, oracle

SEEDS = 26
SMALL = [pytest.param(s, id=str(s)) for s in arg_specs.SMALL]
# What the kernels serve: too few rows for k are searched plainly.
TPU = (
  arg_specs.ArgSpec(3, 1101, 16, 3, "float32"),
  arg_specs.ArgSpec(2, 700, 16, 10, "bfloat16"),
  arg_specs.ArgSpec(2, 1101, 16, 1, "int8"),
)


def judge(search, spec, kind, seed):
  """Wrong rows and fallbacks of one search."""
  query, rows, scales, exact = arg_specs.make(spec, kind, seed)
  found = search(query, rows, scales)
  wrong = oracle.wrong_rows(spec, kind, query, exact, found)
  return wrong, int(found.fallbacks)


# 2 x 12 shapes x 5 kinds x 26 seeds: 3,120 searches of 3 to 6 queries each.
@pytest.mark.parametrize("spec", SMALL)
@pytest.mark.parametrize("module", [topk_reference, topk_xla])
def test_search_equals_the_oracle(module, spec):
  @jax.jit
  def search(query, rows, scales):
    return module.top_k(query, rows, scales, spec.k)

  for kind in arg_specs.KINDS:
    for seed in range(SEEDS):
      assert judge(search, spec, kind, seed) == (0, 0), (kind, seed)


@pytest.mark.parametrize("spec", [pytest.param(s, id=str(s)) for s in TPU])
def test_tpu_kernels_equal_the_oracle_without_races(spec):
  interpret = pltpu.InterpretParams(detect_races=True)

  @jax.jit
  def search(query, rows, scales):
    return topk_tpu.top_k(query, rows, scales, spec.k, interpret=interpret)

  for kind in arg_specs.KINDS:
    wrong, fallbacks = judge(search, spec, kind, 0)
    assert wrong == 0, kind
    if kind in arg_specs.EXACT:
      assert fallbacks == 0, kind


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_what_lies_after_the_bank_is_in_no_maximum(platform, monkeypatch):
  # Every score is negative; what the last tile reads outside would win.
  query, rows = -jnp.ones((2, 64)), jnp.ones((600, 64), jnp.bfloat16)
  if platform == "tpu":
    found = topk_tpu.bin_maxima(query, rows, None, interpret=True)
  elif jax.__version_info__ < (0, 11):
    pytest.skip("the Mosaic GPU interpreter needs jax 0.11")
  else:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    monkeypatch.setattr(topk_gpu, "_BLOCKS", 2)
    interpret = plgpu.InterpretGPUParams()
    found = topk_gpu.bin_maxima(query, rows, interpret=interpret)
  assert found.shape == (19, 2)
  assert (found == -64).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", arg_specs.DTYPES)
@pytest.mark.parametrize("k", [1, 10, 64])
def test_tpu_kernels_equal_the_oracle_often(dtype, k):
  spec = arg_specs.ArgSpec(37, 2500, 24, k, dtype)

  @jax.jit
  def search(query, rows, scales):
    return topk_tpu.top_k(query, rows, scales, k, interpret=True)

  fallbacks = 0
  for kind in arg_specs.KINDS:
    for seed in range(10):
      wrong, repaired = judge(search, spec, kind, seed)
      assert wrong == 0, (kind, seed)
      fallbacks += repaired
  # Of 37 x 50 queries.
  assert fallbacks <= 18


def test_gpu_kernel_equals_the_oracle_without_races(monkeypatch):
  if jax.__version_info__ < (0, 11):
    pytest.skip("the Mosaic GPU interpreter needs jax 0.11")
  from jax.experimental.pallas import mosaic_gpu as plgpu

  # Two thread blocks show what 132 do.
  monkeypatch.setattr(topk_gpu, "_BLOCKS", 2)
  interpret = plgpu.InterpretGPUParams(detect_races=True)
  spec = arg_specs.ArgSpec(3, 600, 64, 3, "bfloat16")

  @jax.jit
  def search(query, rows, scales):
    return topk_gpu.top_k(query, rows, scales, spec.k, interpret=interpret)

  for kind in arg_specs.KINDS:
    wrong, fallbacks = judge(search, spec, kind, 0)
    assert wrong == 0, kind
    if kind in arg_specs.EXACT:
      assert fallbacks == 0, kind


@pytest.mark.parametrize("spec", SMALL[1:9:4])
def test_padding_is_never_found(spec):
  query, rows, scales, exact = arg_specs.make(spec, "ties", 0)
  # Rows that would win, after the bank's end.
  count = spec.m - 45
  rows = rows.at[count:].set(100)
  search = jax.jit(topk_xla.top_k, static_argnums=3)
  for module in (topk_reference, topk_xla):
    search = jax.jit(module.top_k, static_argnums=3)
    found = search(query, rows, scales, spec.k, jnp.int32(count))
    assert not oracle.wrong_rows(spec, "ties", query, exact[:count], found)


def certified(spec, kind, rescore_error=0.0):
  """The two stages of the kernels in plain XLA, with an error of choice."""

  @jax.jit
  def search(query, rows, scales):
    scores = topk_reference.scores(query, rows, scales)
    padded = two_stage.pad_rows(scores.T, -jnp.inf)
    wide = padded.reshape(-1, two_stage.BIN, spec.q)

    def rescore(bins):
      inside = wide[bins, :, jnp.arange(spec.q)[:, None]]
      return inside.reshape(spec.q, -1) - rescore_error

    return two_stage.certified(
      query,
      rows,
      None,
      spec.k,
      None,
      jnp.max(wide, axis=1),
      spec.k + 1,
      rescore,
      functools.partial(topk_xla.top_k, rows=rows, scales=scales, k=spec.k),
    )

  return judge(search, spec, kind, 0)


@pytest.mark.parametrize("q", [3, 21])
def test_what_the_certificate_refuses_is_searched_plainly(q):
  spec = arg_specs.ArgSpec(q, 2000, 16, 4)
  assert certified(spec, "ties") == (0, 0)
  # A second sum that is far off cannot be vouched for: all are repaired.
  assert certified(spec, "ties", rescore_error=100.0) == (0, q)


def test_wide_selection_equals_narrow():
  maxima = np.random.default_rng(0).integers(0, 40, (5000, 7))
  maxima = jnp.asarray(maxima, jnp.float32)
  bins, left_out = jax.jit(two_stage.select, static_argnums=1)(maxima, 12)
  best, want = jax.lax.top_k(maxima.T, 13)
  assert (bins == jnp.sort(want[:, :12], axis=1)).all()
  assert (left_out == best[:, 12]).all()


def test_chunks_of_queries_equal_one():
  spec = arg_specs.ArgSpec(300, 1200, 16, 5)
  query, rows, _, _ = arg_specs.make(spec, "ties", 0)
  found = jax.jit(topk_xla.top_k, static_argnums=(2, 3))(query, rows, None, 5)
  want = topk_reference.top_k(query, rows, None, 5)
  assert (found.rows == want.rows).all()
  assert (found.scores == want.scores).all()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("m", [1024, 1200])
def test_blocks_of_rows_equal_the_whole(dtype, m, monkeypatch):
  monkeypatch.setitem(topk_xla._BLOCK, dtype, 256)
  spec = arg_specs.ArgSpec(3, m, 16, 5, dtype)

  @jax.jit
  def search(query, rows, scales):
    return topk_xla.top_k(query, rows, scales, 5)

  for kind in arg_specs.KINDS:
    assert judge(search, spec, kind, 0) == (0, 0), kind
