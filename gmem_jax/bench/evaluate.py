"""Time and memory to reduce features to a Fréchet distance.

Synthetic features, as many and as wide as of 50,000 samples, stream through the
moments in batches and end in a distance to a reference, in a process of its
own. The peer does what the usual tools do: it keeps all features, takes
numpy's covariance and scipy's matrix square root of the product. The limits
are 60 s and 2 GB.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from gmem_jax.evaluate import frechet
from gmem_jax.files import errors

_SECONDS_LIMIT, _BYTES_LIMIT = 60, 2e9
_BATCH = 256


def _batches(seed: int, count: int, width: int):
  """Features like a rectified network's; each batch drawn when asked for."""
  scale = np.random.default_rng(0).uniform(0.1, 1, width).astype(np.float32)
  for start in range(0, count, _BATCH):
    # Each batch has its own stream: both ways see the same features, and the
    # features are not stored, which would be memory of ours.
    rng = np.random.default_rng((seed, start))
    n = min(_BATCH, count - start)
    noise = rng.standard_normal((n, width), np.float32)
    yield np.maximum(noise + 0.1 * seed, 0) * scale


def _ours(count: int, width: int) -> float:
  gaussians = []
  for seed in (1, 2):
    moments = frechet.Moments(width)
    for batch in _batches(seed, count if seed == 1 else width + 1, width):
      moments.add(batch)
    gaussians.append(moments.gaussian())
  return frechet.frechet_distance(*gaussians)


def _peer(count: int, width: int) -> float:
  means, covs = [], []
  for seed in (1, 2):
    n = count if seed == 1 else width + 1
    features = np.concatenate(list(_batches(seed, n, width)))
    features = features.astype(np.float64)
    means.append(features.mean(axis=0))
    covs.append(np.cov(features, rowvar=False))
  # Not symmetric, so its root may be complex by rounding: the usual tools take
  # the real part.
  root = scipy.linalg.sqrtm(covs[0] @ covs[1])
  squared = ((means[0] - means[1]) ** 2).sum()
  return float(squared + np.trace(covs[0] + covs[1] - 2 * np.real(root)))


def _nothing(count: int, width: int) -> float:
  """What making the features takes."""
  for seed in (1, 2):
    for _ in _batches(seed, count if seed == 1 else width + 1, width):
      pass
  return 0.0


_WORK: dict[str, Callable[[int, int], float]] = {
  "making the features": _nothing,
  "ours": _ours,
  "numpy and scipy": _peer,
}


def _run(name: str, count: int, width: int) -> tuple[float, float, int]:
  """(seconds, distance, peak bytes) of a process of its own."""
  worker = (
    "import resource, sys; from gmem_jax.bench import evaluate;"
    "print(*evaluate.measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])),"
    " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
  )
  out = subprocess.run(
    [sys.executable, "-c", worker, name, str(count), str(width)],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  unit = 1 if sys.platform == "darwin" else 1024
  return float(out[0]), float(out[1]), int(out[2]) * unit


def measure(name: str, count: int, width: int) -> tuple[float, float]:
  """Seconds and distance of one of the ways."""
  start = time.perf_counter()
  distance = _WORK[name](count, width)
  return time.perf_counter() - start, distance


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark.

  Returns:
    1 if a limit is exceeded or the ways disagree.
  """
  parser = errors.Parser(
    prog="python -m gmem_jax.bench evaluate", description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("--count", type=int, default=50_000)
  parser.add_argument("--width", type=int, default=2048)
  args = parser.parse_args(argv)
  print(f"{args.count} features of width {args.width}, and a reference")
  print(f"{'':22}{'s':>8}{'peak GB':>9}{'distance':>12}")
  found = {}
  for name in _WORK:
    found[name] = _run(name, args.count, args.width)
    seconds, distance, peak = found[name]
    print(f"{name:22}{seconds:8.1f}{peak / 1e9:9.2f}{distance:12.6f}")
  seconds, distance, peak = found["ours"]
  theirs_seconds, theirs, _ = found["numpy and scipy"]
  error = abs(distance - theirs) / theirs
  print(
    f"ratio of seconds, ours / theirs: {seconds / theirs_seconds:.2f};"
    f" distances differ by {error:.1e} of themselves"
  )
  print(f"limits: {_SECONDS_LIMIT} s, {_BYTES_LIMIT / 1e9:.0f} GB")
  wrong = error > 1e-6
  return int(seconds > _SECONDS_LIMIT or peak > _BYTES_LIMIT or wrong)
