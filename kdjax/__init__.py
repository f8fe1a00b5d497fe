"""kdjax: knowledge distillation in JAX, fidelity measured apart from generalization."""
