"""The same job in eager PyTorch, as it is usually written: the teachers run beside the student, step by step.

Nothing of kdjax is in here. Axes as in kdjax, but images are NCHW.
"""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

PADDING, STAGES, BLOCKS_PER_STAGE = 4, 3, 3  # ResNet-20


class BasicBlock(nn.Module):
  """Two 3x3 convolutions, norm and ReLU before each (He et al. 2016)."""

  def __init__(self, inputs: int, filters: int, stride: int):
    super().__init__()
    self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, filters, 3, stride)
    self.norm2, self.conv2 = nn.BatchNorm2d(filters), _conv(filters, filters, 3)
    projects = inputs != filters or stride != 1
    self.shortcut = _conv(inputs, filters, 1, stride) if projects else None

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.norm1(x))
    shortcut = x if self.shortcut is None else self.shortcut(y)
    return shortcut + self.conv2(F.relu(self.norm2(self.conv1(y))))


class ResNet20(nn.Module):
  """The pre-activation ResNet-20 of kdjax/models/resnet.py, with BatchNorm."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.stem, blocks, inputs = _conv(3, width, 3), [], width
    for stage in range(STAGES):
      for i in range(BLOCKS_PER_STAGE):
        filters, stride = width * 2**stage, 2 if stage > 0 and i == 0 else 1
        blocks.append(BasicBlock(inputs, filters, stride))
        inputs = filters
    self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(inputs)
    self.dense = nn.Linear(inputs, num_classes)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    x = F.relu(self.norm(self.blocks(self.stem(images))))
    return self.dense(x.mean((2, 3)))


def _conv(inputs: int, filters: int, size: int, stride: int = 1) -> nn.Conv2d:
  conv = nn.Conv2d(inputs, filters, size, stride, padding=size // 2, bias=False)
  nn.init.kaiming_normal_(conv.weight, mode='fan_out')
  return conv


class Augmented(torch.utils.data.Dataset):
  """Images in [−1, 1], randomly cropped from a black border and flipped, by a worker on the host."""

  def __init__(self, images_NHWC: np.ndarray):
    self.images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()

  def __len__(self) -> int:
    return len(self.images_NCHW)

  def __getitem__(self, index: int) -> torch.Tensor:
    image_CHW = self.images_NCHW[index].float() / 127.5 - 1
    _, height, width = image_CHW.shape
    padded_CHW = F.pad(image_CHW, (PADDING,) * 4, value=-1.0)
    top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
    cropped_CHW = padded_CHW[:, top : top + height, left : left + width]
    return cropped_CHW.flip(-1) if torch.rand(()) < 0.5 else cropped_CHW


class Distillation:
  """Distils students from one ensemble; every epoch meets fresh augmentations."""

  def __init__(
    self,
    images_NHWC: np.ndarray,
    num_classes: int,
    num_members: int,
    *,
    width: int,
    batch_size: int,
    num_workers: int,
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
  ):
    self._device = device()
    self._casts = partial(torch.autocast, self._device.type, dtype, dtype != torch.float32)
    self._format = memory_format
    self._new_model = lambda: ResNet20(num_classes, width).to(
      self._device, memory_format=memory_format
    )
    self._members = [self._new_model().eval() for _ in range(num_members)]
    self._loader = torch.utils.data.DataLoader(
      Augmented(images_NHWC),
      batch_size,
      shuffle=True,
      num_workers=num_workers,
      persistent_workers=num_workers > 0,
      pin_memory=self._device.type == 'cuda',
      # A fork would copy the locks of JAX's threads.
      multiprocessing_context='spawn' if num_workers else None,
    )

  @property
  def num_parameters(self) -> int:
    return sum(p.numel() for p in self._members[0].parameters())

  def train(self, num_epochs: int, temperature: float) -> float:
    """One new student. Returns the mean loss, in nats times τ²."""
    student, optimizer, schedule = self._student(num_epochs * len(self._loader))
    total = torch.zeros((), device=self._device)
    for _ in range(num_epochs):
      for images in self._loader:
        images = self._put(images)
        loss = self._step(student, optimizer, images, self._log_probs(images), temperature)
        schedule.step()
        total += loss
    return total.item() / (num_epochs * len(self._loader))

  def steps(self, num_steps: int, temperature: float) -> None:
    """Runs a number of bare steps of a new student, on one resident batch and its predictions."""
    student, optimizer, _ = self._student(num_steps)
    images = self._put(next(iter(self._resident)))
    log_probs = self._log_probs(images)
    for _ in range(num_steps):
      loss = self._step(student, optimizer, images, log_probs, temperature)
    loss.item()  # waits for the device

  @property
  def _resident(self) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(self._loader.dataset, self._loader.batch_size)

  def _student(self, num_steps: int) -> tuple:
    student = self._new_model().train()
    optimizer = torch.optim.SGD(
      student.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=1e-6)
    return student, optimizer, schedule

  def _put(self, images_BCHW: torch.Tensor) -> torch.Tensor:
    return images_BCHW.to(self._device, non_blocking=True, memory_format=self._format)

  @torch.no_grad()
  def _log_probs(self, images_BCHW: torch.Tensor) -> torch.Tensor:
    """log_probs_BC of the ensemble: the mean of its members' probabilities."""
    with self._casts():
      logits_MBC = torch.stack([member(images_BCHW) for member in self._members])
    log_probs_MBC = F.log_softmax(logits_MBC.float(), -1)
    return log_probs_MBC.logsumexp(0) - math.log(len(self._members))

  def _step(
    self, student, optimizer, images_BCHW, teacher_log_probs_BC, temperature
  ) -> torch.Tensor:
    optimizer.zero_grad()
    with self._casts():
      logits_BC = student(images_BCHW)
    loss = distillation_loss(logits_BC.float(), teacher_log_probs_BC, temperature)
    loss.backward()
    optimizer.step()
    return loss.detach()


def device() -> torch.device:
  return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def distillation_loss(
  logits_BC: torch.Tensor, teacher_log_probs_BC: torch.Tensor, temperature: float
) -> torch.Tensor:
  """τ² KL(p ‖ q), the mean over the batch."""
  log_p_BC = F.log_softmax(teacher_log_probs_BC / temperature, -1)
  log_q_BC = F.log_softmax(logits_BC / temperature, -1)
  return temperature**2 * F.kl_div(log_q_BC, log_p_BC, log_target=True, reduction='batchmean')
