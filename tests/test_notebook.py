"""docs/start.ipynb runs from top to bottom, and shows its pictures."""

import base64
import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests import layout, tiny

nbformat = pytest.importorskip("nbformat", reason="needs the extra 'test'")
nbclient = pytest.importorskip("nbclient", reason="needs the extra 'test'")
pytest.importorskip("ipykernel", reason="needs the extra 'test'")

PAGE = layout.ROOT / "docs/start.ipynb"
# What the quick test adds to the settings that the notebook trains with.
SETTINGS = "settings = ["


def pictures(notebook) -> dict[str, np.ndarray]:
  """The last line of each cell that shows a picture -> pixels."""
  found = {}
  for cell in notebook.cells:
    for output in cell.get("outputs", ()):
      assert output.output_type != "error", output
      if png := output.get("data", {}).get("image/png"):
        image = Image.open(io.BytesIO(base64.b64decode(png)))
        found[cell.source.splitlines()[-1]] = np.asarray(image)
  return found


def run(notebook, directory: pathlib.Path):
  """Runs it in a kernel; raises what a cell raises."""
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": str(directory)}}
  )
  path = os.pathsep.join([str(layout.ROOT), os.environ.get("PYTHONPATH", "")])
  client.execute(env=os.environ | {"PYTHONPATH": path})
  return notebook


def check(notebook) -> None:
  """Each cell that ends in images shows them, and none is blank."""
  stored = pictures(nbformat.read(PAGE, as_version=4))
  found = pictures(notebook)
  assert found.keys() == stored.keys()
  assert len(found) == 8
  for line, picture in found.items():
    assert picture.shape == stored[line].shape, line
    assert picture.std() > 10, line


@pytest.mark.process
def test_it_runs_and_shows_pictures(tmp_path):
  """With a network that is smaller than the page's."""
  notebook = nbformat.read(PAGE, as_version=4)
  changes = tiny.CHANGES | {"train.steps": 8, "optim.decay_steps": 0}
  del changes["eval.every"], changes["report.unconditional"]
  smaller = "".join(f'"{key}={value}", ' for key, value in changes.items())
  (cell,) = [cell for cell in notebook.cells if SETTINGS in cell.source]
  cell.source = cell.source.replace(SETTINGS, SETTINGS + smaller)
  check(run(notebook, tmp_path))
  assert not list(tmp_path.iterdir()), "it writes outside of its own directory"


@pytest.mark.slow
@pytest.mark.process
def test_it_runs_as_it_stands(tmp_path):
  check(run(nbformat.read(PAGE, as_version=4), tmp_path))


def test_what_it_holds_is_small_and_ours_alone():
  text = PAGE.read_text()
  assert len(text) < 200_000
  notebook = nbformat.reads(text, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    for output in cell.get("outputs", ()):
      assert output.output_type == "execute_result", "a log, or an error"
