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
  prior     Train a prior on the rows of the bank, from which --mode=sample then
            draws memories without a bank (config.sample.draw="prior"). It is
            kept in WORKDIR/prior.
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

Ctrl-C, SIGTERM and SIGHUP make training save its state and end; a second Ctrl-C
ends it at once. Other modes end without delay and continue where they were.

Exit status: 0 the work is done, or training was told to stop and has saved its
state (see --stopped_status); 2 bad input; 3 another process failed or is gone,
a disk is full or a bucket out of reach: start again; 130 ended by Ctrl-C.
"""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import app, flags

import gmem_jax
from gmem_jax.commands import command_line, interrupt, startup
from gmem_jax.files import atomic, bucket, disk, errors, paths

_CONFIG = command_line.define_config(
  "FILE.py or FILE.py:OPTION: the recipe, e.g. configs/digits.py."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's directory: checkpoints, metrics, pictures."
)
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "sample", "evaluate", "prepare", "prior", "compile"],
  "What to do.",
)
_IMAGE = flags.DEFINE_multi_string(
  "image",
  [],
  "--mode=sample: an image file whose feature is the memory, or a folder of"
  " them; repeatable.",
)
_INTERPOLATE = flags.DEFINE_multi(
  flags.ListParser(),
  flags.CsvListSerializer(","),
  "interpolate",
  [],
  "--mode=sample: A,B: go from A to B, each a bank row or an image file; see"
  " config.sample.interpolation and config.sample.points. Repeatable.",
)
_BANK = flags.DEFINE_string(
  "bank",
  None,
  "--mode=sample and evaluate: another bank than the network's: drawn rows, and"
  " what it attends to, come from there. The same as --config.sample.bank.",
)
_PROFILE = flags.DEFINE_string(
  "profile", None,
  "--mode=train: FIRST:LAST, steps to trace, e.g. 100:110; the same as"
  " --config.log.profile.",
)  # fmt: skip
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "--mode=compile: the machine, e.g. v5e:16x16 or h100:8."
)
_COMPILE_ONLY = flags.DEFINE_enum(
  "compile_only", None, ["train", "sample"],
  "--mode=compile: the training step or the sampler alone; of a large network"
  " each takes minutes.",
)  # fmt: skip
_BANK_ROWS = flags.DEFINE_integer(
  "bank_rows",
  1_281_167,
  "--mode=compile: rows of the bank; ImageNet's training images by default.",
  lower_bound=1,
)

_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of process 0; PORT must be free there. Needed only where no"
  " cluster says it; also JAX_COORDINATOR_ADDRESS.",
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
_HEARTBEAT_SECONDS = flags.DEFINE_float(
  "heartbeat_seconds", 20.0,
  "Seconds without a sign of life after which a process counts as gone.", 5,
)  # fmt: skip
_STOPPED_STATUS = flags.DEFINE_integer(
  "stopped_status",
  0,
  "Exit status of training that was told to stop, once all is saved; e.g. 75"
  " for launchers that start again what did not end with 0.",
  0,
  255,
)


def _train(config: Any, workdir: Any) -> None:
  from gmem_jax.commands import fit

  fit.fit(config, workdir)


def _sample(config: Any, workdir: Any) -> None:
  from gmem_jax.commands import sample

  sample.sample_mode(config, workdir, _IMAGE.value, _INTERPOLATE.value)


def _evaluate(config: Any, workdir: Any) -> None:
  from gmem_jax.commands import evaluate

  evaluate.evaluate_mode(config, workdir)


def _prepare(config: Any, workdir: Any) -> None:
  from gmem_jax.commands import prepare

  prepare.prepare_mode(config)


def _prior(config: Any, workdir: Any) -> None:
  from gmem_jax.commands import prior

  prior.prior_mode(config, workdir)


def _compile(config: Any, workdir: Any) -> None:
  from gmem_jax.commands import compile as compile_command

  compile_command.compile_mode(
    config, str(_TOPOLOGY.value), _BANK_ROWS.value, _COMPILE_ONLY.value
  )


class _Mode(NamedTuple):
  """What a mode does, and which flags it cannot do without."""

  work: Callable[[Any, paths.Path | None], None]
  needed: tuple[str, ...] = ("config", "workdir")
  # Flags that only some modes take.
  optional: tuple[str, ...] = ()
  # It works alone, also on a host of a cluster.
  alone: bool = False


# The modules are imported when a mode is chosen: `--help` needs no JAX.
_MODES = {
  "train": _Mode(_train, optional=("profile",)),
  "sample": _Mode(_sample, optional=("image", "interpolate", "bank")),
  "evaluate": _Mode(_evaluate, optional=("bank",)),
  "prepare": _Mode(_prepare, ("config",)),
  "prior": _Mode(_prior),
  "compile": _Mode(_compile, ("config", "topology"), alone=True),
}


def main(argv: list[str]) -> int:
  """Does what the flags ask for; returns the exit status."""
  mode = _MODES[_MODE.value]
  if not mode.alone:
    # Before anything imports JAX, which asks for libtpu at once.
    startup.skip_libtpu()
  from gmem_jax.parallel import processes

  startup.log_to_stderr()
  try:
    _check_flags(mode, argv[1:])
    config = _resolve()
    workdir = _workdir() if "workdir" in mode.needed else None
    if not mode.alone:
      _prepare_process(config, workdir)
    mode.work(config, workdir)
  except SystemExit:
    raise
  except BaseException as error:
    return _status(error)
  processes.finish()
  return 0


def _status(error: BaseException) -> int:
  """The exit status of what ended the work; tells the other processes."""
  from gmem_jax.parallel import processes, roll_call, watch

  if isinstance(error, KeyboardInterrupt) and processes.is_joined():
    return processes.fail("interrupted", interrupt.STATUS)
  if isinstance(error, KeyboardInterrupt):
    raise error  # To `interrupt.run`.
  from gmem_jax.train import loop, metrics

  if isinstance(error, loop.Preempted):
    logging.getLogger("gmem_jax").warning("%s", error)
    processes.finish()
    return _STOPPED_STATUS.value
  lost = isinstance(error, roll_call.Incomplete) or disk.is_full(error)
  if lost or bucket.is_lost(error):
    return processes.fail(errors.describe(error), watch.AGAIN)
  mendable = (*errors.MENDABLE, metrics.NonFiniteError)
  if isinstance(error, mendable) or bucket.is_of_library(error):
    return processes.fail(errors.describe(error), errors.BAD_INPUT)
  if not processes.is_joined():
    raise error
  # The others must end, too, and Python would end only this process.
  traceback.print_exception(error)
  return processes.fail(f"{type(error).__name__}: {error}", 1)


def _check_flags(mode: _Mode, unknown: list[str]) -> None:
  """Refuses flags that are missing, or belong to another mode."""
  if unknown:
    raise ValueError(f"unknown argument(s) {unknown}; see --help")
  for flag in mode.needed:
    if flags.FLAGS[flag].value is None:
      raise ValueError(f"--{flag} is needed; see --help")
  for flag in ("image", "interpolate", "bank", "profile"):
    if flags.FLAGS[flag].value and flag not in mode.optional:
      modes = [name for name, m in _MODES.items() if flag in m.optional]
      raise ValueError(
        f"--{flag} belongs to --mode={' and --mode='.join(modes)}"
      )
  for ends in _INTERPOLATE.value:
    if len(ends) != 2:
      raise ValueError(
        f"--interpolate={','.join(ends)}: two are needed, A,B; give the flag"
        " again for another pair"
      )


def _resolve() -> Any:
  """The config, checked before anything is allocated."""
  from gmem_jax.config import resolve

  tree = _CONFIG.value
  if _BANK.value is not None:
    tree.sample.bank = _BANK.value
  if _PROFILE.value is not None:
    tree.log.profile = _PROFILE.value
  return resolve.resolve(tree)


def _prepare_process(config: Any, workdir: Any) -> None:
  """Sets up the compilation cache, and joins the other processes if any."""
  from gmem_jax.config import resolve
  from gmem_jax.parallel import jobs, processes

  # Samples that go elsewhere leave the run as it is: it may be read-only.
  elsewhere = _MODE.value == "sample" and config.sample.output
  startup.keep_compiled(
    startup.cache_directory(
      config.compile_cache, None if elsewhere else workdir
    )
  )
  job = jobs.find(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  if job is None:
    return
  startup.quieten(job.index)
  processes.start(
    job,
    seconds=_JOIN_SECONDS.value,
    heartbeat=_HEARTBEAT_SECONDS.value,
    # Processes that were given something else would wait for each other.
    card={
      "gmem_jax": gmem_jax.__version__,
      "--mode": _MODE.value,
      **resolve.flatten({"config": resolve.to_json(config)}),
    },
  )


def _workdir() -> paths.Path:
  """The run's directory."""
  try:
    path = paths.of(str(_WORKDIR.value))
  except ValueError as error:
    raise ValueError(f"--workdir={error}") from None
  atomic.existing_folder(path, "--workdir")
  return path


def run() -> None:
  """Entry point: absl parses the flags."""

  def parse(argv: list[str]) -> list[str]:
    return command_line.parse(argv, __doc__ or "")

  sys.exit(interrupt.run(lambda: app.run(main, flags_parser=parse)))


if __name__ == "__main__":
  startup.restart()  # Nothing slow was imported yet.
  run()
