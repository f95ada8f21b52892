"""What a network with cross-attention is given to attend to.

The memory of an example is its own snippet, or not, and the snippets nearest to
it by cosine among all other rows of the bank. Training, and sampling from a
row, an image or a point between memories, all make it here.

Shapes: b examples, k neighbours, d snippet width, m bank rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key

from gmem_jax import rngs
from gmem_jax.bank import (
  bank as bank_lib,
  lookup,
  sharded_lookup as placement_lib,
)
from gmem_jax.config import networks
from gmem_jax.models import conditioning

# The row of a memory that is not in the bank.
OUTSIDE = -1


def check_bank(
  config: networks.RetrievalConfig, bank: bank_lib.MemoryBank
) -> None:
  """Refuses a bank with too few rows.

  Raises:
    ValueError: If it has fewer rows than neighbours, the own row left out.
  """
  if bank.size < config.neighbours + config.exclude_own:
    own = " besides an example's own" if config.exclude_own else ""
    raise ValueError(
      f"config.retrieval.neighbours={config.neighbours}: the bank has"
      f" {bank.size - config.exclude_own} rows{own}"
    )


# (bank of unit rows, snippets, their rows, and the step while training) ->
# neighbours.
RetrieveFn = Callable[..., conditioning.Neighbours]


def retrieve(
  config: networks.RetrievalConfig,
  bank: bank_lib.MemoryBank,
  snippet: Float[Array, "b d"],
  own: Integer[Array, " b"],
  placement: placement_lib.Placement | None = None,
) -> conditioning.Neighbours:
  """Looks up the neighbours of snippets.

  Args:
    config: How many, and whether without the snippet itself.
    bank: Unit rows, see `lookup.unit`.
    snippet: Unit vectors.
    own: The bank row of each snippet, which is never a neighbour of its own, or
      `OUTSIDE`.
    placement: Where snippets and bank lie; None: on one device.

  Returns:
    k snippets, best first, and their cosines; no gradient passes.
  """
  others = config.neighbours - (not config.exclude_own)
  scores, rows = lookup.nearest(snippet, bank, others + 1, placement=placement)
  # The own row comes last, whether it was found first or, among equals, later.
  order = jnp.argsort(rows == own[:, None], axis=1, stable=True)[:, :others]
  scores = jnp.take_along_axis(scores, order, axis=1)
  rows = jnp.take_along_axis(rows, order, axis=1)
  found = jnp.asarray(bank_lib.snippets(bank, rows.reshape(-1)))
  found = found.reshape(*rows.shape, bank.width)
  if not config.exclude_own:
    found = jnp.concatenate([snippet[:, None], found], axis=1)
    scores = jnp.concatenate([jnp.ones_like(scores[:, :1]), scores], axis=1)
  return conditioning.Neighbours(*jax.lax.stop_gradient((found, scores)))


def make_retrieve(
  config: networks.RetrievalConfig,
  placement: placement_lib.Placement | None,
  seed: int,
) -> RetrieveFn:
  """Makes what training and sampling look snippets up with.

  Args:
    config: See `networks.RetrievalConfig`.
    placement: See `retrieve`.
    seed: Of the dropout of neighbours, which depends on (seed, step).

  Returns:
    The function, for the inside of a jit.
  """

  def retrieve_fn(bank, snippet, rows, step=None):
    found = retrieve(config, bank, snippet, rows, placement)
    if step is None or not config.dropout:
      return found
    key = rngs.key(seed, "train/neighbours", step)
    return drop(found, config.dropout, key)

  return retrieve_fn


def drop(
  neighbours: conditioning.Neighbours, rate: float, key: Key[Array, ""]
) -> conditioning.Neighbours:
  """Leaves single neighbours out.

  Args:
    neighbours: What was found.
    rate: Of those that are left out, in [0, 1).
    key: Draws them.

  Returns:
    The same with zeros, which are absent, in their places.
  """
  kept = jax.random.bernoulli(key, 1 - rate, neighbours.scores.shape)
  snippets = jnp.where(kept[..., None], neighbours.snippets, 0.0)
  return conditioning.Neighbours(snippets, neighbours.scores)
