"""torch.hub entry points: torch.hub.load(THIS_FOLDER, "vfm4us_resnet18", weights=FILE, source="local")."""

dependencies = ["torch", "torchvision", "timm", "numpy", "PIL", "scipy"]


def vfm4us_resnet18(weights: str = "", in_channels: int = 3, **options):
    """A ResNet18 encoder: random, or wholly filled from a checkpoint (see vfm4us.load_encoder for `options`)."""
    from vfm4us.encoders import Encoder, EncoderSpec

    if not weights:
        return Encoder(EncoderSpec("resnet18", in_channels)).eval()
    encoder = vfm4us_encoder(weights, in_channels, **options)
    if encoder.spec.name != "resnet18":
        raise ValueError(f"{weights} holds a {encoder.spec.name}: use the entry point vfm4us_encoder")
    return encoder


def vfm4us_encoder(weights: str, in_channels: int = 3, **options):
    """Whatever encoder the checkpoint holds."""
    import vfm4us

    return vfm4us.load_encoder(weights, in_channels, **options)
