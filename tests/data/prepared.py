"""A small directory of prepared data with known numbers, without networks."""

import dataclasses
import json
import pathlib

import numpy as np

from gmem_jax.bank import images
from gmem_jax.data import prepare_join, schema as schema_lib, shards, sources

SCHEMA = schema_lib.Schema(
  version=schema_lib.VERSION,
  latents="posterior",
  tokens="bf16",
  mirrored=True,
  latent_shape=(4, 4, 2),
  token_shape=(16, 6),
  feature_width=8,
  image_shape=(16, 16, 3),
  images=23,
  shard_size=10,
  tokenizer={"name": "none"},
  features={"name": "none"},
  source={"name": "numbers"},
  seed=0,
)
# Left out as unreadable, so that one shard is shorter.
MISSING = 11


def write(
  directory: pathlib.Path,
  files: images.SourceImages | None = None,
  **changes,
) -> list[dict[str, np.ndarray]]:
  """Writes random numbers in the place of latents, tokens and features.

  Args:
    directory: Where to.
    files: The images that they pretend to be made of.
    **changes: Fields of the schema that differ from `SCHEMA`.

  Returns:
    The values of every image, all of its views.
  """
  schema = dataclasses.replace(SCHEMA, **changes)
  layout = schema_lib.layout(schema)
  random = np.random.default_rng(0)
  directory.mkdir()
  text = json.dumps(schema_lib.to_json(schema))
  (directory / schema_lib.FILE).write_text(text)
  written = []
  for number in range(schema.shards):
    with shards.writing(directory, schema, number) as writer:
      first = number * schema.shard_size
      for i in range(first, min(first + schema.shard_size, schema.images)):
        name = files.names[i] if files else f"{i}"
        if i == MISSING:
          writer.skip(sources.Picture(name, -1, None, "damaged"))
          continue
        values = {
          name: _values(field, schema, random)
          for name, field in layout.fields.items()
        }
        values["row"] = np.float32(values["feature"][0])
        picture = sources.Picture(
          name, int(values["label"]), values.get("pixels"), ""
        )
        writer.add([picture], {n: v[None] for n, v in values.items()})
        written.append(values)
  prepare_join.join(directory, schema, {}, files)
  prepare_join.clean(directory)
  return written


def _values(field, schema, random) -> np.ndarray:
  """Numbers for a field: every view where it has views, else one."""
  shape = (schema.views, *field.shape[1:]) if field.viewed else field.shape
  if field.dtype.kind in "iu":
    low, high = (0, 256) if field.dtype == np.uint8 else (-100, 100)
    return random.integers(low, high, shape).astype(field.dtype)
  return random.standard_normal(shape).astype(field.dtype)
