"""Draws the memory that each image is made from: a row, or an image file's.

A `Plan` has all that `--mode=sample` and `--mode=evaluate` need to know of it.

Shapes: b or n images, m bank rows, d snippet width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer
from scipy import special

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import sections
from gmem_jax.files import shown
from gmem_jax.models import conditioning, retrieval
from gmem_jax.models.encoders import protocols
from gmem_jax.sample import (
  host_bank,
  sampler as sampler_lib,
  sheet,
  snippets as snippets_lib,
  source as source_lib,
)


def draw_rows(
  seed: int, images: Integer[Array, " b"], size: int
) -> Integer[Array, " b"]:
  """Draws a row in [0, size) for each image, uniformly.

  `images` are global image numbers: image i's row depends on (seed, i) alone.
  """
  keys = rngs.keys(seed, "sample/row", images)
  return jax.vmap(lambda k: jax.random.randint(k, (), 0, size))(keys)


def select_row(
  noise: Float[np.ndarray | Array, "b ..."], frequencies: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " b"]:
  """Draws a row for each image by frequency, from the image's own noise.

  The mean of a noise tensor, scaled to a standard normal, gives a uniform
  number; the inverse of the cumulative frequencies maps it to a row.

  Args:
    noise: Standard normal.
    frequencies: How often each row occurred; not negative, not all zero.

  Returns:
    Row numbers in [0, m).

  Source: GMem (arXiv 2412.08781), release of December 2024, to the bit: the
    uniform number is float32, the cumulative frequencies are float64.
  """
  noise = np.asarray(noise)
  size = noise[0].size
  # The exact mean, rounded: it does not depend on the order of summation.
  mean = noise.reshape(len(noise), size).mean(axis=1, dtype=np.float64)
  normal = mean.astype(np.float32) * np.float32(size**0.5)
  # Half of 1 + erf, rounded at each step: other forms of the normal
  # distribution differ in the last bit.
  erf = special.erf(np.float64(normal / np.float32(2**0.5))).astype(np.float32)
  uniform = np.float32(0.5) * (1 + erf)
  # Rows of the published bank are 1.6e-6 wide: float32 sums would be off by
  # one row in a hundred draws.
  cumulative = np.cumsum(frequencies / frequencies.sum(dtype=np.float64))
  rows = np.searchsorted(cumulative, np.float64(uniform), side="right")
  # A uniform number that rounds to 1 gives m, outside of the bank, where the
  # published code fails. It means the last row that ever occurred.
  return np.minimum(rows, np.flatnonzero(frequencies)[-1])


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which snippet each image is made from.

  Attributes:
    name: What is added to the directory's name.
    count: Number of images.
    features: Image numbers [n] -> features [n d] and the bank rows [n] that
      they are, `retrieval.OUTSIDE` for others.
    lines: Lines of the contact sheet of the first so many images, one at least.
    info: All that the features depend on; JSON.
  """

  name: str
  count: int
  features: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
  lines: Callable[[int], Sequence[sheet.Line]]
  info: dict[str, Any]


