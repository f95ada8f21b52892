"""Top-k by bins: what the fast kernels share.

Shapes: q queries, m bank rows, d width, k neighbours, g bins, t bins taken.

A bin is `BIN` consecutive rows. Order rows by (score descending, row
ascending) and bins by (largest score descending, bin ascending). The first k
rows then lie in the first k bins: if a row's bin is not among those, k bins
come before it, and each holds a row that comes before this one. So the scan of
the bank need keep one number a bin, and only k bins are looked into. The lemma
holds for bins of bins, too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int8, Int32

from gmem_jax.bank.kernels import topk_reference

# Rows of a bin. Larger bins write fewer maxima, smaller ones leave fewer rows
# to score again. Counted in bytes, for ImageNet's bank in bfloat16, 82, 26 and
# 10 would be best for k = 1, 10 and 64.
BIN = 32
# Bins that a step of the TPU's second kernel reads.
GROUP = 8
# More bins than this are selected through bins of bins: for k above 16, XLA's
# stable top_k on GPUs sorts the whole axis.
_WIDE = 1024
# Refused queries that are answered plainly at a time. Few: every call reserves
# the scratch of the plain search, and most need none of it.
_REPAIR = 8


def bins_of(m: int) -> int:
  """How many bins m rows make; the last may be short."""
  return -(-m // BIN)


def taken(k: int) -> int:
  """How many bins are looked into: more than k, in whole groups."""
  return -(-(k + 1) // GROUP) * GROUP


def split(query: Float[Array, "q d"]) -> Float[Array, "l q d"]:
  """Queries as sums of bfloat16 limbs: one for bfloat16, else two."""
  high = query.astype(jnp.bfloat16)
  if query.dtype == jnp.bfloat16:
    return high[None]
  rest = query.astype(jnp.float32) - high.astype(jnp.float32)
  return jnp.stack([high, rest.astype(jnp.bfloat16)])


def select(
  maxima: Float32[Array, "g q"], take: int
) -> tuple[Int32[Array, "q t"], Float32[Array, " q"]]:
  """The t < g bins with the largest maxima.

  Returns:
    Their numbers, ascending, so that ties among their rows still go to the
    lower row; and the largest maximum among the bins left out.
  """
  g, q = maxima.shape
  if g <= max(_WIDE, BIN * (take + 1)):
    best, bins = jax.lax.top_k(maxima.T, take + 1)
  else:
    wide = pad_rows(maxima, -jnp.inf).reshape(bins_of(g), BIN, q)
    # One more, so that the best bin left out is in them, too.
    groups, _ = select(jnp.max(wide, axis=1), take + 1)
    inside = wide[groups, :, jnp.arange(q)[:, None]].reshape(q, -1)
    best, at = jax.lax.top_k(inside, take + 1)
    bins = jnp.take_along_axis(members(groups), at, axis=1)
  return jnp.sort(bins[:, :take], axis=1), best[:, take]


def pad_rows(x: Float[Array, "n q"], value: float) -> Float[Array, "p q"]:
  """Pads the first axis to whole bins."""
  missing = -x.shape[0] % BIN
  return jnp.pad(x, ((0, missing), (0, 0)), constant_values=value)


def members(bins: Int[Array, "q t"]) -> Int[Array, "q tr"]:
  """The rows of bins, in order."""
  rows = bins[:, :, None] * BIN + jnp.arange(BIN, dtype=bins.dtype)[None, None]
  return rows.reshape(bins.shape[0], -1)


def best_of(
  candidates: Float32[Array, "q tr"], bins: Int32[Array, "q t"], k: int
) -> tuple[Float32[Array, "q k"], Int32[Array, "q k"]]:
  """Scores and rows of the k best candidates, the rows of ascending bins."""
  best, at = jax.lax.top_k(candidates, k)
  return best, jnp.take_along_axis(members(bins), at, axis=1)


def in_chunks(
  function: Callable[[jax.Array], topk_reference.TopK],
  query: Float[Array, "q d"],
  chunk: int,
) -> topk_reference.TopK:
  """Answers `chunk` queries at a time, to bound the scratch memory."""
  q = query.shape[0]
  if q <= chunk:
    return function(query)
  count = -(-q // chunk)
  padded = jnp.pad(query, ((0, count * chunk - q), (0, 0)))
  parts = jax.lax.map(function, padded.reshape(count, chunk, -1))
  k = parts.scores.shape[-1]
  return topk_reference.TopK(
    parts.scores.reshape(-1, k)[:q],
    parts.rows.reshape(-1, k)[:q],
    jnp.sum(parts.fallbacks),
  )


def certified(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  k: int,
  count: Int[Array, ""] | None,
  maxima: Float32[Array, "g q"],
  take: int,
  rescore: Callable[[Int32[Array, "q t"]], Float32[Array, "q tr"]],
  plain: Callable[[Float[Array, "n d"]], topk_reference.TopK],
) -> topk_reference.TopK:
  """Selects bins, scores their rows, and certifies the result.

  The certificate: no bin left out has a maximum above the k-th score found. It
  is needed because the two come from different sums; where it fails, `plain`
  answers. Where it holds, a row left out is better than a row found by at most
  the error of the two sums, which `topk_reference.rounding_bound` states.

  Args:
    query: See `topk_reference.top_k`, as for the next four.
    rows: As stored.
    scales: Of int8 rows.
    k: How many rows.
    count: Rows from this one on are padding.
    maxima: The largest score of each bin, without the padding of the bank's
      last bin; padding after `count` may count.
    take: How many bins, more than k: one may hold rows after `count`.
    rescore: Scores of the rows of bins, without scales.
    plain: The search by all scores.

  Returns:
    Scores, rows and the number of queries that `plain` answered.
  """
  m = rows.shape[0]
  limit = jnp.asarray(m, jnp.int32) if count is None else count
  if count is not None:
    whole = jnp.arange(maxima.shape[0])[:, None] * BIN < count
    maxima = jnp.where(whole, maxima, -jnp.inf)
  bins, left_out = select(maxima, take)
  candidates = rescore(bins)
  numbers = members(bins)
  if scales is not None:
    candidates = candidates * scales[jnp.minimum(numbers, m - 1)]
  candidates = jnp.where(numbers < limit, candidates, -jnp.inf)
  best, index = best_of(candidates, bins, k)
  return _repair(query, best, index, left_out <= best[:, -1], plain)


def _repair(
  query: Float[Array, "q d"],
  best: Float32[Array, "q k"],
  index: Int32[Array, "q k"],
  certain: Bool[Array, " q"],
  plain: Callable[[Float[Array, "n d"]], topk_reference.TopK],
) -> topk_reference.TopK:
  """Answers plainly those queries alone whose result is not certain."""
  fallbacks = jnp.sum(~certain, dtype=jnp.int32)
  order = jnp.argsort(certain, stable=True)
  step = min(_REPAIR, query.shape[0])

  def body(state):
    done, best, index = state
    # Past the end the slice moves back: a few are answered plainly twice.
    which = jax.lax.dynamic_slice_in_dim(order, done, step)
    plainly = plain(query[which])
    best = best.at[which].set(plainly.scores)
    return done + step, best, index.at[which].set(plainly.rows)

  start = (jnp.zeros((), jnp.int32), best, index)
  _, best, index = jax.lax.while_loop(lambda s: s[0] < fallbacks, body, start)
  return topk_reference.TopK(best, index, fallbacks)
