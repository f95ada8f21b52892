"""Records: what one training example holds, on disk and in memory.

A directory of prepared data, as `--mode=prepare` writes it:

  schema.json                      the `Schema`: how records are laid out and
                                   what made them; written first, never changed
  train-00000-of-00128.array_record    records, see below
  train-00000-of-00128.json        what the shard holds; exists once it is whole
  statistics.json                  mean and std of every latent channel
  bank/rows.npy, bank/info.json    float32 [images, d]: raw features of the
                                   images as they are; row i is image i
  bank/images.json                 names of the image files, if they are files
  report.json                      what was read and skipped; exists once all
                                   of the above is whole

Images are numbered in the order of the shards. A view of an image is the image
itself (0) or its mirror image (1). Where tokens are stored they fill a record,
so every view has a record of its own and a reader takes only the one it needs;
else the views share their image's record (`Schema.locate`).

A record is the fields of `layout`, little-endian, at fixed offsets, so that it
decodes to views of its bytes without a copy. Names, types and offsets are
public interface: changing one makes stored data unreadable, and takes a new
`VERSION`.

Letters: v views in a record, h w c latent, n d tokens, H W ch image.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gmem_jax.config import sections
from gmem_jax.files import atomic, paths, shown

VERSION = 1
FILE = "schema.json"
# A key of the file that is no part of the schema: which device made the data.
MADE_ON = "made_on"
# What the file must hold besides the layout, which follows from it.
_KEYS: atomic.Keys = {
  "latents": str, "tokens": str, "mirrored": bool, "latent_shape": list,
  "token_shape": list, "feature_width": int, "image_shape": list,
  "images": int, "shard_size": int, "tokenizer": dict, "features": dict,
  "source": dict, "seed": int,
}  # fmt: skip

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Every type that a field may have can be viewed at such offsets.
ALIGNMENT = 8


class Spec(NamedTuple):
  """Shape and type of a field of one example."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Flips(NamedTuple):
  """Flip flags: which parts of an example come from its mirror image.

  All or none, except in the published code, which draws one flag for each.
  """

  latent: bool
  tokens: bool
  feature: bool

  def of(self, field: str) -> bool:
    """The flag of the part that a field belongs to."""
    if field in ("feature", "tokens"):
      return getattr(self, field)
    return self.tokens if field in _TOKEN_FIELDS else self.latent


# Pixels are what the training step computes the tokens from.
_TOKEN_FIELDS = ("token_scales", "pixels", "mirrored")


class Field(NamedTuple):
  """Place of a field in a record.

  Attributes:
    shape: Its shape, with the axis of views where it is viewed.
    offset: Bytes before it.
    viewed: Whether its first axis runs over the record's views.
  """

  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int
  viewed: bool

  @property
  def size(self) -> int:
    """Its bytes."""
    return self.dtype.itemsize * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Layout:
  """The bytes of a record: fields in the order of their offsets, and size."""

  fields: Mapping[str, Field]
  size: int


