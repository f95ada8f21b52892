"""The k largest inner products on TPU: two Pallas kernels (Mosaic TPU).

The first multiplies a tile of the bank with a tile of the queries and keeps
one number of each bin of rows: the scores never leave the chip. The second
reads the rows of the bins that were selected, whose numbers are prefetched
scalars, and scores them again in float32. `two_stage` has the lemma, the
selection and the certificate.

Shapes: q queries, m bank rows, d width, k neighbours, g bins, t bins taken,
l bfloat16 limbs of a query.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int, Int8, Int32

from gmem_jax.bank.kernels import topk_reference, topk_xla, two_stage

BIN = two_stage.BIN
# Rows and queries of a tile of scores: 1 MiB of float32.
ROWS, QUERIES = 1024, 256
GROUP = two_stage.GROUP
# Queries at a time: bounds scratch in HBM, and the scalars in SMEM.
_CHUNK = 1024
# Tiles of rows and of limbs of this width still fit VMEM.
_MAX_WIDTH = 2048


def check(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  k: int,
) -> None:
  """Raises NotImplementedError, with the reason, where they cannot serve."""
  m, d = rows.shape
  if rows.dtype not in (jnp.float32, jnp.bfloat16, jnp.int8):
    raise NotImplementedError(f"topk_tpu: rows of type {rows.dtype}")
  if d > _MAX_WIDTH:
    raise NotImplementedError(
      f"topk_tpu: rows of width {d}; tiles of at most {_MAX_WIDTH} fit"
    )
  if two_stage.bins_of(m) <= two_stage.taken(k):
    raise NotImplementedError(
      f"topk_tpu: {m} rows are too few for k={k}: nothing would be left out"
    )


def top_k(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  k: int,
  count: Int[Array, ""] | None = None,
  *,
  interpret: bool | pltpu.InterpretParams = False,
) -> topk_reference.TopK:
  """Does what `topk_reference.top_k` does.

  bfloat16 queries cost half of float32 ones. Queries that the certificate
  refuses are answered by `topk_xla`. `interpret` is passed to `pallas_call`, to
  run on CPU.

  Raises:
    NotImplementedError: If the kernels cannot serve these arrays.
  """
  check(query, rows, k)
  take = two_stage.taken(k)
  plain = functools.partial(
    topk_xla.top_k, rows=rows, scales=scales, k=k, count=count
  )

  def some(query):
    return two_stage.certified(
      query,
      rows,
      scales,
      k,
      count,
      bin_maxima(query, rows, scales, interpret=interpret),
      take,
      lambda bins: rescore(query, rows, bins, interpret=interpret),
      plain,
    )

  return two_stage.in_chunks(some, query, _CHUNK)


def bin_maxima(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  *,
  interpret: bool | pltpu.InterpretParams = False,
) -> Float32[Array, "g q"]:
  """The largest score of each bin of rows with each query.

  float32 rows multiply in float32; bfloat16 and int8 rows, both exact in
  bfloat16, with the bfloat16 limbs of the query.
  """
  (m, d), q = rows.shape, query.shape[0]
  limbs = (
    query.astype(jnp.float32)[None]
    if rows.dtype == jnp.float32
    else two_stage.split(query)
  )
  block = min(QUERIES, -(-q // 8) * 8)
  limbs = jnp.pad(limbs, ((0, 0), (0, -q % block), (0, 0)))
  padded = limbs.shape[1]
  operands = [limbs, rows]
  specs = [
    pl.BlockSpec((limbs.shape[0], block, d), lambda i, j: (0, j, 0)),
    pl.BlockSpec((ROWS, d), lambda i, j: (i, 0)),
  ]
  if scales is not None:
    operands.append(scales[None])
    specs.append(pl.BlockSpec((1, ROWS), lambda i, j: (0, i)))
  itemsize = rows.dtype.itemsize
  maxima = pl.pallas_call(
    functools.partial(_maxima_kernel, m=m),
    out_shape=jax.ShapeDtypeStruct((two_stage.bins_of(m), padded), jnp.float32),
    # Queries vary fastest: a tile of the bank is read from HBM once.
    grid=(-(-m // ROWS), padded // block),
    in_specs=specs,
    out_specs=pl.BlockSpec((ROWS // BIN, block), lambda i, j: (i, j)),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=64 * 2**20,
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * limbs.shape[0] * m * padded * d,
      bytes_accessed=m * d * itemsize + m // BIN * padded * 4,
      transcendentals=0,
    ),
    interpret=interpret,
    name="bank_bin_maxima",
  )(*operands)
  return maxima[:, :q]


def _maxima_kernel(query_ref, rows_ref, *refs, m: int) -> None:
  *scales_ref, out_ref = refs
  rows = rows_ref[...]
  # The bank is the left operand, so that a bin is consecutive sublanes and its
  # maximum is cheap. Not every TPU multiplies int8 (v4 does not): bfloat16,
  # which is exact for it, does everywhere.
  if rows.dtype == jnp.int8:
    rows = rows.astype(jnp.float32).astype(jnp.bfloat16)
  exact = rows.dtype == jnp.float32
  scores = jnp.zeros((ROWS, query_ref.shape[1]), jnp.float32)
  for limb in range(query_ref.shape[0]):
    scores += jax.lax.dot_general(
      rows,
      query_ref[limb],
      (((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST if exact else None,
      preferred_element_type=jnp.float32,
    )
  if scales_ref:
    # From a row to a column: only a whole tile can be transposed.
    tile = jnp.broadcast_to(scales_ref[0][...], (128, ROWS))
    scores = scores * tile.T[:, :1]
  if m % ROWS:
    # The last tile ends outside of the bank, where memory may hold anything.
    row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    inside = row + pl.program_id(0) * ROWS < m
    scores = jnp.where(inside, scores, -jnp.inf)
  out_ref[...] = jnp.max(
    scores.reshape(ROWS // BIN, BIN, scores.shape[1]), axis=1
  )


def rescore(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  bins: Int32[Array, "q t"],
  *,
  interpret: bool | pltpu.InterpretParams = False,
) -> Float32[Array, "q tr"]:
  """Scores of the rows of the selected bins, in float32, without scales.

  Scores of rows after the bank's end are undefined.
  """
  (q, take), d = bins.shape, rows.shape[1]

  # The bins are data: prefetched scalars let each step name the blocks that it
  # reads. A block is one bin, so a step takes several, each as an operand.
  def bin_spec(slot):
    return pl.BlockSpec(
      (BIN, d), lambda i, j, bins: (bins[i * take + j * GROUP + slot], 0)
    )

  scores = pl.pallas_call(
    _rescore_kernel,
    out_shape=jax.ShapeDtypeStruct(
      (q, take // GROUP, 1, GROUP * BIN), jnp.float32
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(q, take // GROUP),
      in_specs=[
        pl.BlockSpec((1, 1, d), lambda i, j, bins: (i, 0, 0)),
        *(bin_spec(slot) for slot in range(GROUP)),
      ],
      out_specs=pl.BlockSpec(
        (1, 1, 1, GROUP * BIN), lambda i, j, bins: (i, j, 0, 0)
      ),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary", "arbitrary")
    ),
    interpret=interpret,
    name="bank_rescore",
  )(bins.reshape(-1), query.astype(jnp.float32)[:, None], *[rows] * GROUP)
  return scores.reshape(q, take * BIN)


def _rescore_kernel(_, query_ref, *refs) -> None:
  *bin_refs, out_ref = refs
  rows = jnp.concatenate([ref[...].astype(jnp.float32) for ref in bin_refs])
  out_ref[0, 0] = jax.lax.dot_general(
    query_ref[0],
    rows,
    (((1,), (1,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
