"""The memory bank: what the model remembers, kept outside of its weights.

Reading and checking its rows; `gmem_jax.bank.files` keeps banks on
disk, `gmem_jax.bank.edit` makes new banks from old ones.

Shapes: m bank rows, d feature width, r rank, b batch.
"""

import dataclasses
import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Integer

# Of a bank on devices, or on the host.
Table = Array | np.ndarray


# The fields of both banks are Any: JAX also fills pytrees with shapes and with
# shardings, which annotations checked at run time would refuse.
@flax.struct.dataclass
class MemoryBank:
  """An immutable table of memories, a pytree passed to jitted functions.

  Its arrays are on devices, or on the host, where banks are edited and stored.

  Attributes:
    rows: [m, d] raw features of real images, one a row; not normalised.
      float32, bfloat16, or int8 with `scales`.
    scales: float32 [m], int8 only: row i is `rows[i] * scales[i]`.
    residuals: float32 [m], int8 only: Euclidean norm of the rounding error of
      row i.
    padding: How many of the last rows are zeros and no memories: they make the
      rows divide evenly over a mesh, see `gmem_jax.bank.sharding`.
  """

  rows: Any
  scales: Any = None
  residuals: Any = None
  # Static: compiled code depends on it, and a bank without padding compiles to
  # a search without masks.
  padding: int = flax.struct.field(pytree_node=False, default=0)

  @property
  def size(self) -> int:
    """Number of memories; padding does not count."""
    return self.rows.shape[0] - self.padding

  @property
  def width(self) -> int:
    """Width of a row."""
    return self.rows.shape[1]

  @property
  def storage(self) -> str:
    """How the rows are stored."""
    return str(self.rows.dtype)

  @property
  def sharding(self) -> jax.sharding.Sharding:
    """Where the arrays of a bank on devices are, the same for all of them."""
    return self.rows.sharding


