"""Do samples show what their memories show? A table, and a picture.

  python -m gmem_jax.bench memories runs/emoji data/emoji_prepared/heldout \
    --new='animal-bird,animal-marine' --out=memories

Three sets of memories: rows of the run's bank, pictures that were held out, and
kinds of pictures of which nothing was trained on; and with --swap, those of
another bank. One sample is made of each, and looked up among all pictures, in
the features that the bank is made of:

  kind     the nearest picture is of the kind (folder) of the sample's memory
  own      the nearest picture is the memory itself
  trained  the nearest picture is another one, and was trained on
  cosine   of the sample's feature with its memory, on average
  real     the nearest other picture of the memory itself is of its kind: what
           real pictures reach without being themselves there

The network is conditioned on these features, so the table says how well it
keeps to its memory, not how good its pictures are.
"""

import argparse
import fnmatch
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gmem_jax.data import write_images
from gmem_jax.files import atomic, errors
from gmem_jax.sample import (
  generator as generator_lib,
  host_bank,
  load as load_lib,
)

COLUMNS = ("kind", "own", "trained", "cosine", "real")
# Memories of each set in the picture.
SHOWN = 16


class Set(NamedTuple):
  """Memories of one sort.

  Attributes:
    name: For the table.
    generator: Has their bank.
    rows: Of that bank.
    offset: What a row's number is moved by among all pictures.
  """

  name: str
  generator: generator_lib.Generator
  rows: np.ndarray
  offset: int


class Pictures(NamedTuple):
  """All pictures, those that were trained on first.

  Attributes:
    units: Their features [n d], of length 1.
    kinds: The kind of each.
    trained: How many were trained on.
  """

  units: np.ndarray
  kinds: np.ndarray
  trained: int


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _kinds(bank: host_bank.HostBank, name: str) -> list[str]:
  kinds = bank.images.classes if bank.images else ()
  if not kinds:
    raise ValueError(f"{name}: the kinds of its pictures are not known")
  return list(kinds)


def measure(
  pictures: Pictures, own: np.ndarray, features: np.ndarray
) -> dict[str, float]:
  """The table's columns of samples.

  Args:
    pictures: All of them.
    own: The number of each sample's memory among them.
    features: Of the samples [k d].
  """
  kinds, numbers = pictures.kinds, np.arange(len(own))
  cosines = _unit(features) @ pictures.units.T
  nearest = cosines.argmax(axis=1)
  others = pictures.units[own] @ pictures.units.T
  others[numbers, own] = -np.inf
  other = others.argmax(axis=1)
  return {
    "kind": float(np.mean(kinds[nearest] == kinds[own])),
    "own": float(np.mean(nearest == own)),
    "trained": float(np.mean((nearest != own) & (nearest < pictures.trained))),
    "cosine": float(np.mean(cosines[numbers, own])),
    "real": float(np.mean(kinds[other] == kinds[own])),
  }


def table(results: dict[str, dict[str, float]], counts: dict[str, int]) -> str:
  """The results as Markdown."""
  lines = [
    "| memories | number | " + " | ".join(COLUMNS) + " |",
    "|---" * (2 + len(COLUMNS)) + "|",
  ]
  for name, values in results.items():
    cells = [
      f"{values[c]:.2f}" if c == "cosine" else f"{100 * values[c]:.0f} %"
      for c in COLUMNS
    ]
    lines.append(f"| {name} | {counts[name]} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _sets(
  run: generator_lib.Generator,
  heldout: generator_lib.Generator,
  new: Sequence[str],
  count: int,
  seed: int,
  swapped: generator_lib.Generator | None = None,
) -> tuple[Pictures, list[Set]]:
  """All pictures, and at most so many memories of each set."""
  generators = {"RUN": run, "HELDOUT": heldout}
  if swapped is not None:
    generators["--swap"] = swapped
  banks = [each.source.require_bank() for each in generators.values()]
  kinds = [_kinds(*each) for each in zip(banks, generators, strict=True)]
  units = _unit(np.concatenate([bank.rows for bank in banks]))
  trained, known = len(banks[0].rows), len(banks[0].rows) + len(banks[1].rows)
  is_new = np.array(
    [any(fnmatch.fnmatchcase(kind, p) for p in new) for kind in kinds[1]], bool
  )
  random = np.random.default_rng(seed)

  def some(rows: np.ndarray) -> np.ndarray:
    return random.permutation(rows)[:count]

  sets = [
    Set("trained on", run, some(np.arange(trained)), 0),
    Set("held out", heldout, some(np.flatnonzero(~is_new)), trained),
    Set("new kinds", heldout, some(np.flatnonzero(is_new)), trained),
  ]
  if swapped is not None:
    rows = some(np.arange(len(banks[2].rows)))
    sets.append(Set("another bank", swapped, rows, known))
  pictures = Pictures(units, np.concatenate(kinds), trained)
  return pictures, [each for each in sets if len(each.rows)]


def _picture(each: Set, pixels: np.ndarray, shown: int) -> list[np.ndarray]:
  """The first memories, and below each its sample."""
  bank, side = each.generator.source.require_bank(), pixels.shape[1]
  memories = []
  for row in each.rows[:shown].tolist():
    image = bank.images.load(row, side) if bank.images else None
    blank = np.full((side, side, 3), 255, np.uint8)
    memories.append(blank if image is None else image)
  # Samples of grey images have one channel, files three.
  return [*memories, *np.broadcast_to(pixels[:shown], (shown, side, side, 3))]


def main(argv: Sequence[str]) -> int:
  """The command line; returns its exit status."""
  parser = errors.Parser(
    prog="python -m gmem_jax.bench memories",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  path: Any = {"type": os.path.expanduser}
  parser.add_argument(
    "run", help="a run, or emoji: the weights in the package", **path
  )
  parser.add_argument(
    "heldout", help="the bank of pictures not trained on", **path
  )
  parser.add_argument(
    "--new", default="", help="patterns of kinds never trained on, by commas"
  )
  parser.add_argument(
    "--swap",
    metavar="BANK",
    help="a bank of other pictures of the same kinds",
    **path,
  )
  parser.add_argument(
    "--count", type=int, default=128, help="memories of each set (default: 128)"
  )
  parser.add_argument("--seed", type=errors.seed, default=0)
  parser.add_argument(
    "--out", help="also write OUT.png and OUT.json", type=errors.path
  )
  given = parser.parse_args(argv)
  run = load_lib.load(given.run)
  heldout = run.with_bank(given.heldout)
  patterns = [p for p in given.new.split(",") if p]
  swapped = run.with_bank(given.swap) if given.swap else None
  pictures, sets = _sets(
    run, heldout, patterns, given.count, given.seed, swapped
  )
  results, counts, images = {}, {}, []
  shown = min(SHOWN, *(len(each.rows) for each in sets))
  for each in sets:
    made = each.generator.sample(
      rows=each.rows.tolist(), per_row=1, seed=given.seed
    ).pixels
    features = run.features(list(made))
    own = each.rows + each.offset
    results[each.name] = measure(pictures, own, features)
    counts[each.name] = len(own)
    images += _picture(each, made, shown)
  text = table(results, counts)
  print(text)
  if given.out:
    grid = write_images.make_grid(np.stack(images), shown)
    write_images.save_png(given.out.with_suffix(".png"), grid)
    atomic.write_json(given.out.with_suffix(".json"), results)
    print(f"Wrote {given.out.with_suffix('.png')} and its numbers, .json")
  return 0
