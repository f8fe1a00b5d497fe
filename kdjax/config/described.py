"""All config fields with their defaults and comments, for --help_config."""

import ast
import collections
import pathlib
import re
import tokenize

from ml_collections import ConfigDict

from kdjax import config as config_lib


def described(config: ConfigDict, path: pathlib.Path) -> str:
  """A line for each field, 'name = default', and its comment below.

  Args:
    config: the default config.
    path: the Python file that makes it. A field's comment stands above its assignment or behind it.
  """
  comments = _comments(path)
  lines = []
  for name, value in config_lib.leaves(config).items():
    lines.append(f'{name} = {value!r}')
    section, _, field = name.rpartition('.')
    text = comments.get(f'config.{name}') or (section and comments.get(f'section.{field}'))
    lines += [f'    {text}'] if text else []
  return '\n'.join(lines)


def _comments(path: pathlib.Path) -> dict[str, str]:
  """{'config.student.loss': comment} of every assignment to an attribute."""
  by_line = collections.defaultdict(str)
  with tokenize.open(path) as file:
    source = file.read()
  lines = source.splitlines()
  for number, line in enumerate(lines, 1):
    if match := re.search(r'(?:^|\s)# ?(.*)$', line):
      by_line[number] = match[1]
  found = {}
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
      first = node.lineno
      while lines[first - 2].lstrip().startswith('#'):
        first -= 1
      texts = [by_line[number] for number in range(first, node.end_lineno + 1)]
      found[ast.unparse(node.targets[0])] = ' '.join(filter(None, texts))
  return found
