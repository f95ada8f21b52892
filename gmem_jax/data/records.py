"""Training examples of every kind behind one interface.

Prepared data (ArrayRecord shards) are read here, the published shards in
`upstream`, the digits are arrays in memory (`schema.InMemoryRecords`).

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

import pathlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from array_record.python import array_record_data_source

from gmem_jax.data import schema

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


class PreparedRecords:
  """What `--mode=prepare` wrote.

  Attributes:
    schema: How, and of what.
    mirrored: Whether there are mirror images.
  """

  def __init__(self, directory: str | pathlib.Path):
    """Opens a directory.

    Args:
      directory: Of prepared data, whole.

    Raises:
      ValueError: If something is missing, cut or of another schema; names it.
    """
    directory = pathlib.Path(directory)
    self.schema = schema.read(directory)
    self.mirrored = self.schema.mirrored
    self._layout = schema.layout(self.schema)
    if not (directory / "report.json").is_file():
      raise ValueError(
        f"{directory} is not whole, as report.json is missing: run"
        " --mode=prepare again, it continues where it stopped"
      )
    self._source = _open(
      [
        directory / f"{self.schema.shard_name(i)}.array_record"
        for i in range(self.schema.shards)
      ]
    )
    self._length, rest = divmod(
      len(self._source), self.schema.records_per_image
    )
    if rest:
      raise ValueError(
        f"{directory} holds {len(self._source)} records, not"
        f" {self.schema.records_per_image} for each image: it is damaged"
      )
    self._check_first(directory)

  def _check_first(self, directory: pathlib.Path) -> None:
    """Reads one record, so that another schema shows at once."""
    if self._length:
      try:
        self.read(0, Coins(False, False, False))
      except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return f"PreparedRecords({self._length} images)"

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
    """
    result: dict[str, np.ndarray] = {}
    for mirrored in sorted(set(coins)):
      number, view = self.schema.locate(index, int(mirrored))
      decoded = schema.decode(self._layout, self._source[number], view)
      for name, value in decoded.items():
        if coins.of(name) == mirrored:
          result[name] = value
    if "pixels" in result:
      result["mirrored"] = np.asarray(coins.tokens)
    result["row"] = np.asarray(index, np.int32)
    return result


def _open(
  paths: list[pathlib.Path],
) -> array_record_data_source.ArrayRecordDataSource:
  """Opens shards, each of which must be there and whole."""
  for path in paths:
    if not path.is_file():
      raise ValueError(f"{path} is missing")
  names = [str(path) for path in paths]
  try:
    return array_record_data_source.ArrayRecordDataSource(names)
  except (RuntimeError, ValueError) as error:
    for path in paths:  # The library does not name the file.
      try:
        array_record_data_source.ArrayRecordDataSource(str(path))
      except (RuntimeError, ValueError) as found:
        raise ValueError(f"{path} is damaged or cut: {found}") from None
    raise ValueError(f"{paths[0].parent}: {error}") from None
