r"""Train, sample and compare: the command line.

  python -m gmem_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m gmem_jax.main --config=configs/digits.py --workdir=runs/digits \
    --mode=sample --config.sample.count=100
  python -m gmem_jax.main --config=configs/digits.py --workdir=runs/digits \
    --mode=evaluate --config.sample.count=512
  python -m gmem_jax.main --config=configs/xl_in1k.py --mode=prepare \
    --config.data.source=folder --config.data.path=photos

Modes:
  prepare   Turn the images of config.data into what training reads, and make
            the memory bank: in config.data.prepared. Needs no --workdir.
  train     Train, from scratch or from where the run stopped; then report.
  sample    Write images to WORKDIR/images, from the run's newest checkpoint or
            from converted weights (config.sample.network). With --image, like
            images that the bank need not know; with --interpolate, between two
            memories; with --bank, from another bank.
  evaluate  Score what --mode=sample would make, or the images of
            config.eval.images, and write WORKDIR/evaluations/*.json.
  compile   Does the config fit a machine that is not here? Compiles the
            training step and the sampler for --topology, e.g. v5e:16x16 or
            h100:8, and prints what they need; neither data nor weights need to
            be here, nor --workdir. TPUs: pip install 'gmem_jax[tpu-aot]'.

Any key of the config can be set: --config.train.steps=2000. A run that was
killed continues when the same command is given again.

Several processes: on Cloud TPU, GKE and under srun, start the same command on
every host. Elsewhere say who is who:

  python -m gmem_jax.main ... --coordinator=HOST:8476 --processes=2 --process=0
  python -m gmem_jax.main ... --coordinator=HOST:8476 --processes=2 --process=1

Exit status: 0 the work is done, or SIGTERM came and the state is saved (see
--stopped_status); 2 bad input; 3 another process is gone: start again.
"""

import logging
import pathlib
import sys
import traceback
from typing import TYPE_CHECKING

from absl import app, flags, logging as absl_logging
from ml_collections import config_flags

import gmem_jax
from gmem_jax.commands import huge_pages
from gmem_jax.config import resolve, sections

if TYPE_CHECKING:
  from gmem_jax.config import sections

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, e.g. configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's directory: checkpoints, metrics, pictures."
)
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "sample", "evaluate", "prepare", "compile"],
  "What to do.",
)
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
  "--mode=sample and evaluate: another bank than the network's: drawn rows, and"
  " what it attends to, come from there. The same as --config.sample.bank.",
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "--mode=compile: the machine, e.g. v5e:16x16 or h100:8."
)
_BANK_ROWS = flags.DEFINE_integer(
  "bank_rows",
  1_281_167,
  "--mode=compile: rows of the bank; ImageNet's training images by default.",
  lower_bound=1,
)

_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of process 0; PORT and PORT + 1 must be free there. Needed only"
  " where no cluster says it; also JAX_COORDINATOR_ADDRESS.",
)
_PROCESSES = flags.DEFINE_integer(
  "processes", None, "Number of processes; also JAX_NUM_PROCESSES.", 1
)
_PROCESS = flags.DEFINE_integer(
  "process", None, "Number of this process, from 0; also JAX_PROCESS_ID.", 0
)
_JOIN_SECONDS = flags.DEFINE_float(
  "join_seconds", 300.0, "How long to wait for processes that do not come.", 1
)
_SILENCE_SECONDS = flags.DEFINE_float(
  "silence_seconds",
  60.0,
  "Seconds without a sign of life after which a process counts as gone. (One"
  " that is killed is noticed at once.)",
  1,
)
_STOPPED_STATUS = flags.DEFINE_integer(
  "stopped_status",
  0,
  "Exit status after SIGTERM, once all is saved; e.g. 75 for launchers that"
  " start again what did not end with 0.",
  0,
  255,
)


