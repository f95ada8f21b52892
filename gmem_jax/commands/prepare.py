"""`--mode=prepare`: images to what training reads."""

import pathlib

import jax

from gmem_jax.config import sections
from gmem_jax.convert import packaged
from gmem_jax.data import (
  encode,
  fit_encoders,
  holdout,
  load_encoders,
  prepare,
  prepare_join,
  schema as schema_lib,
  sources,
)
from gmem_jax.files import paths
from gmem_jax.parallel import lock

# In prepared data: the images that were held out, prepared as the others.
HELDOUT = "heldout"


def prepare_mode(config: sections.Config) -> None:
  """Prepares the images of `config.data` and prints the report.

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
  directory = paths.of(config.data.prepared)
  parts = open_parts(config, directory)
  with lock.held(directory, "config.data.prepared"):
    packaged.write_missing(config)
    fit_encoders.fit_missing(config, parts[directory])
    encoders = make_encoders(config, parts[directory].channels)
    for folder, source in parts.items():
      schema = make_schema(config, source, encoders)
      report = prepare.write_store(folder, schema, source, encoders)
      if jax.process_index() == 0:
        print(prepare_join.describe(folder, report))
  if jax.process_index() == 0:
    held = f", --bank={directory / HELDOUT} samples from held-out images"
    print(
      f"Next: python -m gmem_jax.bank info {directory}; the same command with"
      " --workdir=RUN instead of --mode=prepare trains on it"
      f"{held if len(parts) > 1 else ''}."
    )


def open_parts(
  config: sections.Config, directory: paths.Path
) -> dict[paths.Path, sources.Source]:
  """Where to prepare what: all images; or those to train on and the others."""
  source, data = open_source(config), config.data
  if not data.holdout and not data.holdout_groups:
    return {directory: source}
  kept, held = holdout.split(
    source, data.holdout, data.holdout_groups, config.seed
  )
  return {directory: kept, directory / HELDOUT: held}


def open_source(config: sections.Config) -> sources.Source:
  """Opens the images of a config."""
  data, size = config.data, config.encoder.image_size
  fill = data.truncated == "fill"
  if data.source == "folder":
    return sources.Folder(pathlib.Path(data.path), size, fill=fill)
  if data.source == "tfds":
    # Takes seconds to import.
    from gmem_jax.data import tfds_source

    where = data.tfds, data.split, data.path
    return tfds_source.TfdsImages(*where, size, fill=fill)
  return sources.digits()


def make_encoders(config: sections.Config, channels: int) -> encode.Encoders:
  """Loads the encoders of a config for images of so many channels."""
  return encode.Encoders(
    load_encoders.load_tokenizer(config),
    load_encoders.load_features(config, channels),
    latents=config.data.latents,
    tokens=config.data.tokens,
    mirrored=config.data.mirror,
    seed=config.seed,
    device_batch=config.data.device_batch,
  )


def make_schema(
  config: sections.Config, source: sources.Source, encoders: encode.Encoders
) -> schema_lib.Schema:
  """Lays out the records that encoders make of a source's images."""
  size = config.encoder.image_size
  image_shape = (size, size, source.channels)
  # Traced, not computed: the schema is known before the first image is read.
  shapes = encoders.shapes(image_shape)
  latent = shapes["mean" if "mean" in shapes else "latent"].shape
  return schema_lib.Schema(
    version=schema_lib.VERSION,
    latents=config.data.latents,
    tokens=config.data.tokens,
    mirrored=config.data.mirror,
    latent_shape=latent[1:],
    token_shape=encoders.token_shape(image_shape),
    feature_width=shapes["row"].shape[-1],
    image_shape=image_shape,
    images=len(source),
    shard_size=config.data.shard_size,
    tokenizer=load_encoders.tokenizer_info(config),
    features={"name": encoders.encoder_name},
    source=source.info() | _held_out(config),
    seed=config.seed,
  )


def _held_out(config: sections.Config) -> dict[str, object]:
  """What data notes of the images that were held out of it."""
  data = config.data
  # Nothing where nothing is, as in data from before all sources could.
  values = {
    "holdout": data.holdout,
    "holdout_groups": list(data.holdout_groups),
  }
  return {key: value for key, value in values.items() if value}
