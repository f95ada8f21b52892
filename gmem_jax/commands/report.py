"""The report of digits, with and without memory: three pictures and a table.

Shapes: n images, H W pixels, q held-out images, k neighbours.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8

from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.evaluate import audit as audit_lib
from gmem_jax.files import atomic, paths
from gmem_jax.train import metrics, milestones

# What `write` writes.
FILES = (
  "report.txt", "report.json", "samples.png", "neighbours.png", "curves.png",
)  # fmt: skip
# Columns of samples.png.
COLUMNS = 16
# Its rows.
ROWS = (
  "image in the bank",
  "sample",
  "held-out image",
  "sample",
  "no memory",
)


@dataclasses.dataclass(frozen=True)
class Samples:
  """Samples, and the rows that their snippets have in their bank."""

  pixels: UInt8[np.ndarray, "n H W channels"]
  rows: Integer[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class NearestMemories:
  """The first held-out images' nearest rows of the bank, by falling cosine."""

  scores: Float[np.ndarray, "q k"]
  rows: Integer[np.ndarray, "q k"]


@dataclasses.dataclass(frozen=True)
class Material:
  """Everything that the report compares.

  Attributes:
    train: Training images, uint8 [m H W channels].
    heldout: Held-out images.
    from_bank: Samples from the bank's snippets.
    from_heldout: Samples from snippets of held-out images, never seen.
    unconditional: Samples of the network without memory.
    neighbours: Nearest memories of the first held-out images.
    distance: Images -> Fréchet distance to the training images.
    floor: That of as many real images as there are samples; None where there
      are too few images to tell.
  """

  train: np.ndarray
  heldout: np.ndarray
  from_bank: Samples
  from_heldout: Samples
  unconditional: Samples
  neighbours: NearestMemories
  distance: Any
  floor: float | None


def picture(material: Material) -> np.ndarray:
  """samples.png: `ROWS` of images, as uint8 [H', W', channels]."""
  bank, held = material.from_bank, material.from_heldout
  rows = [
    material.train[bank.rows[:COLUMNS]],
    bank.pixels[:COLUMNS],
    material.heldout[held.rows[:COLUMNS]],
    held.pixels[:COLUMNS],
    material.unconditional.pixels[:COLUMNS],
  ]
  grid = write_images.make_grid(np.concatenate(rows), COLUMNS, scale=5, gap=4)
  return write_images.label_rows(grid, ROWS)


def neighbours_picture(material: Material) -> np.ndarray:
  """neighbours.png, as uint8 [H', W', channels].

  Each row is a held-out image, a gap, and its nearest memories, best first.
  """
  nearest, rows = material.neighbours, []
  # Not strict: there are more held-out images than are shown.
  for held, near in zip(material.heldout, nearest.rows, strict=False):
    rows += [held, np.full_like(held, 255), *material.train[near]]
  columns = 2 + nearest.rows.shape[1]
  grid = write_images.make_grid(np.stack(rows), columns, scale=5, gap=4)
  labels = [
    f"held-out, then {best:.2f}-{worst:.2f}"
    for best, *_, worst in nearest.scores
  ]
  return write_images.label_rows(grid, labels)


def numbers(
  material: Material, memory_run: paths.Path, other_run: paths.Path
) -> dict[str, float]:
  """The numbers of the table, by name.

  Times are in seconds; NaN if the run with memory (in the directory
  `memory_run`) never reached the last distance of the other.
  """
  memory, other = _curve(memory_run), _curve(other_run)
  goal = other["distance"][-1]
  reached = memory["seconds"][memory["distance"] <= goal]
  train = _to_float(material.train)
  audit = audit_lib.memorisation(
    _to_float(material.from_bank.pixels),
    audit_lib.in_memory(train),
    np.arange(len(train)),
  )
  return {
    "samples": float(len(material.from_bank.pixels)),
    "distance/floor": np.nan if material.floor is None else material.floor,
    "distance/heldout_images": material.distance(material.heldout),
    "distance/from_bank": material.distance(material.from_bank.pixels),
    "distance/from_heldout": material.distance(material.from_heldout.pixels),
    "distance/unconditional": material.distance(material.unconditional.pixels),
    "seconds/unconditional": float(other["seconds"][-1]),
    "seconds/memory": float(memory["seconds"][-1]),
    "seconds/to_same_distance": float(reached[0] if len(reached) else np.nan),
    "memorisation/own_memory": audit.own_memory(material.from_bank.rows),
    "memorisation/sample_distance": float(audit.distances.mean()),
    "memorisation/real_distance": float(audit.real_distances.mean()),
  }


