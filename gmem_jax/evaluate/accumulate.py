"""What a pass over images leaves: moments, class sums and some features.

A tally on disk is a directory: `tally.npz` with the sums and the number of
images done, and `rows_N.npz` with the features that are kept, N the number of
the first. Parts are written before the sums that count them, each whole or not
at all, so a killed pass continues from the last save.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmem_jax.evaluate import frechet, inception_score

_SUMS = "tally.npz"


class Tally:
  """Sums over images 0 … done - 1.

  Attributes:
    done: Images taken in.
    moments: Of each feature that is asked for.
    score: The Inception Score, or None.
  """

  def __init__(
    self,
    widths: Mapping[str, int],
    *,
    moments: Sequence[str] = (),
    classes: bool = False,
    keep: Mapping[str, np.ndarray] | None = None,
  ):
    """Starts with no image.

    Args:
      widths: Width of each feature.
      moments: Features whose moments are wanted.
      classes: Whether "logits" are summed for the Inception Score.
      keep: Feature -> sorted numbers of the images whose rows are kept.
    """
    self.done = 0
    self.moments = {name: frechet.Moments(widths[name]) for name in moments}
    self.score = None
    if classes:
      self.score = inception_score.InceptionScore(widths["logits"])
    self._keep = dict(keep or {})
    self._widths = {name: widths[name] for name in self._keep}
    self._rows: dict[str, list[np.ndarray]] = {name: [] for name in self._keep}
    self._saved = 0  # Images whose kept rows are on disk.
    self._unsaved = {name: 0 for name in self._keep}  # First part not there.

  @property
  def features(self) -> set[str]:
    """Names of the features that `add` reads."""
    logits = {"logits"} if self.score else set()
    return set(self.moments) | set(self._keep) | logits

  @property
  def kept(self) -> dict[str, int]:
    """How many rows of each feature are kept of all images."""
    return {name: len(numbers) for name, numbers in self._keep.items()}

  def add(self, features: Mapping[str, np.ndarray]) -> None:
    """Takes in the next images.

    Args:
      features: Name -> [n f]; others than `features` are ignored.

    Raises:
      ValueError: If one is not finite.
    """
    (n,) = {len(features[name]) for name in self.features}
    for name, moments in self.moments.items():
      moments.add(features[name])
    if self.score:
      self.score.add(features["logits"])
    for name, wanted in self._keep.items():
      first, last = np.searchsorted(wanted, (self.done, self.done + n))
      if last > first:
        rows = features[name][wanted[first:last] - self.done]
        self._rows[name].append(rows)
    self.done += n

  def rows(self, name: str) -> np.ndarray:
    """The rows that were kept of a feature, float32 [n f].

    Args:
      name: The feature.
    """
    nothing = np.zeros((0, self._widths[name]), np.float32)
    return np.concatenate([nothing, *self._rows[name]])

  def save(self, directory: pathlib.Path) -> None:
    """Writes all that `restore` needs.

    Args:
      directory: An existing directory.
    """
    new = {n: self._rows[n][first:] for n, first in self._unsaved.items()}
    if any(new.values()):
      parts = {name: np.concatenate(p) for name, p in new.items() if p}
      write_arrays(directory / f"rows_{self._saved:09d}.npz", parts)
    arrays = {"done": np.array(self.done)}
    for name, moments in self.moments.items():
      arrays |= {f"moments/{name}/{k}": v for k, v in moments.arrays().items()}
    if self.score:
      arrays |= {f"score/{k}": v for k, v in self.score.arrays().items()}
    write_arrays(directory / _SUMS, arrays)
    self._saved = self.done
    self._unsaved = {name: len(rows) for name, rows in self._rows.items()}

  def restore(self, directory: pathlib.Path) -> None:
    """Goes on from the last `save`; from the beginning if there is none.

    Args:
      directory: The directory.
    """
    if not (directory / _SUMS).exists():
      return
    arrays = _read_arrays(directory / _SUMS)
    self.done = self._saved = int(arrays["done"])
    for name in self.moments:
      self.moments[name] = frechet.Moments.from_arrays(
        _below(arrays, f"moments/{name}/")
      )
    if self.score:
      self.score = inception_score.InceptionScore.from_arrays(
        _below(arrays, "score/")
      )
    for path in sorted(directory.glob("rows_*.npz")):
      # A part that no sums count was cut off before them.
      if int(path.stem.removeprefix("rows_")) < self.done:
        for name, rows in _read_arrays(path).items():
          self._rows[name].append(rows)
    self._unsaved = {name: len(rows) for name, rows in self._rows.items()}


def evenly(count: int, wanted: int) -> np.ndarray:
  """Numbers of images that are spread evenly over all.

  Args:
    count: Images in all.
    wanted: How many numbers, if there are so many images.

  Returns:
    Sorted numbers in [0, count).
  """
  wanted = min(count, wanted)
  return np.arange(wanted, dtype=np.int64) * count // max(wanted, 1)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes an .npz whole or not at all.

  Args:
    path: The file.
    arrays: Its arrays; names may hold "/".
  """
  temporary = path.with_name(f".{path.name}.tmp")
  with temporary.open("wb") as file:
    np.savez(file, **arrays)
  temporary.replace(path)


def claim(directory: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Makes a directory of a pass, and notes what it is of.

  Args:
    directory: The directory.
    settings: For a reader; JSON.
  """
  directory.mkdir(parents=True, exist_ok=True)
  text = json.dumps(settings, indent=2) + "\n"
  (directory / "settings.json").write_text(text)


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as arrays:
    return {name: arrays[name] for name in arrays.files}


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
  """The arrays under a prefix, without it."""
  found = {n: a for n, a in arrays.items() if n.startswith(prefix)}
  return {name.removeprefix(prefix): array for name, array in found.items()}
