"""Trains the digits with each conditioning, for as many steps, and compares.

The table answers what the memory buys in each form: the Fréchet distance of
samples to the training images, with snippets from the bank, with snippets of
held-out images looked up in the bank, and with the bank swapped for one of
held-out images, of which nothing was trained on; and what it costs in
parameters, time and memorisation.
"""

import argparse
import dataclasses
import importlib.util
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from gmem_jax.bank import sharding as bank_sharding
from gmem_jax.commands import compare, runs
from gmem_jax.config import resolve, sections
from gmem_jax.evaluate import audit as audit_lib, build
from gmem_jax.files import errors
from gmem_jax.sample import source as source_lib
from gmem_jax.train import (
  dataset as dataset_lib,
  directory as directory_lib,
  loop,
  metrics,
  setup,
)

# Name in the table -> what differs from the config file.
VARIANTS: dict[str, dict[str, Any]] = {
  "none": {"model.conditioning": "none"},
  "adaLN": {"model.conditioning": "adaln"},
  "cross": {"model.conditioning": "cross", "retrieval.exclude_own": True},
  "cross, own snippet too": {
    "model.conditioning": "cross",
    "retrieval.exclude_own": False,
  },
  "adaLN + cross": {
    "model.conditioning": "adaln+cross",
    "retrieval.exclude_own": True,
  },
}


@dataclasses.dataclass(frozen=True)
class Result:
  """What one training came to.

  Attributes:
    name: Of the variant.
    parameters: Their number.
    seconds: Of training, compilation included, evaluation not.
    curve: (seconds, distance) at each evaluation.
    from_bank: Fréchet distance of samples from the bank.
    from_heldout: With snippets of held-out images, neighbours from the bank.
    swapped: With the bank of held-out images instead.
    own_memory: Fraction of the samples from the bank that are nearest to the
      training image that their snippet is of.
    nearest: Mean distance of those samples to the nearest training image.
    real_nearest: The same of training images, to the nearest other one.
  """

  name: str
  parameters: int
  seconds: float
  curve: list[tuple[float, float]]
  from_bank: float
  from_heldout: float
  swapped: float
  own_memory: float
  nearest: float
  real_nearest: float

  def at(self, seconds: float) -> float:
    """The distance at the last evaluation until then; NaN if there is none."""
    reached = [d for s, d in self.curve if s <= seconds + 1e-6]
    return reached[-1] if reached else float("nan")


def load_config(
  path: str, changes: dict[str, Any], steps: int
) -> sections.Config:
  """A config file with changes."""
  spec = importlib.util.spec_from_file_location("recipe", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"--config={path}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  tree: ml_collections.ConfigDict = module.get_config()
  changes = changes | {"report.unconditional": False}
  if steps:
    changes["train.steps"] = steps
  tree.update_from_flattened_dict(changes)
  return resolve.resolve(tree)


def measure(
  name: str, config: sections.Config, workdir: pathlib.Path
) -> Result:
  """Trains one variant and samples from it.

  Args:
    name: Of the variant.
    config: The run.
    workdir: Its directory; a finished run there is not trained again.
  """
  print(f"{name}: training {config.train.steps} steps", flush=True)
  directory_lib.claim(config, workdir)
  mesh = runs.make_mesh(config)
  dataset = dataset_lib.load(config)
  images, heldout = dataset.train_images, dataset.heldout
  if images is None or heldout is None:
    raise ValueError(
      f"config.data.source={config.data.source!r}: the comparison needs"
      " held-out images in memory, as of 'digits'"
    )
  memory = setup.make_memory(config, dataset, mesh)
  evaluator = runs.make_evaluator(config, mesh, memory.latent_shape, images)
  run = runs.make_run(config, workdir, mesh, dataset, memory, evaluator)
  state = loop.train(run)
  sampler = source_lib.make_sampler(config, memory, mesh)
  weights = source_lib.make_weights(config, memory, state.ema)
  placed = bank_sharding.place(heldout.bank, mesh, config.bank.placement)
  # The network attends to the swapped bank's rows as it did to its own.
  other = dataclasses.replace(weights, bank=setup.lookup_bank(config, placed))

  def draw(weights, bank, outside=False):
    return compare.draw_samples(config, sampler, weights, bank, outside=outside)

  def distance(samples):
    return build.score_pixels(evaluator, samples.pixels)["frechet"]

  own = draw(weights, memory.bank)
  curve = [
    (r["perf/train_seconds"], r["eval/frechet"])
    for r in metrics.read_jsonl(workdir / "metrics.jsonl")
    if "eval/frechet" in r
  ]
  audit = audit_lib.memorisation(
    _floats(own.pixels),
    audit_lib.in_memory(_floats(images.pixels)),
    np.arange(len(images)),
  )
  return Result(
    name=name,
    parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    seconds=curve[-1][0],
    curve=curve,
    from_bank=distance(own),
    from_heldout=distance(draw(weights, placed, outside=True)),
    swapped=distance(draw(other, placed)),
    own_memory=audit.own_memory(own.rows),
    nearest=float(audit.distances.mean()),
    real_nearest=float(audit.real_distances.mean()),
  )


def _floats(pixels: np.ndarray) -> np.ndarray:
  return pixels.astype(np.float64) / 127.5 - 1


def table(results: Sequence[Result]) -> str:
  """The comparison as Markdown."""
  # Steps cost more with attention: the fair comparison is at equal time.
  until = min(r.seconds for r in results)
  real = results[0].real_nearest
  lines = [
    "| conditioning | parameters | seconds | from the bank |"
    f" … after {until:.0f} s | held-out snippets | held-out bank |"
    " nearest is its own memory | distance to the nearest |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {r.name} | {r.parameters:,} | {r.seconds:.0f} | {r.from_bank:.2f} |"
    f" {r.at(until):.2f} | {r.from_heldout:.2f} | {r.swapped:.2f} |"
    f" {r.own_memory:.0%} | {r.nearest:.2f} |"
    for r in results
  ]
  lines.append(f"\nReal images lie {real:.2f} from their nearest neighbour.")
  return "\n".join(lines)


def main(arguments: list[str]) -> int:
  """Runs the comparison and prints its table."""
  parser = errors.Parser(
    prog="python -m gmem_jax.bench conditioning",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--config", default="configs/digits.py")
  parser.add_argument(
    "--steps", type=int, default=0, help="0: those of the config"
  )
  parser.add_argument(
    "--only", default="", help=f"names, with ; between: {'; '.join(VARIANTS)}"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=NUMBER",
    help="a key of the config, e.g. retrieval.neighbours=4; repeatable",
  )
  parser.add_argument(
    "--workdir", type=errors.path, help="keeps the runs, to be continued"
  )
  args = parser.parse_args(arguments)
  chosen = args.only.split(";") if args.only else list(VARIANTS)
  unknown = [name for name in chosen if name not in VARIANTS]
  if unknown:
    parser.error(f"--only: {unknown} are none of {list(VARIANTS)}")
  common = {}
  for text in args.set:
    key, _, value = text.partition("=")
    common[key] = float(value) if "." in value else int(value)
  with tempfile.TemporaryDirectory() as temporary:
    root = pathlib.Path(args.workdir or temporary).absolute()
    results = [
      measure(
        name,
        load_config(args.config, VARIANTS[name] | common, args.steps),
        root / f"variant_{list(VARIANTS).index(name)}",
      )
      for name in chosen
    ]
  print(table(results))
  return 0