@dataclasses.dataclass(frozen=True)
class Schema:
  """How the records of a directory are laid out, and what made them.

  Attributes:
    version: `VERSION` of the code that wrote them.
    latents: "posterior": `mean` and `logvar` of the tokenizer's posterior, of
      which the training step draws; "sample": one draw of it, or the only
      latent of a tokenizer without a posterior.
    tokens: How the projection's targets are kept; see `layout`.
    mirrored: Whether the mirror images are there, too.
    latent_shape: h, w, c.
    token_shape: n, d of the feature encoder's tokens; with "pixels", of those
      that the training step will compute.
    feature_width: Width of the features.
    image_shape: H, W, ch of the images that the latents were made of.
    images: Images of the source before unreadable ones were left out.
    shard_size: Images of the source in a shard.
    tokenizer: What identifies the tokenizer.
    features: What identifies the feature encoder.
    source: What identifies the images.
    seed: Seed of the posterior's draws ("sample").
  """

  version: int
  latents: sections.Latents
  tokens: sections.Tokens
  mirrored: bool
  latent_shape: tuple[int, int, int]
  token_shape: tuple[int, int]
  feature_width: int
  image_shape: tuple[int, int, int]
  images: int
  shard_size: int
  tokenizer: Mapping[str, Any]
  features: Mapping[str, Any]
  source: Mapping[str, Any]
  seed: int

  @property
  def views(self) -> int:
    """Views of an image."""
    return 2 if self.mirrored else 1

  @property
  def views_per_record(self) -> int:
    """Views that a record holds: one, or all of an image's."""
    return 1 if self.tokens in ("bf16", "int8") else self.views

  @property
  def records_per_image(self) -> int:
    """Records of an image."""
    return self.views // self.views_per_record

  @property
  def shards(self) -> int:
    """Number of shards."""
    return -(-self.images // self.shard_size)

  def locate(self, image: int, view: int) -> tuple[int, int]:
    """Finds a view (0, or 1 for the mirror image) of an image, a bank row.

    Returns:
      (record, view within the record).
    """
    if self.views_per_record == 1:
      return image * self.views + view, 0
    return image, view

  def shard_name(self, shard: int) -> str:
    """Name of a shard's files, without what follows the dot."""
    return f"train-{shard:05d}-of-{self.shards:05d}"


def layout(schema: Schema) -> Layout:
  """Lays out the records of a schema.

  Returns:
    The layout, with the fields
      tokens        [v n d] bfloat16 ("bf16") or int8 ("int8")
      token_scales  [v n] float32, "int8" only: a token is tokens * token_scales
      pixels        [H W ch] uint8, "pixels" only: the image, not mirrored
      mean, logvar  [v h w c] bfloat16, with latents "posterior"
      latent        [v h w c] bfloat16, with latents "sample"
      feature       [v d] bfloat16: the raw feature of the very view
      label         [] int32: the class, -1 where there is none
  """
  v, fields, offset = schema.views_per_record, {}, 0

  def add(name: str, dtype: Any, *shape: int, viewed: bool = True) -> None:
    nonlocal offset
    shape = (v, *shape) if viewed else shape
    fields[name] = field = Field(np.dtype(dtype), shape, offset, viewed)
    offset += -(-field.size // ALIGNMENT) * ALIGNMENT

  if schema.tokens in ("bf16", "int8"):
    add("tokens", BFLOAT16 if schema.tokens == "bf16" else np.int8,
        *schema.token_shape)  # fmt: skip
  if schema.tokens == "int8":
    add("token_scales", "<f4", schema.token_shape[0])
  if schema.tokens == "pixels":
    # Once for both views: the training step mirrors them itself.
    add("pixels", np.uint8, *schema.image_shape, viewed=False)
  posterior = schema.latents == "posterior"
  for name in ("mean", "logvar") if posterior else ("latent",):
    add(name, BFLOAT16, *schema.latent_shape)
  add("feature", BFLOAT16, schema.feature_width)
  add("label", "<i4", viewed=False)
  return Layout(fields, offset)


def encode(layout: Layout, values: Mapping[str, np.ndarray]) -> bytes:
  """Makes a record of all fields, each in its shape and type.

  Raises:
    ValueError: If a field is missing, unknown, or of another shape or type.
  """
  if values.keys() != layout.fields.keys():
    raise ValueError(
      f"a record has the fields {sorted(layout.fields)}, not {sorted(values)}"
    )
  record = bytearray(layout.size)
  for name, field in layout.fields.items():
    value = np.asarray(values[name])
    if value.shape != field.shape or value.dtype != field.dtype:
      raise ValueError(
        f"field {name!r} is {field.dtype} {field.shape}, not {value.dtype}"
        f" {value.shape}"
      )
    record[field.offset : field.offset + field.size] = value.tobytes()
  return bytes(record)


def decode(
  layout: Layout, record: bytes, view: int | None = None
) -> dict[str, np.ndarray]:
  """Decodes a record to read-only views of its bytes.

  Args:
    layout: Of the schema.
    record: As many as the layout's size; the arrays are views of them.
    view: The view within the record to take, as `Schema.locate` gives it; its
      axis is then left out. None for all of them.

  Raises:
    ValueError: If the record has another length.
  """
  if len(record) != layout.size:
    raise ValueError(
      f"a record of {len(record)} bytes, expected {layout.size}: these shards"
      " are of another schema"
    )
  values = {}
  for name, field in layout.fields.items():
    count = math.prod(field.shape)
    value = np.frombuffer(record, field.dtype, count, field.offset)
    value = value.reshape(field.shape)
    values[name] = value[view] if field.viewed and view is not None else value
  return values


def to_json(schema: Schema) -> dict[str, Any]:
  """The schema as JSON values, with the layout that follows from it."""
  # Redundant on purpose: the file tells how to read records without this code.
  own = layout(schema)
  fields = {
    name: {"dtype": f.dtype.name, "shape": f.shape, "offset": f.offset}
    for name, f in own.fields.items()
  }
  tree = dataclasses.asdict(schema)
  # Through JSON: tuples become lists, as in a file that was read.
  return json.loads(
    json.dumps(tree | {"fields": fields, "record_bytes": own.size})
  )


def digest(schema: Schema) -> str:
  """What ties a shard to its schema."""
  text = json.dumps(to_json(schema), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read(directory: paths.Path) -> Schema:
  """Reads the `schema.json` of prepared data.

  Raises:
    ValueError: If there is none, or it is of another version or damaged.
  """
  path = directory / FILE
  if not path.exists():
    raise ValueError(f"{path} does not exist: no prepared data there")
  tree = atomic.check_keys(atomic.read_json(path), {}, str(path))
  tree.pop(MADE_ON, None)
  # The version first: the fields of another one are not known.
  if "version" not in tree:
    raise ValueError(f"{path} is damaged: it has no version")
  if tree["version"] != VERSION:
    raise ValueError(
      f"{path} is of schema version {tree['version']}, this code reads"
      f" {VERSION}: prepare the data again, or use the release that wrote it"
    )
  atomic.check_keys(tree, _KEYS, str(path))
  if tree["images"] < 0 or tree["shard_size"] < 1:
    raise ValueError(
      f"{path} is damaged: {tree['images']} images in shards of"
      f" {tree['shard_size']}"
    )
  try:
    values = {f.name: tree[f.name] for f in dataclasses.fields(Schema)}
    for name, value in values.items():
      values[name] = tuple(value) if isinstance(value, list) else value
    schema = Schema(**values)
    consistent = to_json(schema) == tree
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {shown.cause(error)}") from None
  if not consistent:
    raise ValueError(f"{path} is damaged: its fields do not fit its shapes")
  return schema