@flax.struct.dataclass
class LowRankBank:
  """Memories as combinations of a few directions.

  Row i is `coefficients[i] @ basis.T + mean`. With the singular value
  decomposition U S V' of the centred rows, the coefficients are U sqrt(S) and
  the basis is V sqrt(S).

  Attributes:
    coefficients: float32 [m, r], a row for each memory.
    basis: float32 [d, r], a column for each direction.
    singular_values: float32 [r], S, needed to project new rows.
    mean: float32 [d], the mean of the rows that the bank was made from.

  Source: the published code's "dmd" bank, which returned interpolated rows
  without decoding them.
  """

  coefficients: Any
  basis: Any
  singular_values: Any
  mean: Any

  @property
  def size(self) -> int:
    """Number of memories."""
    return self.coefficients.shape[0]

  @property
  def width(self) -> int:
    """Width of a decoded row."""
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
    source: The images that the rows were made from.
    digest: SHA-256 of the stored arrays.
    parent: Digest of the bank that this one was edited from, or "".
    crop: How images were cropped for the encoder; "" if unknown.
    edit: What was done to the parent, or "".
    made_on: Backend and kind of the device that made the rows, or "".
  """

  size: int
  width: int
  encoder: str
  source: str
  digest: str
  parent: str
  # Runs made before these existed have no such keys.
  crop: str = ""
  edit: str = ""
  made_on: str = ""


def features(bank: Bank, rows: Integer[Table, " b"]) -> Float32[Table, "b d"]:
  """Reads rows as they were encoded, whatever the storage.

  Args:
    bank: The bank; its rows may be split over a mesh.
    rows: Row numbers in [0, m). JAX clamps an index outside: check numbers
      that come from a user with `check_rows`.

  Returns:
    Raw features.
  """
  if isinstance(bank, LowRankBank):
    # TPUs would otherwise multiply float32 in bfloat16, and a memory would
    # depend on the device that reads it.
    product = jnp.matmul(
      bank.coefficients[rows],
      bank.basis.T,
      precision=jax.lax.Precision.HIGHEST,
    )
    return product + bank.mean[None]
  raw = bank.rows[rows].astype(jnp.float32)
  if bank.scales is not None:
    raw = raw * bank.scales[rows][:, None]
  return raw


def decode(bank: Bank) -> Float32[np.ndarray, "m d"]:
  """Reads all rows of a bank on the host as they were encoded."""
  if isinstance(bank, LowRankBank):
    return bank.coefficients @ np.asarray(bank.basis).T + bank.mean[None]
  rows = np.asarray(bank.rows)[: bank.size]
  if bank.scales is None:
    # Published banks have 3.9 GB: float32 rows are not copied.
    return rows.astype(np.float32, copy=False)
  return rows.astype(np.float32) * np.asarray(bank.scales)[: bank.size, None]


def snippets(bank: Bank, rows: Integer[Table, " b"]) -> Float32[Table, "b d"]:
  """Reads memory snippets: rows of the bank, scaled to unit length.

  Takes row numbers as `features` does.

  Source: paper §3; the published code, too, normalises at the call and keeps
  raw features in the bank.
  """
  return normalise(features(bank, rows))


def normalise(features: Float[Table, "*b d"]) -> Float[Array, "*b d"]:
  """Scales vectors along the last axis to unit length, in float32."""
  features = jnp.asarray(features, jnp.float32)
  norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
  # The zero vector is the null condition, and stays zero.
  return features / jnp.maximum(norm, 1e-12)


def check_rows(rows: np.ndarray, size: int, key: str) -> None:
  """Checks the row numbers that a user gave by a config key or flag.

  Raises:
    ValueError: Naming the rows outside of the bank's [0, size).
  """
  outside = [int(r) for r in rows if not 0 <= r < size]
  if outside:
    raise ValueError(f"{key}: rows {outside} are not in the bank's [0, {size})")


def check_features(rows: np.ndarray, name: str) -> None:
  """Checks that features [n, d] on the host can be memories.

  Raises:
    ValueError: If there is none, or naming the rows that are zero or not
      finite; the message begins with `name`.
  """
  if rows.ndim != 2 or not rows.size:
    raise ValueError(f"{name}: an array of shape {rows.shape} holds no rows")
  # In parts: rows may be a memory map of gigabytes, and a mask of all of them
  # would take a quarter of that in memory.
  step = max(1, 2**24 // rows.shape[1])
  for fault, is_bad in (
    ("are not finite", lambda x: ~np.isfinite(x).all(axis=1)),
    # Cosines with a zero row are undefined, and normalised it is the null
    # condition.
    ("are zero: they have no direction", lambda x: ~x.any(axis=1)),
  ):
    bad = np.concatenate(
      [
        start + np.flatnonzero(is_bad(rows[start : start + step]))
        for start in range(0, len(rows), step)
      ]
    )
    if len(bad):
      more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
      raise ValueError(f"{name}: rows {bad[:8].tolist()}{more} {fault}")


def check_encoder(info: BankInfo, encoder: str, key: str) -> None:
  """Refuses features of another encoder than the bank's, if that is known.

  Raises:
    ValueError: Naming both, and the config key or flag `key`.
  """
  if info.encoder and encoder != info.encoder:
    raise ValueError(
      f"{key}: it is {encoder}, the bank's rows were made by {info.encoder};"
      " their features cannot be compared"
    )


def check_bank(bank: Bank) -> None:
  """Checks that all rows of a bank on the host can be memories.

  Raises:
    ValueError: If it is empty, or naming the rows that are zero or not finite.
  """
  if isinstance(bank, LowRankBank):
    if not bank.size:
      raise ValueError("bank: it is empty")
    for name, array in vars(bank).items():
      if not np.isfinite(np.asarray(array)).all():
        raise ValueError(f"bank: its {name} are not all finite")
    return
  check_features(np.asarray(bank.rows)[: bank.size], "bank")
  if bank.scales is not None:
    scales = np.asarray(bank.scales)[: bank.size]
    check_features(scales[:, None], "bank (scales)")


def digest(bank: Bank) -> str:
  """SHA-256 of a bank's stored arrays, 64 hexadecimal digits."""
  sha256 = hashlib.sha256()
  # Without padding, which depends on the mesh and not on the memories.
  for leaf in jax.tree.leaves(on_host(bank)):
    sha256.update(np.ascontiguousarray(leaf).view(np.uint8).data)
  return sha256.hexdigest()


def on_host(bank: Bank) -> Any:
  """The bank as numpy arrays, without padding.

  Every array must be wholly on devices of this process.
  """
  if isinstance(bank, LowRankBank):
    return jax.tree.map(np.asarray, bank)
  bank = jax.tree.map(lambda x: np.asarray(x)[: bank.size], bank)
  return dataclasses.replace(bank, padding=0)


def make_info(
  bank: Bank, *, encoder: str, source: str, crop: str = "", made_on: str = ""
) -> BankInfo:
  """Describes a bank just built; takes the fields of `BankInfo`.

  Raises:
    ValueError: If the bank is not valid, see `check_bank`.
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
    made_on=made_on,
  )
