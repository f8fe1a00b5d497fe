"""Words, vocabularies and tokens, against ones made by hand."""

import numpy as np
import pytest

from kdjax.data import texts

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
