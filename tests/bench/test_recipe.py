import argparse

import pytest

from gmem_jax.bench import _recipe, _results, start
from tests.bench import shapes


def parse(*argv):
  parser = argparse.ArgumentParser()
  _recipe.add_arguments(parser)
  return parser.parse_args(argv)


def test_changes_come_after_the_small_size():
  args = parse("--size=small", "--change=model.depth=5")
  config = _recipe.load(args, _recipe.SMALL)
  assert (config.model.depth, config.model.width) == (5, 288)
  args = parse("--size=config", "--change=model.dtype=float32")
  config = _recipe.load(args, _recipe.SMALL)
  assert (config.model.depth, config.model.dtype) == (28, "float32")


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--change=model.deep=3", "deep"),
    ("--change=model.depth", "KEY=VALUE"),
    ("--change=model.depth=many", "model.depth|int"),
    ("--config=nowhere.py", "nowhere.py: there is no such file"),
  ],
)
def test_errors_name_what_is_wrong(argument, message):
  with pytest.raises(ValueError, match=message):
    _recipe.load(parse("--size=small", argument), _recipe.SMALL)


def test_a_table_takes_the_place_of_its_older_one():
  old = "# Measured\n\n## a, 2020-01-01\n\nold a\n\n## b, 2020-01-01\n\nold b\n"
  text = _results.replaced(old, "a", "new words", "| a |")
  assert text.index("## a, ") < text.index("## b, 2020-01-01")
  assert "old a" not in text
  assert "old b" in text
  assert "new words\n\n| a |\n\n## b" in text
  text = _results.replaced(text, "c", "third", "| c |")
  assert text.rstrip().endswith("| c |")
  assert text.count("## ") == 3


def test_an_absent_file_of_results_is_made(tmp_path, capsys):
  args = argparse.Namespace(results=tmp_path / "new.md")
  _results.finish(args, "a", "words", "| 1 |")
  assert args.results.read_text().startswith("# Measured\n\n## a, ")
  assert capsys.readouterr().out == "words\n\n| 1 |\n"


def test_children_have_no_cache_of_their_own(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  found = start.environment()
  assert "JAX_COMPILATION_CACHE_DIR" not in found
  assert found["JAX_PLATFORMS"] == "cpu"


@pytest.mark.slow
@pytest.mark.process
def test_a_second_start_compiles_nothing_again(capsys):
  status = start.main(["--change=model.depth=12"])
  row = capsys.readouterr().out.splitlines()[-1].split("|")
  imports, cold, again = map(float, row[1:4])
  assert status == int(again / cold > start.GOAL)
  assert imports < again < cold / 2


def test_a_run_that_ends_early_is_an_error(tmp_path):
  with pytest.raises(RuntimeError, match=r"no first step: (.|\n)*nowhere"):
    start.first_step("nowhere.py", {}, tmp_path)


def test_shapes_are_small():
  config = _recipe.load(parse(*shapes.arguments()), _recipe.SMALL)
  assert config.model.width == shapes.CHANGES["model.width"]
