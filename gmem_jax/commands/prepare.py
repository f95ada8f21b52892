"""`--mode=prepare`: images to what training reads."""

import pathlib

import jax

from gmem_jax.config import sections
from gmem_jax.data import (
  encode,
  load_encoders,
  prepare,
  prepare_join,
  schema as schema_lib,
  sources,
)


def prepare_mode(config: sections.Config) -> None:
  """Prepares the images of `config.data` and prints the report.

  Args:
    config: The run; `data.prepared` is where the data go.

  Raises:
    ValueError: If there is nothing to prepare, or something does not fit.
    OSError: If the disk is full.
  """
  if config.data.source in ("none", "upstream") or not config.data.prepared:
    raise ValueError(
      f"config.data.source={config.data.source!r} with config.data.prepared="
      f"{config.data.prepared!r}: there is nothing to prepare; set the source"
      " to 'folder' or 'tfds', and the directory that the data go to"
    )
  source = open_source(config)
  networks = load_networks(config, source.channels)
  schema = make_schema(config, source, networks)
  directory = pathlib.Path(config.data.prepared).absolute()
  report = prepare.write_store(directory, schema, source, networks)
  if jax.process_index() == 0:
    print(prepare_join.describe(directory, report))


def open_source(config: sections.Config) -> sources.Source:
  """Opens the images of a config.

  Args:
    config: The run.
  """
  data, size = config.data, config.encoder.image_size
  if data.source == "folder":
    return sources.Folder(pathlib.Path(data.path), size)
  if data.source == "tfds":
    from gmem_jax.data import tfds_source  # seconds to import

    return tfds_source.TfdsImages(data.tfds, data.split, data.path, size)
  return sources.digits()


def load_networks(config: sections.Config, channels: int) -> encode.Frozen:
  """Loads the frozen networks.

  Args:
    config: The run.
    channels: Channels of the images.
  """
  return encode.Frozen(
    load_encoders.load_tokenizer(config),
    load_encoders.load_features(config, channels),
    latents=config.data.latents,
    tokens=config.data.tokens,
    mirrored=config.data.mirror,
    seed=config.seed,
    device_batch=config.data.device_batch,
  )


def make_schema(
  config: sections.Config, source: sources.Source, networks: encode.Frozen
) -> schema_lib.Schema:
  """Says how the records will be laid out.

  Args:
    config: The run.
    source: Its images.
    networks: Its frozen networks.
  """
  size = config.encoder.image_size
  image_shape = (size, size, source.channels)
  shapes = networks.shapes(image_shape)
  latent = shapes["mean" if "mean" in shapes else "latent"].shape
  return schema_lib.Schema(
    version=schema_lib.VERSION,
    latents=config.data.latents,
    tokens=config.data.tokens,
    mirrored=config.data.mirror,
    latent_shape=latent[1:],
    token_shape=networks.token_shape(image_shape),
    feature_width=shapes["row"].shape[-1],
    image_shape=image_shape,
    images=len(source),
    shard_size=config.data.shard_size,
    tokenizer=load_encoders.tokenizer_info(config),
    features={"name": networks.encoder_name},
    source=source.info(),
    seed=config.seed,
  )
