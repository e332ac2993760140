"""Checkpoint files: written whole, read without running code, and the encoder in them found and loaded wholly or not at all."""

from vfm4us.checkpoints.files import ENCODER_PREFIX, PROJECTOR_PREFIX, keep_last, read, save, verify_sha256
from vfm4us.checkpoints.layouts import flatten, recognise, roots
from vfm4us.checkpoints.loading import LoadReport, files_of, fill, latest, load_encoder, open_checkpoint
from vfm4us.checkpoints.released import resolve

__all__ = [
    "ENCODER_PREFIX",
    "PROJECTOR_PREFIX",
    "LoadReport",
    "files_of",
    "fill",
    "flatten",
    "keep_last",
    "latest",
    "load_encoder",
    "open_checkpoint",
    "read",
    "recognise",
    "resolve",
    "roots",
    "save",
    "verify_sha256",
]
