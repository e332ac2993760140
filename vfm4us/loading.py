"""The former place of `vfm4us.checkpoints`, for those who still import from it."""

from vfm4us.checkpoints import LoadReport, fill, flatten, latest, load_encoder, recognise, roots

__all__ = ["LoadReport", "fill", "flatten", "latest", "load_encoder", "recognise", "roots"]
