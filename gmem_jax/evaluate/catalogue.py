"""The scores by name: what each reads, and what it needs."""

from collections.abc import Mapping, Sequence

from gmem_jax.evaluate import statistics

# Score -> the feature whose Fréchet distance it is.
DISTANCES = {
  "fid": "pool",
  "sfid": "spatial",
  "frechet_dinov2": "dinov2",
  "frechet": "classifier",
}
# Score -> the feature that it reads.
FEATURES = DISTANCES | {"inception_score": "logits", "precision_recall": "pool"}
SCORES = tuple(FEATURES)
# Rows of the reference for precision and recall: as many as in ADM's files.
REFERENCE_ROWS = 10_000
# Of the Inception Score.
NO_REFERENCE = statistics.Statistics({}, {}, {}, None, None, {})


def networks_of(scores: Sequence[str]) -> set[str]:
  """Names of the networks that some scores need.

  Args:
    scores: Of `SCORES`.

  Raises:
    ValueError: On an unknown score, or none.
  """
  unknown = sorted(set(scores) - set(SCORES))
  if unknown or not scores:
    raise ValueError(
      f"scores {unknown or 'none'}: at least one of {', '.join(SCORES)}"
    )
  return {statistics.NETWORK[FEATURES[score]] for score in scores}


def compared(scores: Sequence[str]) -> tuple[set[str], set[str]]:
  """What of a reference is read.

  Args:
    scores: Of `SCORES`.

  Returns:
    (features whose Gaussian is, features whose rows are).
  """
  gaussians = {DISTANCES[s] for s in scores if s in DISTANCES}
  return gaussians, {"pool"} if "precision_recall" in scores else set()


def no_reference(
  scores: Sequence[str], reference: str | None
) -> statistics.Statistics:
  """What to begin with; refuses scores that need a reference without one.

  Args:
    scores: Of `SCORES`.
    reference: The reference, as the user names it.

  Raises:
    ValueError: Naming the scores that need one.
  """
  needing = [s for s in scores if s != "inception_score"]
  if needing and not reference:
    raise ValueError(f"{', '.join(needing)}: a reference is needed")
  return NO_REFERENCE


def preprocessing_of(name: str) -> str:
  """The network's preprocessing: "published" is that of pytorch-fid.

  Args:
    name: One of `inception.PREPROCESSING`, or "published".
  """
  return "pytorch_fid" if name == "published" else name


def check_count(
  count: int, gaussians: set[str], widths: Mapping[str, int], what: str
) -> None:
  """Refuses too few images for a covariance of full rank.

  Args:
    count: Images.
    gaussians: Features whose Gaussian is wanted.
    widths: Width of each feature.
    what: Names the images.

  Raises:
    ValueError: If a feature has as many dimensions as there are images.
  """
  for name in sorted(gaussians):
    if count <= widths[name]:
      raise ValueError(
        f"{what}: {count} images are too few for a covariance of"
        f" {widths[name]} dimensions ({name}): it would be singular, and the"
        f" distance a number of the sample size. At least {widths[name] + 1}"
        " are needed, 50,000 are usual"
      )
