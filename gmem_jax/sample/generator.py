"""The one way from a run or converted weights to images.

`load` is for Python, `from_config` for the command line: both give a
`Generator`, and the same settings give the same images bit for bit.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8

from gmem_jax import progress
from gmem_jax.bank import bank as bank_lib, lookup
from gmem_jax.config import recipe, resolve, sections
from gmem_jax.data import load_encoders
from gmem_jax.diffusion import schedule
from gmem_jax.files import hub, weights as weights_lib
from gmem_jax.parallel import sharding
from gmem_jax.sample import (
  draw_rows,
  images as images_lib,
  sheet,
  snippets as snippets_lib,
  source as source_lib,
)
from gmem_jax.train import directory as directory_lib

# A memory: a row of the bank, or an image file.
Memory = int | str | os.PathLike

# Keys that change how a loaded network is used; all others, which network.
_USE = ("sampler.", "sample.", "eval.", "report.")
_LOADED = {
  f"sample.{k}" for k in ("network", "bank", "weights", "decode_dtype")
}


class Nearest(NamedTuple):
  """The memories of a bank that are nearest to an image.

  Attributes:
    rows: Their rows [k], the nearest first.
    scores: Their cosines with the image's feature [k].
    images: Their source images, uint8 [h w 3]; None where there is none.
  """

  rows: Int[np.ndarray, " k"]
  scores: Float32[np.ndarray, " k"]
  images: list[UInt8[np.ndarray, "h w 3"] | None]


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
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  source: source_lib.SampleSource

  def sample(
    self,
    count: int = 16,
    *,
    rows: Sequence[int] = (),
    images: Sequence[str | os.PathLike] = (),
    snippets: np.ndarray | None = None,
    per_row: int | None = None,
    seed: int | None = None,
  ) -> images_lib.SampledImages:
    """Makes images from rows of the bank, from image files, or from snippets.

    Image i depends on its memory and (seed, i) alone. Without rows, images and
    snippets, each image has a row that is drawn for it.

    Args:
      count: Number of images whose rows are drawn.
      rows: Rows of the bank, from 0.
      images: Image files, and folders of them; their features are the memories.
      snippets: Features [k d] as the bank has them, of any length.
      per_row: Images of each row, file or snippet; by default
        `config.sample.per_row`.
      seed: By default `config.sample.seed`.

    Raises:
      ValueError: If rows are outside of the bank, a file cannot be read, the
        snippets do not fit, or more than one kind of memory is given.
    """
    rows = tuple(map(int, rows))
    if bool(rows) + bool(images) + (snippets is not None) > 1:
      raise ValueError("rows, images and snippets exclude each other")
    other = self._sampling(count=count, rows=rows, per_row=per_row, seed=seed)
    if snippets is not None:
      return other._images(other._plan_arrays(snippets))
    if images:
      plan = draw_rows.plan_manipulation(
        other.config, self.source, [*map(_text, images)], (), ("images", "")
      )
      return other._images(plan)
    return other._images(draw_rows.plan_rows(other.config, self.source, "rows"))

  def interpolate(
    self,
    a: Memory,
    b: Memory,
    points: int | None = None,
    *,
    per_row: int | None = None,
    seed: int | None = None,
  ) -> images_lib.SampledImages:
    """Makes images from one memory to another, both ends included.

    Args:
      a: A row of the bank, or an image file.
      b: The other end, of either kind too.
      points: Number of memories; by default `config.sample.points`. The way
        between them is `config.sample.interpolation`.
      per_row: Images of each, by default `config.sample.per_row`; they follow
        each other.
      seed: By default `config.sample.seed`.

    Raises:
      ValueError: If a row is outside of the bank, or a file cannot be read.
    """
    other = self._sampling(points=points, per_row=per_row, seed=seed)
    pair = _text(a), _text(b)
    plan = draw_rows.plan_manipulation(
      other.config, self.source, (), [pair], ("", "memory")
    )
    return other._images(plan)

  def nearest(self, image: Memory, k: int = 8) -> Nearest:
    """Finds the k memories of the bank that are nearest to an image, by cosine.

    Args:
      image: A file, which the bank's encoder reads as `sample` does; or a row
        of the bank.
      k: At most the bank's size.

    Raises:
      ValueError: If the image cannot be read, or k does not fit.
    """
    bank = self.source.require_bank()
    if not 1 <= k <= len(bank.rows):
      raise ValueError(f"k={k}: the bank has {len(bank.rows)} rows")
    reader = draw_rows.make_reader(self.config, self.source)
    feature = reader.snippet(_text(image), "image").feature
    scores, rows = lookup.nearest_by_cosine(
      feature[None], bank_lib.MemoryBank(bank.rows), k
    )
    side = self.config.encoder.image_size
    pictures = [sheet.load(bank.picture(row), side) for row in rows[0].tolist()]
    return Nearest(rows[0], scores[0], pictures)

  def with_bank(self, path: str | os.PathLike) -> "Generator":
    """The same network with another bank.

    Args:
      path: A bank, a run, or prepared data; see `gmem_jax.bank.files.read`.

    Raises:
      ValueError: If it is no bank, or of another width or feature encoder.
    """
    sample = dataclasses.replace(self.config.sample, bank=os.fspath(path))
    config = dataclasses.replace(self.config, sample=sample)
    source = source_lib.with_bank(config, self.source, self.mesh)
    source.require_bank()
    return dataclasses.replace(self, config=config, source=source)

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
      return from_config(config, self.workdir)
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
    return self.source.sampler(
      self.source.weights,
      self.config.sample.seed,
      numbers,
      *plan.features(numbers),
    )

  def record(self, plan: draw_rows.Plan) -> dict[str, Any]:
    """sample.json: all that the images depend on."""
    config, source = self.config, self.source
    calls = schedule.num_calls(config.sampler)
    # Left out at their defaults: directories from before the keys were added
    # have no such entries, and shall still be continued.
    later = {
      key: getattr(config.sample, key)
      for key, default in (("decode_dtype", "float32"), ("precision", "high"))
      if getattr(config.sample, key) != default
    }
    return {
      "network": source.info,
      "tokenizer": load_encoders.tokenizer_info(config),
      "latent_mean": np.asarray(source.weights.stats.mean).tolist(),
      "latent_std": np.asarray(source.weights.stats.std).tolist(),
      "sampler": dataclasses.asdict(config.sampler),
      "network_calls": None
      if calls is None
      else {"conditional": calls[0], "unconditional": calls[1]},
      "dtype": config.sample.dtype,
      "seed": config.sample.seed,
      # Kernels are chosen by the shape of a call, and differ in the last bit.
      "device_batch": config.sample.device_batch,
      **later,
      **plan.info,
    }

  def _sampling(self, **changes: Any) -> "Generator":
    """The same with other keys of `config.sample`; None leaves a key."""
    given = {key: value for key, value in changes.items() if value is not None}
    sample = dataclasses.replace(self.config.sample, **given)
    return dataclasses.replace(
      self, config=dataclasses.replace(self.config, sample=sample)
    )

  def _plan_arrays(self, features: np.ndarray) -> draw_rows.Plan:
    """A plan of features that come from no file."""
    width = self.source.sampler.network.snippet_dim
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] != width:
      raise ValueError(
        f"snippets of shape {features.shape}: the network takes [k {width}]"
      )
    bank_lib.check_features(features, "snippets")
    snippets = snippets_lib.given(features, self.config.sample.per_row)
    return draw_rows.plan_snippets(self.config, self.source, snippets)

  def _images(self, plan: draw_rows.Plan) -> images_lib.SampledImages:
    """Makes all images of a plan."""
    size, parts = self.source.sampler.call_size, []
    with contextlib.closing(
      progress.Progress("sample", 0, plan.count, unit="image")
    ) as line:
      for start in range(0, plan.count, size):
        numbers = np.arange(start, min(start + size, plan.count))
        parts.append(self.make(plan, numbers))
        line.advance(len(numbers))
    shown = min(plan.count, self.config.sample.grid or plan.count)
    return images_lib.SampledImages(
      np.concatenate(parts), plan.lines(shown), self.record(plan)
    )


def from_config(config: sections.Config, workdir: pathlib.Path) -> Generator:
  """Loads what a config samples with: `sample.network`, else the run.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  mesh = sharding.make_mesh(config.mesh)
  source = source_lib.load(config, workdir, mesh)
  # Once, or every call would copy the weights to the devices.
  weights = source.sampler.place(source.weights)
  source = dataclasses.replace(source, weights=weights)
  return Generator(config, workdir, mesh, source)


