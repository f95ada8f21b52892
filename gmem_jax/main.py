r"""Train, sample and compare: the command line.

  python -m gmem_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m gmem_jax.main --config=configs/digits.py --workdir=runs/digits \
    --mode=sample --config.sample.count=100

Modes:
  train     Train, from scratch or from where the run stopped; then report.
  sample    Write images to WORKDIR/images, from the run's newest checkpoint or
            from converted weights (config.sample.network). With --image, like
            images that the bank need not know; with --interpolate, between two
            memories; with --bank, from another bank.

Any key of the config can be set: --config.train.steps=2000. A run that was
killed continues when the same command is given again.
"""

import logging
import pathlib
import sys

from absl import app, flags, logging as absl_logging
from ml_collections import config_flags

from gmem_jax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, e.g. configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's directory: checkpoints, metrics, pictures."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample"], "What to do.")
_IMAGE = flags.DEFINE_multi_string(
  "image",
  [],
  "--mode=sample: an image file whose feature is the memory; repeatable.",
)
_INTERPOLATE = flags.DEFINE_list(
  "interpolate",
  [],
  "--mode=sample: A,B: go from A to B, each a bank row or an image file; see"
  " config.sample.interpolation and config.sample.points.",
)
_BANK = flags.DEFINE_string(
  "bank",
  None,
  "--mode=sample: another bank than the network's: drawn rows, and what it"
  " attends to, come from there. The same as --config.sample.bank.",
)

# The exit status of a process ended by SIGTERM: launchers start it again.
PREEMPTED = 128 + 15


def main(argv: list[str]) -> int:
  """Resolves the config and dispatches to the mode.

  Args:
    argv: What absl left of the command line.

  Returns:
    The exit status.
  """
  _set_up_logging()
  if len(argv) > 1:
    return _fail(f"unknown argument(s) {argv[1:]}; see --help")
  for flag in (_CONFIG, _WORKDIR):
    if flag.value is None:
      return _fail(f"--{flag.name} is needed; see --help")
  if (_IMAGE.value or _INTERPOLATE.value) and _MODE.value != "sample":
    return _fail("--image and --interpolate belong to --mode=sample")
  if _BANK.value is not None and _MODE.value != "sample":
    return _fail("--bank belongs to --mode=sample")
  if len(_INTERPOLATE.value) not in (0, 2):
    return _fail(
      f"--interpolate={','.join(_INTERPOLATE.value)}: two are needed, A,B"
    )
  # Devices, compilers and data come after the config was found good.
  try:
    tree = _CONFIG.value
    if _BANK.value is not None:
      tree.sample.bank = _BANK.value
    config = config_lib.resolve(tree)
  except OSError as error:  # ml_collections opens the file only now
    return _fail(f"--config: {' '.join(str(error).split())}")
  except ValueError as error:
    return _fail(str(error))
  from gmem_jax import metrics, modes, sample_mode, train

  workdir = pathlib.Path(str(_WORKDIR.value)).absolute()
  try:
    if _MODE.value == "train":
      modes.train_mode(config, workdir)
    else:
      sample_mode.sample_mode(config, workdir, _IMAGE.value, _INTERPOLATE.value)
  except train.Preempted as stop:
    logging.getLogger(__name__).warning("%s", stop)
    return PREEMPTED
  except (ValueError, OSError, ModuleNotFoundError) as error:
    return _fail(str(error))
  except metrics.NonFiniteError as error:
    return _fail(str(error))
  return 0


def _fail(message: str) -> int:
  """Says what is wrong, without a traceback."""
  print(f"gmem_jax: {message}", file=sys.stderr, flush=True)
  return 2


def _set_up_logging() -> None:
  """Our log lines, and only the warnings of the libraries'."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  handler = logging.StreamHandler()
  handler.setFormatter(
    logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
  )
  logger = logging.getLogger("gmem_jax")
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags; an unknown config key is one clear line, too."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, OSError) as error:
    message = str(error).strip("'\"").replace("\\n", ". ").replace("\\'", "'")
    sys.exit(_fail(f"--config: {' '.join(message.split())}"))


def run() -> None:
  """Entry point: absl parses the flags."""
  app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
  run()
