"""Programs on PATH that only note how they are called, and answer as told."""

import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
PROGRAMS = (
  "gcloud", "gcluster", "xpk", "docker", "git", "sbatch", "srun", "scancel",
  "squeue", "scontrol", "tail", "pgrep", "pkill", "uv", "python",
  "gcsfuse", "sudo", "mountpoint", "ln",
)  # fmt: skip

# Notes the call; then gives the first answer left of the first rule whose words
# are all among its own. The last answer of a rule stays.
_PROGRAM = """#!{python} -SE
import fcntl, json, os, pathlib, sys
home = pathlib.Path({home!r})
lock = open(home / "lock", "w")  # Several run at once.
fcntl.flock(lock, fcntl.LOCK_EX)
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(home / "calls", "a") as file:
  file.write(json.dumps(call) + "\\n")
rules = json.loads((home / "rules").read_text())
for rule in rules:
  if all(any(word in part for part in call) for word in rule["words"]):
    answers = rule["answers"]
    status, out, err = answers.pop(0) if len(answers) > 1 else answers[0]
    (home / "rules").write_text(json.dumps(rules))
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(status)
"""


@dataclasses.dataclass
class Result:
  """How a launcher ended.

  Attributes:
    status: Its exit status.
    out: What it printed.
    err: Its errors.
    calls: The programs that it called, with their arguments.
  """

  status: int
  out: str
  err: str
  calls: list[list[str]]

  @property
  def shown(self) -> list[list[str]]:
    """The commands that it showed."""
    lines = [x for x in self.out.splitlines() if x.startswith("+ ")]
    return [shlex.split(line[2:]) for line in lines]


class Fakes:
  """A directory of fake programs, and how they answer."""

  def __init__(self, home: pathlib.Path, programs: Sequence[str] = PROGRAMS):
    self.home, self.rules = home, []
    self.bin = home / "bin"
    self.bin.mkdir()
    text = _PROGRAM.format(python=sys.executable, home=str(home))
    for name in programs:
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)

  def answer(self, words: str, *answers: Any) -> None:
    """Each answer is an exit status, or (status, output, errors)."""
    full = [(a, "", "") if isinstance(a, int) else a for a in answers]
    self.rules.append({"words": words.split(), "answers": full})

  def environment(self, **variables: str) -> dict[str, str]:
    """An environment with the fakes first on PATH, and little else."""
    (self.home / "calls").write_text("")
    (self.home / "rules").write_text(json.dumps(self.rules))
    return {
      "PATH": f"{self.bin}:/usr/bin:/bin",
      "HOME": str(self.home),
      "TMPDIR": str(self.home),
      **variables,
    }

  def calls(self) -> list[list[str]]:
    """The calls since `environment`."""
    return [
      json.loads(x) for x in (self.home / "calls").read_text().splitlines()
    ]

  def run(self, launcher: str, *args: str, **variables: str) -> Result:
    """Runs a launcher to its end."""
    done = subprocess.run(
      [LAUNCH / launcher, *args],
      env=self.environment(**variables),
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, self.calls())


def empty_path(directory: pathlib.Path) -> str:
  """A PATH with the tools of the shell, but none of the clouds'."""
  directory.mkdir()
  for name in ("bash", "dirname", "sed", "tr", "cat", "env"):
    for where in ("/usr/bin", "/bin"):
      if os.path.exists(f"{where}/{name}"):
        (directory / name).symlink_to(f"{where}/{name}")
        break
  return str(directory)
