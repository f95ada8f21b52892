"""The memory bank: what the model remembers, kept outside of its weights.

Shapes: m bank rows, d feature width, b batch.
"""

import dataclasses
import hashlib
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer


@flax.struct.dataclass
class MemoryBank:
  """An immutable table of memories, a pytree passed to jitted functions.

  Its fields are of type Any as JAX also fills pytrees with shapes and
  shardings.

  Attributes:
    rows: [m, d] raw features of real images, one a row; not normalised.
      float32, bfloat16, or int8 with `scales`.
    scales: float32 [m], int8 only: row i is `rows[i] * scales[i]`.
    residuals: float32 [m], int8 only: Euclidean norm of what rounding took from
      row i.
  """

  rows: Any
  scales: Any = None
  residuals: Any = None

  @property
  def size(self) -> int:
    """Number of rows."""
    return self.rows.shape[0]

  @property
  def width(self) -> int:
    """Width of a row."""
    return self.rows.shape[1]


@dataclasses.dataclass(frozen=True)
class BankInfo:
  """Where a bank comes from; kept beside it on disk.

  Attributes:
    size: Number of rows.
    width: Width of a row.
    encoder: Name of the feature encoder that made the rows.
    source: The images they were made of.
    digest: SHA-256 of the stored rows.
    parent: Digest of the bank that this one was edited from, or "".
  """

  size: int
  width: int
  encoder: str
  source: str
  digest: str
  parent: str


def snippets(
  bank: MemoryBank, rows: Integer[Array, " b"]
) -> Float[Array, "b d"]:
  """Reads memory snippets: bank rows, scaled to unit length.

  Args:
    bank: The bank.
    rows: Row numbers in [0, m). An index outside is clamped by JAX: check it
      on the host with `check_rows` where it comes from a user.

  Returns:
    Unit vectors, float32.

  Source: paper §3; the published code normalises at the call, not in the bank.
  """
  return normalise(bank.rows[rows])


def normalise(features: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Scales vectors to unit length, in float32 (a zero vector stays zero).

  Args:
    features: Vectors along the last axis.
  """
  features = features.astype(jnp.float32)
  norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
  return features / jnp.maximum(norm, 1e-12)


def check_rows(rows: np.ndarray, size: int, key: str) -> None:
  """Checks user-given row numbers.

  Args:
    rows: Row numbers.
    size: Number of rows of the bank.
    key: The config key that they came from.

  Raises:
    ValueError: If a row is outside of the bank.
  """
  wrong = [int(r) for r in rows if not 0 <= r < size]
  if wrong:
    raise ValueError(f"{key}: rows {wrong} are not in the bank's [0, {size})")


def make_info(bank: MemoryBank, *, encoder: str, source: str) -> BankInfo:
  """Describes a freshly built bank.

  Args:
    bank: The bank.
    encoder: Name of the feature encoder.
    source: The images it was made of.

  Returns:
    Its description, with the digest of its rows.

  Raises:
    ValueError: If a row holds NaN or infinity.
  """
  rows = np.ascontiguousarray(bank.rows)
  if not np.isfinite(rows).all():
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    raise ValueError(f"bank rows {bad[:8].tolist()} are not finite")
  return BankInfo(
    size=bank.size,
    width=bank.width,
    encoder=encoder,
    source=source,
    digest=hashlib.sha256(rows.tobytes()).hexdigest(),
    parent="",
  )
