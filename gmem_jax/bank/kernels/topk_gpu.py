"""The k largest inner products on Hopper GPUs: a Pallas kernel (Mosaic GPU).

The kernel multiplies tiles of the bank with tiles of the queries in the tensor
cores (wgmma), fed by TMA from a third warpgroup, and keeps one number of each
bin of rows: the scores never leave the registers. XLA gathers the rows of the
bins that were selected and scores them in float32. `two_stage` has the lemma,
the selection and the certificate.

Shapes: q queries, m bank rows, d width, k neighbours, g bins, t bins taken.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32, Int, Int8, Int32

from gmem_jax.bank.kernels import topk_reference, topk_xla, two_stage

BIN = two_stage.BIN
# Bank rows of a warpgroup's tile, and of a block's: two warpgroups multiply.
_WG_ROWS = 128
_ROWS = 2 * _WG_ROWS
# TMA takes whole tiles of so many rows.
ALIGN = 8
# Width of a step: 128 bytes, the widest swizzle.
_STEP = 64
_STAGES = 4
# Thread blocks that stay on the chip: the multiprocessors of an H100 or H200.
_BLOCKS = 132
# Queries at a time, in the scan and in the gathers of the rescoring.
_CHUNK, _GATHER = 1024, 64

# Whether this jax can run the kernel.
SUPPORTED = jax.__version_info__ >= (0, 11)


def check(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  k: int,
) -> None:
  """Raises NotImplementedError, with the reason, where it cannot serve."""
  if not SUPPORTED:
    raise NotImplementedError(
      f"topk_gpu: jax {jax.__version__}; needs 0.11, the first whose Mosaic GPU"
      " interpreter can check the kernel"
    )
  if rows.dtype != jnp.bfloat16:
    raise NotImplementedError(
      f"topk_gpu: rows of type {rows.dtype}; store the bank as bfloat16 (wgmma"
      " would round float32 to TF32)"
    )
  m, d = rows.shape
  if m % ALIGN:
    raise NotImplementedError(
      f"topk_gpu: {m} rows, not a multiple of {ALIGN}, a tile of TMA; pad the"
      " bank with zero rows (lookup.unit does) and count them in its padding"
    )
  if d % _STEP:
    raise NotImplementedError(
      f"topk_gpu: rows of width {d}, not a multiple of {_STEP}"
    )
  if two_stage.bins_of(m) <= two_stage.taken(k):
    raise NotImplementedError(
      f"topk_gpu: {m} rows are too few for k={k}: nothing would be left out"
    )
  if jax.default_backend() == "gpu":
    capability = str(jax.devices()[0].compute_capability)
    if not capability.startswith("9."):
      raise NotImplementedError(
        f"topk_gpu: compute capability {capability}; wgmma is of 9.0 (Hopper)"
      )


def top_k(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  k: int,
  count: Int[Array, ""] | None = None,
  *,
  interpret: Any = None,
) -> topk_reference.TopK:
  """Does what `topk_reference.top_k` does, for bfloat16 rows.

  bfloat16 queries cost half of float32 ones. Queries that the certificate
  refuses are answered by `topk_xla`. `interpret` is passed to `plgpu.kernel`,
  to run on CPU.

  Raises:
    NotImplementedError: If the kernel cannot serve these arrays.
  """
  check(query, rows, k)
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
      bin_maxima(query, rows, interpret=interpret),
      two_stage.taken(k),
      lambda bins: _rescore(query, rows, bins),
      plain,
    )

  return two_stage.in_chunks(some, query, _CHUNK)


def bin_maxima(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"],
  *,
  interpret: Any = None,
) -> Float32[Array, "g q"]:
  """The largest score of each bin of rows with each query."""
  # Here: on jax 0.10 the import needs absl, which JAX does not install.
  from jax.experimental.pallas import mosaic_gpu as plgpu

  (m, d), q = rows.shape, query.shape[0]
  limbs = two_stage.split(query)
  # wgmma takes 64 at least; more than that for few queries would be padding.
  tile = 64 if q <= 64 else 128
  limbs = jnp.pad(limbs, ((0, 0), (0, -q % tile), (0, 0)))
  count, padded, _ = limbs.shape
  tiles = -(-m // _ROWS)
  kernel = plgpu.kernel(
    functools.partial(_kernel, tile=tile, limbs=count),
    out_type=jax.ShapeDtypeStruct((tiles * _ROWS // BIN, padded), jnp.float32),
    grid=(_BLOCKS,),
    grid_names=("block",),
    num_threads=3,
    thread_name="wg",
    interpret=interpret,
  )
  # Limbs side by side: a row of the matrix is a query.
  maxima = kernel(limbs.transpose(1, 0, 2).reshape(padded, count * d), rows)
  maxima = maxima[: two_stage.bins_of(m), :q]
  if m % BIN == 0:
    return maxima
  # TMA fills the end of the last bin with zeros, which may be the largest.
  last = topk_reference.scores(query, rows[m // BIN * BIN :], None)
  return maxima.at[-1].set(jnp.max(last, axis=1))


def _kernel(query_gmem, rows_gmem, out_gmem, *, tile: int, limbs: int) -> None:
  """One thread block: tiles of the bank with tiles of the queries, in turn."""
  from jax.experimental.pallas import mosaic_gpu as plgpu

  steps = rows_gmem.shape[1] // _STEP
  row_tiles = out_gmem.shape[0] * BIN // _ROWS
  query_tiles = out_gmem.shape[1] // tile
  bins = _WG_ROWS // BIN
  transforms = (plgpu.TilingTransform((8, _STEP)), plgpu.SwizzleTransform(128))

  def pipeline(i, j, body, context):
    def spec(shape, index):
      return plgpu.BlockSpec(
        shape, index, transforms=transforms, memory_space=plgpu.SMEM
      )

    # A step takes one limb; the limbs of a piece follow one another, so that
    # the bank's piece is read from memory once and then from the cache.
    return plgpu.emit_pipeline_warp_specialized(
      body,
      grid=(steps * limbs,),
      memory_registers=40,
      in_specs=[
        spec((tile, _STEP), lambda s: (j, s % limbs * steps + s // limbs)),
        spec((_ROWS, _STEP), lambda s: (i, s // limbs)),
      ],
      wg_axis="wg",
      num_compute_wgs=2,
      max_concurrent_steps=_STAGES,
      compute_context=context,
    )

  # The pipeline's buffers are allocated once for all tiles: asking for them
  # needs a pipeline, and its body does not matter.
  def nothing(*_, **__):
    pass

  @functools.partial(
    pl.run_scoped,
    allocations=pipeline(0, 0, nothing, nothing).get_allocations(
      query_gmem, rows_gmem
    ),
    out_smem=plgpu.SMEM((2, bins, tile), jnp.float32),
    collective_axes="wg",
  )
  def _(allocations, out_smem):
    wg = jax.lax.axis_index("wg")

    # Queries vary fastest: a tile of the bank is read from memory once.
    @plgpu.nd_loop((row_tiles, query_tiles), collective_axes="block")
    def _(loop):
      i, j = loop.index

      def context(run):
        @functools.partial(
          pl.run_scoped, acc=plgpu.ACC((tile, _WG_ROWS), jnp.float32)
        )
        def _(acc):
          run(acc)
          scores = acc[...]
          plgpu.wait_smem_to_gmem(0, wait_read_only=True)
          # Mosaic GPU has no argmax or gather: maxima alone can leave a tile.
          for b in range(bins):
            best = jnp.max(scores[:, b * BIN : (b + 1) * BIN], axis=1)
            out_smem[wg, b] = best
          plgpu.commit_smem()
          plgpu.copy_smem_to_gmem(
            out_smem.at[wg],
            out_gmem.at[
              pl.ds((i * 2 + wg) * bins, bins), pl.ds(j * tile, tile)
            ],
          )

      def multiply(_, query_smem, rows_smem, acc):
        mine = rows_smem.at[pl.ds(wg * _WG_ROWS, _WG_ROWS)]
        plgpu.wgmma(acc, query_smem, mine.transpose((1, 0)))
        plgpu.wgmma_wait(0)
        return acc

      pipeline(i, j, multiply, context)(
        query_gmem, rows_gmem, allocations=allocations
      )

    plgpu.wait_smem_to_gmem(0)


def _rescore(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"],
  bins: Int32[Array, "q t"],
) -> Float32[Array, "q tr"]:
  """Scores of the rows of the selected bins, some queries at a time."""
  q, take = bins.shape
  numbers = jnp.minimum(two_stage.members(bins), rows.shape[0] - 1)
  missing = -q % min(_GATHER, q)
  parts = (q + missing) // min(_GATHER, q)

  def some(part):
    query, numbers = part
    return jnp.einsum(
      "qd,qrd->qr",
      query,
      rows[numbers].astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )

  query = jnp.pad(query.astype(jnp.float32), ((0, missing), (0, 0)))
  numbers = jnp.pad(numbers, ((0, missing), (0, 0)))
  scores = jax.lax.map(
    some,
    (
      query.reshape(parts, -1, query.shape[1]),
      numbers.reshape(parts, -1, numbers.shape[1]),
    ),
  )
  return scores.reshape(-1, take * BIN)[:q]
