"""A small directory of prepared data with known numbers, without networks."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_module

from gmem_jax.bank import bank as bank_lib
from gmem_jax.data import schema as schema_lib, store

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


def write(directory: pathlib.Path, **changes) -> list[dict[str, np.ndarray]]:
  """Writes random records; image 11 was unreadable, so one shard is shorter.

  Args:
    directory: Where to.
    **changes: Fields of the schema that differ from `SCHEMA`.

  Returns:
    The values of every record, in order.
  """
  schema = dataclasses.replace(SCHEMA, **changes)
  layout = schema_lib.layout(schema)
  random = np.random.default_rng(0)
  (directory / "bank").mkdir(parents=True)
  written, rows = [], []
  for number in range(schema.shards):
    name = directory / schema.shard_name(number)
    path = name.with_suffix(".array_record")
    writer = array_record_module.ArrayRecordWriter(
      str(path), "group_size:1,uncompressed"
    )
    first = number * schema.shard_size
    images = [
      i
      for i in range(first, min(first + schema.shard_size, schema.images))
      if i != 11
    ]
    for _ in images:
      for _ in range(schema.records_per_image):
        record = {n: _values(f, random) for n, f in layout.fields.items()}
        writer.write(schema_lib.encode(layout, record))
        written.append(record)
      rows.append(random.standard_normal(schema.feature_width))
    writer.close()
    facts = {"images": len(images), "bytes": path.stat().st_size}
    name.with_suffix(".json").write_text(json.dumps(facts))
  _write_rest(
    directory, schema, np.float32(rows).reshape(-1, schema.feature_width)
  )
  return written


def _values(field: schema_lib.Field, random) -> np.ndarray:
  if field.dtype.kind in "iu":
    low, high = (0, 256) if field.dtype == np.uint8 else (-100, 100)
    return random.integers(low, high, field.shape).astype(field.dtype)
  return random.standard_normal(field.shape).astype(field.dtype)


def _write_rest(directory, schema, rows) -> None:
  bank = bank_lib.MemoryBank(rows=jnp.asarray(rows))
  info = bank_lib.make_info(bank, encoder="none", source="numbers")
  channels = schema.latent_shape[-1]
  for name, value in (
    (schema_lib.FILE, schema_lib.to_json(schema)),
    (store.STATISTICS, {"mean": [0.5] * channels, "std": [2.0] * channels}),
    ("bank/info.json", dataclasses.asdict(info)),
    (store.REPORT, {}),
  ):
    (directory / name).write_text(json.dumps(value))
  np.save(directory / "bank" / "rows.npy", rows)
