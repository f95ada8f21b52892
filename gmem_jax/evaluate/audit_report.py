"""What a memorisation audit shows: a json, a contact sheet, a histogram."""

from typing import Any

import numpy as np

from gmem_jax.data import write_images
from gmem_jax.evaluate import audit as audit_lib
from gmem_jax.files import atomic, paths
from gmem_jax.parallel import processes

# Pairs in the contact sheet, bins of the histogram.
PAIRS, _BINS = 16, 40


def contact_sheet(audit: audit_lib.Audit) -> np.ndarray:
  """The closest pairs: samples above what they are nearest to; uint8."""
  order = np.argsort(audit.latents.distances, kind="stable")[:PAIRS]
  rows = np.concatenate(
    [
      audit.samples[order],
      audit.pictures(audit.latents.rows[order]),
      audit.pictures(audit.bank_rows[order]),
    ]
  )
  # So that digits of 8 pixels can be told apart.
  scale = max(1, 64 // rows.shape[1])
  grid = write_images.make_grid(rows, len(order), scale=scale)
  return write_images.label_rows(
    grid, ("sample", "nearest latent", "nearest memory")
  )


def write(stem: paths.Path, audit: audit_lib.Audit, info: Any) -> str:
  """Writes STEM_audit.json, _audit.png and _audit_histogram.png.

  Returns a summary. `info` is what the samples depend on; JSON.
  """
  latents = audit.latents
  # One scale for both, or the two histograms could not be compared.
  top = float(max(latents.distances.max(), latents.real_distances.max()))
  edges = np.linspace(0, top, _BINS + 1)
  histograms = {
    "samples": np.histogram(latents.distances, edges)[0].tolist(),
    "real_images": np.histogram(latents.real_distances, edges)[0].tolist(),
  }
  summary = {
    "images": len(latents.distances),
    "mean_distance": float(latents.distances.mean()),
    "mean_distance_of_real_images": float(latents.real_distances.mean()),
    "smallest_distance": float(latents.distances.min()),
    "nearer_than_real_images_ever_are": float(
      np.mean(latents.distances < latents.real_distances.min())
    ),
    "same_image_by_latent_and_memory": latents.own_memory(audit.bank_rows),
    "mean_cosine_to_nearest_memory": float(audit.bank_scores.mean()),
  }
  if processes.is_main():
    atomic.write_json(
      stem.with_name(f"{stem.name}_audit.json"),
      {
        **summary,
        "histogram": {"edges": edges.tolist(), **histograms},
        "nearest_latent": latents.rows.tolist(),
        "distance": latents.distances.tolist(),
        "nearest_memory": audit.bank_rows.tolist(),
        "cosine": audit.bank_scores.tolist(),
        "of": info,
      },
    )
    write_images.save_png(
      stem.with_name(f"{stem.name}_audit.png"), contact_sheet(audit)
    )
    _plot(stem.with_name(f"{stem.name}_audit_histogram.png"), edges, histograms)
  lines = [
    f"{name.replace('_', ' '):36}{x:10.4g}" for name, x in summary.items()
  ]
  wrote = f"Wrote {stem}_audit.json, _audit.png and _audit_histogram.png"
  return "\n".join(["", "Memorisation:", *lines, wrote])


def _plot(path: paths.Path, edges: np.ndarray, counts: dict[str, Any]) -> None:
  """The histogram of distances."""
  # Without pyplot: it holds global state and may look for a display.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 4), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  for name, values in counts.items():
    # Shares, as there are more real images than samples.
    share = np.array(values) / max(sum(values), 1)
    axes.stairs(
      share, edges, label=name.replace("_", " "), fill=True, alpha=0.5
    )
  axes.set(xlabel="distance to the nearest training latent", ylabel="share")
  axes.legend()
  with atomic.replacing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=120)