def main(argv: list[str]) -> int:
  """Resolves the config and dispatches to the mode.

  Args:
    argv: What absl left of the command line.

  Returns:
    The exit status.
  """
  from gmem_jax.parallel import processes

  _set_up_logging()
  if len(argv) > 1:
    return _fail(f"unknown argument(s) {argv[1:]}; see --help")
  needed = {"prepare": (), "compile": (_TOPOLOGY,)}.get(
    _MODE.value, (_WORKDIR,)
  )
  for flag in (_CONFIG, *needed):
    if flag.value is None:
      return _fail(f"--{flag.name} is needed; see --help")
  if (_IMAGE.value or _INTERPOLATE.value) and _MODE.value != "sample":
    return _fail("--image and --interpolate belong to --mode=sample")
  if _BANK.value is not None and _MODE.value not in ("sample", "evaluate"):
    return _fail("--bank belongs to --mode=sample and --mode=evaluate")
  if len(_INTERPOLATE.value) not in (0, 2):
    return _fail(
      f"--interpolate={','.join(_INTERPOLATE.value)}: two are needed, A,B"
    )
  # Devices, compilers and data come after the config was found good.
  try:
    tree = _CONFIG.value
    if _BANK.value is not None:
      tree.sample.bank = _BANK.value
    config = resolve.resolve(tree)
  except OSError as error:  # ml_collections opens the file only now
    return _fail(f"--config: {' '.join(str(error).split())}")
  except ValueError as error:
    return _fail(str(error))
  try:
    status = _work(config)
  except BaseException as error:
    if not processes.is_joined() or isinstance(error, SystemExit):
      raise
    traceback.print_exc()
    return processes.fail(f"{type(error).__name__}: {error}", 1)
  processes.finish()
  return status


def _work(config: "sections.Config") -> int:
  """Joins the other processes and does what the mode says."""
  from gmem_jax.commands import (
    compile as compile_command,
    evaluate as evaluate_mode,
    prepare as prepare_command,
    sample as sample_command,
    startup,
    train as train_command,
  )
  from gmem_jax.parallel import jobs, processes
  from gmem_jax.train import loop, metrics

  try:
    if _MODE.value == "compile":  # alone, also on a host of a cluster
      compile_command.compile_mode(
        config, str(_TOPOLOGY.value), _BANK_ROWS.value
      )
      return 0
    workdir = pathlib.Path()
    if _MODE.value != "prepare":
      workdir = _workdir()
    startup.keep(
      startup.directory_of(
        config.compile_cache, None if _MODE.value == "prepare" else workdir
      )
    )
    job = jobs.find(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if job is not None:
      _quieten(job.index)
      processes.start(
        job,
        seconds=_JOIN_SECONDS.value,
        silence=_SILENCE_SECONDS.value,
        card={
          "gmem_jax": gmem_jax.__version__,
          "--mode": _MODE.value,
          **resolve.flatten({"config": resolve.to_json(config)}),
        },
      )
    if _MODE.value == "prepare":
      prepare_command.prepare_mode(config)
    elif _MODE.value == "train":
      train_command.train_mode(config, workdir)
    elif _MODE.value == "evaluate":
      evaluate_mode.evaluate_mode(config, workdir)
    else:
      sample_command.sample_mode(
        config, workdir, _IMAGE.value, _INTERPOLATE.value
      )
  except loop.Preempted as stop:
    logging.getLogger("gmem_jax").warning("%s", stop)
    return _STOPPED_STATUS.value
  except (
    ValueError,
    OSError,
    ModuleNotFoundError,
    metrics.NonFiniteError,
  ) as error:
    return processes.fail(str(error), 2)
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


def _workdir() -> pathlib.Path:
  """The run's directory."""
  given = str(_WORKDIR.value)
  if "://" in given:
    raise ValueError(
      f"--workdir={given}: a directory is needed; mount the bucket (Cloud"
      " Storage FUSE) on every host and give the path of the mount"
    )
  return pathlib.Path(given).absolute()


def _quieten(process: int) -> None:
  """Leaves the log to process 0; the others say only what is wrong."""
  if process:
    logger = logging.getLogger("gmem_jax")
    logger.setLevel(logging.WARNING)
    logger.handlers[0].setFormatter(
      logging.Formatter(
        f"%(asctime)s  process {process}: %(message)s", "%H:%M:%S"
      )
    )


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
  huge_pages.restart()  # Nothing slow was imported yet.
  run()
