"""Folders of the artefacts of an experiment."""

import dataclasses

from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax.config.fields import WORKDIR


@dataclasses.dataclass(frozen=True)
class Folders:
  """Folders of an experiment: WORKDIR/<kind>/<fingerprint of everything that decides the content>."""

  workdir: epath.Path
  config: ConfigDict

  def member(self, member: int) -> epath.Path:
    """The folder of one member of the teacher, in the other workdir with `teacher.source='workdir'`."""
    if self.config.teacher.source == WORKDIR:
      return epath.Path(self.config.teacher.path).expanduser() / f'member_{member}'
    fingerprint = config_lib.teacher_fingerprint(self.config)
    return self.workdir / 'teachers' / fingerprint / f'member_{member}'

  @property
  def members(self) -> list[epath.Path]:
    return [self.member(member) for member in range(self.config.teacher.num_members)]

  @property
  def gan(self) -> epath.Path:
    return self.workdir / 'gans' / config_lib.gan_fingerprint(self.config)

  @property
  def predictions(self) -> epath.Path:
    return self.workdir / 'predictions' / config_lib.predictions_fingerprint(self.config)

  @property
  def student(self) -> epath.Path:
    return self.workdir / 'students' / config_lib.student_fingerprint(self.config)
