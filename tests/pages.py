"""The content of an HTML page: tables, captions, text and links."""

import html.parser


class Page(html.parser.HTMLParser):
  """A page's tables, examples and references; raises if its elements are not nested properly."""

  VOID = frozenset(('br', 'hr', 'img', 'input', 'link', 'meta', 'wbr'))

  def __init__(self, text: str):
    super().__init__()
    self.open, self.ids, self.references, self.headings = [], [], [], []
    self.tables, self.captions, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attributes):
    self._take(tag, dict(attributes))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self._take(tag, dict(attributes))

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f'</{tag}> at {self.getpos()} closes another'

  def handle_data(self, text):
    self.texts.append(text)
    if 'td' in self.open or 'th' in self.open:
      self.tables[-1][-1][-1] += text.strip()
    if 'figcaption' in self.open:
      self.captions[-1] += text

  def _take(self, tag, attributes):
    self.ids += [attributes['id']] if 'id' in attributes else []
    self.references += [
      value for name, value in attributes.items() if name in ('src', 'href', 'xlink:href', 'srcset')
    ]
    if tag == 'table':
      self.tables.append([])
    elif tag == 'tr':
      self.tables[-1].append([])
    elif tag in ('td', 'th'):
      self.tables[-1][-1].append('')
    elif tag == 'figcaption':
      self.captions.append('')

  @property
  def examples(self) -> list[str]:
    return [' '.join(text.split()) for text in self.captions if 'True class' in text]

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self.texts).split())
