"""Training examples of every kind behind one interface.

Prepared data (ArrayRecord shards) are read here, the published shards in
`upstream`, the digits are arrays in memory (`InMemoryRecords`).

A record is a mapping of the fields that `Records.spec` names, a choice of
  latent        [h w c] float32 or bfloat16, not normalised; or
  mean, logvar  [h w c] of the tokenizer's posterior
  tokens        [n d] float32, bfloat16, or int8 with
  token_scales  [n] float32; or
  pixels        [H W ch] uint8, the image as it is, with
  mirrored      [] bool, whether the example is its mirror image
  feature       [d] the raw feature of this view of the image
  row           [] int32, the image's row of the memory bank
  label         [] int32, its class, -1 where there is none
"""

import bisect
import itertools
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from array_record.python import array_record_data_source

from gmem_jax.data import schema, store as store_lib

Record = Mapping[str, np.ndarray]


class Spec(NamedTuple):
  """Shape and type of a field."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Coins(NamedTuple):
  """Which parts of an example are mirrored; without parity all or none are."""

  latent: bool
  tokens: bool
  feature: bool

  def of(self, field: str) -> bool:
    """The coin of a field's part."""
    if field in ("feature", "tokens"):
      return getattr(self, field)
    return self.tokens if field in _TOKEN_FIELDS else self.latent


_TOKEN_FIELDS = ("token_scales", "pixels", "mirrored")


@runtime_checkable
class Records(Protocol):
  """Random access to examples, in threads.

  Attributes:
    mirrored: Whether there are mirror images; else all coins are False.
  """

  mirrored: bool

  def spec(self) -> dict[str, Spec]:
    """Shape and type of every field."""
    ...

  def __len__(self) -> int:
    """Number of images."""
    ...

  def read(self, index: int, coins: Coins) -> Record:
    """The example of an image, in views of what was read where possible."""
    ...


# Records in memory: field -> what it is.
FIELDS = {
  "latent": "float32 [h, w, c]: as the tokenizer gives it, not normalised",
  "row": "int32 []: the example's own row of the memory bank",
  "label": "int32 []: its class, -1 where there is none; only for reports",
}


class InMemoryRecords:
  """Records held as one array per field; without mirror images.

  Attributes:
    fields: The arrays; their leading axis runs over the records.
  """

  mirrored = False

  def __init__(self, fields: Mapping[str, np.ndarray]):
    """Checks and keeps the arrays.

    Args:
      fields: Arrays whose leading axis runs over the records.

    Raises:
      ValueError: On an unknown field, a missing one, or unequal lengths.
    """
    if set(fields) != set(FIELDS):
      raise ValueError(f"records have {sorted(fields)}, not {sorted(FIELDS)}")
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) != 1:
      raise ValueError(f"fields differ in length: {lengths}")
    self.fields = dict(fields)

  def __len__(self) -> int:
    return len(self.fields["row"])

  def __repr__(self) -> str:
    return f"InMemoryRecords({len(self)})"

  def spec(self) -> dict[str, Spec]:
    """Shape and type of every field."""
    return {n: Spec(v.shape[1:], v.dtype) for n, v in self.fields.items()}

  def read(self, index: int, coins: Coins) -> Record:
    """The example of an image.

    Args:
      index: Number of the image.
      coins: Unused: there are no mirror images.
    """
    del coins
    return {name: value[index] for name, value in self.fields.items()}


class PreparedRecords:
  """What `--mode=prepare` wrote.

  Attributes:
    store: The directory.
    mirrored: Whether there are mirror images.
  """

  def __init__(self, store: store_lib.Store):
    """Opens the shards.

    Args:
      store: The directory, checked.

    Raises:
      ValueError: If there is no image, or its record is not of the schema.
    """
    self.store = store
    self.mirrored = store.schema.mirrored
    self._layout = schema.layout(store.schema)
    if not store.images:
      raise ValueError(f"{store.directory} holds no images")
    counts = [s.images * store.schema.records_per_image for s in store.shards]
    self._source = array_record_data_source.ArrayRecordDataSource(
      [
        f"{shard.path}[0:{count}]"  # Its way to say so: no file is opened yet.
        for shard, count in zip(store.shards, counts, strict=True)
      ]
    )
    self._ends = list(itertools.accumulate(counts))
    self.read(0, Coins(False, False, False))  # Another schema shows at once.

  def __len__(self) -> int:
    return self.store.images

  def __repr__(self) -> str:
    return f"{self.store.directory} ({len(self)} images)"

  def spec(self) -> dict[str, Spec]:
    """Shape and type of every field."""
    found = {
      name: Spec(field.shape[field.viewed :], field.dtype)
      for name, field in self._layout.fields.items()
    }
    if "pixels" in found:
      found["mirrored"] = Spec((), np.dtype(bool))
    return found | {"row": Spec((), np.dtype(np.int32))}

  def read(self, index: int, coins: Coins) -> Record:
    """The example of an image; see `Records`.

    Args:
      index: Number of the image.
      coins: Which parts are mirrored.

    Raises:
      ValueError: If the record is damaged; names its file.
    """
    result = self._view(index, coins.latent)
    if any(c != coins.latent for c in coins):
      other = self._view(index, not coins.latent)
      for name in result:
        if coins.of(name) != coins.latent:
          result[name] = other[name]
    if "pixels" in result:
      result["mirrored"] = np.asarray(coins.tokens)
    result["row"] = np.asarray(index, np.int32)
    return result

  def _view(self, index: int, mirrored: bool) -> dict[str, np.ndarray]:
    """All fields of one view of an image."""
    number, view = self.store.schema.locate(index, int(mirrored))
    try:
      return schema.decode(self._layout, self._source[number], view)
    except (RuntimeError, ValueError, IndexError) as error:
      shard = self.store.shards[bisect.bisect_right(self._ends, number)]
      raise ValueError(
        f"{shard.path}: record {number} of the data: {error}"
      ) from None
