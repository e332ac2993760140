"""VFM4US: pretrain an encoder on ultrasound, adapt it, and know how far to trust the result."""

from typing import Any

__version__ = "0.2.0"


def load_encoder(source: Any, in_channels: int = 3, **options: Any) -> Any:
    """The encoder of any published checkpoint or of a run folder, wholly loaded; see `vfm4us.checkpoints.load_encoder`."""
    from vfm4us.checkpoints import load_encoder  # torch takes seconds to import; `import vfm4us` does not

    return load_encoder(source, in_channels, **options)
