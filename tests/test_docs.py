"""README and the pages name only what exists."""

import importlib
import pathlib
import re

import pytest

from gmem_jax.config import recipe
from tests import layout

PAGES = sorted(
  [
    *layout.ROOT.glob("*.md"),
    *(layout.ROOT / "docs").glob("*.md"),
    *layout.ROOT.glob("configs/*.py"),
  ]
)


def name_of(path: pathlib.Path) -> str:
  return str(path.relative_to(layout.ROOT))


def test_readme_can_be_skimmed():
  assert len((layout.ROOT / "README.md").read_text().splitlines()) <= 200


def test_readme_says_what_comes_before_a_command():
  """The clone, before it is installed; weights that are not in the package."""
  text = (layout.ROOT / "README.md").read_text()
  assert 0 < text.index("`git clone`") < text.index("pip install -e")
  rows = [line for line in text.splitlines() if "gmem_jax.evaluate " in line]
  assert rows
  assert all("weights/inception" in row for row in rows)


def test_pods_says_how_long_a_pod_takes_to_compile():
  """For minutes the compiler says nothing."""
  text = (layout.ROOT / "docs" / "pods.md").read_text()
  after = text[text.index("--mode=compile") :]
  assert re.search(r"XL for \S+ takes \w+ minutes of one core", after)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
    if "://" not in target:
      assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_and_files_exist(page):
  if page.name == "CHANGELOG.md":
    return  # It names modules of the past, too.
  text = page.read_text()
  for module in re.findall(r"python -m (gmem_jax[\w.]*)", text):
    path = layout.ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
  for file in re.findall(r"\b(?:configs|launch|tests)/\w+\.(?:py|sh)", text):
    assert (layout.ROOT / file).exists(), f"{name_of(page)}: {file}"


def test_the_page_of_recipes_names_each_with_its_options():
  text = (layout.ROOT / "docs/recipes.md").read_text()
  for name in recipe.names():
    assert f"| `{name}` |" in text, name
    source = (layout.ROOT / "configs" / f"{name}.py").read_text()
    options = re.findall(r"^OPTIONS = \((.*?)\)", source, re.MULTILINE)
    for option in filter(None, re.findall(r'"(.*?)"', "".join(options))):
      assert f"`{option}`" in text, f"{name}:{option}"


def test_paths_of_the_table_of_the_paper_exist():
  readme = (layout.ROOT / "README.md").read_text()
  table = readme[readme.index("From the paper to the code") :]
  table += (layout.ROOT / "docs/concepts.md").read_text()
  files = re.findall(r"`(\w+/\w+\.py)`", table)
  assert len(files) >= 8
  for file in files:
    assert (layout.PACKAGE / file).exists(), file


def test_names_of_the_page_of_concepts_exist():
  text = (layout.ROOT / "docs/concepts.md").read_text()
  names = re.findall(r"`(bank\.\w+)\.(\w+)`", text)
  for section in text.split("\n## "):
    columns = re.findall(r"\| `(\w+)` \|$", section, re.MULTILINE)
    for file in re.findall(r"`diffusion/(\w+).py`", section)[:1]:
      names += [(f"diffusion.{file}", name) for name in columns]
  assert len(names) >= 14
  for module, name in names:
    assert hasattr(importlib.import_module(f"gmem_jax.{module}"), name), name
