"""torchvision's ResNets that were trained on ImageNet, in torch's own cache or fetched into it."""

from pathlib import Path

import torch

from vfm4us.encoders import family, names


def imagenet_weights(name: str = "resnet18") -> Path:
    """The file of torchvision's weights for a ResNet; FileNotFoundError where it is not in the cache and cannot be fetched."""
    url, file = imagenet_file(name)
    try:
        torch.hub.load_state_dict_from_url(url, str(file.parent), progress=False, weights_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"imagenet: {file.name} is not in {file.parent} and cannot be fetched ({error}). Fetch {url} elsewhere and put it "
            "there, or give its path in the place of imagenet"
        ) from error
    return file


def imagenet_file(name: str) -> tuple[str, Path]:
    """Where torchvision's ImageNet weights of a ResNet come from, and the file in its cache, be it there or not."""
    from torchvision.models import get_model_weights

    published = family(name).torchvision_name(name)
    if published is None:
        known = [n for n in names() if family(n).torchvision_name(n)]
        raise ValueError(f"encoder.weights=imagenet: for {', '.join(known)}, not for {name}; give a file instead")
    url = get_model_weights(published).IMAGENET1K_V1.url
    return url, Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
