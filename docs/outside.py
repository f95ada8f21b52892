"""A hook of mkdocs: pages that do not live in docs/, links of notebooks."""

import pathlib
import re

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parents[1]
# Page of the site -> file of the repository.
_PAGES = {
  "measured.md": "gmem_jax/bench/RESULTS.md",
  "changes.md": "CHANGELOG.md",
  "contributing.md": "CONTRIBUTING.md",
  "origins.md": "third_party/README.md",
}


def on_files(files, config):
  """Adds them."""
  for page, path in _PAGES.items():
    files.append(File.generated(config, page, abs_src_path=str(_ROOT / path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links that leave docs/ into links between pages."""
  for target, path in _PAGES.items():
    markdown = markdown.replace(f"](../{path}", f"]({target}")
  return markdown


def on_page_content(html, page, config, files):
  """Turns a notebook's links to pages, which no plugin does, into theirs."""
  if page.file.src_uri.endswith(".ipynb"):
    html = re.sub(r'href="(\w+)\.md(#[^"]*)?"', r'href="../\1/\2"', html)
  return html
