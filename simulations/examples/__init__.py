"""Bases that are not SASRec, from a plain ``nn.Module`` to a bundle: docs/your_model.md."""
