"""Configs for `validation.check`, with data sets that need not exist."""

import pathlib

import pytest
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data
from kdjax.config import validation
from kdjax.errors import ConfigError, UserError

ROOT = pathlib.Path(__file__).parents[1]
TEN = tuple('0123456789')

DESCRIPTIONS = {
  'digits': data.Description((8, 8, 1), TEN, num_train=1437, num_test=360),
  'mnist': data.Description((28, 28, 1), TEN, 60_000, 10_000),
  'cifar10': data.Description((32, 32, 3), TEN, 50_000, 10_000),
  'cifar100': data.Description((32, 32, 3), tuple(map(str, range(100))), 50_000, 10_000),
  'imagenet2012': data.Description((224, 224, 3), tuple(map(str, range(1000))), 1_281_167, 50_000),
  'svhn_cropped': data.Description((32, 32, 3), TEN, 73_257, 26_032),
  'folder': data.Description((32, 32, 3), TEN, 1000, 100),
  'odd': data.Description((33, 33, 3), TEN, 1000, 100),
  'satellite': data.Description((64, 64, 13), TEN, 20_000, 7000),
  'imdb_reviews': data.Description((100,), ('neg', 'pos'), 25_000, 25_000, vocabulary_size=20_000),
}
NUM_EXTRA = {
  'svhn_cropped': 73_257,
  'mnist': 60_000,
  'emnist/byclass': 697_932,
  'imdb_reviews': 50_000,
}


def pretend(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
  """Makes `kdjax.data` find only the sets above.

  Returns: a list to which each call of `data.describe` adds its argument `prepare`.
  """
  prepared = []

  def describe(config: ConfigDict, prepare: bool = True) -> data.Description:
    prepared.append(prepare)
    if config.name not in DESCRIPTIONS:
      raise UserError(f'dataset.name = {config.name!r}: not there')
    return DESCRIPTIONS[config.name]

  def extra_size(name: str, _: ConfigDict) -> int:
    if name not in NUM_EXTRA:
      raise UserError(f'{data.EXTRA} = {name!r}: not there')
    return NUM_EXTRA[name]

  monkeypatch.setattr(data, 'describe', describe)
  monkeypatch.setattr(data, 'extra_size', extra_size)
  return prepared


def load(spec: str = 'cifar_resnet.py', fields: dict | None = None) -> ConfigDict:
  """A config of `configs`; `fields` are not checked."""
  config, problems = config_lib.load(str(ROOT / 'configs' / spec))
  assert problems == []
  config.update_from_flattened_dict(fields or {})
  return config


def problems_of(config: ConfigDict, num_devices: int = 1, problems: list[str] = ()) -> list[str]:
  with pytest.raises(ConfigError) as error:
    validation.check(config, num_devices, problems)
  return error.value.problems


def problems_of_sweep(
  configs: list[ConfigDict], num_devices: int = 1, problems: list[str] = ()
) -> list[str]:
  with pytest.raises(ConfigError) as error:
    validation.check_sweep(configs, num_devices, problems)
  return error.value.problems
