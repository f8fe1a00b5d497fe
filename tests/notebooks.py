"""Brings README.md and the notebooks up to date: `python -m tests.notebooks`, in minutes on two CPU cores.

It writes the address of the repository, which setup.py has, wherever that is needed, and runs every notebook whose
code has changed since its outputs were stored. One of them trains the default experiment if this clone has not.
"""

import base64
import hashlib
import io
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from unittest import mock

import nbformat
import PIL.Image
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = pathlib.Path(__file__).parents[1]
INSPECT, FROM_PYTHON, STORY = (
  ROOT / 'analysis' / 'inspect_checkpoint.ipynb',
  ROOT / 'docs' / 'distil.ipynb',
  ROOT / 'docs' / 'story.ipynb',
)
ADDRESS = re.compile(r'(?<!\.)(github(?:\.com)?/)[\w.-]+/[\w-]+')  # of any repository, on Colab too
LOG_LINE = re.compile(r'\d\d:\d\d:\d\d ')
TIMEOUT_SECONDS = 900  # for a cell
NUM_COLORS = 64  # of a stored picture


def repository() -> str:
  """'OWNER/NAME' of the repository's address in setup.py."""
  (address,) = re.findall(
    r"REPOSITORY = 'https://github\.com/(.*)'", (ROOT / 'setup.py').read_text()
  )
  return address


def addressed(text: str) -> str:
  """A text with the repository's own address in place of any other."""
  return ADDRESS.sub(lambda match: match[1] + repository(), text)


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def code_digest(notebook: nbformat.NotebookNode) -> str:
  """The digest of all code cells, whatever the repository's address."""
  sources = [ADDRESS.sub('', cell.source) for cell in notebook.cells if cell.cell_type == 'code']
  return hashlib.sha256('\0'.join(sources).encode()).hexdigest()[:12]


def execute(path: pathlib.Path, environment: Mapping[str, str]) -> nbformat.NotebookNode:
  """The notebook with its outputs."""
  notebook = read(path)
  # Paths of sockets are short, and pytest's folders too deep for them.
  with tempfile.TemporaryDirectory(prefix='kdjax_') as jupyter:
    places = ('JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'IPYTHONDIR')
    found = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    values = {**dict.fromkeys(places, jupyter), 'PYTHONPATH': found, **environment}
    with mock.patch.dict(os.environ, values):
      write_kernel_spec(f'{jupyter}/kernels/python3')
      manager = {'transport': 'ipc', 'connection_file': f'{jupyter}/kernel.json'}
      NotebookClient(
        notebook,
        config=Config(KernelManager=manager),
        timeout=TIMEOUT_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={'metadata': {'path': jupyter}},  # not the repository, which PYTHONPATH must find
      ).execute()
  return notebook


def stored(notebook: nbformat.NotebookNode, folders: Mapping[str, str]) -> nbformat.NotebookNode:
  """An executed notebook for a commit: without warnings and folders of this machine, with small pictures.

  Args:
    folders: the replacement of each folder.
  """
  for cell in notebook.cells:
    outputs = [o for o in cell.get('outputs', []) if _without_warnings(o)]
    for output in outputs:
      output.get('metadata', {}).clear()
      data = output.get('data', {})
      for kind, content in data.items():
        data[kind] = _small(content) if kind == 'image/png' else _renamed(content, folders)
      if 'text' in output:
        output.text = _renamed(output.text, folders)
    if cell.cell_type == 'code':
      cell.outputs = outputs
  notebook.metadata = {
    'kernelspec': notebook.metadata.kernelspec,
    'kdjax': {'code': code_digest(notebook)},  # of the code that gave the outputs
  }
  return notebook


def _without_warnings(output: nbformat.NotebookNode) -> bool:
  """Removes all but kdjax's log lines from an output on stderr; returns whether anything is left."""
  if output.get('name') == 'stderr':
    output.text = ''.join(x for x in output.text.splitlines(True) if LOG_LINE.match(x))
    return bool(output.text)
  return True


def _renamed(text: str, folders: Mapping[str, str]) -> str:
  for folder, name in folders.items():
    text = text.replace(folder, name)
  return text


def _small(encoded: str) -> str:
  """A picture with few colours, as base64."""
  buffer, picture = io.BytesIO(), PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))
  picture.convert('RGB').quantize(NUM_COLORS).save(buffer, 'PNG', optimize=True)
  return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
  readme = ROOT / 'README.md'
  readme.write_text(addressed(readme.read_text()))
  for path in (INSPECT, FROM_PYTHON, STORY):
    notebook = read(path)
    is_quick = path == STORY  # its outputs depend on docs/results/, too
    if is_quick or notebook.metadata.get('kdjax', {}).get('code') != code_digest(notebook):
      with tempfile.TemporaryDirectory(prefix='kdjax_') as folder:
        environment = {'KDJAX_WORKDIR': folder} if path == FROM_PYTHON else {}
        notebook = stored(execute(path, environment), {f'{ROOT}/': '', folder: 'WORKDIR'})
    for cell in notebook.cells:
      cell.source = addressed(cell.source)
    nbformat.write(notebook, path)


if __name__ == '__main__':
  main()
