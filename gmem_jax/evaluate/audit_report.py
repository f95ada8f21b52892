"""What a memorisation audit shows: a json, a contact sheet, a histogram."""

import pathlib
from typing import Any

import numpy as np

from gmem_jax.data import images as images_lib
from gmem_jax.evaluate import audit
from gmem_jax.files import atomic
from gmem_jax.parallel import processes

# Pairs in the contact sheet, bins of the histogram.
PAIRS, _BINS = 16, 40


def contact_sheet(result: audit.Result) -> np.ndarray:
  """The closest pairs: samples above what they are nearest to.

  Args:
    result: The audit.

  Returns:
    uint8 [H' W' ch].
  """
  order = np.argsort(result.latents.distances, kind="stable")[:PAIRS]
  rows = np.concatenate(
    [
      result.samples[order],
      result.pictures(result.latents.rows[order]),
      result.pictures(result.bank_rows[order]),
    ]
  )
  scale = max(1, 64 // rows.shape[1])
  grid = images_lib.make_grid(rows, len(order), scale=scale)
  return images_lib.label_rows(
    grid, ("sample", "nearest latent", "nearest memory")
  )


def write(stem: pathlib.Path, result: audit.Result, info: Any) -> str:
  """Writes STEM_audit.json, _audit.png and _audit_histogram.png.

  Args:
    stem: The files' common beginning.
    result: The audit.
    info: What the samples depend on; JSON.

  Returns:
    A summary.
  """
  found = result.latents
  top = float(max(found.distances.max(), found.real_distances.max()))
  edges = np.linspace(0, top, _BINS + 1)
  histograms = {
    "samples": np.histogram(found.distances, edges)[0].tolist(),
    "real_images": np.histogram(found.real_distances, edges)[0].tolist(),
  }
  summary = {
    "images": len(found.distances),
    "mean_distance": float(found.distances.mean()),
    "mean_distance_of_real_images": float(found.real_distances.mean()),
    "smallest_distance": float(found.distances.min()),
    "nearer_than_real_images_ever_are": float(
      np.mean(found.distances < found.real_distances.min())
    ),
    "same_image_by_latent_and_memory": found.own_memory(result.bank_rows),
    "mean_cosine_to_nearest_memory": float(result.bank_scores.mean()),
  }
  if processes.is_main():
    atomic.write_json(
      stem.with_name(f"{stem.name}_audit.json"),
      {
        **summary,
        "histogram": {"edges": edges.tolist(), **histograms},
        "nearest_latent": found.rows.tolist(),
        "distance": found.distances.tolist(),
        "nearest_memory": result.bank_rows.tolist(),
        "cosine": result.bank_scores.tolist(),
        "of": info,
      },
    )
    images_lib.save_png(
      stem.with_name(f"{stem.name}_audit.png"), contact_sheet(result)
    )
    _plot(stem.with_name(f"{stem.name}_audit_histogram.png"), edges, histograms)
  lines = [
    f"{name.replace('_', ' '):36}{x:10.4g}" for name, x in summary.items()
  ]
  return "\n".join(["", "Memorisation:", *lines])


def _plot(
  path: pathlib.Path, edges: np.ndarray, counts: dict[str, Any]
) -> None:
  """The histogram of distances."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 4), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  for name, values in counts.items():
    share = np.array(values) / max(sum(values), 1)
    axes.stairs(
      share, edges, label=name.replace("_", " "), fill=True, alpha=0.5
    )
  axes.set(xlabel="distance to the nearest training latent", ylabel="share")
  axes.legend()
  temporary = path.with_name(f".{path.name}.tmp")
  figure.savefig(temporary, format="png", dpi=120)
  temporary.replace(path)
