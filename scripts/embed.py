"""What is in this archive? Vectors of every image, near-duplicates, nearest neighbours, strangest images, and a projector.

    python scripts/embed.py DIR [--encoder open|FILE|RUN] [--out logs/embed-DIR] [--size 224] [--patches 0] [--parquet]
        [--projector 3000] [--seed 0]

DIR is a folder of images, a CSV manifest, or a published data set as it was downloaded. Written into --out:
  features.npz     features (N, d) float32, paths, labels, groups, splits
  index.csv        one line per image: id, path, label, group, split, nearest other image and cosine, strangeness, duplicate cluster
  features.parquet with --parquet (pip install -e '.[parquet]'): path, label, group, split, vector
  rejected.csv     images that could not be read, with the reason
  neighbours.png   eight random images and the seven nearest to each
  duplicates.png   the largest clusters of images that are the same picture
  strangest.png    the images that are least like their ten nearest
  and a TensorBoard projector: tensorboard --logdir OUT, tab PROJECTOR, up to --projector images with thumbnails and labels.
Images go through in batches and vectors onto the disk, so 100,000 images need no more memory than 1,000. The same command
continues an interrupted one. `encoder.weights=FILE` is another way to write --encoder FILE.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import vfm4us
from vfm4us.command_line import Parser
from vfm4us.data.csv_files import write_rows
from vfm4us.lazy import Lazy
from vfm4us.runtime.files import write_array
from vfm4us.runtime.signals import exit_code

if TYPE_CHECKING:
    from vfm4us.evaluation.archive import Archive

torch, plots, archives = Lazy("torch"), Lazy("vfm4us.plots"), Lazy("vfm4us.evaluation.archive")
decode, devices = Lazy("vfm4us.data.decode"), Lazy("vfm4us.runtime.device")

NEIGHBOURS = 10


def main() -> None:
    """Embed the archive named on the command line and write what is found in it to --out.

    Raises ValueError for an override that is not understood and for an --out within the archive.
    """
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="DIR", help="folder of images or CSV manifest")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="encoder.weights=FILE", help="the same as --encoder FILE"
    )
    parser.add_argument("--encoder", default="open", help="open (this project's), a checkpoint or a run folder")
    parser.add_argument("--prefix", help="what stands before the encoder's keys, where its file holds several encoders")
    parser.add_argument("--heads", help="attention heads of a ViT, where nothing in its file tells how many")
    parser.add_argument("--out", type=Path, help="default: logs/embed-NAME, NAME of the folder")
    parser.add_argument(
        "--size", type=int, default=224, help="longer side that images are resized to, px (default 224)"
    )
    parser.add_argument("--patches", type=int, default=0, help="0: whole images; n: the mean of n patches")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--parquet", action="store_true", help="write features.parquet too")
    parser.add_argument("--projector", type=int, default=3000, help="images in the projector (default 3000; 0: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the random images and of the projector's choice")
    arguments = parser.parse_intermixed_args()
    for item in arguments.overrides:
        key, equals, value = item.partition("=")
        if key not in ("encoder.weights", "encoder.prefix", "encoder.heads") or not equals:
            raise ValueError(
                f"{item!r} is not understood: write encoder.weights=FILE, encoder.prefix=P or encoder.heads=N"
            )
        if key == "encoder.heads" and not value.isdigit():
            raise ValueError(f"{item!r}: expected a whole number")
        setattr(arguments, "encoder" if key == "encoder.weights" else key.split(".")[1], value)
    name = arguments.source.resolve()
    out = arguments.out or Path("logs") / f"embed-{name.stem if name.is_file() else name.name}"
    if out.resolve() == name or name in out.resolve().parents:
        raise ValueError(f"--out {out} lies in the archive {arguments.source}: give another folder")
    if arguments.parquet:
        _pyarrow()
    heads = int(arguments.heads) if arguments.heads else None
    encoder = vfm4us.load_encoder(arguments.encoder, in_channels=1, prefix=arguments.prefix or None, heads=heads)
    print(encoder.report)
    encoder = encoder.to(devices.choose_device(arguments.device), memory_format=torch.channels_last)
    archive = archives.embed_archive(
        arguments.source, encoder, out, arguments.size, arguments.patches, arguments.precision
    )
    describe(archive, out, arguments.seed, arguments.projector, arguments.parquet)


def describe(archive: Archive, out: Path, seed: int, projector: int, parquet: bool) -> None:
    """Everything that is written once the vectors are there."""
    write_rejected(archive, out / "rejected.csv")
    write_features(archive, out / "features.npz")
    if parquet:
        write_parquet(archive, out / "features.parquet")
    clusters = archives.duplicates(archive)
    several = {c: n for c, n in Counter(clusters.tolist()).items() if n > 1}
    rng = np.random.default_rng(seed)
    if len(archive) > 1:
        places, cosines = archives.nearest(archive.features, archives.whitening(archive.features), NEIGHBOURS)
        strangeness = archives.strangeness(archive.features, places)
        write_index(archive, out / "index.csv", places, cosines, strangeness, clusters)
        chosen = rng.choice(len(archive), min(8, len(archive)), replace=False)
        draw_neighbours(archive, out / "neighbours.png", chosen, places, cosines)
        draw_strangest(archive, out / "strangest.png", strangeness)
    else:
        print("fewer than two images: no neighbours, so no index.csv, neighbours.png and strangest.png")
    if several:
        draw_duplicates(archive, out / "duplicates.png", clusters, several)
    if projector:
        write_projector(archive, out, np.sort(rng.permutation(len(archive))[:projector]))
    images = sum(several.values())
    print(
        f"{len(archive):,} images, {len(archive.rejected):,} could not be read (rejected.csv); "
        f"{images:,} of them in {len(several):,} clusters of near-duplicates\nwritten to {out}; turn the archive with: "
        f"tensorboard --logdir {shlex.quote(str(out))}   (tab PROJECTOR)"
    )


def write_rejected(archive: Archive, path: Path) -> None:
    """Write a CSV file of the images that could not be read, with the reason of each."""
    write_rows(path, ["path", "reason"], archive.rejected)


def write_features(archive: Archive, path: Path) -> None:
    """Write an .npz file of all vectors, float32 (N, D), with the paths, labels, groups and splits in the same order."""
    columns = {
        name + "s": np.array([getattr(r, name) for r in archive.records])
        for name in ("path", "label", "group", "split")
    }
    write_array(path, np.savez, features=archive.features, **columns)  # a memory-mapped array is written piece by piece


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("--parquet needs a package that is not installed: pip install -e '.[parquet]'") from error
    return pyarrow


def write_parquet(archive: Archive, path: Path) -> None:
    """Write a Parquet file of path, label, group, split and vector of each image; raises ValueError where pyarrow is missing."""
    arrow = _pyarrow()
    names, width = ("path", "label", "group", "split"), archive.features.shape[1]
    fields = [(name, arrow.string()) for name in names] + [("vector", arrow.list_(arrow.float32(), width))]
    schema = arrow.schema(fields)
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        for part in archives.blocks(len(archive)):
            columns = [[getattr(r, name) for r in archive.records[part]] for name in names]
            flat = arrow.array(np.ascontiguousarray(archive.features[part]).ravel())
            columns.append(arrow.FixedSizeListArray.from_arrays(flat, width))
            writer.write_table(arrow.table(columns, schema=schema))


def write_index(archive: Archive, path: Path, places, cosines, strangeness, clusters) -> None:
    """Write a CSV file of one row per image: its names, nearest neighbour, cosine to it, strangeness and cluster."""
    about = ["id", "path", "label", "group", "split"]
    rows = []
    for i, r in enumerate(archive.records):
        near = archive.records[places[i, 0]].path
        measured = (f"{cosines[i, 0]:.4f}", f"{strangeness[i]:.4f}", clusters[i])
        rows.append([i, *(getattr(r, name) for name in about), near, *measured])
    write_rows(path, ["row", *about, "nearest", "cosine", "strangeness", "duplicate_cluster"], rows)


def _picture(archive: Archive, index: int) -> np.ndarray:
    """The image itself, where it is still there; the thumbnail otherwise."""
    record = archive.records[index]
    if not (archive.root / record.path).is_file():
        return archive.thumbnail(index)
    return decode.read_record(archive.root, record)


def _caption(archive: Archive, index: int, figure: str = "") -> str:
    record = archive.records[index]
    stem = Path(record.path).stem
    stem = stem if len(stem) <= 22 else f"{stem[:10]}…{stem[-10:]}"
    return "\n".join(part for part in (stem, record.label[:22], figure) if part)


def draw_neighbours(archive: Archive, path: Path, chosen, places, cosines) -> None:
    """Draw a row for each chosen image: itself, then up to seven nearest neighbours with their cosines."""
    rows = []
    for i in chosen:
        row = [(_picture(archive, i), _caption(archive, i, "asked for"))]
        for j, cosine in list(zip(places[i], cosines[i], strict=True))[:7]:
            row.append((_picture(archive, j), _caption(archive, j, f"cosine {cosine:.2f}")))
        rows.append(row)
    plots.captioned_rows(path, rows, "random images (left) and their nearest neighbours by half-whitened features")


def draw_strangest(archive: Archive, path: Path, strangeness: np.ndarray, columns: int = 8) -> None:
    """Draw the strangest images in three rows, each with its strangeness (1.0 is the median image's)."""
    order = np.argsort(-strangeness)[: 3 * columns]
    cells = [(_picture(archive, i), _caption(archive, i, f"{strangeness[i]:.2f} times the usual")) for i in order]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    plots.captioned_rows(
        path, rows, f"strangest images: distance to the {NEIGHBOURS} nearest, 1.0 is the median image's"
    )


def draw_duplicates(archive: Archive, path: Path, clusters: np.ndarray, several: dict[int, int]) -> None:
    """Draw up to eight images of each of the eight largest clusters of near-duplicates; `several` has the clusters' sizes."""
    rows = []
    for cluster in sorted(several, key=several.get, reverse=True)[:8]:
        members = np.flatnonzero(clusters == cluster)
        rows.append([(_picture(archive, i), _caption(archive, i)) for i in members[:8]])
    plots.captioned_rows(path, rows, f"near-duplicates: the {len(rows)} largest of {len(several)} clusters, a row each")


def write_projector(archive: Archive, out: Path, rows: np.ndarray) -> None:
    """TensorBoard's projector: vectors of length 1 about their mean, thumbnails, labels."""
    from torch.utils.tensorboard import SummaryWriter

    vectors = np.asarray(archive.features[rows])
    vectors = torch.nn.functional.normalize(torch.from_numpy(vectors - vectors.mean(0)), dim=1)
    heads = ["label", "split", "path"]
    told = [[getattr(archive.records[i], h).replace("\t", " ") or "-" for h in heads] for i in rows]
    pictures = torch.from_numpy(np.asarray(archive.thumbnails[rows]))[:, None].expand(-1, 3, -1, -1).float() / 255
    folder = out / "projector"
    for old in folder.glob("events*"):
        old.unlink()
    for old in sorted((folder / "00000").rglob("*"), reverse=True) if folder.is_dir() else []:
        old.unlink() if old.is_file() else old.rmdir()
    (folder / "00000").rmdir() if (folder / "00000").is_dir() else None
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(vectors, metadata=told, label_img=pictures, metadata_header=heads, tag="features")


if __name__ == "__main__":
    sys.exit(exit_code(main))