def table(values: dict[str, float], steps: int) -> str:
  """What `numbers` returned, as text for both runs of so many steps."""
  distance, seconds = (
    {k.split("/")[1]: x for k, x in values.items() if k.startswith(group)}
    for group in ("distance/", "seconds/")
  )
  audit = {k.split("/")[1]: x for k, x in values.items() if "memorisation" in k}
  return f"""
Fréchet distance to the training images ({values["samples"]:.0f} samples each;
features of a small classifier of the real images), after {steps} steps:
  as many training images, of the others: {distance["floor"]:8.2f} (the floor)
  held-out images themselves              {distance["heldout_images"]:8.2f}
  memory, snippets from the bank          {distance["from_bank"]:8.2f}
  memory, snippets of held-out images     {distance["from_heldout"]:8.2f}
  no memory                               {distance["unconditional"]:8.2f}
Seconds of training:
  no memory, whole run                    {seconds["unconditional"]:8.1f}
  memory, whole run                       {seconds["memory"]:8.1f}
  memory, to the distance of no memory    {seconds["to_same_distance"]:8.1f}
Memorisation:
  samples nearest to their own memory     {audit["own_memory"]:8.1%}
  mean distance to the nearest image      {audit["sample_distance"]:8.2f}
  the same between real images            {audit["real_distance"]:8.2f}
"""


def write(
  material: Material,
  memory_run: paths.Path,
  other_run: paths.Path,
  config: sections.Config,
  steps: int,
) -> str:
  """Writes `FILES`.

  They go into the directory of the run with memory, `memory_run`. Returns the
  table as text.
  """
  values = numbers(material, memory_run, other_run)
  records = {
    name: metrics.read_jsonl(run / "metrics.jsonl")
    for name, run in (("memory", memory_run), ("no memory", other_run))
  }
  size = len(material.train)
  text = table(values, steps) + milestones.table(config, size, records)
  write_images.save_png(memory_run / "samples.png", picture(material))
  write_images.save_png(
    memory_run / "neighbours.png", neighbours_picture(material)
  )
  _plot(memory_run / "curves.png", memory_run, other_run)
  atomic.write_text(memory_run / "report.txt", text.lstrip())
  # JSON has no NaN; json.dumps would write one that other readers refuse.
  stored = {k: None if np.isnan(v) else v for k, v in values.items()}
  # Last, as it says that the report is there.
  atomic.write_json(memory_run / "report.json", {"steps": steps} | stored)
  return text


def is_written(memory_run: paths.Path, steps: int) -> bool:
  """Whether a run has its report after so many steps."""
  try:
    stored = atomic.read_json(memory_run / "report.json")
  except ValueError:
    return False
  return isinstance(stored, dict) and stored.get("steps") == steps


def _to_float(pixels: np.ndarray) -> np.ndarray:
  """Bytes to [-1, 1]."""
  return pixels.astype(np.float64) / 127.5 - 1


def _curve(run: paths.Path) -> dict[str, np.ndarray]:
  """Distance over training seconds, as evaluated during training."""
  records = [
    r for r in metrics.read_jsonl(run / "metrics.jsonl") if "eval/frechet" in r
  ]
  if not records:
    raise ValueError(f"{run}/metrics.jsonl: no evaluation was written")
  return {
    "distance": np.array([r["eval/frechet"] for r in records]),
    "seconds": np.array([r["perf/train_seconds"] for r in records]),
  }


def _plot(
  path: paths.Path, memory_run: paths.Path, other_run: paths.Path
) -> None:
  """curves.png: loss over steps, Fréchet distance over seconds."""
  # Imported here, as nothing else needs it; and not through pyplot, which keeps
  # figures in global state.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout="constrained")
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2)
  for label, run in (("memory", memory_run), ("no memory", other_run)):
    losses = [
      (r["step"], r["train/loss"])
      for r in metrics.read_jsonl(run / "metrics.jsonl")
      if "train/loss" in r
    ]
    left.plot(*zip(*losses, strict=True), label=label)
    curve = _curve(run)
    right.plot(curve["seconds"], curve["distance"], "o-", label=label)
  left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
  right.set(
    xlabel="seconds of training (compilation included)",
    ylabel="Fréchet distance",
    yscale="log",
  )
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
  with atomic.replacing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=120)
