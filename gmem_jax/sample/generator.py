"""The one way from a network and a memory bank to images.

`from_config` gives a `Generator` to the command line, `load.load` to Python;
the same settings give the same images bit for bit.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8

from gmem_jax.bank import lookup
from gmem_jax.config import resolve, sections
from gmem_jax.files import paths
from gmem_jax.parallel import sharding
from gmem_jax.sample import (
  draw_rows,
  edit_bank,
  images as images_lib,
  making,
  search as search_lib,
  sheet,
  snippets as snippets_lib,
  source as source_lib,
)
from gmem_jax.train import fitted

Memory = snippets_lib.Memory

# Keys that change how a loaded network is used; all others, which network.
_USE = ("sampler.", "sample.", "eval.", "report.")
_LOADED = {
  f"sample.{k}" for k in ("network", "bank", "weights", "decode_dtype")
}


@dataclasses.dataclass(frozen=True)
class Generator:
  """Makes images from a network and a memory bank.

  It never changes: `with_bank` and `with_config` give another one, which shares
  what stays the same. The first images wait for the compiler.

  Attributes:
    config: All settings; `config.sample` and `config.sampler` are the defaults
      of the methods.
    workdir: The run's directory, or that of the images of converted weights.
    source: The network, its weights and the bank.
  """

  config: sections.Config
  workdir: paths.Path
  mesh: jax.sharding.Mesh
  source: source_lib.SampleSource

  def __repr__(self) -> str:
    """What it is, and none of its arrays."""
    bank = self.source.bank
    rows = "no bank" if bank is None else f"{len(bank.rows):,} memories"
    return f"Generator({self.source.name}, {rows}, workdir={self.workdir})"

  def sample(
    self,
    count: int = 16,
    *,
    rows: int | Sequence[int] | np.ndarray = (),
    images: Memory | Sequence[Memory] = (),
    snippets: np.ndarray | None = None,
    per_row: int | None = None,
    seed: int | None = None,
    on_step: making.OnStep | None = None,
  ) -> images_lib.SampledImages:
    """Makes images from rows of the bank, from image files, or from snippets.

    Image i depends on its memory and (seed, i) alone. Without rows, images and
    snippets, each image has a row that is drawn for it.

    Args:
      count: Number of images whose rows are drawn.
      rows: Rows of the bank, from 0.
      images: Image files, folders of them, and images of Pillow or numpy (see
        `snippets.Memory`); their features are the memories.
      snippets: Features [k d] as the bank has them, of any length.
      per_row: Images of each row, file or snippet; by default
        `config.sample.per_row`.
      seed: By default `config.sample.seed`.
      on_step: Is shown the images before each step, and when they are done;
        see `stepwise`.

    Raises:
      ValueError: If rows are outside of the bank, a file cannot be read, the
        snippets do not fit, or more than one kind of memory is given.
    """
    rows = draw_rows.whole(rows, "rows")
    several: list[Any] = (
      list(images) if isinstance(images, list | tuple) else [images]
    )
    if bool(rows) + bool(several) + (snippets is not None) > 1:
      raise ValueError("rows, images and snippets exclude each other")
    other = self._sampling(count=count, rows=rows, per_row=per_row, seed=seed)
    if snippets is not None:
      plan = draw_rows.plan_arrays(other.config, self.source, snippets)
      return other._images(plan, on_step)
    if several:
      plan = draw_rows.plan_manipulation(
        other.config, self.source, several, (), ("images", "")
      )
      return other._images(plan, on_step)
    plan = draw_rows.plan_rows(other.config, self.source, "rows")
    return other._images(plan, on_step)

  def interpolate(
    self,
    a: Memory,
    b: Memory,
    points: int | None = None,
    *,
    per_row: int | None = None,
    seed: int | None = None,
    on_step: making.OnStep | None = None,
  ) -> images_lib.SampledImages:
    """Makes images from one memory to another, both ends included.

    Args:
      a: A row of the bank, or an image.
      b: The other end, of either kind too.
      points: Number of memories; by default `config.sample.points`. The way
        between them is `config.sample.interpolation`.
      per_row: Images of each, by default `config.sample.per_row`; they follow
        each other.
      seed: By default `config.sample.seed`.
      on_step: See `sample`.

    Raises:
      ValueError: If a row is outside of the bank, or a file cannot be read.
    """
    other = self._sampling(points=points, per_row=per_row, seed=seed)
    ends = [*other._read([a], "a"), *other._read([b], "b")]
    snippets = snippets_lib.between(other.config.sample, [ends])
    return other._images(other._plan(snippets), on_step)

  def mix(
    self,
    memories: Sequence[Memory],
    weights: Sequence[float | int],
    *,
    per_row: int | None = None,
    seed: int | None = None,
    on_step: making.OnStep | None = None,
  ) -> images_lib.SampledImages:
    """Makes images from the weighted mean of memories, taken as directions.

    Args:
      memories: Rows of the bank and images, one or more.
      weights: One for each, at least 0; only their ratios matter.
      per_row: Number of images, by default `config.sample.per_row`.
      seed: By default `config.sample.seed`.
      on_step: See `sample`.

    Raises:
      ValueError: If a memory cannot be read, or the weights do not fit.
    """
    other = self._sampling(per_row=per_row, seed=seed)
    snippets = snippets_lib.mixture(
      other._read(memories, "memories"), weights, other.config.sample.per_row
    )
    return other._images(other._plan(snippets), on_step)

  def nearest(self, image: Memory, k: int = 8) -> search_lib.Nearest:
    """Finds the k memories of the bank that are nearest to an image, by cosine.

    Args:
      image: One that the bank's encoder reads as `sample` does; or a row of the
        bank.
      k: At most the bank's size.

    Raises:
      ValueError: If the image cannot be read, or k does not fit.
    """
    bank = self.source.require_bank()
    scores, rows = self.search(self.features([image]), k)
    side = self.config.encoder.image_size
    pictures = [sheet.load(bank.picture(row), side) for row in rows[0].tolist()]
    known = bank.images.names if bank.images else ()
    names = [known[int(row)] if known else "" for row in rows[0]]
    return search_lib.Nearest(rows[0], scores[0], pictures, names)

  def features(self, memories: Sequence[Memory]) -> Float32[np.ndarray, "n d"]:
    """The features of memories, as the bank has them.

    Raises:
      ValueError: If a row is outside of the bank, or an image cannot be read.
    """
    snippets = self._read(memories, "image")
    return np.stack([each.feature for each in snippets]).astype(np.float32)

  def search(
    self, features: Float32[np.ndarray, "n d"], k: int = 8
  ) -> tuple[Float32[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Finds the k rows of the bank that are nearest to each feature.

    The rows stay on a device from the first search on.

    Returns:
      Cosines, descending, and rows.

    Raises:
      ValueError: If k does not fit.
    """
    units = self.source.require_bank().units
    return lookup.nearest_by_cosine(features, units, k)

  def with_bank(self, path: str | os.PathLike) -> "Generator":
    """The same network with another bank.

    Args:
      path: A bank, a run, or prepared data; see `gmem_jax.bank.files.read`.

    Raises:
      ValueError: If it is no bank, or of another width or feature encoder.
    """
    sample = dataclasses.replace(self.config.sample, bank=os.fspath(path))
    config = dataclasses.replace(self.config, sample=sample)
    source = source_lib.with_bank(config, self.source, self.mesh, "path")
    source.require_bank("path")
    return dataclasses.replace(self, config=config, source=source)

  def edit_bank(
    self,
    path: str | os.PathLike,
    *,
    append: Sequence[str | os.PathLike] = (),
    remove: Sequence[int] = (),
  ) -> "Generator":
    """Writes a new bank, and gives the same network with it.

    Args:
      path: A new directory; the bank there names its parent by digest.
      append: Image files, and folders of them; they become the last rows.
      remove: Rows, from 0; those after them move up.

    Raises:
      ValueError: If not exactly one of both is given, or it does not fit.
      OSError: If the path is taken, or cannot be written.
    """
    find_images = edit_bank.write(
      self.config, self.source, self.workdir, path, append, remove
    )
    other = self.with_bank(path)
    bank = dataclasses.replace(
      other.source.require_bank(), find_images=find_images
    )
    source = dataclasses.replace(other.source, bank=bank)
    return dataclasses.replace(other, source=source)

  def with_config(self, *changes: str) -> "Generator":
    """The same with changed settings; the weights are read again if need be.

    Args:
      *changes: Each KEY=VALUE, as on the command line: "sampler.steps=50".

    Raises:
      ValueError: If there is no such key, or a value does not fit.
    """
    config = resolve.change(self.config, *changes)
    old, new = map(resolve.flatten, map(resolve.to_json, (self.config, config)))
    changed = [key for key in old if old[key] != new[key]]
    if any(key in _LOADED or not key.startswith(_USE) for key in changed):
      return from_config(config, self.workdir, self.source.step)
    source, settings = self.source, source_lib.sampler_settings(config)
    sampler = dataclasses.replace(source.sampler, **settings)
    if sampler != source.sampler:  # Or it would be compiled again.
      source = dataclasses.replace(source, sampler=sampler)
    return dataclasses.replace(self, config=config, source=source)

  def plan(
    self, images: Sequence[str] = (), pairs: Sequence[Sequence[str]] = ()
  ) -> draw_rows.Plan:
    """What the command line samples: `config.sample`, --image, --interpolate.

    Raises:
      ValueError: Naming the key or flag that does not fit.
    """
    if images or pairs:
      return draw_rows.plan_manipulation(
        self.config, self.source, images, pairs
      )
    return draw_rows.plan_rows(self.config, self.source)

  def make(
    self, plan: draw_rows.Plan, numbers: Int[np.ndarray, " n"]
  ) -> UInt8[np.ndarray, "n h w c"]:
    """Makes images of a plan, by number."""
    return making.make(self.config, self.source, plan, numbers)

  def record(self, plan: draw_rows.Plan) -> dict[str, Any]:
    """sample.json: all that the images depend on."""
    return making.record(self.config, self.source, plan)

  def _sampling(self, **changes: Any) -> "Generator":
    """The same with other keys of `config.sample`; None leaves a key."""
    given = {key: value for key, value in changes.items() if value is not None}
    sample = dataclasses.replace(self.config.sample, **given)
    return dataclasses.replace(
      self, config=dataclasses.replace(self.config, sample=sample)
    )

  def _plan(self, snippets: snippets_lib.Snippets) -> draw_rows.Plan:
    """A plan of memories, rows of the bank among them."""
    return draw_rows.plan_snippets(
      self.config, self.source, snippets, from_bank=True
    )

  def _read(
    self, memories: Sequence[Memory], key: str
  ) -> list[snippets_lib.Snippet]:
    """Reads memories; errors name `key`."""
    reader = draw_rows.make_reader(self.config, self.source)
    return [reader.memory(each, key) for each in memories]

  def _images(
    self, plan: draw_rows.Plan, on_step: making.OnStep | None
  ) -> images_lib.SampledImages:
    """Makes all images of a plan."""
    return making.make_all(self.config, self.source, plan, on_step)


def from_config(
  config: sections.Config, workdir: paths.Path, step: int | None = None
) -> Generator:
  """Loads what a config samples with: `sample.network`, else the run.

  Raises:
    ValueError: See `source.load`.
  """
  mesh = sharding.make_mesh(config.mesh)
  if not config.sample.network:
    config = fitted.own(config, workdir)
  source = source_lib.load(config, workdir, mesh, step)
  # Once, or every call would copy the weights to the devices.
  weights = source.sampler.place(source.weights)
  source = dataclasses.replace(source, weights=weights)
  return Generator(config, workdir, mesh, source)