def plan_rows(
  config: sections.Config,
  source: source_lib.SampleSource,
  key: str = "config.sample.rows",
) -> Plan:
  """Images from rows of the bank, given or drawn, or from a prior's memories.

  Errors on rows name `key`.
  """
  if config.sample.draw == "prior":
    return _plan_prior(config, source)
  bank, given = source.require_bank(), config.sample.rows
  per_row, count = config.sample.per_row, config.sample.count
  if given:
    count = len(given) * per_row
  rows = _row_fn(config.sample, source, bank, key)
  info = {
    "bank": bank.info,
    "draw": list(given) or config.sample.draw,
    "per_row": per_row,
  }
  # Drawn rows of one image each would label every image of a large sheet.
  labelled = given or per_row > 1
  uses_memory = source.sampler.network.conditioning != "none"

  def features(numbers):
    drawn = rows(numbers)
    return bank.rows[drawn], drawn

  def lines(shown):
    numbers = np.arange(count).reshape(-1, per_row)[: max(shown // per_row, 1)]
    return [
      sheet.Line(
        line,
        f"row {row}" if labelled else "",
        bank.picture(row) if uses_memory else sheet.no_picture,
      )
      for line, row in zip(
        numbers.tolist(), rows(numbers[:, 0]).tolist(), strict=True
      )
    ]

  name = f"rows_{snippets_lib.some(given)}" if given else ""
  return Plan(name, count, features, lines, info)


def _plan_prior(
  config: sections.Config, source: source_lib.SampleSource
) -> Plan:
  """Images from memories that the prior draws; no bank is read."""
  assert source.prior is not None
  settings, prior = config.sample, source.prior()
  per_row = settings.per_row
  prior.group(settings.group)  # Refused before the first image is made.
  guided = {"points": config.prior.points, "guidance": config.prior.guidance}

  def features(numbers):
    # By memory, so that the first image of each does not depend on per_row.
    drawn = prior.draw(
      settings.seed,
      numbers // per_row,
      group=settings.group,
      points=config.prior.points,
      scale=config.prior.guidance,
    )
    return drawn, np.full(len(numbers), retrieval.OUTSIDE)

  def lines(shown):
    numbers = np.arange(settings.count).reshape(-1, per_row)
    return [
      sheet.Line(line, f"memory {i}" if per_row > 1 else "")
      for i, line in enumerate(numbers[: max(shown // per_row, 1)].tolist())
    ]

  info = {
    "prior": prior.info | guided,
    "draw": settings.draw,
    "group": settings.group,
    "per_row": per_row,
  }
  name = f"prior_{settings.group}" if settings.group else "prior"
  return Plan(name.replace("/", "_"), settings.count, features, lines, info)


def _row_fn(
  config: sections.SampleConfig,
  source: source_lib.SampleSource,
  bank: host_bank.HostBank,
  key: str,
) -> Callable[[np.ndarray], np.ndarray]:
  """Image numbers -> bank rows."""
  if config.rows:
    given = np.array(config.rows)
    bank_lib.check_rows(given, len(bank.rows), key)
    return lambda numbers: given[numbers // config.per_row]
  # First release: an image's noise decides its row, by the frequencies with
  # which rows occurred in training.
  if config.draw == "noise":
    if bank.frequencies is None:
      raise ValueError(
        "config.sample.draw='noise' needs a bank with frequencies, as the first"
        " release has it; this one has none: take 'uniform'"
      )
    return _rows_by_noise(source.sampler, config.seed, bank.frequencies)

  def drawn(numbers):
    # By group, so that the first image of each does not depend on per_row.
    groups = jnp.asarray(numbers // config.per_row, jnp.int32)
    return np.asarray(draw_rows(config.seed, groups, len(bank.rows)))

  return drawn


def _rows_by_noise(
  sampler: sampler_lib.Sampler, seed: int, frequencies: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Image numbers -> bank rows; see `select_row`."""
  # One image at a time: in a batch, noise may differ in the last bit.
  noise = jax.jit(lambda number: sampler.noise(seed, number[None])[0])

  def drawn(numbers):
    each = [np.asarray(noise(jnp.int32(i))) for i in numbers]
    return select_row(np.stack(each), frequencies)

  return drawn


def whole(rows: Any, key: str) -> tuple[int, ...]:
  """Rows of a bank as a tuple, of one or several.

  Raises:
    ValueError: Naming `key`, if they are no whole numbers.
  """
  given = np.atleast_1d(np.asarray(rows))
  if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
    raise ValueError(f"{key}={shown.value(rows)}: rows are whole numbers")
  return tuple(map(int, given.tolist()))


def plan_manipulation(
  config: sections.Config,
  source: source_lib.SampleSource,
  images: Sequence[snippets_lib.Memory],
  pairs: Sequence[Sequence[str]],
  keys: tuple[str, str] = ("--image", "--interpolate"),
) -> Plan:
  """Images like given ones, or between two memories.

  Args:
    config: Says how files are read, and how to go between snippets.
    source: Has the bank that rows are taken from.
    images: Files, folders of files, and images, to make samples like (--image).
    pairs: Pairs of bank rows or files to go between (--interpolate).
    keys: What errors call the two.

  Raises:
    ValueError: If both are given, or one cannot be read.
  """
  if images and pairs:
    raise ValueError(f"{keys[0]} and {keys[1]} exclude each other")
  reader = make_reader(config, source)
  if images:
    snippets = snippets_lib.alone(
      reader.images(images, keys[0]), config.sample.per_row
    )
  else:
    snippets = snippets_lib.between(
      config.sample,
      [[reader.snippet(end, keys[1]) for end in pair] for pair in pairs],
    )
  return plan_snippets(config, source, snippets, from_bank=bool(pairs))


def make_reader(
  config: sections.Config, source: source_lib.SampleSource
) -> snippets_lib.Reader:
  """What reads the snippets that a user names."""
  # Digits are grey.
  *_, channels = protocols.image_shape(
    source.weights.tokenizer, source.sampler.latent_shape
  )
  return snippets_lib.Reader(
    config,
    channels=channels,
    width=source.sampler.network.snippet_dim,
    bank=source.require_bank,
    encoder=source.encoder,
  )


def plan_arrays(
  config: sections.Config,
  source: source_lib.SampleSource,
  features: np.ndarray,
) -> Plan:
  """Images from features [k d] that come from no file.

  Raises:
    ValueError: If the network takes no such features.
  """
  width = source.sampler.network.snippet_dim
  features = np.asarray(features)
  if features.ndim != 2 or features.shape[1] != width:
    raise ValueError(
      f"snippets of shape {features.shape}: the network takes [k {width}]"
    )
  bank_lib.check_features(features, "snippets")
  snippets = snippets_lib.given(features, config.sample.per_row)
  return plan_snippets(config, source, snippets)


def plan_snippets(
  config: sections.Config,
  source: source_lib.SampleSource,
  snippets: snippets_lib.Snippets,
  *,
  from_bank: bool = False,
) -> Plan:
  """Images from snippets; `from_bank` if rows of the bank are among them."""
  per_row = config.sample.per_row
  info = {"per_row": per_row, **snippets.info}
  # An image alone comes from no bank; but a network may attend to one.
  attends = conditioning.uses_cross(source.sampler.network.conditioning)
  if (from_bank or attends) and source.bank is not None:
    info["bank"] = source.bank.info

  # None is a row of the bank, so that lookup leaves no row out as their own.
  def features(numbers):
    outside = np.full(len(numbers), retrieval.OUTSIDE)
    return snippets.features[numbers // per_row], outside

  def lines(shown):
    length = len(snippets.lines[0].numbers)
    return snippets.lines[: max(shown // length, 1)]

  count = len(snippets.features) * per_row
  return Plan(snippets.name, count, features, lines, info)
