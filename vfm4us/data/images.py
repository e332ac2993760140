"""Whatever people hold images in (PIL, numpy, tensors, files, a folder) as one batch with its valid rectangles."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm4us.data.dataset import RESAMPLING, packed_size
from vfm4us.data.decode import read_grey
from vfm4us.data.sources import find_source, source_root


def image_paths(folder) -> list[Path]:
    """The images of a folder, in the order in which `image_batch` and `encoder.embed` read them."""
    return [source_root(folder) / record.path for record in find_source(folder)]


def image_batch(images, size: int = 224, frame: bool = False) -> tuple[Tensor, Tensor | None]:
    """(N, C, H, W) uint8 or float in [0, 1], and (N, 4) top, left, height, width of what is no padding (None: all of it).

    images: a tensor or array (N, H, W), (N, C, H, W), (N, H, W, 3), (H, W) or (H, W, 3); a PIL image; the path of an image,
            a folder or a CSV manifest; or a list of any of these for single images
    size:   longer side, px, to which images of different sizes are resized; the rest is padded with 0. One array or tensor
            keeps its size.
    frame:  bring images of equal sizes, and those of one array, to that frame as well
    Raises ValueError that names the file, or the shape and the ones that are understood.
    """
    if isinstance(images, str | Path):
        path = Path(images)
        single = path.is_file() and path.suffix.lower() != ".csv"
        images = [path] if single else image_paths(path)
    if isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, list | tuple):
        batch = _channels_first(images)
        if not frame or batch.shape[-2:] == (size, size):
            return batch, None
        images = list(batch)
    if not images:
        raise ValueError("no images were given")
    arrays = [image_array(image) for image in images]
    if len({array.dtype for array in arrays}) > 1:
        arrays = [a if a.dtype == np.uint8 else (a * 255).round().clip(0, 255).astype(np.uint8) for a in arrays]
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1 and not frame and not any(isinstance(image, str | Path) for image in images):
        return _channels_first(np.stack(arrays)), None
    if len({array.ndim for array in arrays}) > 1:  # grey and colour together
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    frames = np.zeros((len(arrays), size, size, *arrays[0].shape[2:]), arrays[0].dtype)
    valid = torch.zeros(len(arrays), 4, dtype=torch.long)
    for i, array in enumerate(arrays):
        height, width = packed_size(*array.shape[:2], size)
        frames[i, :height, :width] = _resized(array, height, width)
        valid[i, 2], valid[i, 3] = height, width
    return _channels_first(frames), valid


def image_array(image) -> np.ndarray:
    """One image as (H, W) or (H, W, 3), uint8 or float32 in [0, 1]."""
    if isinstance(image, str | Path):
        try:
            return read_grey(image)
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
    if isinstance(image, Image.Image):
        return np.asarray(
            image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in "1I;16F" else "RGB")
        )
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)):
        raise ValueError(f"an image of shape {array.shape} is not understood: give (H, W), (H, W, 3) or (3, H, W)")
    return array if array.dtype == np.uint8 else array.astype(np.float32)


def _resized(array: np.ndarray, height: int, width: int) -> np.ndarray:
    if array.shape[:2] == (height, width):
        return array
    if array.dtype == np.uint8:
        return np.asarray(Image.fromarray(array).resize((width, height), RESAMPLING))
    planes = array[..., None] if array.ndim == 2 else array
    planes = [np.asarray(Image.fromarray(p).resize((width, height), RESAMPLING)) for p in np.moveaxis(planes, -1, 0)]
    return np.stack(planes, axis=-1).reshape(height, width, *array.shape[2:]).clip(0, 1)


def _channels_first(images) -> Tensor:
    x = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    shape = tuple(x.shape)
    if x.ndim == 2:
        x = x[None]
    if x.ndim == 3 and shape[-1] == 3 and len(shape) == 3:  # one colour image
        x = x[None]
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and shape[-1] == 3:
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"images of shape {shape} are not understood: give (N, H, W), (N, 1 or 3, H, W), (N, H, W, 3), or a list"
        )
    return x
