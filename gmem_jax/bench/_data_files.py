"""Files of the published shapes, and a reader written like the published one.

The numbers in them are noise, the same 64 images over and over: what is
measured is how many bytes there are and how they come into batches.
"""

import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from gmem_jax.config import sections
from gmem_jax.data import (
  pipeline,
  prepare_join,
  schema as schema_lib,
  shards,
  sources,
)

LATENT, TOKENS, WIDTH, IMAGE = (16, 16, 32), (256, 768), 768, (256, 256, 3)
_POOL = 64  # different images
_SHARD = 500  # images


def schema(images: int, tokens: sections.Tokens) -> schema_lib.Schema:
  """The schema of prepared data of the published shapes."""
  return schema_lib.Schema(
    version=schema_lib.VERSION,
    latents="sample",
    tokens=tokens,
    mirrored=True,
    latent_shape=LATENT,
    token_shape=TOKENS,
    feature_width=WIDTH,
    image_shape=IMAGE,
    images=images,
    shard_size=_SHARD,
    tokenizer={"name": "noise"},
    features={"name": "noise"},
    source={"name": "noise"},
    seed=0,
  )


def write_prepared(
  directory: pathlib.Path, images: int, tokens: sections.Tokens
) -> int:
  """Writes prepared data with the product's own writer.

  Returns:
    Bytes of the directory.
  """
  chosen, random = schema(images, tokens), np.random.default_rng(0)
  layout = schema_lib.layout(chosen)
  directory.mkdir()
  text = json.dumps(schema_lib.to_json(chosen))
  (directory / schema_lib.FILE).write_text(text)
  pool = {}
  for name, field in layout.fields.items():
    views = (chosen.views,) * field.viewed
    shape = (_POOL, *views, *field.shape[field.viewed :])
    if field.dtype.kind in "iu":
      pool[name] = random.integers(0, 100, shape).astype(field.dtype)
    else:
      noise = random.standard_normal(shape, np.float32)
      pool[name] = noise.astype(field.dtype)
  # The bank's row of an image is the feature of its first view.
  pool["row"] = pool["feature"][:, 0].astype(np.float32)
  # The product's own writer, so the files are those of --mode=prepare; only the
  # encoders are left out, which are not what is measured.
  for number in range(chosen.shards):
    with shards.writing(directory, chosen, number) as writer:
      first = number * _SHARD
      for i in range(first, min(first + _SHARD, images)):
        one = {name: value[i % _POOL][None] for name, value in pool.items()}
        pixels = one["pixels"][0] if "pixels" in one else None
        writer.add([sources.Picture(str(i), i % 1000, pixels, "")], one)
  prepare_join.join(directory, chosen, {})
  prepare_join.clean(directory)
  return size(directory)


def write_published(directory: pathlib.Path, images: int) -> int:
  """Writes shards as the published script does.

  Returns:
    Bytes of the directory.
  """
  directory.mkdir()
  random = np.random.default_rng(0)
  channels_first = (LATENT[2], *LATENT[:2])
  shapes = {
    "latents": channels_first,
    "representations": TOKENS,
    "cls_tokens": (WIDTH,),
  }
  for number, first in enumerate(range(0, images, _SHARD)):
    count = min(_SHARD, images - first)
    arrays: dict[str, np.ndarray] = {"labels": np.arange(count) % 1000}
    for name, shape in shapes.items():
      noise = random.standard_normal((_POOL, *shape), np.float32)
      for end in ("", "_flip"):
        arrays[name + end] = np.resize(noise, (count, *shape))
    path = directory / f"latents_rank00_shard{number:03d}.safetensors"
    safetensors.numpy.save_file(arrays, path)
  return size(directory)


def size(directory: pathlib.Path) -> int:
  """Bytes of all files."""
  return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


class PublishedReader:
  """Reads an item as the published data set does: open, slice, normalise."""

  def __init__(self, directory: pathlib.Path, framework: str):
    """Lists the items.

    Args:
      directory: Of the shards.
      framework: "torch", as published, or "numpy".
    """
    self.framework = framework
    library: Any = importlib.import_module(framework)
    self._stack = library.stack
    self.items: list[tuple[pathlib.Path, int]] = []
    # Opened once for the length, and anew for each item, as published.
    for path in sorted(directory.glob("*.safetensors")):
      with safetensors.safe_open(path, framework) as file:
        count = file.get_slice("labels").get_shape()[0]
      self.items += [(path, i) for i in range(count)]
    if framework == "torch":
      library.set_num_threads(1)  # As a worker of the published loader has.
    self._mean = library.zeros((1, LATENT[2], 1, 1), dtype=library.float32)
    self._std = library.ones((1, LATENT[2], 1, 1), dtype=library.float32)
    self._random = np.random.default_rng(0)

  def batch(self, indices: Sequence[int]) -> list[Any]:
    """Items, stacked."""
    items = [self._item(index) for index in indices]
    return [self._stack(parts) for parts in zip(*items, strict=True)]

  def _item(self, index: int) -> tuple[Any, ...]:
    path, inside = self.items[index]
    found = []
    with safetensors.safe_open(path, self.framework) as file:
      for name in ("latents", "representations", "cls_tokens"):
        end = "_flip" if self._random.random() > 0.5 else ""
        found.append(file.get_slice(name + end)[inside : inside + 1])
      label = file.get_slice("labels")[inside : inside + 1]
    # The published data set normalises on the host, in the worker.
    found[0] = (found[0] - self._mean) / self._std
    latent, tokens, feature = (array[0] for array in found)
    return latent, tokens, feature, label[0]


class ManyTimes:
  """Records that repeat until they are as many as ImageNet's images.

  Shuffling a handful costs more than shuffling a million: the permutation's
  cipher works on 16 bits at least, and skips numbers that are too large.
  """

  def __init__(self, records: pipeline.Records, times: int):
    """Repeats records."""
    self._records, self._times = records, times
    self.mirrored = records.mirrored

  def __len__(self) -> int:
    return self._times * len(self._records)

  def spec(self) -> dict[str, schema_lib.Spec]:
    """Shape and type of every field."""
    return self._records.spec()

  def read(
    self, index: int, flips: schema_lib.Flips
  ) -> Mapping[str, np.ndarray]:
    """The example of an image."""
    return self._records.read(index % len(self._records), flips)


def random_batch(size: int) -> dict[str, np.ndarray]:
  """A batch as the loader of bfloat16 data gives it, one step of it."""
  random, bf16 = np.random.default_rng(1), ml_dtypes.bfloat16
  shapes = {"latent": LATENT, "tokens": TOKENS, "feature": (WIDTH,)}
  found = {
    name: random.standard_normal((1, size, *shape), np.float32).astype(bf16)
    for name, shape in shapes.items()
  }
  return found | {"row": np.zeros((1, size), np.int32)}
