"""How a bank's rows are stored: float32, bfloat16, int8, or a few directions.

All on the host: banks are built and changed there, and go to the devices as
they are stored.

Shapes: m bank rows, d feature width, r rank, n new rows.
"""

import dataclasses

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32

from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import networks

# Rows handled at a time: 200 MB of float32 at a width of 768.
CHUNK = 65536

# Directions with less than this share of the largest singular value are
# rounding, in float32 rows.
EMPTY = 1e-6


def encode(
  rows: Float[np.ndarray, "m d"], storage: networks.Storage
) -> bank_lib.MemoryBank:
  """Makes a bank of full rows, finite and none zero.

  "int8" gives each row the scale that its largest element needs, and keeps the
  norm of its rounding error.
  """
  rows = rows.astype(np.float32, copy=False)
  if storage == "float32":
    return bank_lib.MemoryBank(rows)
  if storage == "bfloat16":
    return bank_lib.MemoryBank(rows.astype(ml_dtypes.bfloat16))
  # A scale for each row, not one for all: norms of features vary, and small
  # rows would lose more than large ones.
  scales = np.abs(rows).max(axis=1) / np.float32(127)
  # The scale of denormal elements would be denormal itself, or zero.
  scales = np.maximum(scales, np.finfo(np.float32).tiny)
  whole = np.empty(rows.shape, np.int8)
  residuals = np.empty(len(rows), np.float32)
  for start in range(0, len(rows), CHUNK):
    part = slice(start, start + CHUNK)
    scale = scales[part, None]
    whole[part] = np.rint(rows[part] / scale).clip(-127, 127)
    lost = rows[part] - whole[part].astype(np.float32) * scale
    residuals[part] = np.linalg.norm(lost, axis=1)
  return bank_lib.MemoryBank(whole, scales, residuals)


def like(rows: Float[np.ndarray, "n d"], bank: bank_lib.Bank) -> bank_lib.Bank:
  """Makes a bank of new rows alone, stored as another bank's are.

  A bank of low rank keeps its directions: what the rows have outside of them is
  lost.
  """
  if isinstance(bank, bank_lib.MemoryBank):
    storage: networks.Storage = bank.storage  # pyright: ignore
    return encode(rows, storage)
  singular = np.asarray(bank.singular_values)
  # A row is U S V' and its coefficients U sqrt(S); the basis is V sqrt(S).
  # A direction that the old rows do not have has no coefficient.
  inverse = np.where(singular > 0, 1 / np.where(singular > 0, singular, 1), 0)
  centred = rows.astype(np.float32) - np.asarray(bank.mean)[None]
  coefficients = centred @ np.asarray(bank.basis) * inverse[None]
  return dataclasses.replace(bank, coefficients=coefficients.astype(np.float32))


def low_rank(rows: Float[np.ndarray, "m d"], rank: int) -> bank_lib.LowRankBank:
  """The best approximation of rows by `rank` directions around their mean.

  Raises:
    ValueError: If the rows do not span as many directions.

  Source: the published "dmd" bank.
  """
  rows = rows.astype(np.float32, copy=False)
  mean = rows.mean(axis=0, dtype=np.float64)
  singular, directions = _principal(rows, mean)
  spanned = int((singular > EMPTY * singular[0]).sum())
  if not 1 <= rank <= spanned:
    raise ValueError(
      f"rank={rank}: {len(rows)} rows of width {rows.shape[1]} span"
      f" {spanned} directions around their mean; take at most as many"
    )
  singular, directions = singular[:rank], directions[:, :rank]
  coefficients = np.empty((len(rows), rank), np.float32)
  for start in range(0, len(rows), CHUNK):
    centred = rows[start : start + CHUNK] - mean[None]
    projected = centred @ directions / np.sqrt(singular)[None]
    coefficients[start : start + CHUNK] = projected
  return bank_lib.LowRankBank(
    coefficients=coefficients,
    basis=(directions * np.sqrt(singular)[None]).astype(np.float32),
    singular_values=singular.astype(np.float32),
    mean=mean.astype(np.float32),
  )


def _principal(
  rows: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Singular values, descending, and directions [d, ..] of centred rows."""
  # Few rows: the covariance would square the singular values, and be larger.
  if len(rows) <= rows.shape[1]:
    _, singular, transposed = np.linalg.svd(
      rows - mean[None], full_matrices=False
    )
    return singular, transposed.T
  # Many rows: a decomposition of all would copy them several times over. Their
  # d x d covariance is small, and its float64 has digits to spare.
  covariance = np.zeros((rows.shape[1],) * 2)
  for start in range(0, len(rows), CHUNK):
    centred = rows[start : start + CHUNK] - mean[None]
    covariance += centred.T @ centred
  values, vectors = np.linalg.eigh(covariance)
  return np.sqrt(np.maximum(values, 0))[::-1], vectors[:, ::-1]


@dataclasses.dataclass(frozen=True)
class Error:
  """What a storage loses of the rows.

  Attributes:
    relative: Euclidean norm of the loss over that of all rows.
    worst_cosine: Smallest cosine of a stored row with the row itself.
    mean_cosine: Mean of these cosines.
  """

  relative: float
  worst_cosine: float
  mean_cosine: float


def error(
  rows: Float32[np.ndarray, "m d"], stored: Float32[np.ndarray, "m d"]
) -> Error:
  """Measures what a storage loses of rows; `stored` are the decoded ones."""
  lost = total = 0.0
  cosines = []
  for start in range(0, len(rows), CHUNK):
    a, b = (x[start : start + CHUNK].astype(np.float64) for x in (rows, stored))
    lost, total = lost + ((a - b) ** 2).sum(), total + (a**2).sum()
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines.append((a * b).sum(axis=1) / np.maximum(norms, 1e-300))
  cosine = np.concatenate(cosines)
  return Error(
    float(np.sqrt(lost / total)), float(cosine.min()), float(cosine.mean())
  )