def load(
  path: str | os.PathLike, *changes: str, config: str | None = None
) -> Generator:
  """Loads a run, or converted weights of a network.

  Args:
    path: The directory, or hf://OWNER/NAME[@REVISION][/FILE].
    *changes: Keys of the config, each KEY=VALUE: "sampler.steps=50".
    config: A recipe, by name or file: "xl_in1k:guided". Of a run, by default
      its own config; converted weights have none.

  Raises:
    ValueError: If the directory is neither, or a key does not fit it.
  """
  path = hub.local(os.path.expanduser(path))
  converted = weights_lib.is_converted(path)
  if not converted and not (path / directory_lib.RECORD).exists():
    raise ValueError(
      f"path={path}: expected is the directory of a run, or output of"
      " `python -m gmem_jax.convert`"
    )
  if config is not None:
    network = [f"sample.network={path}"] if converted else []
    own = resolve.get_config(config, *network, *changes)
    return from_config(own, path)
  if converted:
    raise ValueError(
      f"path={path}: converted weights need a recipe: config=NAME, one of"
      f" {', '.join(recipe.names())}"
    )
  own = resolve.change(directory_lib.config_of(path), *changes)
  return from_config(own, path)


def _text(memory: Memory) -> str:
  """A memory as the command line names it."""
  return str(memory) if isinstance(memory, int) else os.fspath(memory)
