"""Settings that every test runs under: strict, loud, four fake devices."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags

# Every test process sees four CPU devices; single-device tests use the first.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# grain reads absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
  """Directory of the golden files (GMEM_GOLDEN_DIR, or tests/golden)."""
  default = pathlib.Path(__file__).parent / "golden"
  return pathlib.Path(os.environ.get("GMEM_GOLDEN_DIR", default))


@pytest.fixture
def standard_promotion():
  """Lets a library mix dtypes; optax does in its bias correction."""
  with jax.numpy_dtype_promotion("standard"):
    yield
