"""SN-GAN: its networks and its training step."""
