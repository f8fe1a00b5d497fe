"""Texts as token ids. Axes: N example, T token."""

import collections
import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np

PADDING = 0
_LINE_BREAK = re.compile(r'<br\s*/?>')
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> Iterator[str]:
  """Lower-cased runs of letters and digits, with apostrophes inside: "Don't stop" has two."""
  return (match[0] for match in _WORD.finditer(_LINE_BREAK.sub(' ', text.lower())))


def vocabulary(texts: Iterable[str], min_count: int) -> dict[str, int]:
  """The words that occur at least `min_count` times, with their ids.

  Ids are 1, 2, ... by falling frequency; equally frequent words are in alphabetical order.
  """
  counts = collections.Counter(word for text in texts for word in words(text))
  kept = [word for word, count in counts.items() if count >= min_count]
  kept.sort(key=lambda word: (-counts[word], word))
  return {word: i for i, word in enumerate(kept, start=1)}


def encode(text: str, vocabulary: dict[str, int], max_tokens: int) -> np.ndarray:
  """tokens_T int32: the ids of the first `max_tokens` words of the vocabulary, then PADDING."""
  ids = (vocabulary[word] for word in words(text) if word in vocabulary)
  tokens_T = np.full(max_tokens, PADDING, np.int32)
  first = list(itertools.islice(ids, max_tokens))
  tokens_T[: len(first)] = first
  return tokens_T
