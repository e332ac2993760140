"""VFM4US: pretrain an encoder on ultrasound, adapt it, and know how far to trust the result."""

__version__ = "0.1.0"


def load_encoder(path, in_channels: int = 3):
    """The encoder of a VFM4US checkpoint or run folder; see `vfm4us.checkpoints.load_encoder`."""
    from vfm4us.checkpoints import load_encoder

    return load_encoder(path, in_channels=in_channels)
