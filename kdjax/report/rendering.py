"""Renders pages from templates, and seals them. A seal shows whether a page is up to date."""

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import jinja2
from etils import epath

from kdjax.report import formats
from kdjax.runtime import files

FOLDER = epath.Path(__file__).parent
STYLE = FOLDER / 'page.css'


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('kdjax', 'report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['percent'] = formats.percent
  return environment


def render(template: str, **values: Any) -> str:
  """The page of a template in this folder. Values are escaped; a missing value is an error."""
  return _environment().get_template(template).render(nothing=formats.NOTHING, **values)


def digest(template: str, paths: Iterable[epath.Path]) -> str:
  """A checksum of a page's sources: template, style, and files with their names. A missing file counts as empty."""
  sha = hashlib.sha256()
  for path in [FOLDER / template, STYLE, *paths]:
    content = path.read_bytes() if path.exists() else b''
    sha.update(f'{path.parent.name}/{path.name} {len(content)}\n'.encode())
    sha.update(content)
  return f'sha256-{sha.hexdigest()}'


def seal(inputs: str, *contents: bytes) -> str:
  """The last line of a page: a checksum of the page, the files that belong to it, and the digest of its inputs."""
  return f'\n<!-- {files.checksum(b"".join(contents) + inputs.encode())} -->\n'


def is_sealed(page: epath.Path, inputs: str, *others: epath.Path) -> bool:
  """Whether a page and the files that belong to it exist, undamaged and up to date."""
  if not all(path.exists() for path in (page, *others)):
    return False
  content, size = page.read_bytes(), len(seal(''))
  found = [content[:-size], *(path.read_bytes() for path in others)]
  return content[-size:] == seal(inputs, *found).encode()
