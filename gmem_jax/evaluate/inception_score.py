"""The Inception Score, in one pass.

Shapes: n images, k classes, s splits.
"""

import numpy as np
import scipy.special

# Images in a split, as in the ADM suite: 10 splits of 50,000 images.
SPLIT = 5000


class InceptionScore:
  """exp of the mean divergence of a split's classes from their average.

  Split j holds images 5000 j … 5000 j + 4999 in their order; the score is the
  mean over splits.

  Source: Salimans et al., arXiv 1606.03498; Dhariwal and Nichol, arXiv
  2105.05233 (the splits).
  """

  # The divergence KL(p(y|x) || p(y)), averaged over a split, is the entropy of
  # the mean minus the mean entropy: two sums are enough, no logits are kept.

  def __init__(self, classes: int, split: int = SPLIT):
    """Starts with no image; `split` is the number of images in a split."""
    self._split, self._done = split, 0
    self._counts = np.zeros(0)
    self._entropies = np.zeros(0)  # Sums over images of Σ p log p.
    self._totals = np.zeros((0, classes))  # Sums over images of p.

  def add(self, logits: np.ndarray) -> None:
    """Adds the next images' logits [n, k]."""
    while len(logits):
      room = self._split - self._done % self._split
      if room == self._split:
        self._counts = np.append(self._counts, 0)
        self._entropies = np.append(self._entropies, 0)
        self._totals = np.pad(self._totals, ((0, 1), (0, 0)))
      self._add_to_split(logits[:room])
      logits = logits[room:]

  def _add_to_split(self, logits: np.ndarray) -> None:
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    self._counts[-1] += len(p)
    self._entropies[-1] += (p * log_p).sum()
    self._totals[-1] += p.sum(axis=0)
    self._done += len(p)

  def score(self) -> float:
    """The score of all images so far.

    Raises:
      ValueError: If there are none.
    """
    if not self._done:
      raise ValueError("the Inception Score of no image")
    mean = self._totals / self._counts[:, None]
    spread = scipy.special.entr(mean).sum(axis=1)
    divergence = self._entropies / self._counts + spread
    # A short last split counts as much as the others, as in the ADM suite.
    return float(np.exp(divergence).mean())

  def arrays(self) -> dict[str, np.ndarray]:
    """The state, for `restore`."""
    return {
      "split": np.array(self._split),
      "counts": self._counts,
      "entropies": self._entropies,
      "totals": self._totals,
    }

  def restore(self, arrays: dict[str, np.ndarray]) -> None:
    """Continues from what `arrays` returned."""
    self._split = int(arrays["split"])
    # Copies, as they are added to in place.
    self._counts = np.array(arrays["counts"])
    self._entropies = np.array(arrays["entropies"])
    self._totals = np.array(arrays["totals"])
    self._done = int(self._counts.sum())
