"""Prepared data as a TFDS data set, for code that does not know this package.

  import tensorflow_datasets as tfds
  import gmem_jax.data.tfds_builder  # registers the data set

  source = tfds.data_source(
    "gmem_latents",
    split="train[:10%]",
    builder_kwargs={"directory": "data/in1k_va_vae"},
  )
  source[0]["latent"]

The records are read in place: nothing is copied or converted, and TensorFlow is
not needed. A record is one view of an image, or all of them: see
`gmem_jax.data.schema.layout` for the fields.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from gmem_jax.data import schema as schema_lib, store as store_lib

NAME = "gmem_latents"


class RecordFeatures(tfds.features.FeaturesDict):
  """The fields of a record, decoded by the schema instead of by TFDS."""

  def __init__(self, layout: schema_lib.Layout):
    """Declares the fields."""
    self._layout = layout
    super().__init__(
      {
        name: tfds.features.Tensor(shape=field.shape, dtype=field.dtype.type)
        for name, field in layout.fields.items()
      }
    )

  def deserialize_example_np(
    self, serialized_example: bytes, *, decoders: Any = None
  ) -> dict[str, np.ndarray]:
    """Decodes a record; decoders must be None, there is nothing to choose."""
    if decoders is not None:
      raise ValueError(f"{NAME} takes no decoders")
    return schema_lib.decode(self._layout, serialized_example)


class GmemLatents(tfds.core.DatasetBuilder):
  """Opens a directory of prepared data as the TFDS data set `gmem_latents`."""

  name = NAME
  VERSION = tfds.core.Version(f"{schema_lib.VERSION}.0.0")

  def __init__(self, *, directory: str, **kwargs: Any):
    """Opens what `--mode=prepare` wrote; `kwargs` are those of the base class.

    Raises:
      ValueError: If it is not whole or of another version.
    """
    self._store = store_lib.open_store(pathlib.Path(directory))
    super().__init__(**kwargs)
    self.info.set_file_format("array_record")
    self._declare_split()

  def is_prepared(self) -> bool:
    """True: a directory that is not whole is refused by `__init__`."""
    return True

  def _info(self) -> tfds.core.DatasetInfo:
    schema = self._store.schema
    return tfds.core.DatasetInfo(
      builder=self,
      description="Latents, features and tokens of images, for GMem.",
      features=RecordFeatures(schema_lib.layout(schema)),
    )

  def _declare_split(self) -> None:
    """Tells TFDS which files there are."""
    store = self._store
    per_image = store.schema.records_per_image
    template = tfds.core.ShardedFileTemplate(
      template="{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}",
      data_dir=epath.Path(store.directory),
      dataset_name=NAME,
      split="train",
      filetype_suffix="array_record",
    )
    # TFDS takes the length of every file; the store leaves out empty ones.
    images = {shard.path.stem: shard.images for shard in store.shards}
    names = map(store.schema.shard_name, range(store.schema.shards))
    split = tfds.core.SplitInfo(
      name="train",
      shard_lengths=[images.get(name, 0) * per_image for name in names],
      num_bytes=sum(shard.path.stat().st_size for shard in store.shards),
      filename_template=template,
    )
    self.info.set_splits(tfds.core.SplitDict([split]))

  def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(
      f"{NAME} is written by python -m gmem_jax.main --mode=prepare"
    )

  def _as_dataset(self, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
    raise NotImplementedError(
      f"{NAME} has no tf.data pipeline: use tfds.data_source, which gives"
      " random access to the records and needs no TensorFlow"
    )
