"""What samples are compared with: reference statistics, on disk.

A file of ours is an .npz with the names of the ADM suite, which can read it:
mu, sigma (features of FID), mu_s, sigma_s (of sFID); and besides them
mu_dinov2, sigma_dinov2, features (some rows [k 2048], for precision and
recall), and meta, a JSON text that says of which images and networks they are.

Shapes: f feature width, k images.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gmem_jax.evaluate import accumulate as tally_lib, frechet, sources
from gmem_jax.files import atomic, weights

VERSION = 1
# Feature -> suffix of its moments' names in the file.
_SUFFIXES = {
  "pool": "",
  "spatial": "_s",
  "dinov2": "_dinov2",
  "classifier": "_classifier",
}
# Network that gives a feature.
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
    networks: Network -> what identifies it. Of a file without our `meta`, what
      the suite that it comes from uses, without weights.
    count: Images, or None if unknown.
    shape: H, W, ch of the images, or None if unknown.
    info: Where they come from; JSON.
  """

  gaussians: Mapping[str, frechet.Gaussian]
  rows: Mapping[str, np.ndarray]
  networks: Mapping[str, Mapping[str, Any]]
  count: int | None
  shape: tuple[int, int, int] | None
  info: Mapping[str, Any]


def of_tally(
  tally: tally_lib.Tally,
  kept: str | None,
  networks: Mapping[str, Mapping[str, Any]],
  source: sources.Source,
) -> Statistics:
  """Statistics that a pass has measured.

  Args:
    tally: What it left.
    kept: The feature whose rows were kept, or None.
    networks: What identifies the networks.
    source: The images.
  """
  return Statistics(
    {name: m.gaussian() for name, m in tally.moments.items()},
    {kept: tally.rows(kept)} if kept else {},
    networks,
    tally.done,
    source.shape,
    source.info,
  )


def save(path: pathlib.Path, found: Statistics) -> None:
  """Writes a file of ours, whole or not at all.

  Args:
    path: The .npz file.
    found: Measured statistics.
  """
  arrays: dict[str, Any] = {}
  for name, gaussian in found.gaussians.items():
    arrays[f"mu{_SUFFIXES[name]}"] = gaussian.mean
    arrays[f"sigma{_SUFFIXES[name]}"] = gaussian.cov
  for name, rows in found.rows.items():
    arrays[f"features{_SUFFIXES[name]}"] = rows
  meta = {
    "version": VERSION,
    "networks": found.networks,
    "count": found.count,
    "shape": found.shape,
    "source": found.info,
  }
  arrays["meta"] = np.array(json.dumps(meta))
  path.parent.mkdir(parents=True, exist_ok=True)
  tally_lib.write_arrays(path, arrays)


def load(path: pathlib.Path) -> Statistics:
  """Reads statistics: ours, ADM's, pytorch-fid's, or converted ones.

  Args:
    path: An .npz, or what `python -m gmem_jax.convert` wrote.

  Raises:
    ValueError: If it holds none, or is damaged or of another version.
  """
  if path.is_dir():
    return _load_converted(path)
  try:
    with np.load(path, allow_pickle=False) as file:
      names = [n for n in file.files if n != "arr_0"]
      arrays = {name: file[name] for name in names}
  except Exception as error:  # Damage shows as many kinds of error.
    raise ValueError(f"{path}: cannot read it: {error}") from None
  images = "arr_0" in atomic.array_names(path)
  if "meta" in arrays:
    return _load_ours(path, arrays)
  return _unlabelled(path, arrays, adm=images or "mu_s" in arrays)


def _load_ours(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray]
) -> Statistics:
  try:
    meta = json.loads(str(arrays["meta"]))
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
      f"{path} is a converted {metadata['kind']}, not statistics"
    )
  (tree,) = metadata["trees"]
  arrays, _ = weights.load_converted(path, tree)
  return _unlabelled(path, arrays, adm="mu_s" in arrays)


def _unlabelled(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, adm: bool
) -> Statistics:
  """Statistics that do not say what network they are of."""
  gaussians = _gaussians(path, arrays)
  if not gaussians:
    raise ValueError(
      f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; statistics have"
      " mu and sigma"
    )
  kind = "adm" if adm else "pytorch_fid"
  networks = {"inception": {"name": "inception", "preprocessing": kind}}
  info = {"file": str(path), "of": f"not said; taken to be {kind}'s"}
  return Statistics(gaussians, {}, networks, None, None, info)


def _gaussians(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray]
) -> dict[str, frechet.Gaussian]:
  found = {}
  for name, suffix in _SUFFIXES.items():
    if f"mu{suffix}" not in arrays:
      continue
    mean = np.asarray(arrays[f"mu{suffix}"], np.float64)
    if f"sigma{suffix}" not in arrays:
      raise ValueError(f"{path}: mu{suffix} is there, sigma{suffix} is not")
    cov = np.asarray(arrays[f"sigma{suffix}"], np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
      raise ValueError(
        f"{path}: mu{suffix} {mean.shape} and sigma{suffix} {cov.shape} do not"
        " fit each other"
      )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
      raise ValueError(f"{path}: mu{suffix} or sigma{suffix} is not finite")
    found[name] = frechet.Gaussian(mean, cov)
  return found


def check_networks(
  found: Statistics,
  ours: Mapping[str, Mapping[str, Any]],
  features: set[str],
  *,
  published: bool,
) -> None:
  """Refuses statistics of other networks or another preprocessing.

  Args:
    found: The statistics.
    ours: What identifies our networks.
    features: The features that are compared.
    published: Accept ADM's statistics whatever our preprocessing, as the
      published evaluation of GMem does.

  Raises:
    ValueError: Saying what differs.
  """
  where = found.info.get("file", "the reference")
  for network in sorted({NETWORK[name] for name in features}):
    theirs, own = found.networks.get(network, {}), ours[network]
    if published and "sha256" not in theirs:
      continue
    differing = [
      f"{key} {theirs[key]!r} there, {own.get(key)!r} here"
      for key in sorted(theirs)
      if theirs[key] != own.get(key)
    ]
    if differing:
      raise ValueError(
        f"{where} is of another {network} than ours, so the numbers would mean"
        f" nothing: {'; '.join(differing)}"
      )


def check_shape(found: Statistics, shape: tuple[int, int, int]) -> None:
  """Refuses statistics of images of another size.

  Args:
    found: The statistics.
    shape: H, W, ch of ours.

  Raises:
    ValueError: If the sizes are known and differ.
  """
  if found.shape and found.shape[:2] != shape[:2]:
    raise ValueError(
      f"{found.info.get('file', 'the reference')} is of images of"
      f" {found.shape[0]} x {found.shape[1]} pixels, ours have {shape[0]} x"
      f" {shape[1]}"
    )
