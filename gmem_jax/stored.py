"""Training data as they lie on disk, checked against the config."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np

from gmem_jax import pretrained
from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import Config
from gmem_jax.data import prepare, records as records_lib, store, upstream
from gmem_jax.encoders import protocols


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """What training reads.

  Attributes:
    records: The examples; example i's memory is row i of the bank.
    bank: The features of the images, one a row.
    info: Where the bank comes from.
    stats: Statistics that normalise the latents.
    token_dim: Width of the projection's targets; 0 where there are none.
  """

  records: records_lib.Records
  bank: bank_lib.MemoryBank
  info: bank_lib.BankInfo
  stats: protocols.LatentStats
  token_dim: int

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """h, w, c."""
    spec = self.records.spec()
    h, w, c = spec["latent" if "latent" in spec else "mean"][0]
    return h, w, c


def in_memory(prepared: prepare.Prepared) -> TrainingData:
  """Training data that were encoded in memory.

  Args:
    prepared: They.
  """
  return TrainingData(
    prepared.records, prepared.bank, prepared.info, prepared.stats, token_dim=0
  )


def load(config: Config) -> TrainingData:
  """Opens the stored training data of a config.

  Args:
    config: The run.

  Raises:
    ValueError: If they are missing, damaged or not what the config says; names
      the key or the file.
  """
  if config.data.source == "upstream":
    return _load_upstream(config)
  return _load_prepared(config)


def _load_upstream(config: Config) -> TrainingData:
  path = config.data.path
  try:
    records = upstream.UpstreamRecords(path)
    mean, std = records.statistics()
  except ValueError as error:
    raise ValueError(f"config.data.path={path!r}: {error}") from None
  rows = bank_lib.MemoryBank(rows=jnp.asarray(records.bank_rows()))
  return TrainingData(
    records=records,
    bank=rows,
    info=bank_lib.make_info(
      rows, encoder=config.encoder.features, source=records.directory.name
    ),
    stats=_stats(config, mean, std),
    token_dim=records.spec()["tokens"].shape[-1],
  )


def _load_prepared(config: Config) -> TrainingData:
  path = config.data.prepared
  try:
    opened = store.open_store(pathlib.Path(path))
    records = records_lib.PreparedRecords(opened)
  except ValueError as error:
    raise ValueError(f"config.data.prepared={path!r}: {error}") from None
  _check(config, opened)
  schema = opened.schema
  return TrainingData(
    records=records,
    bank=bank_lib.MemoryBank(rows=jnp.asarray(opened.bank_rows())),
    info=opened.info,
    stats=_stats(config, opened.mean, opened.std),
    token_dim=0 if schema.tokens == "none" else schema.token_shape[-1],
  )


def _check(config: Config, opened: store.Store) -> None:
  """Holds prepared data against the config, one error each."""
  schema = opened.schema
  for key, ours, theirs in (
    ("data.latents", config.data.latents, schema.latents),
    ("data.tokens", config.data.tokens, schema.tokens),
    ("encoder.image_size", config.encoder.image_size, schema.image_shape[0]),
  ):
    if ours != theirs:
      raise ValueError(
        f"config.{key}={ours!r}, but config.data.prepared="
        f"{config.data.prepared!r} holds {theirs!r}"
      )
  if config.data.mirror and not schema.mirrored:
    raise ValueError(
      "config.data.mirror=True, but config.data.prepared="
      f"{config.data.prepared!r} holds no mirror images"
    )


def _stats(
  config: Config, mean: np.ndarray, std: np.ndarray
) -> protocols.LatentStats:
  """The data's statistics, or those that the config names."""
  path, key = config.encoder.latent_stats, "encoder.latent_stats"
  if path:
    tree, _ = pretrained.read(key, path, ("latent_stats",), "stats")
    named = [np.asarray(tree[n], np.float32) for n in ("mean", "std")]
    if named[0].shape != mean.shape:
      raise ValueError(
        f"config.{key}={path!r} is of {named[0].size} channels, the latents"
        f" have {mean.size}"
      )
    mean, std = named
  return protocols.LatentStats(mean=jnp.asarray(mean), std=jnp.asarray(std))
