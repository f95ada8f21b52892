"""The published training data, read as the published script wrote it.

`latents_rankNN_shardMMM.safetensors` hold, for N images each and under `_flip`
for their mirror images too, `latents` [N c h w], `representations` [N n d] (the
feature encoder's tokens) and `cls_tokens` [N d], all float32 and raw, and int64
`labels` [N]. Images are numbered file after file, in the order of the names.
"""

import bisect
import os
import pathlib
from typing import Any

import numpy as np
import safetensors

from gmem_jax.data import schema
from gmem_jax.files import shown
from gmem_jax.files.torch_reader import torch_file

# Their name -> our field and its number of axes.
_FIELDS = {
  "latents": ("latent", 4),
  "representations": ("tokens", 3),
  "cls_tokens": ("feature", 2),
}
_STATISTICS = "latents_stats.pt"
# Images of which statistics are measured where the file of them is missing: as
# many as the published code takes.
_SAMPLE = 10_000
# Images read at a time, so that the sample is never in memory as a whole.
_CHUNK = 1024


class UpstreamRecords:
  """The published shards as `pipeline.Records`.

  Attributes:
    mirrored: True, every image has its mirror image.
    paths: The shards.
  """

  mirrored = True

  def __init__(self, directory: str | os.PathLike):
    """Opens all shards and checks what they hold; reads no array.

    Raises:
      ValueError: If there is none, or one is cut, lacks a tensor, or holds one
        of another shape or type; names the file and the tensor.
    """
    self.directory = pathlib.Path(directory)
    self.paths = sorted(self.directory.glob("*.safetensors"))
    if not self.paths:
      raise ValueError(f"{self.directory} holds no .safetensors shards")
    self._shards, self._ends, self._shapes = [], [], {}
    for path in self.paths:
      shard = self._open(path)
      self._shards.append(shard)
      self._ends.append(len(self) + shard["labels"].get_shape()[0])
    if not len(self):
      raise ValueError(f"{self.directory}: its shards hold no images")

  def _open(self, path: pathlib.Path) -> dict[str, Any]:
    """The tensors of a shard, to be sliced."""
    try:
      file: Any = safetensors.safe_open(path, "numpy")
    except (safetensors.SafetensorError, OSError) as error:
      why = shown.cut(str(error))
      raise ValueError(f"{path} is damaged or cut: {why}") from None
    names = [n + end for n in _FIELDS for end in ("", "_flip")] + ["labels"]
    if missing := sorted(set(names) - set(file.keys())):
      raise ValueError(f"{path} lacks {', '.join(missing)}")
    shard = {name: file.get_slice(name) for name in names}
    count = shard["labels"].get_shape()[:1]
    for name, tensor in shard.items():
      dtype, shape = tensor.get_dtype(), tensor.get_shape()
      part = name.removesuffix("_flip")
      expected, rank = (
        ("I64", 1) if name == "labels" else ("F32", _FIELDS[part][1])
      )
      if dtype != expected or len(shape) != rank:
        raise ValueError(
          f"{path}: {name} is {dtype} {shown.value(shape)}, not {expected} of"
          f" {rank} axes"
        )
      # The first shard's shapes bind the others: a batch has one shape.
      known = self._shapes.setdefault(part, shape[1:])
      if shape[:1] != count or shape[1:] != known:
        raise ValueError(
          f"{path}: {name} has the shape {shown.value(shape)}, expected"
          f" {shown.value(count + known)}"
        )
    return shard

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __repr__(self) -> str:
    return f"UpstreamRecords({len(self)} images)"

  def spec(self) -> dict[str, schema.Spec]:
    """Shape and type of every field."""
    c, h, w = self._shapes["latents"]
    float32, scalar = np.dtype(np.float32), schema.Spec((), np.dtype(np.int32))
    return {
      "latent": schema.Spec((h, w, c), float32),
      "tokens": schema.Spec(tuple(self._shapes["representations"]), float32),
      "feature": schema.Spec(tuple(self._shapes["cls_tokens"]), float32),
      "row": scalar,
      "label": scalar,
    }

  def read(self, index: int, flips: schema.Flips) -> dict[str, np.ndarray]:
    """The example of an image.

    Raises:
      IndexError: If there is no such image.
    """
    shard, inside = self._locate(index)
    result = {}
    for name, (field, _) in _FIELDS.items():
      result[field] = shard[name + "_flip" * flips.of(field)][inside]
    # PyTorch's layout [c h w] to ours.
    result["latent"] = np.moveaxis(result["latent"], 0, -1)
    result["label"] = shard["labels"][inside].astype(np.int32)
    result["row"] = np.asarray(index, np.int32)
    return result

  def _locate(self, index: int) -> tuple[dict[str, Any], int]:
    if not 0 <= index < len(self):
      raise IndexError(f"image {index} of {len(self)}")
    number = bisect.bisect_right(self._ends, index)
    first = self._ends[number - 1] if number else 0
    return self._shards[number], index - first

  def bank_rows(self) -> np.ndarray:
    """The bank: raw features [images, d] of the images as they are."""
    return np.concatenate([shard["cls_tokens"][:] for shard in self._shards])

  def statistics(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every latent channel.

    Returns:
      float32 ([c], [c]): those of latents_stats.pt, which the published code
      leaves beside the shards; without it, measured (n - 1) over up to 10,000
      images, evenly spaced and not mirrored.

    Raises:
      ValueError: If the file is damaged or of other latents.
    """
    path = self.directory / _STATISTICS
    if path.exists():
      return _read_statistics(path, self._shapes["latents"][0])
    numbers = np.unique(
      np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(np.int64)
    )
    channels = self._shapes["latents"][0]
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for start in range(0, len(numbers), _CHUNK):
      chunk = numbers[start : start + _CHUNK]
      latents = np.stack([self._latent(int(i)) for i in chunk])
      latents = latents.astype(np.float64)
      count += latents[:, 0].size
      total = total + latents.sum((0, 2, 3))
      squares = squares + (latents**2).sum((0, 2, 3))
    mean = total / count
    variance = (squares - count * mean**2) / (count - 1)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)

  def _latent(self, index: int) -> np.ndarray:
    shard, inside = self._locate(index)
    return shard["latents"][inside]


def _read_statistics(
  path: pathlib.Path, channels: int
) -> tuple[np.ndarray, np.ndarray]:
  try:
    tree = torch_file.load(path)
    mean, std = (tree[n] for n in ("mean", "std"))
    # Before anything is done with it: a list may hold itself many times over.
    if not isinstance(mean, np.ndarray) or not isinstance(std, np.ndarray):
      raise TypeError("its mean and std are no tensors")
  except (torch_file.TorchFileError, LookupError, TypeError) as error:
    raise ValueError(f"{path} holds no latent statistics: {error}") from None
  if mean.size != channels or std.size != channels or not (std > 0).all():
    raise ValueError(
      f"{path}: mean {mean.shape} and std {std.shape} are not those of latents"
      f" with {channels} channels"
    )
  return mean.astype(np.float32).ravel(), std.astype(np.float32).ravel()
