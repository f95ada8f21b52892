"""The searches' judge: float64, on the stored rows."""

import jax.numpy as jnp
import numpy as np

from gmem_jax.bank.kernels import topk_reference
from tests.bank.kernels import arg_specs


def wrong_rows(spec, kind, query, exact_rows, found):
  """How many rows of a result are wrong, of all its q * k.

  A row is wrong where the oracle has another in its place whose exact score is
  not within the rounding bound; for whole numbers, wherever it has another.
  """
  exact = np.asarray(query, np.float64) @ exact_rows.T
  best = np.argsort(-exact, axis=1, kind="stable")[:, : spec.k]
  rows = np.asarray(found.rows)
  assert rows.shape == best.shape
  assert rows.dtype == np.int32
  assert np.asarray(found.scores).dtype == np.float32
  norm = jnp.asarray(np.linalg.norm(exact_rows, axis=1).max(), jnp.float32)
  bound = np.asarray(topk_reference.rounding_bound(query, norm))[:, None]
  want = np.take_along_axis(exact, best, axis=1)
  have = np.take_along_axis(exact, rows, axis=1)
  far = np.abs(want - have) > bound
  if kind in arg_specs.EXACT:
    far = rows != best
  twice = np.array([len(set(r)) for r in rows]) < spec.k
  score_off = np.abs(np.asarray(found.scores, np.float64) - have) > bound
  return int((far | twice[:, None] | score_off).sum())
