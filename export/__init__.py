"""Writes base, adapter and training step as one ExecuTorch bundle."""
