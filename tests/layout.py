"""Prints the package's layout: floors of imports, circles, sizes, names.

  python tests/layout.py

`tests/test_architecture.py` asserts on the same functions.
"""

import ast
import collections
import functools
import io
import pathlib
import sys
import tokenize

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "gmem_jax"
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
  """The module of a file, relative to the package: "bank.draw"."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(p for p in parts if p != "__init__")


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text())


def imports(path: pathlib.Path) -> set[str]:
  """Dotted names of all that a file imports, at its top or inside."""
  names = set()
  for node in ast.walk(tree_of(path)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def package_of(module: str) -> str:
  """The top-level package or module that a module belongs to."""
  return module.split(".")[0]


def module_graph() -> dict[str, set[str]]:
  """Module -> modules of the package that it imports."""
  modules = {module_name(path): path for path in FILES}
  graph = {}
  for module, path in modules.items():
    targets = set()
    for name in imports(path):
      parts = name.split(".")
      if parts[0] != "gmem_jax":
        continue
      # The longest prefix that is a module; the rest is a name inside it.
      for end in range(len(parts), 1, -1):
        if ".".join(parts[1:end]) in modules:
          targets.add(".".join(parts[1:end]))
          break
    graph[module] = targets - {module, ""}
  return graph


def package_graph() -> dict[str, dict[str, list[str]]]:
  """Package -> package that it imports -> "importer -> imported" lines."""
  graph: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
  for module, targets in module_graph().items():
    if module.endswith("__main__") or not module:
      continue  # An entry point stands above the packages that it serves.
    graph[package_of(module)] = graph[package_of(module)]
    for target in targets:
      if package_of(target) != package_of(module):
        graph[package_of(module)].setdefault(package_of(target), []).append(
          f"{module} -> {target}"
        )
  return graph


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
  """The longest chain of imports below each node.

  Raises:
    ValueError: Naming a circle.
  """
  floor: dict[str, int] = {}

  def visit(node: str, above: tuple[str, ...]) -> int:
    if node in above:
      circle = " -> ".join((*above[above.index(node) :], node))
      raise ValueError(f"a circle of imports: {circle}")
    if node not in floor:
      below = [visit(n, (*above, node)) for n in sorted(graph.get(node, ()))]
      floor[node] = 1 + max(below, default=-1)
    return floor[node]

  for node in sorted(graph):
    visit(node, ())
  return floor


def classes() -> dict[str, list[str]]:
  """Public class name -> modules that define it."""
  found = collections.defaultdict(list)
  for path in FILES:
    for node in ast.walk(tree_of(path)):
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        found[node.name].append(module_name(path))
  return found


def count_lines(path: pathlib.Path) -> tuple[int, int, int]:
  """Lines in all, lines of code, comments of a file; docstrings are neither.

  Directives to tools ("type: ignore", "noqa", "fmt") are no comments.
  """
  text = path.read_text()
  documented = set()
  for node in ast.walk(tree_of(path)):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
      ast.get_docstring(node, clean=False) is not None
    ):
      first = node.body[0]
      documented |= set(range(first.lineno, (first.end_lineno or 0) + 1))
  code, comments = set(), 0
  skipped = (
    tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
  )  # fmt: skip
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      body = token.string.lstrip("# ")
      comments += not body.startswith(("type:", "noqa", "fmt:", "pyright:"))
    elif token.type not in skipped:
      code |= set(range(token.start[0], token.end[0] + 1)) - documented
  return len(text.splitlines()), len(code), comments


def main() -> int:
  """Prints the layout; returns 1 where there is a circle."""
  entries = sorted(p.name for p in PACKAGE.iterdir() if p.name != "__pycache__")
  print(f"{len(entries)} entries at the top level: {' '.join(entries)}\n")
  graph = package_graph()
  try:
    floor = floors({name: set(below) for name, below in graph.items()})
    depth = max(floors(module_graph()).values()) + 1
  except ValueError as error:
    print(error)
    return 1
  counts: dict[str, list[int]] = collections.defaultdict(lambda: [0] * 4)
  for path in FILES:
    for key in (package_of(module_name(path)), "all"):
      for i, n in enumerate((1, *count_lines(path))):
        counts[key][i] += n
  print("floor  package        files  lines   code  comments a 1,000  imports")
  for name in sorted(floor, key=lambda n: (-floor[n], n)):
    files, lines, code, comments = counts[name]
    print(
      f"{floor[name]:5}  {name:13} {files:6} {lines:6} {code:6}"
      f" {1000 * comments / max(code, 1):17.0f}  "
      + " ".join(sorted(graph[name]))
    )
  files, lines, code, comments = counts["all"]
  print(
    f"\n{max(floor.values()) + 1} floors of packages, {depth} of modules, no"
    f" circle; {files} files, {lines} lines, {code} of code,"
    f" {1000 * comments / code:.0f} comments in 1,000"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
