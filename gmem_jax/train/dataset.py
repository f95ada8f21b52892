"""What a run trains on, from wherever its config says."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, UInt8

from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import sections
from gmem_jax.data import (
  holdout,
  in_memory,
  load_encoders,
  schema as schema_lib,
  sources,
  store as store_lib,
  upstream,
)
from gmem_jax.files import atomic, paths
from gmem_jax.models.encoders import protocols


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The images of a run, encoded.

  Attributes:
    train: What is trained on.
    train_images: Its images, if they are in memory.
    heldout: The encoded images that are never trained on, if any.
    heldout_images: Those images, if they are in memory.
    encoder: The feature encoder, if the training step runs it.
  """

  train: in_memory.Prepared
  train_images: sources.Images | None = None
  heldout: in_memory.Prepared | None = None
  heldout_images: sources.Images | None = None
  encoder: protocols.FeatureEncoder | None = None


def require(config: sections.Config) -> None:
  """Refuses to train without training data, before anything is loaded.

  Raises:
    ValueError: If the config names none, or they are not prepared.
  """
  if config.data.source == "none":
    raise ValueError(
      "config.data.source='none': this config names no images, so it can only"
      " sample: --mode=sample with --config.sample.network=CONVERTED_WEIGHTS"
    )
  if config.data.source != "upstream" and config.data.prepared:
    try:
      schema_lib.read(_directory(config))
    except ValueError as error:
      raise ValueError(
        f"config.data.prepared={config.data.prepared!r}: {error};"
        " --mode=prepare with the same config writes it"
      ) from None


def _directory(config: sections.Config) -> paths.Path:
  return paths.of(config.data.prepared)


def load(config: sections.Config) -> Dataset:
  """Reads, or encodes, what the config trains on.

  Raises:
    ValueError: If it is missing, incomplete, or prepared with other settings.
  """
  require(config)
  if config.data.source == "upstream":
    dataset = _load_upstream(config)
  elif config.data.prepared:
    dataset = _load_prepared(config)
  else:
    dataset = _encode_digits(config)
  _check_tokens(config, dataset.train)
  return dataset


def _encode_digits(config: sections.Config) -> Dataset:
  """Encodes the digits in memory: all of them take seconds."""
  images = sources.digits()
  side = images.pixels.shape[1]
  if side != config.encoder.image_size:
    raise ValueError(
      f"config.encoder.image_size={config.encoder.image_size}: the images of"
      f" config.data.source={config.data.source!r} are {side} pixels wide"
    )
  kept, held = holdout.split(
    images, config.data.holdout, config.data.holdout_groups, config.seed
  )
  tokenizer = load_encoders.load_tokenizer(config)
  encoder = load_encoders.load_features(config, images.channels)
  return Dataset(
    train=in_memory.prepare(kept, tokenizer, encoder),
    train_images=kept,
    heldout=in_memory.prepare(held, tokenizer, encoder),
    heldout_images=held,
  )


def _load_prepared(config: sections.Config) -> Dataset:
  """Opens what `--mode=prepare` wrote."""
  store = store_lib.open_store(_directory(config))
  schema = store.schema
  _check_schema(config, schema)
  encoder = None
  # Stored pixels take a seventh of the published features' bytes; the step then
  # makes the projection's targets of them, for about 6 % more arithmetic (XL).
  if schema.tokens == "pixels" and config.loss.projection_weight:
    encoder = load_encoders.load_features(config, schema.image_shape[-1])
  train = in_memory.Prepared(
    records=store_lib.PreparedRecords(store),
    bank=bank_lib.MemoryBank(rows=jnp.asarray(store.bank_rows())),
    info=store.info,
    stats=_stats(store.mean, store.std),
    latent_shape=schema.latent_shape,
    token_shape=schema.token_shape if schema.tokens != "none" else None,
  )
  return Dataset(train=train, encoder=encoder)


def _load_upstream(config: sections.Config) -> Dataset:
  """Opens the published code's features."""
  path = config.data.path
  try:
    records = upstream.UpstreamRecords(path)
    mean, std = records.statistics()
  except ValueError as error:
    raise ValueError(f"config.data.path={path!r}: {error}") from None
  spec = records.spec()
  # The published bank is a file of its own; the same rows are in the records.
  bank = bank_lib.MemoryBank(rows=jnp.asarray(records.bank_rows()))
  info = bank_lib.make_info(
    bank, encoder=config.encoder.features, source=records.directory.name
  )
  train = in_memory.Prepared(
    records=records,
    bank=bank,
    info=info,
    stats=_stats(mean, std),
    latent_shape=spec["latent"].shape,  # type: ignore
    token_shape=spec["tokens"].shape,  # type: ignore
  )
  return Dataset(train=train)


def _stats(mean: np.ndarray, std: np.ndarray) -> protocols.LatentStats:
  return protocols.LatentStats(mean=jnp.asarray(mean), std=jnp.asarray(std))


def _check_schema(config: sections.Config, schema: schema_lib.Schema) -> None:
  """Checks that data were prepared as the config says."""
  features = load_encoders.features_name(config)
  stored = {
    "data.latents": schema.latents,
    "data.tokens": schema.tokens,
    "encoder.image_size": schema.image_shape[0],
    "encoder.features": schema.features["name"],
    "encoder.tokenizer": dict(schema.tokenizer),
    # Nothing is noted where nothing was held out.
    "data.holdout": schema.source.get("holdout", 0),
    "data.holdout_groups": list(schema.source.get("holdout_groups", ())),
  }
  given = {
    "data.latents": config.data.latents,
    "data.tokens": config.data.tokens,
    "encoder.image_size": config.encoder.image_size,
    # The feature encoder's weights need not be on the machine that trains.
    "encoder.features": features or schema.features["name"],
    "encoder.tokenizer": load_encoders.tokenizer_info(config),
    "data.holdout": config.data.holdout,
    "data.holdout_groups": list(config.data.holdout_groups),
  }
  # Mirror images that were prepared need not be used.
  if config.data.mirror:
    stored["data.mirror"], given["data.mirror"] = schema.mirrored, True
  differing = atomic.differences(stored, given, prefix="config.")
  if differing:
    raise ValueError(
      f"config.data.prepared={config.data.prepared!r} was prepared otherwise:\n"
      + "\n".join(differing)
    )


def _check_tokens(config: sections.Config, train: in_memory.Prepared) -> None:
  """Checks that the projection has a target for each token."""
  if not config.loss.projection_weight:
    return
  where = f"config.loss.projection_weight={config.loss.projection_weight}"
  if train.token_shape is None:
    raise ValueError(f"{where}: the data has no tokens to project to")
  tokens = train.token_shape[0]
  side = train.latent_shape[0] // config.model.patch
  if tokens != side**2:
    raise ValueError(
      f"{where}: the network has {side} x {side} tokens (config.model.patch="
      f"{config.model.patch}), config.encoder.features makes {tokens}"
    )


def images_of_rows(
  dataset: Dataset, rows: Integer[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n H W channels"] | None:
  """The images that rows of the bank are of; None if no pixels are stored."""
  if dataset.train_images is not None:
    return dataset.train_images.pixels[rows]
  records = dataset.train.records
  if "pixels" not in records.spec():
    return None
  as_it_is = schema_lib.Flips(latent=False, tokens=False, feature=False)
  return np.stack([records.read(int(i), as_it_is)["pixels"] for i in rows])
