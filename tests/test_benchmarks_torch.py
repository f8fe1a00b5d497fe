"""The benchmark against PyTorch: that both sides do the same job, and what its totals are made of."""

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from numpy_layers import QUICK, random_variables

from kdjax import losses, models

torch = pytest.importorskip('torch', reason='needs tests/benchmarks/requirements.txt')
from tests.benchmarks import against_torch, convolutions, torch_online  # noqa: E402

WIDTH, CLASSES = 4, 10
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def set_conv(conv, params):
  conv.weight.copy_(torch.tensor(params['kernel'].transpose(3, 2, 0, 1)))


def set_norm(norm, name, params, stats):
  norm.weight.copy_(torch.tensor(params[name]['scale']))
  norm.bias.copy_(torch.tensor(params[name]['bias']))
  norm.running_mean.copy_(torch.tensor(stats[name]['mean']))
  norm.running_var.copy_(torch.tensor(stats[name]['var']))


@torch.no_grad()
def torch_model(variables):
  """The PyTorch model with the weights of ours."""
  model, params, stats = torch_online.ResNet20(CLASSES, WIDTH), *map(variables.get, KINDS)
  set_conv(model.stem, params['Conv_0'])
  set_norm(model.norm, 'BatchNorm_0', params, stats)
  for i, block in enumerate(model.blocks):
    name = f'stage{i // 3 + 1}_block{i % 3 + 1}'
    for number, (norm, conv) in enumerate(((block.norm1, block.conv1), (block.norm2, block.conv2))):
      set_norm(norm, f'BatchNorm_{number}', params[name], stats[name])
      set_conv(conv, params[name][f'Conv_{number}'])
    if block.shortcut is not None:
      set_conv(block.shortcut, params[name]['shortcut'])
  model.dense.weight.copy_(torch.tensor(params['Dense_0']['kernel'].T))
  model.dense.bias.copy_(torch.tensor(params['Dense_0']['bias']))
  return model


KINDS = ('params', 'batch_stats')


@pytest.mark.parametrize('train', [False, True])
def test_both_models_are_the_same(train):
  section = {
    'name': 'resnet',
    'depth': 20,
    'width': WIDTH,
    'norm': 'batch',
    'shortcut': 'activated',
    'dtype': 'float32',
  }
  model = models.build(ConfigDict(section), CLASSES)
  variables = random_variables(model, IMAGES, -0.4, 0.4)

  def apply(images):
    (logits, _), _ = model.apply(variables, images, train=train, mutable=['batch_stats'])
    return logits

  mapped = jax.vmap(apply, axis_name=models.AXIS_NAME)
  expected = np.asarray(jax.jit(mapped, compiler_options=QUICK)(IMAGES[None])[0])
  with torch.no_grad():
    found = torch_model(variables).train(train)(torch.tensor(IMAGES.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_both_losses_have_the_same_gradient():
  student, teacher = np.random.default_rng(0).normal(size=(2, 6, CLASSES)).astype(np.float32)
  teacher = np.asarray(jax.nn.log_softmax(teacher))
  ours = jax.grad(lambda logits: losses.distillation(logits, teacher, 4.0).mean())(student)
  logits = torch.tensor(student, requires_grad=True)
  torch_online.distillation_loss(logits, torch.tensor(teacher), 4.0).backward()
  np.testing.assert_allclose(logits.grad, ours, atol=1e-6)


def test_augmentation_moves_pixels_and_fills_with_black():
  images = np.arange(1, 1 + 8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
  data, original = torch_online.Augmented(images), images[0].transpose(2, 0, 1) / 127.5 - 1
  kept = set()
  for _ in range(50):
    image = data[0].numpy()
    assert image.shape == (3, 8, 8)
    inside = image[image > -1]
    assert np.isin(inside.round(5), original.round(5).astype(np.float32)).all()
    kept.add(inside.size)
  assert min(kept) >= 4 * 4 * 3
  assert len(kept) > 3


def test_teachers_are_paid_for_once_here_and_with_every_student_there():
  times = {
    name: np.array([x]) for name, x in (('predictions', 7), ('distillation', 2), ('torch', 6))
  }
  assert against_torch.totals(times, 1) == (9, 6)
  assert against_torch.totals(times, 5) == (17, 30)


def test_predictions_for_the_evaluation_are_not_compared(tmp_path):
  settings = against_torch.Settings(num_members=2, num_examples=1024, num_epochs=6, predicted=512)
  run = against_torch._new_run(settings, epath.Path(tmp_path))
  # Six views of 1,024 and the training split as it is; twice the test split, padded to a batch of 512.
  assert against_torch.share_of_views(run) == 6 * 1024 / (7 * 1024 + 2 * 512)


def test_the_benchmark_runs(monkeypatch):
  monkeypatch.setattr(torch_online, 'BLOCKS_PER_STAGE', 1)
  monkeypatch.setattr(against_torch, 'DEPTH', 8)
  monkeypatch.setattr(against_torch, 'WIDTH', 2)
  monkeypatch.setattr(against_torch, 'BATCH', 8)
  settings = against_torch.Settings(
    num_members=2, num_examples=16, num_epochs=1, num_workers=0, repeats=1
  )
  rows = {row.work: row for row in against_torch.measure(settings)}
  assert list(rows) == ['bare step', 'one student', '5 students', 'predictions', 'distillation']
  for work in ('bare step', 'one student', '5 students'):
    row = rows[work]
    assert row.ratio == pytest.approx(row.kdjax_per_second / row.torch_per_second)
  # S students at this speed are the predictions once and S trainings.
  seconds = {name: 16 / row.kdjax_per_second for name, row in rows.items()}
  assert seconds['one student'] == pytest.approx(seconds['predictions'] + seconds['distillation'])
  each = seconds['predictions'] / 5 + seconds['distillation']
  assert seconds['5 students'] == pytest.approx(each)


def test_both_libraries_do_the_same_convolutions(monkeypatch):
  monkeypatch.setattr(convolutions, 'BATCH', 2)
  monkeypatch.setattr(convolutions, 'CALLS', 1)
  results = {name: work()[0] for name, work in convolutions.works(side=6, filters=4).items()}
  for name, found in results.items():
    order = (2, 3, 1, 0) if 'kernel' in name else (0, 2, 3, 1)
    of_torch = results[f'{name.partition(",")[0]}, PyTorch']
    expected = (
      of_torch if name.startswith('forward') else next(x for x in of_torch if x is not None)
    )
    if 'XLA' in name:
      np.testing.assert_allclose(found, expected.numpy().transpose(order), rtol=1e-4, atol=1e-4)
