"""Validation of models: their fields, and the images and texts that they take."""

import checked_config
import pytest
from checked_config import load, problems_of

from kdjax.config import validation


@pytest.fixture(autouse=True)
def data_sets(monkeypatch):
  checked_config.pretend(monkeypatch)


FIELDS = ('model.name', 'student.model.name')


@pytest.mark.parametrize(
  ('field', 'model', 'smallest'), [(FIELDS[0], 'lenet', 12), (FIELDS[1], 'vgg', 32)]
)
def test_some_models_need_larger_images_than_the_digits(field, model, smallest):
  (problem,) = problems_of(load('digits_resnet.py', {field: model}))
  assert problem.startswith(f'{field} = {model!r}: ') and f'at least {smallest} pixels' in problem
  assert 'have 8' in problem


@pytest.mark.parametrize('field', FIELDS)
def test_texts_and_images_have_different_models(field):
  (problem,) = problems_of(load(fields={field: 'bilstm'}))
  assert problem == (
    f"{field} = 'bilstm': takes texts, and cifar10 has images. "
    'Allowed: resnet, lenet, vgg, resnet50'
  )
  (problem,) = problems_of(load('imdb_bilstm.py', {field: 'lenet'}))
  assert problem == (
    f"{field} = 'lenet': takes images, and imdb_reviews has texts. Allowed: bilstm"
  )


def test_cka_needs_a_feature_that_both_models_have():
  fields = {'student.model.name': 'lenet', 'evaluation.num_cka_examples': 10}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith('evaluation.num_cka_examples = 10: resnet has the features pooled, ')
  assert problem.endswith('and lenet conv1, conv2, dense1, dense2: none in common; allowed: 0')
  validation.check(load(fields=fields | {'student.model.name': 'vgg'}), 1)  # stages
  validation.check(load(fields=fields | {'model.name': 'vgg'}), 1)  # hidden layers


def test_a_field_that_a_model_does_not_have_is_not_set():
  for fields, name in (
    ({'student.model.width': 32}, 'lenet'),
    ({'student.model.depth': 56}, 'lenet'),
    ({'student.model.norm': 'layer'}, 'lenet'),
    ({'student.model.shortcut': 'raw'}, 'lenet'),
    ({'model.shortcut': 'raw'}, 'lenet'),
    ({'student.model.name': 'vgg', 'student.model.depth': 56}, 'vgg'),
    ({'student.model.name': 'vgg', 'student.model.norm': 'batch'}, 'vgg'),
    ({'student.model.name': 'resnet50', 'student.model.depth': 56}, 'resnet50'),
    ({'model.norm': 'layer'}, 'lenet'),
    ({'model.norm': 'layer', 'student.model.name': 'vgg'}, 'lenet'),
  ):
    (problem,) = problems_of(load('cifar_resnet.py', {'model.name': 'lenet'} | fields))
    field, value = next((f, v) for f, v in fields.items() if f != 'student.model.name')
    assert problem.startswith(f'{field} = {value!r}: {name} has no {field.rpartition(".")[2]}')


def test_a_student_sets_the_fields_of_its_own_model():
  for fields in (
    {'student.model.name': 'resnet', 'student.model.depth': 8, 'student.model.norm': 'layer'},
    {'student.model.name': 'resnet', 'model.norm': 'layer'},  # the student's, too
    {'student.model.name': 'vgg', 'student.model.width': 8},
  ):
    validation.check(load(fields={'model.name': 'lenet'} | fields), 1)
