"""kdjax: knowledge distillation in JAX, with fidelity measured apart from generalization."""

__version__ = '0.1.0'
