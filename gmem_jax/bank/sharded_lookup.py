"""Lookup over a mesh: queries are split over devices, and rows if configured.

A Pallas kernel runs on one device. Over several, each device searches its own
queries in its own rows, and the results of the shards are merged in the order
of the rows, so that ties still go to the lower row.

Shapes: q queries, m bank rows, d width, k neighbours.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float

from gmem_jax.bank import bank as bank_lib
from gmem_jax.bank.kernels import topk_reference

Search = Callable[..., topk_reference.TopK]


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where queries and bank rows live.

  Attributes:
    queries: Mesh axes that the queries are split over.
    rows: Mesh axes that the bank's rows are split over; none: each device
      has all rows. An axis of both splits the bank, and its devices answer
      each query together.
  """

  mesh: Mesh
  queries: tuple[str, ...] = ("data", "fsdp")
  rows: tuple[str, ...] = ()

  def shards(self, axes: tuple[str, ...]) -> int:
    """The number of parts that the axes split something into."""
    return math.prod(self.mesh.shape[axis] for axis in axes)


def search(
  one: Search,
  query: Float[Array, "q d"],
  bank: bank_lib.MemoryBank,
  k: int,
  placement: Placement,
) -> topk_reference.TopK:
  """Searches on every device of a mesh and merges the results.

  Args:
    one: The search of one device, as `topk_reference.top_k`.
    query: Split over `placement.queries` less `placement.rows`.
    bank: Its rows are split over `placement.rows`; padding is never found.
    k: In [1, m], also where a shard has fewer rows.
    placement: Where queries and rows live.

  Returns:
    What one device would find, up to rounding, split like the queries.
    Fallbacks count a query once for every shard that fell back.

  Raises:
    ValueError: If the queries or the rows do not divide over their axes.
  """
  axes = placement.rows
  split = tuple(a for a in placement.queries if a not in axes)
  for what, size, parts in (
    ("queries", query.shape[0], placement.shards(split)),
    ("bank rows", bank.rows.shape[0], placement.shards(axes)),
  ):
    if size % parts:
      raise ValueError(f"{size} {what} do not divide over {parts} devices")
  local = bank.rows.shape[0] // placement.shards(axes)

  whole = jnp.int32(bank.size) if bank.padding else None

  def run(query, rows, scales):
    if not axes:
      best_here = one(query, rows, scales, k, whole)
      return (
        best_here.scores,
        best_here.rows,
        jax.lax.psum(best_here.fallbacks, split),
      )
    first = jax.lax.axis_index(axes) * local
    count = jnp.clip(bank.size - first, 0, local) if bank.padding else None
    # A shard may have fewer than k rows, all of which then take part.
    best_here = one(query, rows, scales, min(k, local), count)
    # Only k scores of a shard travel, not its rows. Shard after shard, each in
    # its order: equal scores stay in ascending order of their rows.
    scores, index = (
      jax.lax.all_gather(x, axes, axis=1, tiled=True)
      for x in (best_here.scores, best_here.rows + first)
    )
    best, at = jax.lax.top_k(scores, k)
    index = jnp.take_along_axis(index, at, axis=1)
    total = jax.lax.psum(best_here.fallbacks, (*axes, *split))
    return best, index, total

  row_spec = P(axes or None)
  merged = jax.shard_map(
    run,
    mesh=placement.mesh,
    in_specs=(P(split or None), row_spec, row_spec),
    out_specs=(P(split or None), P(split or None), P()),
    # Every device of the rows' axes computes the same merge, which the check
    # cannot see.
    check_vma=False,
  )(query, bank.rows, bank.scales)
  return topk_reference.TopK(*merged)
