"""Finds the neighbours that a network with cross-attention attends to.

They are the snippets of the bank nearest to an example's own by cosine; its own
may be the first of them. Training and all forms of sampling make them here.

Letters: `b` examples, `k` neighbours, `d` snippet width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib, lookup, sharded_lookup
from gmem_jax.config import networks
from gmem_jax.models import conditioning

# The row of a snippet that is not in the bank.
OUTSIDE = -1

# (bank of unit rows, snippets, their rows, step if training) -> neighbours.
RetrieveFn = Callable[..., conditioning.Neighbours]


def check_bank(
  config: networks.RetrievalConfig, bank: bank_lib.MemoryBank
) -> None:
  """Raises a ValueError if the bank has too few rows."""
  if bank.size < config.neighbours + config.exclude_own:
    own = " besides an example's own" if config.exclude_own else ""
    raise ValueError(
      f"config.retrieval.neighbours={config.neighbours}: the bank has"
      f" {bank.size - config.exclude_own} rows{own}"
    )


def retrieve(
  config: networks.RetrievalConfig,
  bank: bank_lib.MemoryBank,
  snippet: Float[Array, "b d"],
  own: Integer[Array, " b"],
  placement: sharded_lookup.Placement | None = None,
) -> conditioning.Neighbours:
  """Looks up the neighbours of snippets.

  Args:
    config: How many, and whether the snippet itself is one.
    bank: Unit rows, see `lookup.unit`.
    snippet: Unit vectors.
    own: The bank row of each snippet, or `OUTSIDE`.
    placement: How snippets and bank are split; None: they are on one device.

  Returns:
    k snippets, best first, and their cosines; no gradient passes.
  """
  others = config.neighbours - (not config.exclude_own)
  # One more than needed, as the own row is usually among the nearest.
  scores, rows = lookup.nearest(snippet, bank, others + 1, placement=placement)
  # A stable sort moves the own row to the end and is cut off there; it need not
  # be the first, as other rows may be equal to it.
  order = jnp.argsort(rows == own[:, None], axis=1, stable=True)[:, :others]
  scores = jnp.take_along_axis(scores, order, axis=1)
  rows = jnp.take_along_axis(rows, order, axis=1)
  snippets = jnp.asarray(bank_lib.snippets(bank, rows.reshape(-1)))
  snippets = snippets.reshape(*rows.shape, bank.width)
  if not config.exclude_own:
    # From the caller, not the bank, which may store it in 8 bits or not at all.
    snippets = jnp.concatenate([snippet[:, None], snippets], axis=1)
    scores = jnp.concatenate([jnp.ones_like(scores[:, :1]), scores], axis=1)
  return conditioning.Neighbours(*jax.lax.stop_gradient((snippets, scores)))


def make_retrieve(
  config: networks.RetrievalConfig,
  placement: sharded_lookup.Placement | None,
  seed: int,
) -> RetrieveFn:
  """Makes the lookup of training and sampling, for the inside of a jit.

  The dropout of neighbours in training depends on (seed, step) alone.
  """

  def retrieve_fn(bank, snippet, rows, step=None):
    neighbours = retrieve(config, bank, snippet, rows, placement)
    if step is None or not config.dropout:
      return neighbours
    key = rngs.key(seed, "train/neighbours", step)
    return drop(neighbours, config.dropout, key)

  return retrieve_fn


def drop(
  neighbours: conditioning.Neighbours, rate: float, key: Key[Array, ""]
) -> conditioning.Neighbours:
  """Replaces single neighbours by zeros, which are absent; rate in [0, 1)."""
  kept = jax.random.bernoulli(key, 1 - rate, neighbours.scores.shape)
  snippets = jnp.where(kept[..., None], neighbours.snippets, 0.0)
  return conditioning.Neighbours(snippets, neighbours.scores)
