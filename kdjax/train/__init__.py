"""Training: inputs on devices, pure steps, optimizers, checkpoints and the loop. It knows no stage."""
