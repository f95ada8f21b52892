"""Reference statistics on disk: ours, ADM's, pytorch-fid's.

Our files are .npz with the names of the ADM suite, which can read them: mu,
sigma (features of FID), mu_s, sigma_s (of sFID). They also have mu_dinov2,
sigma_dinov2, features (some rows [k 2048], for precision and recall), and meta,
a JSON text that identifies images and networks.

Shapes: f feature width, k images.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gmem_jax.evaluate import frechet
from gmem_jax.files import atomic, numpy_files, paths, shown, weights

VERSION = 1
# Feature -> suffix of its arrays' names in the file.
_SUFFIXES = {
  "pool": "",
  "spatial": "_s",
  "dinov2": "_dinov2",
  "classifier": "_classifier",
}
# Feature -> network that computes it.
NETWORK = {
  "pool": "inception",
  "spatial": "inception",
  "logits": "inception",
  "dinov2": "dinov2",
  "classifier": "classifier",
}


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Statistics of images.

  Attributes:
    gaussians: Feature -> its Gaussian.
    rows: Feature -> some of its rows [k f].
    networks: Network -> what identifies it. A file without our `meta` is taken
      to be of its suite's preprocessing; the weights are then unknown.
    count: Number of images, or None if unknown.
    shape: H, W, ch of the images, or None if unknown.
    info: Where they come from; JSON.
  """

  gaussians: Mapping[str, frechet.Gaussian]
  rows: Mapping[str, np.ndarray]
  networks: Mapping[str, Mapping[str, Any]]
  count: int | None
  shape: tuple[int, int, int] | None
  info: Mapping[str, Any]


def save(path: paths.Path, measured: Statistics) -> None:
  """Writes an .npz, whole or not at all."""
  arrays: dict[str, Any] = {}
  for name, gaussian in measured.gaussians.items():
    arrays[f"mu{_SUFFIXES[name]}"] = gaussian.mean
    arrays[f"sigma{_SUFFIXES[name]}"] = gaussian.cov
  for name, rows in measured.rows.items():
    arrays[f"features{_SUFFIXES[name]}"] = rows
  meta = {
    "version": VERSION,
    "networks": measured.networks,
    "count": measured.count,
    "shape": measured.shape,
    "source": measured.info,
  }
  arrays["meta"] = np.array(json.dumps(meta))
  with atomic.replacing(path) as temporary:
    np.savez(temporary, **arrays)


def load(path: pathlib.Path) -> Statistics:
  """Reads statistics.

  Args:
    path: An .npz, or a directory that `python -m gmem_jax.convert` wrote.

  Raises:
    ValueError: If it has none, or is damaged or of another version.
  """
  if path.is_dir():
    return _load_converted(path)
  with numpy_files.opened(path) as npz:
    # Not the images: ADM's reference batch has gigabytes of them.
    arrays = {name: npz.read(name) for name in npz.names if name != "arr_0"}
    images = "arr_0" in npz.names
  if "meta" in arrays:
    return _load_ours(path, arrays)
  return _unlabelled(path, arrays, adm=images or "mu_s" in arrays)


def _load_ours(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray]
) -> Statistics:
  try:
    meta = atomic.parse_json(str(arrays["meta"]), "it")
    version = meta["version"]
    shape = tuple(meta["shape"])
    networks, count, source = meta["networks"], meta["count"], meta["source"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: its meta is damaged: {error!r}") from None
  if version != VERSION:
    raise ValueError(
      f"{path} is of version {version}, this code reads {VERSION}: make the"
      " statistics again"
    )
  rows = {
    name: arrays[f"features{suffix}"]
    for name, suffix in _SUFFIXES.items()
    if f"features{suffix}" in arrays
  }
  info = {"file": str(path), "of": source}
  gaussians = _gaussians(path, arrays)
  return Statistics(gaussians, rows, networks, count, shape, info)


def _load_converted(path: pathlib.Path) -> Statistics:
  metadata = weights.read_metadata(path)
  if metadata["kind"] != "fid_stats":
    raise ValueError(
      f"{path} is a converted {shown.cut(metadata['kind'])}, not statistics"
    )
  (tree,) = metadata["trees"]
  arrays, _ = weights.load_converted(path, tree)
  return _unlabelled(path, arrays, adm="mu_s" in arrays)


def _unlabelled(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, adm: bool
) -> Statistics:
  """Statistics that do not name their network."""
  gaussians = _gaussians(path, arrays)
  if not gaussians:
    held = shown.cut(", ".join(sorted(arrays)) or "nothing")
    raise ValueError(f"{path} holds {held}; statistics have mu and sigma")
  # mu and sigma alone is what pytorch-fid writes; the ADM suite's files also
  # have images or the moments of sFID.
  kind = "adm" if adm else "pytorch_fid"
  networks = {"inception": {"name": "inception", "preprocessing": kind}}
  info = {"file": str(path), "of": f"not said; taken to be {kind}'s"}
  return Statistics(gaussians, {}, networks, None, None, info)


def _gaussians(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray]
) -> dict[str, frechet.Gaussian]:
  gaussians = {}
  for name, suffix in _SUFFIXES.items():
    if f"mu{suffix}" not in arrays:
      continue
    mean = np.asarray(arrays[f"mu{suffix}"], np.float64)
    if f"sigma{suffix}" not in arrays:
      raise ValueError(f"{path}: it has mu{suffix} but no sigma{suffix}")
    cov = np.asarray(arrays[f"sigma{suffix}"], np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
      raise ValueError(
        f"{path}: mu{suffix} {mean.shape} and sigma{suffix} {cov.shape} do not"
        " fit each other"
      )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
      raise ValueError(f"{path}: mu{suffix} or sigma{suffix} is not finite")
    gaussians[name] = frechet.Gaussian(mean, cov)
  return gaussians


def check_networks(
  stored: Statistics,
  ours: Mapping[str, Mapping[str, Any]],
  features: set[str],
  *,
  published: bool,
) -> None:
  """Refuses statistics of other networks or another preprocessing.

  Only the networks of these features count. `published` accepts ADM's
  statistics whatever our preprocessing, as GMem's published evaluation does.

  Raises:
    ValueError: Naming the differences.
  """
  where = stored.info.get("file", "the reference")
  for network in sorted({NETWORK[name] for name in features}):
    settings = stored.networks.get(network, {})
    # The published mix is ADM's file with pytorch-fid's preprocessing. Files of
    # ours name the weights, and are never exempt.
    if published and "sha256" not in settings:
      continue
    # A file of another suite has fewer keys: only those can differ.
    given = {key: ours[network].get(key) for key in settings}
    lines = atomic.differences(settings, given)
    if lines:
      raise ValueError(
        f"{where} is of another {network} than ours, so the numbers would mean"
        f" nothing: {'; '.join(line.strip() for line in lines)}"
      )
