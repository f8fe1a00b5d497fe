"""Data sets of texts; words, vocabularies and tokens are compared with ones made by hand."""

import numpy as np
import pytest
from tiny_data import TEXT, label_feature, section, write_tfds

from kdjax import data
from kdjax.data import texts
from kdjax.errors import UserError

CORPUS = ['The cat saw the dog.', 'A dog!<br /><br />The owl', "owl, cat; don't"]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ("Don't STOP, it's 10/10!", ["don't", 'stop', "it's", '10', '10']),
    ("one<br />two<BR>three<br/>'four'", ['one', 'two', 'three', 'four']),
    ('I <3 naïve_café', ['i', '3', 'naïve', 'café']),
    ('... !', []),
  ],
)
def test_words(text, expected):
  assert list(texts.words(text)) == expected


@pytest.mark.parametrize(
  ('min_count', 'expected'),
  [
    (1, ['the', 'cat', 'dog', 'owl', 'a', "don't", 'saw']),  # 3, three times 2, three times 1
    (2, ['the', 'cat', 'dog', 'owl']),
    (3, ['the']),
    (4, []),
  ],
)
def test_a_vocabulary_is_by_frequency_then_alphabet(min_count, expected):
  found = texts.vocabulary(CORPUS, min_count)
  assert found == {word: i + 1 for i, word in enumerate(expected)}


@pytest.mark.parametrize(
  ('text', 'max_tokens', 'expected'),
  [
    ('The cat saw the dog.', 6, [1, 2, 1, 3, 0, 0]),  # 'saw' is dropped
    ('The cat saw the dog.', 3, [1, 2, 1]),  # ... and does not count as one of the three
    ('saw nothing', 2, [0, 0]),
  ],
)
def test_tokens(text, max_tokens, expected):
  found = texts.encode(text, texts.vocabulary(CORPUS, 2), max_tokens)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, expected)


# Data sets.


def write_reviews(place):
  train = [b'A good film. A good cast', b'Bad film', b'good, GOOD; not-seen', b'A bad plot']
  splits = {
    'train': [{'text': text, 'label': i % 2} for i, text in enumerate(train)],
    'test': [{'text': b'not a bad test test test film', 'label': 1}],
  }
  features = {'text': TEXT, 'label': label_feature(2)}
  write_tfds(place, features, splits, 'imdb_reviews/plain_text', class_names='neg pos')
  return section(name='imdb_reviews', data_dir=str(place), min_count=2, max_tokens=4)


def test_texts_become_tokens_of_the_training_vocabulary(tmp_path):
  config = write_reviews(tmp_path)
  # good 4, a 3, bad and film 2; the rest once or in the test set only.
  assert data.describe(config) == data.Description((4,), ('neg', 'pos'), 4, 1, vocabulary_size=5)
  splits = data.load(config)
  expected = [[2, 1, 4, 2], [3, 4, 0, 0], [1, 1, 0, 0], [2, 3, 0, 0]]
  np.testing.assert_array_equal(splits['train'].inputs_N, expected)
  np.testing.assert_array_equal(splits['train'].labels_N, [0, 1, 0, 1])
  np.testing.assert_array_equal(splits['test'].inputs_N, [[2, 3, 4, 0]])
  assert splits['train'].inputs_N.dtype == np.int32


def test_the_vocabulary_does_not_depend_on_the_chosen_examples(tmp_path):
  config = write_reviews(tmp_path)
  config.num_train, config.num_val = 2, 1
  splits = data.load(config)
  everything = data.load(write_reviews(tmp_path / 'again'))['train']
  for name, part in (('val', (0, 1)), ('train', (1, 3))):
    expected = data.part(everything, part).inputs_N
    np.testing.assert_array_equal(splits[name].inputs_N, expected)
  assert data.describe(config).vocabulary_size == 5


def test_texts_are_read_once_for_their_vocabulary(tmp_path, monkeypatch):
  config = write_reviews(tmp_path)
  config.min_count = 5
  with pytest.raises(UserError, match=r'^dataset\.min_count = 5: no word of imdb_reviews'):
    data.describe(config)
  config.min_count = 2
  data.describe(config)
  monkeypatch.setattr(texts, 'vocabulary', None)  # a call would fail
  data.describe(config)
  data.load(config)


def test_held_out_texts_give_no_words(tmp_path):
  written = [{'text': f'all word{i}'.encode(), 'label': i % 2} for i in range(20)]
  features = {'text': TEXT, 'label': label_feature(2)}
  write_tfds(tmp_path, features, {'train': written}, class_names='neg pos')
  config = section(name='tiny', data_dir=str(tmp_path), min_count=1, max_tokens=2)
  assert data.describe(config).vocabulary_size == 1 + 1 + 18  # padding, 'all', one of each text
  splits = data.load(config)
  assert splits['train'].inputs_N.min() > 0
  np.testing.assert_array_equal(splits['test'].inputs_N > 0, [[True, False], [True, False]])
