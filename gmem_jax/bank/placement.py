"""Lookup over a mesh: queries split over devices, rows too where asked.

A Pallas kernel runs on one device. Over several, each device searches its own
queries in its own rows, and what the shards found is merged in the order of
the rows, so that ties still go to the lower row.

Shapes: q queries, m bank rows, d width, k neighbours.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float

from gmem_jax.bank import bank as bank_lib
from gmem_jax.kernels import topk_reference

Search = Callable[..., topk_reference.Found]


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where queries and bank rows live.

  Attributes:
    mesh: The device mesh.
    queries: Mesh axes that the queries are split over.
    rows: Mesh axes that the bank's rows are split over; none: each device
      holds them all. An axis of both splits the bank, and its devices answer
      each query together.
    size: The bank's real rows, where padding follows them; None: all.
  """

  mesh: Mesh
  queries: tuple[str, ...] = ("data", "fsdp")
  rows: tuple[str, ...] = ()
  size: int | None = None

  def shards(self, axes: tuple[str, ...]) -> int:
    """Into how many parts the axes split something."""
    return math.prod(self.mesh.shape[axis] for axis in axes)


def split_rows(
  bank: bank_lib.MemoryBank,
  mesh: Mesh,
  rows: tuple[str, ...],
  queries: tuple[str, ...] = ("data", "fsdp"),
) -> tuple[bank_lib.MemoryBank, Placement]:
  """Splits a bank's rows over mesh axes, padded to equal shards.

  Args:
    bank: A bank on the host or on one device.
    mesh: The mesh.
    rows: Axes to split the rows over.
    queries: Axes that queries will be split over.

  Returns:
    The bank on the mesh, and the placement to look it up with. The padding
    rows are zero, and never found.
  """
  placement = Placement(mesh, queries, rows, bank.size)
  missing = -bank.size % placement.shards(rows)

  def place(leaf):
    widths = ((0, missing),) + ((0, 0),) * (leaf.ndim - 1)
    spec = P(rows) if leaf.ndim == 1 else P(rows, None)
    return jax.device_put(jnp.pad(leaf, widths), NamedSharding(mesh, spec))

  return jax.tree.map(place, bank), placement


def search(
  one: Search,
  query: Float[Array, "q d"],
  bank: bank_lib.MemoryBank,
  k: int,
  placement: Placement,
) -> topk_reference.Found:
  """Searches on every device of a mesh and merges.

  Args:
    one: The search of one device, as `topk_reference.top_k`.
    query: Queries.
    bank: The bank, its rows split as the placement says.
    k: How many rows.
    placement: Where things live.

  Returns:
    The same as one device finds, up to rounding; queries split over
    `placement.queries` less `placement.rows`. Fallbacks count a query once for
    every shard that fell back.

  Raises:
    ValueError: If the queries or the rows do not divide over their axes.
  """
  axes = placement.rows
  split = tuple(a for a in placement.queries if a not in axes)
  for what, size, parts in (
    ("queries", query.shape[0], placement.shards(split)),
    ("bank rows", bank.size, placement.shards(axes)),
  ):
    if size % parts:
      raise ValueError(f"{size} {what} do not divide over {parts} devices")
  local = bank.size // placement.shards(axes)
  padded = placement.size not in (None, bank.size)

  def run(query, rows, scales):
    if not axes:
      found = one(query, rows, scales, k, None)
      return found._replace(fallbacks=jax.lax.psum(found.fallbacks, split))
    first = jax.lax.axis_index(axes) * local
    count = jnp.clip(placement.size - first, 0, local) if padded else None
    found = one(query, rows, scales, min(k, local), count)
    # Shard after shard, each in its order: equal scores by ascending row.
    scores, index = (
      jax.lax.all_gather(x, axes, axis=1, tiled=True)
      for x in (found.scores, found.rows + first)
    )
    best, at = jax.lax.top_k(scores, k)
    index = jnp.take_along_axis(index, at, axis=1)
    total = jax.lax.psum(found.fallbacks, (*axes, *split))
    return topk_reference.Found(best, index, total)

  row_spec = P(axes or None)
  return jax.shard_map(
    run,
    mesh=placement.mesh,
    in_specs=(P(split or None), row_spec, row_spec),
    out_specs=topk_reference.Found(P(split or None), P(split or None), P()),
    check_vma=False,
  )(query, bank.rows, bank.scales)
