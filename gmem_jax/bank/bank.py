"""The memory bank: what the model remembers, kept outside of its weights.

Shapes: m bank rows, d feature width, r rank, b batch.
"""

import dataclasses
import hashlib
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Integer

# Of a bank on devices, or on the host.
Table = Array | np.ndarray
# How full rows are stored.
Storage = Literal["float32", "bfloat16", "int8"]


@flax.struct.dataclass
class MemoryBank:
  """An immutable table of memories, a pytree passed to jitted functions.

  On devices, or on the host where banks are edited and stored. Its fields are
  of type Any as JAX also fills pytrees with shapes and shardings.

  Attributes:
    rows: [m, d] raw features of real images, one a row; not normalised.
      float32, bfloat16, or int8 with `scales`.
    scales: float32 [m], int8 only: row i is `rows[i] * scales[i]`.
    residuals: float32 [m], int8 only: Euclidean norm of what rounding took from
      row i.
    padding: How many of the last rows are no memories but zeros, which make
      the rows divide evenly over a mesh; see `gmem_jax.bank.sharding`.
  """

  rows: Any
  scales: Any = None
  residuals: Any = None
  padding: int = flax.struct.field(pytree_node=False, default=0)

  @property
  def size(self) -> int:
    """Number of rows."""
    return self.rows.shape[0] - self.padding

  @property
  def width(self) -> int:
    """Width of a row."""
    return self.rows.shape[1]

  @property
  def storage(self) -> str:
    """How the rows are stored."""
    return str(self.rows.dtype)


@flax.struct.dataclass
class LowRankBank:
  """Memories as combinations of a few directions.

  Row i is `coefficients[i] @ basis.T + mean`. With the centred rows' singular
  value decomposition U S V', coefficients are U sqrt(S), the basis V sqrt(S).

  Attributes:
    coefficients: float32 [m, r], of each row.
    basis: float32 [d, r], the directions, one a column.
    singular_values: float32 [r], S, which projects new rows.
    mean: float32 [d], of the rows it was made of.

  Source: the published code's "dmd" bank, which gave what it interpolated
  undecoded.
  """

  coefficients: Any
  basis: Any
  singular_values: Any
  mean: Any

  @property
  def size(self) -> int:
    """Number of rows."""
    return self.coefficients.shape[0]

  @property
  def width(self) -> int:
    """Width of a row."""
    return self.basis.shape[0]

  @property
  def rank(self) -> int:
    """Number of directions."""
    return self.basis.shape[1]

  @property
  def storage(self) -> str:
    """How the rows are stored."""
    return f"rank {self.rank}"


Bank = MemoryBank | LowRankBank


@dataclasses.dataclass(frozen=True)
class BankInfo:
  """Where a bank comes from; kept beside it on disk.

  Attributes:
    size: Number of rows.
    width: Width of a row.
    encoder: Name of the feature encoder that made the rows; "" if unknown.
    source: The images they were made of.
    digest: SHA-256 of the stored arrays.
    parent: Digest of the bank that this one was edited from, or "".
    crop: How the encoder's images were cut out; "" if unknown.
    edit: What was done to the parent, or "".
  """

  size: int
  width: int
  encoder: str
  source: str
  digest: str
  parent: str
  crop: str = ""
  edit: str = ""


def features(bank: Bank, rows: Integer[Table, " b"]) -> Float32[Table, "b d"]:
  """Reads memories as they were encoded, whatever the storage.

  Args:
    bank: The bank; its rows may be split over a mesh.
    rows: Row numbers in [0, m). An index outside is clamped by JAX: check it
      on the host with `check_rows` where it comes from a user.

  Returns:
    Raw features, float32.
  """
  if isinstance(bank, LowRankBank):
    product = jnp.matmul(
      bank.coefficients[rows],
      bank.basis.T,
      precision=jax.lax.Precision.HIGHEST,
    )
    return product + bank.mean[None]
  found = bank.rows[rows].astype(jnp.float32)
  if bank.scales is not None:
    found = found * bank.scales[rows][:, None]
  return found


def snippets(bank: Bank, rows: Integer[Table, " b"]) -> Float32[Table, "b d"]:
  """Reads memory snippets: bank rows, scaled to unit length.

  Args:
    bank: The bank.
    rows: Row numbers in [0, m), as `features` takes them.

  Returns:
    Unit vectors, float32.

  Source: paper §3; the published code normalises at the call, not in the bank.
  """
  return normalise(features(bank, rows))


