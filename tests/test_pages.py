"""Types every fenced command of README and the pages, in order."""

import pathlib
import re

import pytest

from gmem_jax.config import recipe, resolve
from tests import layout, pages, tiny

# The quick test types the same commands, on recipes that are smaller than the
# page says.
SMALLER = {
  "configs/digits.py": tiny.CHANGES
  | {
    "train.steps": 16,
    "optim.decay_steps": 16,
    "eval.every": 0,
    "eval.scores": (),
  }
}
# Pages that the quick test types, and what it leaves out of them: commands of a
# minute, which other quick tests give in one process.
QUICK = ("README.md", "docs/banks.md")
LEFT_OUT = (
  "--mode=evaluate",
  "--config=emoji:pretrained --workdir",
  'gmem_jax.load("emoji")',
)

_SHRINK = """

_get_config = get_config


def get_config(*options):
  tree = _get_config(*options)
  tree.update_from_flattened_dict({changes!r})
  return tree
"""


def all_blocks() -> list[pages.Block]:
  return [block for page in pages.files() for block in pages.blocks(page)]


def test_every_block_is_run_or_says_why_not():
  count = 0
  for page in pages.files():
    found = pages.blocks(page)
    fences = re.findall(r"^```", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(found), f"{page}: a fence is not understood"
    count += len(found)
    for block in found:
      assert block.language in ("bash", "python"), block
      for mark in block.marks:
        assert re.fullmatch(r"command: \S+|installs|not run: .+", mark), block
  assert count >= 18


def test_commands_that_are_not_run_are_at_least_known(tmp_path):
  typist = pages.Typist(tmp_path)
  seen = 0
  for block in all_blocks():
    if not block.reason:
      continue
    assert block.language == "bash", f"{block}: Python must run"
    for arguments in typist.pretend(block):
      if arguments[:1] == ["-m"] and arguments[1].startswith("gmem_jax"):
        pages.parse(arguments)
        seen += 1
  assert seen >= 8


@pytest.mark.parametrize(
  "arguments",
  [
    "gmem_jax.main --config=configs/digits.py --workdi=x",
    "gmem_jax.main --config=configs/digits.py --mode=trian",
    "gmem_jax.main --config=configs/digits.py --config.model.dept=3",
    "gmem_jax.main --config=configs/digits.py --config.model.depth=deep",
    "gmem_jax.main --config=configs/digit.py",
    "gmem_jax.bank discard BANK",
    "gmem_jax.bank info BANK --verbose",
    "gmem_jax.bench train --config=configs/digits.py --change=model.dept=3",
  ],
)
def test_a_wrong_command_is_noticed(arguments):
  with pytest.raises((AssertionError, ValueError, TypeError)):
    pages.parse(["-m", *arguments.split()])


def type_pages(directory: pathlib.Path, quick: bool) -> pathlib.Path:
  """Types README and the pages in order; returns the copy they are typed in."""
  typist = pages.Typist(directory, optimised=not quick)
  for file, changes in SMALLER.items() if quick else ():
    path = typist.tree / file
    path.write_text(path.read_text() + _SHRINK.format(changes=changes))
    resolve.resolve(recipe.load(str(path)))
  for page in pages.files():
    name = str(page.relative_to(layout.ROOT))
    if quick and name not in QUICK:
      continue
    for language, group in pages.runs(pages.blocks(page)):
      if language == "python":
        text = "\n".join(block.text for block in group)
        if not quick or not any(each in text for each in LEFT_OUT):
          typist.run_python(group)
        continue
      for block in group:
        typist.run(block, LEFT_OUT if quick else ())
  return typist.tree


def check_results(tree: pathlib.Path) -> None:
  """What the pages promise is there, and where it does not disturb."""
  assert len(list((tree / "runs/digits/images").glob("*/*[0-9].png"))) == 64
  assert (tree / "banks/neighbours.png").exists()
  assert (tree / "banks/small").is_dir()
  ignored = (layout.ROOT / ".gitignore").read_text().replace("/", "").split()
  before = {path.name for path in layout.ROOT.iterdir()}
  new = {path.name for path in tree.iterdir()} - before
  assert new <= set(ignored), "git would show what the pages write"


@pytest.mark.process
def test_the_first_pages_work_as_typed(tmp_path):
  """On SMALLER recipes, and without what is LEFT_OUT."""
  check_results(type_pages(tmp_path, quick=True))


@pytest.mark.slow
@pytest.mark.process
def test_all_pages_work_as_typed(tmp_path, storage):
  """Every command literally, some 25 minutes on two cores."""
  assert storage.root.with_name("my-bucket").is_dir()
  tree = type_pages(tmp_path, quick=False)
  check_results(tree)
  for run in ("digits", "cross"):
    assert (tree / "runs" / run / "report.txt").exists()
  assert list((tree / "runs/digits/evaluations").glob("*.json"))
  assert len(list((tree / "runs/pretrained/images").glob("*/*[0-9].png"))) == 8
