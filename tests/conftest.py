"""Settings that every test runs under: strict, loud, four fake devices."""

import importlib.metadata
import os
import pathlib
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compiling; XLA_FLAGS="" tests what users run.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # Halves the time again; XLA ends where it does not know a flag.
  os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
  )
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# What one test compiled, no other test, worker or process compiles again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix="gmem_jax_cache_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Processes that tests start find no PyTorch: they must do without, and where it
# is installed TensorBoard's writer would spend two seconds on loading it.
os.environ["PYTHONPATH"] = os.pathsep.join(
  [
    str(pathlib.Path(__file__).parent / "without_torch"),
    *filter(None, [os.environ.get("PYTHONPATH")]),
  ]
)

import jax
import pytest
from absl import flags

# Every test process sees four CPU devices; single-device tests use the first.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# grain reads absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()

# A shell starts what it puts into the background with Ctrl-C ignored, and nohup
# ignores the end of a terminal; tests of both would wait for ever.
for _signal, _handler in (
  (signal.SIGINT, signal.default_int_handler),
  (signal.SIGHUP, signal.SIG_DFL),
):
  if signal.getsignal(_signal) is signal.SIG_IGN:
    signal.signal(_signal, _handler)


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
  """A storage server; programs that tests start find it, too."""
  from tests import storage_server

  server = storage_server.Server(tmp_path_factory.mktemp("storage"))
  # For the whole session, as the libraries look once.
  os.environ.update(server.environment)
  yield server
  server.kill()


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
