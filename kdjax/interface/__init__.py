"""The interface for Python: distillation, opened workdirs, and fidelity of any logits."""
