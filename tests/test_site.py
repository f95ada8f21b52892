"""The pages as a site: `mkdocs build --strict`."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import gmem_jax
from tests import layout

pytest.importorskip("mkdocs", reason="needs the extra 'docs'")

# What a page loads from elsewhere, as against where it links to.
_LOADED = re.compile(
  r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="
  r"[\"']?((?:https?:)?//[^ \"'>]+)"
)
# What is left in a paragraph where a table, list, fence or comment of a page is
# none to mkdocs.
_RAW = re.compile(r"<p>(?:[^<]*\n)?(?:\||- |\d\. |```|&lt;!--)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
  """The site, built without a network."""
  path = tmp_path_factory.mktemp("site")
  nowhere = {
    f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")
  }
  done = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(path)],
    cwd=layout.ROOT,
    env=os.environ | nowhere,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return path


def test_every_page_is_there_and_is_read_as_meant(site):
  docs = layout.ROOT / "docs"
  names = [path.stem for path in (*docs.glob("*.md"), *docs.glob("*.ipynb"))]
  assert len(names) > 16
  for name in {*names, "measured", "changes", "origins"} - {"index"}:
    assert (site / name / "index.html").exists(), name
  for path in site.rglob("*.html"):
    text = path.read_text()
    assert not _LOADED.findall(text), f"{path}: loaded from elsewhere"
    assert not re.findall(r'href="[^":]+\.md[#"]', text), f"{path}: a dead link"
    assert not (raw := _RAW.search(text)), f"{path}: {raw and raw.group()}"


def test_the_public_objects_have_their_signatures(site):
  text = (site / "api/index.html").read_text()
  for name in gmem_jax.__all__:
    assert re.search(rf'id="gmem_jax.(?:[\w.]+\.)?{name}"', text), name
  for name in ("sample", "interpolate", "nearest", "with_bank", "with_config"):
    assert f'Generator.{name}"' in text, name
  for name in ("bank.snippets", "files.read", "lookup.nearest", "edit.append"):
    assert f'id="gmem_jax.bank.{name}"' in text, name
  assert 'Generator.record"' not in text
  assert 'id="gmem_jax.models.encoders.protocols.Tokenizer.encode"' in text
