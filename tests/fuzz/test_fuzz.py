"""Five hundred hostile files; and the watch itself, held to see each fault."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# Readers that do what none may.
FAULTY = """
import json, os, pathlib, random, sys
import numpy as np
from tests.fuzz import readers, watch

scratch = pathlib.Path(sys.argv[1])
READERS = {
  "runs": lambda path, work: os.system("true"),
  "imports": lambda path, work: exec("import antigravity"),
  "writes": lambda path, work: open(scratch.parent / "elsewhere", "w"),
  "removes": lambda path, work: os.remove(sys.argv[0]),
  "takes": lambda path, work: np.ones(150_000_000),
  "raises": lambda path, work: [][0],
  "shows much": lambda path, work: [].index("x" * 10_000),
  "refuses": lambda path, work: int("x"),
  "reads": lambda path, work: (work / "out").write_text("fine"),
}
auditor = watch._Auditor()
sys.addaudithook(auditor)
found = {}
for name, reader in READERS.items():
  readers.READERS["json"] = (reader,)
  (scratch / name).mkdir(parents=True)
  path = scratch / name / "x.json"
  path.write_text("{}")
  case = watch.Case("json", name, path)
  found[name] = watch.run(auditor, case, scratch / name, random.Random(0))
print(json.dumps(found))
"""


def test_every_kind_of_fault_is_seen(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", FAULTY, tmp_path / "scratch"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout)
  faults = {name: answer["fault"] for name, answer in found.items()}
  assert "it ran or changed something: os.system" in faults["runs"]
  assert "something: exec" in faults["imports"]
  assert "something: open" in faults["writes"]
  assert "something: os.remove" in faults["removes"]
  assert not (tmp_path / "elsewhere").exists()
  assert "bytes of memory for a file of 2" in faults["takes"]
  assert "IndexError" in faults["raises"]
  assert "a message of 10,0" in faults["shows much"]
  assert (faults["refuses"], faults["reads"]) == ("", "")
  assert found["refuses"]["ending"] == "refused"
  assert found["reads"]["ending"] == "read"


def test_no_hostile_file_does_harm():
  done = subprocess.run(
    [sys.executable, "-m", "tests.fuzz", "--cases=500", "--workers=2"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  # Neither does it refuse all, nor take all for good.
  cases, read, refused = (
    sum(int(line.split()[column]) for line in done.stdout.splitlines()[1:9])
    for column in (1, 2, 3)
  )
  assert cases == read + refused == 500
  assert min(read, refused) > 50