def normalise(features: Float[Table, "*b d"]) -> Float[Array, "*b d"]:
  """Scales vectors to unit length, in float32 (a zero vector stays zero).

  Args:
    features: Vectors along the last axis.
  """
  features = jnp.asarray(features, jnp.float32)
  norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
  return features / jnp.maximum(norm, 1e-12)


def check_rows(rows: np.ndarray, size: int, key: str) -> None:
  """Checks user-given row numbers.

  Args:
    rows: Row numbers.
    size: Number of rows of the bank.
    key: The config key or flag that they came from.

  Raises:
    ValueError: If a row is outside of the bank.
  """
  wrong = [int(r) for r in rows if not 0 <= r < size]
  if wrong:
    raise ValueError(f"{key}: rows {wrong} are not in the bank's [0, {size})")


def check_features(rows: np.ndarray, name: str) -> None:
  """Checks that features can be memories: finite and not zero.

  Args:
    rows: [n, d], on the host, of any stored type.
    name: What they are, for the message.

  Raises:
    ValueError: If there is none, or one is zero or not finite; names the rows.
  """
  if rows.ndim != 2 or not rows.size:
    raise ValueError(f"{name}: an array of shape {rows.shape} holds no rows")
  step = max(1, 2**24 // rows.shape[1])
  for what, wrong in (
    ("are not finite", lambda x: ~np.isfinite(x).all(axis=1)),
    ("are zero: they have no direction", lambda x: ~x.any(axis=1)),
  ):
    bad = np.concatenate(
      [
        start + np.flatnonzero(wrong(rows[start : start + step]))
        for start in range(0, len(rows), step)
      ]
    )
    if len(bad):
      more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
      raise ValueError(f"{name}: rows {bad[:8].tolist()}{more} {what}")


def check_encoder(info: BankInfo, encoder: str, key: str) -> None:
  """Refuses features of another encoder than the bank's.

  Args:
    info: The bank's; it passes if its encoder is unknown.
    encoder: The other encoder's name.
    key: What names that encoder, for the message.

  Raises:
    ValueError: If they differ.
  """
  if info.encoder and encoder != info.encoder:
    raise ValueError(
      f"{key}: it is {encoder}, the bank's rows were made by {info.encoder};"
      " their features cannot be compared"
    )


def check_bank(bank: Bank) -> None:
  """Checks that all rows of a bank can be memories.

  Args:
    bank: The bank, on the host.

  Raises:
    ValueError: If it is empty, or a row is zero or not finite; names the rows.
  """
  if isinstance(bank, LowRankBank):
    if not bank.size:
      raise ValueError("bank: it is empty")
    for name in ("coefficients", "basis", "singular_values", "mean"):
      if not np.isfinite(np.asarray(getattr(bank, name))).all():
        raise ValueError(f"bank: its {name} are not all finite")
    return
  rows = np.asarray(bank.rows)[: bank.size]
  check_features(rows, "bank")
  if bank.scales is not None:
    scales = np.asarray(bank.scales)[: bank.size]
    check_features(scales[:, None], "bank (scales)")


def digest(bank: Bank) -> str:
  """SHA-256 of a bank's stored arrays, without padding.

  Args:
    bank: The bank, on the host.

  Returns:
    64 hexadecimal digits.
  """
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(on_host(bank)):
    found.update(np.ascontiguousarray(leaf).view(np.uint8).data)
  return found.hexdigest()


def on_host(bank: Bank) -> Any:
  """The bank as arrays of the host, without padding.

  Args:
    bank: The bank; every array must be wholly on devices of this process.
  """
  if isinstance(bank, LowRankBank):
    return jax.tree.map(np.asarray, bank)
  bank = jax.tree.map(lambda x: np.asarray(x)[: bank.size], bank)
  return dataclasses.replace(bank, padding=0)


def make_info(
  bank: Bank, *, encoder: str, source: str, crop: str = ""
) -> BankInfo:
  """Describes a freshly built bank.

  Args:
    bank: The bank.
    encoder: Name of the feature encoder.
    source: The images it was made of.
    crop: How the encoder's images were cut out.

  Returns:
    Its description, with the digest of its rows.

  Raises:
    ValueError: If there is no row, or one is zero, NaN or infinite.
  """
  check_bank(bank)
  return BankInfo(
    size=bank.size,
    width=bank.width,
    encoder=encoder,
    source=source,
    digest=digest(bank),
    parent="",
    crop=crop,
  )
