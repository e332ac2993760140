"""Small trees as people have them, and what each is understood to be; run as a script, it draws them in docs/data.md."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from vfm4us.data.sources import understand

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- trees: drawn by tests/data/making_trees.py -->\n", "<!-- end of trees -->\n"
H, W = 48, 64


def speckle(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = np.asarray(Image.fromarray((rng.random((5, 6)) * 255).astype(np.uint8)).resize((W, H), Image.BICUBIC))
    return np.clip((30 + smooth / 2) * rng.rayleigh(0.8, (H, W)), 0, 255).astype(np.uint8)


def disc(y=24, x=32, radius=10) -> np.ndarray:
    rows, columns = np.mgrid[:H, :W]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def save(array, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)


def image(path: Path, seed: int) -> None:
    save(speckle(seed), path)


def mask(path: Path, seed: int = 0, value: int = 255) -> None:
    save((disc(20 + seed % 8, 28 + seed % 5) * value).astype(np.uint8), path)


def outline(path: Path, seed: int = 0) -> None:
    save(Image.fromarray((disc(20 + seed % 8) * 255).astype(np.uint8)).filter(ImageFilter.FIND_EDGES), path)


def pairs(images: str, masks: str, count: int = 3, draw=mask, first: int = 0):
    """A builder of images with masks of the names given, `{}` for the number."""

    def build(root: Path) -> None:
        for i in range(count):
            image(root / images.format(i), first + i)
            draw(root / masks.format(i), i)

    return build


def plain(*paths: str, first: int = 100):
    """A builder of images at these paths."""

    def build(root: Path) -> None:
        for i, path in enumerate(paths):
            image(root / path, first + i)

    return build


def text(path: str, content: str, encoding: str = "utf-8"):
    def build(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content, encoding=encoding)

    return build


def overlays(pattern: str, count: int = 3):
    """A builder of images with a disc drawn on them."""

    def build(root: Path) -> None:
        for i in range(count):
            save(np.maximum(speckle(i), (disc(20 + i) * 90).astype(np.uint8)), root / pattern.format(i))

    return build


@dataclass
class Tree:
    """A tree, how it is built, and what it is understood to be: numbers of images, masks and so on, or an error."""

    title: str
    build: tuple
    images: int = 0
    masks: int = 0
    labels: tuple = ()
    groups: int = 0
    splits: dict = field(default_factory=dict)
    targets: int = 0
    passed_over: int = 0
    unmatched: int = 0
    error: str = ""
    shown: bool = False
    reading: dict = field(default_factory=dict)

    def make(self, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        for build in self.build:
            build(root)
        return root


TREES = {
    "classes": Tree(
        "A folder per class",
        (plain("benign/1.png", "benign/2.png", "malignant/1.png"),),
        images=3,
        labels=("benign", "malignant"),
        shown=True,
    ),
    "patients": Tree(
        "Patients below the classes",
        (plain("benign/patient_01/1.png", "benign/patient_01/2.png", "malignant/patient_07/1.png"),),
        images=3,
        labels=("benign", "malignant"),
        groups=2,
        shown=True,
    ),
    "patients first": Tree(
        "Patients first, classes below",
        (plain(*(f"patient{p}/{c}/1.png" for p in range(3) for c in ("benign", "malignant"))),),
        images=6,
        labels=("benign", "malignant"),
        groups=3,
    ),
    "frames": Tree(
        "Numbered frames of clips",
        (plain(*(f"{c}/{c}_clip{v}_frame{f}.png" for c in ("covid", "regular") for v in (1, 2) for f in (0, 5))),),
        images=8,
        labels=("covid", "regular"),
        groups=4,
        shown=True,
    ),
    "splits": Tree(
        "Folders of splits, in whatever spelling",
        (plain(*(f"{s}/{c}/{i}.png" for s in ("Training_set", "validation", "test") for c in "ab" for i in (1, 2))),),
        images=12,
        labels=("a", "b"),
        splits={"train": 4, "val": 4, "test": 4},
        shown=True,
    ),
    "split below class": Tree(
        "Splits below the classes",
        (plain(*(f"{c}/{s}/{i}.png" for s in ("train", "val", "test") for c in "ab" for i in (1, 2))),),
        images=12,
        labels=("a", "b"),
        splits={"train": 4, "val": 4, "test": 4},
    ),
    "further folder": Tree(
        "Splits and one folder more",
        (plain(*(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in (1, 2)), "docs/figure.png"),),
        images=8,
        labels=("a", "b"),
        splits={"train": 4, "test": 4},
        passed_over=1,
    ),
    "unlabelled test": Tree(
        "A test part without labels",
        (plain("train/ok/1.png", "train/ok/2.png", "train/nok/1.png", "test/1.png", "test/2.png"),),
        images=5,
        labels=("nok", "ok"),
        splits={"train": 3, "test": 2},
    ),
    "masks": Tree(
        "Images and masks of the same names",
        (pairs("images/{}.png", "masks/{}.png"),),
        images=3,
        masks=3,
        shown=True,
    ),
    "masks per class": Tree(
        "Images and masks, a folder per class in both",
        (
            pairs("images/benign/{}.png", "masks/benign/{}.png"),
            pairs("images/normal/{}.png", "masks/normal/{}.png", first=50),
        ),
        images=6,
        masks=6,
        labels=("benign", "normal"),
    ),
    "masks beside": Tree(
        "Masks beside their images, by ending or beginning",
        (pairs("case{}.png", "case{}_tumor.png"),),
        images=3,
        masks=3,
        shown=True,
    ),
    "beginning": Tree(
        "A beginning instead of another", (pairs("Images/bus_{}-l.png", "Masks/mask_{}-l.png"),), images=3, masks=3
    ),
    "words": Tree("Other words", (pairs("Bilder/{}.png", "Ground Truth/{}_GT.png"),), images=3, masks=3),
    "camel": Tree("Words without a separator", (pairs("{}.png", "{}Mask.png"),), images=3, masks=3),
    "nothing said": Tree("Names that say nothing", (pairs("A1/{}.png", "B1/{}.png"),), images=3, masks=3),
    "case folders": Tree(
        "A folder per patient with its image and mask",
        (pairs("patient{}/image.png", "patient{}/mask.png"),),
        images=3,
        masks=3,
        groups=3,
        shown=True,
    ),
    "split of masks": Tree(
        "Splits with images and masks below",
        (
            pairs("train/img/{}.png", "train/label/{}.png"),
            pairs("val/img/{}.png", "val/label/{}.png", 2, first=20),
            pairs("test/img/{}.png", "test/label/{}.png", 2, first=40),
        ),
        images=7,
        masks=7,
        splits={"train": 3, "val": 2, "test": 2},
        shown=True,
    ),
    "nnU-Net": Tree(
        "nnU-Net's folders",
        (pairs("imagesTr/case_{:03d}_0000.png", "labelsTr/case_{:03d}.png"), plain("imagesTs/case_009_0000.png")),
        images=4,
        masks=3,
        groups=0,
        splits={"train": 3, "test": 1},
    ),
    "overlays": Tree(
        "Overlays are passed over",
        (pairs("images/{}.png", "masks/{}.png"), overlays("overlays/{}.png")),
        images=3,
        masks=3,
        passed_over=3,
        shown=True,
    ),
    "drawn on": Tree(
        "Folders named like masks that hold pictures",
        (plain("images/0.png", "images/1.png", "images/2.png", first=0), overlays("annotations/{}.png")),
        images=3,
        passed_over=3,
    ),
    "class named like a mask": Tree(
        "A class called tumor",
        (plain(*(f"{c}/{i}.png" for c in ("tumor", "normal") for i in range(3))),),
        images=6,
        labels=("normal", "tumor"),
    ),
    "two kinds of masks": Tree(
        "One kind of mask for all images, another for few",
        (pairs("case{}.png", "case{}_tumor.png", 4), pairs("case{}.png", "case{}_other1.png", 1)),
        images=4,
        masks=4,
        passed_over=1,
    ),
    "orphans": Tree(
        "Masks and images without each other",
        (
            pairs("images/IMG_{}.PNG", "masks/img_{}.png"),
            plain("images/IMG_8.PNG"),
            lambda root: mask(root / "masks/img_9.png"),
        ),
        images=4,
        masks=3,
        unmatched=1,
    ),
    "labelled": Tree(
        "Labelled and unlabelled",
        (pairs("labelled/images/{}.png", "labelled/masks/{}.png"), plain("unlabelled/images/7.png")),
        images=4,
        masks=3,
    ),
    "one folder of masks": Tree(
        "A folder of masks for the one class", (pairs("images/{}.png", "masks/0/{}.png"),), images=3, masks=3
    ),
    "quality": Tree(
        "Low and high quality",
        (
            plain("low_quality/1.png", "low_quality/2.png", first=0),
            plain("high_quality/1.png", "high_quality/2.png", first=0),
        ),
        images=2,
        targets=2,
        shown=True,
    ),
    "domains": Tree(
        "Two domains without pairs",
        (plain("trainA/1.png", "trainB/1.png", "testA/1.png", "testB/1.png"),),
        images=4,
        splits={"train": 2, "test": 2},
    ),
    "table": Tree(
        "A table",
        (
            plain("scans/1.png", "scans/2.png"),
            text(
                "manifest.csv",
                "path,label,patient_id,split\nscans/1.png,benign,P1,train\nscans/2.png,malignant,P2,test\n",
            ),
        ),
        images=2,
        labels=("benign", "malignant"),
        groups=2,
        splits={"train": 1, "test": 1},
        shown=True,
    ),
    "table beside": Tree(
        "A table beside images and masks",
        (
            pairs("Images/bus_{}-l.png", "Masks/mask_{}-l.png"),
            text(
                "bus_data.csv",
                "ID,Case,Pathology,Width\nbus_0-l,1,benign,64\nbus_1-l,1,benign,64\nbus_2-l,2,malignant,64\n",
            ),
        ),
        images=3,
        masks=3,
        labels=("benign", "malignant"),
        groups=2,
        shown=True,
    ),
    "table with tabs": Tree(
        "A table in another spelling, of some of the images",
        (
            plain("scans/A1.PNG", "scans/A2.PNG", "scans/A3.PNG"),
            text(
                "info/labels.tsv",
                "\ufeffFile Name\tDiagnosis\tPatient ID\nC:\\x\\a1.png\tcyst\t7\nscans\\a2.png\tNaN\t7\n",
            ),
        ),
        images=3,
        labels=("cyst",),
        groups=1,
    ),
    "tables of splits": Tree(
        "A table for each split",
        (
            plain("img/a.png", "img/b.png", "img/c.png", "img/d.png"),
            text("train.csv", "image|label\na.png|x\nb.png|y\n"),
            text("test.csv", "image|label\nc.png|x\nd.png|y\n"),
        ),
        images=4,
        labels=("x", "y"),
        splits={"train": 2, "test": 2},
    ),
    "lists of splits": Tree(
        "A list of names for each split",
        (
            pairs("images/us{}.png", "masks/us{}.png", 6),
            text("train.txt", "us0\nus1\nus2\n"),
            text("val.txt", "images/us3.png\n"),
            text("test.txt", "us4.png\nus5.png\n"),
        ),
        images=6,
        masks=6,
        splits={"train": 3, "val": 1, "test": 2},
        shown=True,
    ),
    "lists with labels": Tree(
        "Lists of names and labels, names with spaces",
        (
            plain(*(f"img/us ({k}).png" for k in range(6))),
            text("train.txt", "".join(f"img/us ({k}).png {k % 2}\n" for k in range(4))),
            text("test.txt", "img/us (4).png 0\nimg/us (5).png 1\n"),
        ),
        images=6,
        labels=("0", "1"),
        splits={"train": 4, "test": 2},
    ),
    "lists that overlap": Tree(
        "An image in two lists",
        (
            plain("1a.png", "2a.png", "3a.png"),
            text("train.txt", "1a.png\n2a.png\n"),
            text("test.txt", "2a.png\n3a.png\n"),
        ),
        error="2a.png is in test.txt and in train.txt: keep it in one",
    ),
    "lists of folds": Tree(
        "Lists of several folds",
        (
            plain("a1.png", "a2.png", "a3.png"),
            *(
                text(f"{s}_{k}.txt", t)
                for s, k, t in (("train", 0, "a1\na2\n"), ("test", 0, "a3\n"), ("test", 1, "a1\na2\n"))
            ),
        ),
        images=3,
        passed_over=3,
    ),
    "labels of val in a list": Tree(
        "A val part whose labels stand in a list",
        (
            plain(*(f"train/{c}/{c}{k}.png" for c in ("n1", "n2") for k in (1, 2)), "val/v1.png", "val/v2.png"),
            text("val.txt", "v1.png n1\nv2.png n2\n"),
        ),
        images=6,
        labels=("n1", "n2"),
        splits={"train": 4, "val": 2},
    ),
    "numbers for names of folders": Tree(
        "A list that writes numbers where folders have names",
        (
            plain(*(f"train/{c}/{c}{k}.png" for c in "ab" for k in (1, 2)), "val/v1.png", "val/v2.png"),
            text("val.txt", "v1.png 0\nv2.png 1\n"),
        ),
        error="val.txt has the labels 0, 1 and the folders are called a, b",
    ),
    "tables in folders": Tree(
        "A table in each folder, for the names there",
        (
            plain(*(f"{s}/{k}.png" for s in ("train", "test") for k in range(4))),
            *(
                text(f"{s}/metadata.csv", "file_name,label\n0.png,x\n1.png,y\n2.png,x\n3.png,y\n")
                for s in ("train", "test")
            ),
        ),
        images=8,
        labels=("x", "y"),
        splits={"train": 4, "test": 4},
    ),
    "table of patients": Tree(
        "A table with a row for each patient",
        (
            plain(*(f"P{p:02d}/{k}.png" for p in range(5) for k in (1, 2))),
            text("patients.csv", "id;befund;alter\n" + "".join(f"P{p:02d};{'xy'[p % 2]};4{p}\n" for p in range(5))),
        ),
        images=10,
        labels=("x", "y"),
        groups=5,
        shown=True,
    ),
    "table of ones": Tree(
        "A column of 0 and 1 for each class",
        (plain("img/a.png", "img/b.png"), text("t.csv", "image,cyst,mass,left\na,0.0,1.0,\nb,1.0,0.0,\n")),
        images=2,
        labels=("cyst", "mass"),
    ),
    "table without a header": Tree(
        "A table without a header",
        (
            plain("img/a.png", "img/b.png", "img/c.png", "img/d.png"),
            text("t.csv", "a.png,x\nb.png,y\nc.png,x\nd.png,y\n"),
        ),
        images=4,
        labels=("x", "y"),
    ),
    "table in Windows letters": Tree(
        "A table that is not in UTF-8",
        (
            plain("bilder/a.png", "bilder/b.png"),
            text("t.csv", "Bild;Diagnose;Patient\na.png;bösartig;Müller\nb.png;groß;Äpple\n", "cp1252"),
        ),
        images=2,
        labels=("bösartig", "groß"),
        groups=2,
    ),
    "table in Russian letters": Tree(
        "A table in an encoding that nothing tells",
        (plain("a.png", "b.png"), text("t.csv", "file;label\na.png;киста\nb.png;норма\n", "cp1251")),
        error="t.csv names images here and is not a CSV in UTF-8 .* save it as UTF-8, or say reading.table=none",
    ),
    "table in Chinese letters": Tree(
        "The same in another",
        (plain("a.png", "b.png"), text("t.csv", "id,label\na,良性\nb,恶性\n", "gbk")),
        error="t.csv names images here and is not a CSV in UTF-8",
    ),
    "labels in JSON": Tree(
        "Labels and patients in a JSON file",
        (
            plain(*(f"img/{k}a.png" for k in range(4))),
            text("labels.json", '{"0a.png": "x", "1a.png": "y", "2a.png": "x", "3a.png": "y"}'),
            text(
                "info.json",
                '[{"file_name": "0a.png", "patient": 1}, {"file_name": "1a.png", "patient": 2, "boxes": [1]}]',
            ),
        ),
        images=4,
        labels=("x", "y"),
        groups=2,
    ),
    "splits in JSON": Tree(
        "Splits in a JSON file, labels in lines of JSON",
        (
            plain(*(f"img/{k}a.png" for k in range(3))),
            text(
                "s.json",
                '{"training": [{"image": "./img/0a.png"}, {"image": "./img/1a.png"}], "test": ["./img/2a.png"]}',
            ),
            text(
                "metadata.jsonl", '{"file_name": "img/0a.png", "label": 0}\n{"file_name": "img/1a.png", "label": 1}\n'
            ),
        ),
        images=3,
        labels=("0", "1"),
        splits={"train": 2, "test": 1},
    ),
    "table of masks": Tree(
        "A table whose labels are the files of masks",
        (
            pairs("images/{}.png", "labels/{}.png"),
            text("t.csv", "image,label\nimages/0.png,labels/0.png\nimages/1.png,labels/1.png\n"),
        ),
        images=3,
        masks=3,
        passed_over=1,
    ),
    "manifest of masks": Tree(
        "The same in a manifest",
        (pairs("i/{}.png", "m/{}.png", 2), text("manifest.csv", "image,label\ni/0.png,m/0.png\ni/1.png,m/1.png\n")),
        images=2,
        masks=2,
    ),
    "phases": Tree(
        "A column that is called phase and is no split",
        (plain("a.png", "b.png"), text("t.csv", "file,label,phase\na.png,x,arterial\nb.png,y,venous\n")),
        images=2,
        labels=("x", "y"),
    ),
    "boxes beside": Tree(
        "A table with several rows per image",
        (plain("img/a.png", "img/b.png"), text("boxes.csv", "path,label\na.png,x\na.png,y\nb.png,x\n")),
        images=2,
        passed_over=1,
    ),
    "patients beside": Tree(
        "A table whose numbers are not the images'",
        (plain(*(f"img/{k}.png" for k in range(1, 9))), text("p.csv", "patient,label\n1,x\n2,y\n3,x\n")),
        images=8,
        passed_over=1,
    ),
    "table against folders": Tree(
        "A table that says other labels than the folders",
        (plain("a/1.png", "b/2.png"), text("t.csv", "file,label\n1.png,a\n2.png,a\n")),
        error="two ways.*b/2.png has the label 'b' by its folder and 'a' by t.csv.*reading.table=t.csv.*reading.table=none",
    ),
    "table over folders": Tree(
        "The same, decided",
        (plain("a/1.png", "b/2.png"), text("t.csv", "file,label\n1.png,a\n2.png,a\n")),
        images=2,
        labels=("a",),
        reading={"table": "t.csv"},
    ),
    "tables against each other": Tree(
        "Two tables that differ",
        (
            plain("img/a.png", "img/b.png"),
            text("one.csv", "file,label\na.png,x\nb.png,y\n"),
            text("two.csv", "file,label\na.png,x\nb.png,x\n"),
        ),
        error="img/b.png has the label 'y' in one.csv and 'x' in two.csv.*reading.table=one.csv",
    ),
    "two keys": Tree(
        "Two columns that name images",
        (plain("img/a.png", "img/b.png"), text("t.csv", "left,right,label\na,b,x\nb,a,y\n")),
        error="its columns 'left' and 'right' name different images",
    ),
    "windows table": Tree(
        "A table written on another computer",
        (
            plain("scans/1.PNG", "scans/2.PNG", "scans/a;b.png"),
            text(
                "manifest.csv", '\ufeffpath;label\nscans\\1.png;1\nC:\\study\\scans\\2.png;1.0\n"scans/a;b.png";nan\n'
            ),
        ),
        images=3,
        labels=("1",),
    ),
    "server": Tree(
        "What file servers leave behind",
        (
            plain("a/1.png", "b/1.png", "a/@eaDir/1.png/SYNOPHOTO_THUMB_S.png", "b/thumbs/1.png"),
            text("a/._1.png", "x"),
            text("Thumbs.db", "x"),
        ),
        images=2,
        labels=("a", "b"),
        passed_over=4,
    ),
    "split spelled oddly": Tree(
        "Splits in another language and in any case",
        (plain(*(f"{s}/{c}/{i}.png" for s in ("Entrenamiento", "TeSt") for c in "ab" for i in (1, 2))),),
        images=8,
        labels=("a", "b"),
        splits={"train": 4, "test": 4},
    ),
    "splits in names of folders": Tree(
        "A folder for each class and split",
        (plain(*(f"{c}_{s}/{i}.png" for c in ("benign", "malignant") for s in ("train", "test") for i in (1, 2))),),
        images=8,
        labels=("benign", "malignant"),
        splits={"train": 4, "test": 4},
    ),
    "splits in names of files": Tree(
        "Names of files that say the split",
        (plain(*(f"{c}/{s}_{i}.png" for c in "ab" for s in ("train", "test") for i in (1, 2))),),
        images=8,
        labels=("a", "b"),
        splits={"train": 4, "test": 4},
    ),
    "domains with underscores": Tree(
        "Two domains without pairs, spelled apart",
        (plain("train_A/1.png", "train_B/1.png", "test_A/1.png", "test_B/1.png"),),
        images=4,
        splits={"train": 2, "test": 2},
    ),
    "letters": Tree("Names that differ in one letter", (pairs("I_{:03d}.png", "M_{:03d}.png", 4),), images=4, masks=4),
    "folders called img": Tree(
        "Numbered folders called img", (pairs("img_{}/img.png", "img_{}/gt_seg.png", 4),), images=4, masks=4
    ),
    "masks of one class": Tree(
        "Masks of one class, in a folder of its name",
        (pairs("pos/{}.png", "pos_gt/{}.png"), plain("neg/1.png", "neg/2.png", first=50)),
        images=5,
        masks=3,
        labels=("neg", "pos"),
    ),
    "videos below": Tree(
        "Videos below the classes",
        (plain(*(f"{c}/video{v}/{f}.png" for c in "ab" for v in (1, 2) for f in (1, 2))),),
        images=8,
        labels=("a", "b"),
        groups=4,
    ),
    "varied copies": Tree(
        "Copies that were flipped and turned",
        (plain("a/1.png", "a/1_flip.png", "a/1_rot90.png", "a/2.png", "a/2 (copy).png", "b/3.png"),),
        images=6,
        labels=("a", "b"),
        groups=2,
    ),
    "images that the table does not name": Tree(
        "A manifest of some images",
        (plain("1.png", "2.png", "3.png"), text("manifest.csv", "path|label\n1.png|a\n2.png|b\n")),
        images=2,
        labels=("a", "b"),
        passed_over=1,
    ),
    "organs and findings, said": Tree(
        "Classes at two levels, decided",
        (plain(*(f"{o}/{c}/{i}.png" for o in ("breast", "liver") for c in ("cyst", "mass") for i in (1, 2))),),
        images=8,
        labels=("breast cyst", "breast mass", "liver cyst", "liver mass"),
        reading={"folders": "both"},
    ),
    "years and findings, said": Tree(
        "Classes below something else, decided",
        (plain(*(f"{o}/{c}/{i}.png" for o in ("2019", "2020") for c in ("cyst", "mass") for i in (1, 2))),),
        images=8,
        labels=("cyst", "mass"),
        reading={"folders": "below"},
    ),
    "a folder around an unlabelled test": Tree(
        "A folder around splits, the test part without labels",
        (plain("data/train/ok/1.png", "data/train/ok/2.png", "data/train/nok/1.png", "data/test/1.png"),),
        images=4,
        labels=("nok", "ok"),
        splits={"train": 3, "test": 1},
    ),
    "a folder around a manifest": Tree(
        "A folder around a manifest and its images",
        (plain("data/i/1.png", "data/i/2.png"), text("data/manifest.csv", "path,label\ni/1.png,a\ni/2.png,b\n")),
        images=2,
        labels=("a", "b"),
    ),
    "days": Tree(
        "Folders of days",
        (plain(*(f"{d}/IM{k}.png" for d in ("20190103", "2019-02-14", "20200311") for k in (1, 2))),),
        images=6,
        groups=3,
    ),
    "a server's folders": Tree(
        "Folders of patients, studies and series as servers name them",
        (plain(*(f"DICOM/PA00000{p}/ST00000{s}/SE000000/IM{p}{s}.png" for p in range(3) for s in range(2))),),
        images=6,
        groups=3,
        shown=True,
    ),
    "UIDs": Tree(
        "UIDs below classes",
        (plain(*(f"{c}/1.2.840.1.{p}/{c}{p}.png" for c in "ab" for p in (1, 2))),),
        images=4,
        labels=("a", "b"),
        groups=4,
    ),
    "BIDS": Tree(
        "BIDS, few subjects",
        (plain(*(f"sub-{p:02d}/ses-{v:02d}/us/sub-{p:02d}_ses-{v:02d}_us.png" for p in (1, 2) for v in (1, 2))),),
        images=4,
        groups=2,
    ),
    "sides below classes": Tree(
        "Left and right below classes",
        (plain(*(f"{c}/{s}/{k}{s}{c}.png" for c in "ab" for s in ("left", "right") for k in (1, 2))),),
        images=8,
        labels=("a", "b"),
    ),
    "sides below patients": Tree(
        "Left and right below patients, below classes",
        (plain(*(f"{c}/{c}{p}/{s}/1.png" for c in "ab" for p in (1, 2) for s in ("left", "right"))),),
        images=8,
        labels=("a", "b"),
        groups=4,
    ),
    "videos below patients": Tree(
        "Videos of a patient are of one group",
        (
            plain(
                *(
                    f"{c}/patient{c}{p}/video{v}/1.png".replace("patienta", "patient1").replace("patientb", "patient2")
                    for c in "ab"
                    for p in (1, 2)
                    for v in (1, 2)
                )
            ),
        ),
        images=8,
        labels=("a", "b"),
        groups=4,
    ),
    "views in names": Tree(
        "Two views of one patient",
        (plain(*(f"{c}/{c}{p}_{v}.png" for c in "ab" for p in (1, 2) for v in ("long", "trans"))),),
        images=8,
        labels=("a", "b"),
        groups=4,
    ),
    "groups in names, said": Tree(
        "The number of the patient before the number of the image, decided",
        (plain(*(f"{p}_{k}.png" for p in range(3) for k in range(2))),),
        images=6,
        groups=3,
        reading={"groups": "names"},
    ),
    "predictions beside": Tree(
        "Predictions beside images and masks",
        (
            pairs("images/{}.png", "masks/{}.png"),
            lambda root: [mask(root / f"predictions/{i}.png", i + 1) for i in range(3)][0],
        ),
        images=3,
        masks=3,
        passed_over=3,
    ),
    "a copy beside": Tree(
        "A copy of the images beside images and masks",
        (pairs("images/{}.png", "masks/{}.png"), plain(*(f"images - Copy/{i}.png" for i in range(3)), first=0)),
        error="further images in images - Copy/: a copy, a class, or images without masks",
    ),
    "channels": Tree(
        "nnU-Net with two channels",
        (
            pairs("imagesTr/u_{:03d}_0000.png", "labelsTr/u_{:03d}.png"),
            plain("imagesTr/u_000_0001.png", "imagesTr/u_001_0001.png"),
        ),
        images=3,
        masks=3,
        passed_over=2,
    ),
    "further lesions in a folder": Tree(
        "Several masks of some images, by a number behind the name",
        (pairs("images/us{}.png", "masks/us{}.png"), lambda root: mask(root / "masks/us1_2.png", 5)),
        images=3,
        masks=3,
    ),
    "numbered masks, said": Tree(
        "The same number of masks for each image, decided",
        (
            pairs("images/img_{}.png", "masks/{}_1.png"),
            lambda root: [mask(root / f"masks/{i}_2.png", 5) for i in range(3)][0],
        ),
        images=3,
        masks=3,
        reading={"values": "binary"},
    ),
    "a folder for each image": Tree(
        "A folder for each image with its many masks",
        (
            pairs("x{0}/images/x{0}.png", "x{0}/masks/k9_{0}.png"),
            lambda root: [mask(root / f"x{i}/masks/k8_{i}.png", 5) for i in range(3)][0],
        ),
        images=3,
        masks=3,
    ),
    "running numbers of four digits": Tree(
        "Running numbers of four digits are no channels",
        (pairs("images/us_{:04d}.png", "masks/us_{:04d}.png"),),
        images=3,
        masks=3,
    ),
    "VOC": Tree(
        "Pascal VOC, as annotation tools write it",
        (
            pairs("JPEGImages/a{}.png", "SegmentationClass/a{}.png"),
            lambda root: [mask(root / f"SegmentationObject/a{i}.png", i) for i in range(3)][0],
            text("Annotations/a0.xml", "<annotation/>"),
            text("ImageSets/Segmentation/train.txt", "a0\na1\n"),
            text("ImageSets/Segmentation/val.txt", "a2\n"),
        ),
        images=3,
        masks=3,
        splits={"train": 2, "val": 1},
        passed_over=4,
    ),
    "img_dir": Tree(
        "Folders img_dir and ann_dir with splits below",
        (
            pairs("img_dir/train/{}.png", "ann_dir/train/{}.png"),
            pairs("img_dir/val/{}.png", "ann_dir/val/{}.png", 2, first=9),
        ),
        images=5,
        masks=5,
        splits={"train": 3, "val": 2},
    ),
    "other alphabets": Tree(
        "Words in other alphabets",
        (
            pairs("обучение/изображения/{}.png", "обучение/маски/{}.png"),
            pairs("тест/изображения/{}.png", "тест/маски/{}.png", 2, first=9),
        ),
        images=5,
        masks=5,
        splits={"train": 3, "test": 2},
    ),
    "a folder called data": Tree(
        "A folder around images that says nothing", (plain("data/1.png", "data/2.png"),), images=2
    ),
    "a prepared set within": Tree(
        "A prepared dataset within the folder of its images",
        (
            pairs("images/{}.png", "masks/{}.png"),
            text("packed/dataset.json", "{}"),
            text("packed/images.npy", "x"),
            text("packed/masks.npy", "x"),
        ),
        images=3,
        masks=3,
        passed_over=3,
    ),
    "numbers of patients": Tree(
        "A table that writes the numbers of patients alone",
        (
            plain(*(f"Patient {p}/{k}.png" for p in range(1, 4) for k in (1, 2))),
            text("t.csv", "Patient ID,Diagnosis,Age\n1,x,3\n2,y,2\n3,x,1\n"),
        ),
        images=6,
        labels=("x", "y"),
        groups=3,
    ),
    "groups in names and a table of them": Tree(
        "A table with a row for each group that names say, decided",
        (
            plain(*(f"{p}7_{k}.png" for p in range(3) for k in range(2))),
            text("t.csv", "patient,label\n07,x\n17,y\n27,x\n"),
        ),
        images=6,
        labels=("x", "y"),
        groups=3,
        reading={"groups": "names"},
    ),
    "columns of 0 and 1": Tree(
        "Columns of 0 and 1 that are splits, and that are no labels",
        (
            plain("img/a.png", "img/b.png"),
            text("s.csv", "file,train,test\na.png,1,0\nb.png,0,1\n"),
            text("t.csv", "file,male,female\na.png,1,0\nb.png,0,1\n"),
        ),
        images=2,
        splits={"train": 1, "test": 1},
        passed_over=1,
    ),
    "one day": Tree("One folder, of a day", (plain("20240103/1.png", "20240103/2.png"),), images=2),
    "words for images in names": Tree(
        "Names that end with a word for images, and with one for masks",
        (pairs("original/{}_org.png", "GT/{}_GT.png"),),
        images=3,
        masks=3,
    ),
    "words before numbers": Tree(
        "Several words before the number of an image, one before that of its mask",
        (pairs("Hospital/Test_Image_{}.png", "Hospital/mask_{}.png"),),
        images=3,
        masks=3,
        labels=("Hospital",),
    ),
    "numbered lists": Tree(
        "Lists of images whose names are numbers",
        (
            plain(*(f"images/{k}.png" for k in range(1, 6))),
            text("train.txt", "1\n2\n3\n"),
            text("val.txt", "4\n5\n"),
            text("train_cls.txt", "1.png  0\n2.png  1\n3.png  1\n"),
            text("val_cls.txt", "4.png  0\n5.png  0\n"),
        ),
        images=5,
        labels=("0", "1"),
        splits={"train": 3, "val": 2},
    ),
    "measurements": Tree(
        "A column label of measurements",
        (plain("1a.png", "2a.png", "3a.png"), text("t.csv", "file,label\n1a.png,44.3\n2a.png,50\n3a.png,51.25\n")),
        images=3,
        passed_over=1,
    ),
    "tiles": Tree(
        "Tiles of one image", (plain(*(f"us{k}_tile{t}.png" for k in (1, 2) for t in (0, 1))),), images=4, groups=2
    ),
    "videos first": Tree(
        "Folders of videos and no classes",
        (plain(*(f"video{v}/{k}.png" for v in (1, 2) for k in (1, 2))),),
        images=4,
        groups=2,
    ),
    "patient and class in one name": Tree(
        "A folder for each patient, which names the class too",
        (plain(*(f"P{p}_{c}/{k}.png" for p, c in ((1, "cyst"), (2, "mass"), (3, "cyst")) for k in (1, 2))),),
        images=6,
        labels=("cyst", "mass"),
        groups=3,
    ),
    "one class with kinds": Tree(
        "A class with further folders below",
        (plain("normal/1.png", "normal/2.png", *(f"ill/{c}/{c}{k}.png" for c in ("cyst", "mass") for k in (1, 2))),),
        images=6,
        labels=("ill", "normal"),
    ),
    "views first": Tree(
        "Folders of views, with the same patients below",
        (plain(*(f"{v}/p{p}/{v}{p}.png" for v in ("A2C", "A4C") for p in (1, 2))),),
        images=4,
        labels=("A2C", "A4C"),
        groups=2,
    ),
    "Roboflow's copies": Tree(
        "Varied copies of Roboflow",
        (plain(*(f"{c}/{c}{k}_png.rf.{v}1f.jpg" for c in "ab" for k in (1, 2) for v in "cd")),),
        images=8,
        labels=("a", "b"),
        groups=4,
    ),
    "LabelMe's folders": Tree(
        "What LabelMe makes of each JSON file",
        (
            pairs("us{}_json/img.png", "us{}_json/label.png"),
            lambda root: [
                save(np.maximum(speckle(i), (disc(20) * 90).astype(np.uint8)), root / f"us{i}_json/label_viz.png")
                for i in range(3)
            ][0],
            text("us0_json/label_names.txt", "_background_\nlesion\n"),
        ),
        images=3,
        masks=3,
        passed_over=4,
    ),
    "double endings": Tree(
        "Masks with the ending of the image in their name",
        (pairs("images/{}.jpg", "masks/{}.jpg_mask.png"),),
        images=3,
        masks=3,
    ),
    "a form for submissions": Tree(
        "Kaggle's form for submissions",
        (
            plain("train/1a.png", "train/2a.png", "test/1b.png", "test/2b.png"),
            text("train.csv", "id,label\n1a,x\n2a,y\n"),
            text("sample_submission.csv", "id,label\n1b,x\n2b,x\n"),
        ),
        images=4,
        labels=("x", "y"),
        splits={"train": 2, "test": 2},
        passed_over=1,
    ),
    "what spreadsheets add": Tree(
        "A line that names the separator, and a title",
        (
            plain("i/a.png", "i/b.png"),
            text("a.csv", "sep=;\nfile;label\na.png;x\nb.png;y\n"),
            text("b.csv", "Table 1: patients,,\n,,\nfile,age,patient\na.png,40,1\nb.png,50,2\n"),
        ),
        images=2,
        labels=("x", "y"),
        groups=2,
    ),
    "rows that agree": Tree(
        "Several rows of an image that say the same",
        (plain("a.png", "b.png"), text("boxes.csv", "file,x,label\na.png,1,x\na.png,2,x\nb.png,3,y\n")),
        images=2,
        labels=("x", "y"),
    ),
    "names of several images": Tree(
        "A table whose names stand for several images",
        (plain("a/1.png", "a/2.png", "b/1.png", "b/2.png"), text("s.csv", "file,split\n1.png,train\n2.png,test\n")),
        images=4,
        labels=("a", "b"),
        passed_over=1,
    ),
    "labels at the end of names, said": Tree(
        "Words at the end of names, decided",
        (plain("1_cyst.png", "2_mass.png", "3_cyst.png"),),
        images=3,
        labels=("cyst", "mass"),
        reading={"labels": "endings"},
    ),
    # two readings
    "padded numbers": Tree(
        "Few folders with padded numbers",
        (plain(*(f"{k:03d}/{k}.png" for k in range(3))),),
        error="its 3 numbered folders .*are classes, or patients",
    ),
    "copies of classes": Tree(
        "Folders of varied copies beside the classes",
        (plain("a/1.png", "b/2.png", "a_aug/3.png"),),
        error="a_aug is a class, or holds varied copies of a.*reading.passed_over=.a_aug",
    ),
    "set aside": Tree(
        "A folder of what was taken out",
        (plain("a/1.png", "b/2.png", "excluded/3.png"),),
        error="excluded is a class, or holds what was taken out.*reading.passed_over=.excluded.*reading.folders=classes",
    ),
    "numbered masks": Tree(
        "The same number of masks for each image",
        (
            pairs("images/img_{}.png", "masks/{}_1.png"),
            lambda root: [mask(root / f"masks/{i}_2.png", 5) for i in range(3)][0],
        ),
        error="each image has masks numbered _1, _2 .* Say reading.values=binary",
    ),
    "masks of other names": Tree(
        "Masks in the folder of images whose names fit none",
        (pairs("scan{}.png", "mask_x7{}z.png"),),
        error="no mask has an image of the same name",
    ),
    "masks of two images": Tree(
        "A mask that could be of two images",
        (
            pairs("images/left_case_{}.png", "masks/mask_{}.png"),
            plain(*(f"images/right_case_{k}.png" for k in range(3))),
        ),
        error="no mask has an image of the same name",
    ),
    "two masks for each image": Tree(
        "A plain and a numbered mask for each image",
        (
            pairs("images/us{}.png", "masks/us{}.png"),
            lambda root: [mask(root / f"masks/us{i}_1.png", 5) for i in range(3)][0],
        ),
        error="each image has masks numbered _1, without a number .* Say reading.values=binary",
    ),
    "masks by endings": Tree(
        "A mask for each class, by the ending",
        (
            pairs("images/us{}.png", "masks/us{}_liver.png"),
            lambda root: [mask(root / f"masks/us{i}_cyst.png", 5) for i in range(3)][0],
        ),
        error="named by their image and an ending .*_liver 3.*reading.masks=_",
    ),
    "a table of pairs": Tree(
        "Names that do not pair, and a table that pairs them",
        (
            pairs("images/{}.png", "masks/z{}9.png"),
            text("pairs.csv", "image,mask\nimages/0.png,masks/z09.png\nimages/1.png,masks/z19.png\n"),
        ),
        error="or give .*pairs.csv as the source, which names images and masks",
    ),
    "hospitals": Tree(
        "A folder for each hospital",
        (plain(*(f"Hospital_{h}/{h}{k}.png" for h in "AB" for k in (1, 2))),),
        error="parts of one set",
    ),
    "hospitals, said": Tree(
        "The same without classes, decided",
        (plain(*(f"Hospital_{h}/{h}{k}.png" for h in "AB" for k in (1, 2))),),
        images=4,
        reading={"folders": "below"},
    ),
    "folds with splits": Tree(
        "Folds with splits of their own",
        (plain(*(f"fold{f}/{s}/{f}{s}.png" for f in (1, 2) for s in ("train", "test"))),),
        error="holds 2 folds .*each with splits of its own: give one of them",
    ),
    "names of people": Tree(
        "Many folders with few images",
        (plain(*(f"{a}{b} x/1.png" for a in "abcdef" for b in "abcd")),),
        error="its 24 folders .* with 1 images each are classes, or patients",
    ),
    "organs and findings": Tree(
        "Classes at two levels",
        (plain(*(f"{o}/{c}/{i}.png" for o in ("breast", "liver") for c in ("cyst", "mass") for i in (1, 2))),),
        error="two ways.*first folders .breast, liver. or those below them .cyst, mass.*reading.folders=below",
    ),
    "many numbers": Tree(
        "Many numbered folders",
        (plain(*(f"{k}/1.png" for k in range(11))),),
        error="its 11 numbered folders.*are classes, or patients. Say reading.folders=classes",
    ),
    "a class of masks": Tree(
        "A folder of masks whose names fit nothing",
        (pairs("scans/{:02d}_test.png", "1st_manual/{:02d}_manual1.png", 4),),
        error="1st_manual is a class, or holds masks whose names fit no image",
    ),
    "leading zeros": Tree(
        "A label with and without a zero before it",
        (plain("1.png", "2.png"), text("manifest.csv", "path,label\n1.png,01\n2.png,1\n")),
        error="labels '01' and '1', which differ only in case, Unicode form or leading zeros",
    ),
    "one class divided": Tree(
        "One class with splits in its names beside another without",
        (plain("cyst_train/1.png", "cyst_test/2.png", "mass/3.png"),),
        error="cyst_test, cyst_train are splits of classes beside mass, or all are classes",
    ),
    "two masks": Tree(
        "Two kinds of masks",
        (pairs("images/{}.png", "masks/{}.png"), pairs("images/{}.png", "roi/{}.png")),
        error="two ways.*reading.masks=",
    ),
    "two masks, said": Tree(
        "The same, decided",
        (pairs("images/{}.png", "masks/{}.png"), pairs("images/{}.png", "roi/{}.png")),
        images=3,
        masks=3,
        passed_over=3,
        reading={"masks": "roi"},
    ),
    "two endings of masks, said": Tree(
        "Masks of two people, by endings, decided",
        (pairs("us{}.png", "us{}_seg_A.png"), pairs("us{}.png", "us{}_seg_B.png")),
        images=3,
        masks=3,
        passed_over=3,
        reading={"masks": "seg_A"},
    ),
    "masks per class folder": Tree(
        "A folder of masks for each class",
        (pairs("images/{}.png", "masks/0/{}.png"), pairs("images/{}.png", "masks/1/{}.png")),
        error="two ways.*one class each",
    ),
    "one split": Tree(
        "One folder named like a split",
        (plain("train/a/1.png", "extra/1.png"),),
        error="two ways.*reading.folders=classes",
    ),
    "one split, said": Tree(
        "The same, decided",
        (plain("test/1.png", "control/1.png"),),
        images=2,
        labels=("control", "test"),
        reading={"folders": "classes"},
    ),
    "versions": Tree(
        "Two versions of the same images",
        (plain(*(f"one/{i}.png" for i in range(4)), first=0), plain(*(f"two/{i}.png" for i in range(4)), first=0)),
        error="two versions of the same images.*reading.targets=two",
    ),
    "versions, said": Tree(
        "The same, decided",
        (plain(*(f"one/{i}.png" for i in range(4)), first=0), plain(*(f"two/{i}.png" for i in range(4)), first=0)),
        images=4,
        targets=4,
        reading={"targets": "two"},
    ),
    "two qualities by words": Tree(
        "Two qualities under other words, in splits",
        (
            plain(*(f"{s}/noisy/noisy_{s}{i}.png" for s in ("train", "test") for i in range(2)), first=0),
            plain(*(f"{s}/clean/clean_{s}{i}.png" for s in ("train", "test") for i in range(2)), first=0),
        ),
        images=4,
        targets=4,
        splits={"train": 2, "test": 2},
    ),
    "two qualities by endings": Tree(
        "Two qualities by endings of names",
        (plain(*(f"x{i}_lr.png" for i in range(3)), first=0), plain(*(f"x{i}_HR.png" for i in range(3)), first=0)),
        images=3,
        targets=3,
        shown=True,
    ),
    "two endings, said": Tree(
        "Endings that say nothing, decided",
        (plain(*(f"x{i}_a.png" for i in range(3)), first=0), plain(*(f"x{i}_b.png" for i in range(3)), first=0)),
        images=3,
        targets=3,
        reading={"targets": "_b"},
    ),
    "masks that look like their images": Tree(
        "Masks of the bright part of original images",
        (
            lambda root: [
                save((disc(14 + 10 * i, 14 + 18 * i, 10) * speckle(i)).astype(np.uint8), root / f"original/{i}.png")
                for i in range(3)
            ][0],
            lambda root: [
                save((disc(14 + 10 * i, 14 + 18 * i, 10) * 255).astype(np.uint8), root / f"GT/{i}.png")
                for i in range(3)
            ][0],
        ),
        images=3,
        masks=3,
    ),
    "low and high risk": Tree(
        "Classes called low and high",
        (plain(*(f"{c}/{i}.png" for c in ("low", "high") for i in range(3))),),
        images=6,
        labels=("high", "low"),
    ),
    "folds": Tree(
        "Folds", (plain(*(f"fold{k}/{k}{i}.png" for k in range(3) for i in range(2))),), error="parts of one set"
    ),
    "no partner": Tree(
        "No names in common", (pairs("images/{}.png", "masks/z{}9.png"),), error="no mask has an image of the same name"
    ),
    "grey masks": Tree(
        "Masks that are pictures",
        (plain("images/0.png", "images/1.png", first=0), overlays("masks/{}.png", 2)),
        error="many greys",
    ),
    "two folders of each patient": Tree(
        "Images and masks in two folders of each patient",
        (
            pairs("patient_01_images/1.png", "patient_01_masks/1.png", 1),
            pairs("patient_02_images/1.png", "patient_02_masks/1.png", 1, first=1),
        ),
        images=2,
        masks=2,
        groups=2,
    ),
    "empty class deeper": Tree(
        "A class without images, deeper",
        (plain("data/a/1.png", "data/ta/1.png"), text("data/c/1.heic", "x")),
        error="data/c lies beside class folders and gives no image",
    ),
    "empty class": Tree(
        "A class without images", (plain("a/1.png", "b/1.png"), text("c/1.heic", "x")), error="gives no image"
    ),
    "other set beside": Tree(
        "A set with masks beside other images",
        (pairs("first/images/{}.png", "first/masks/{}.png"), plain("second/1.png")),
        error="images elsewhere",
    ),
}


def drawn(root: Path) -> list[str]:
    """A folder as lines: at most four entries of each folder."""
    lines = []

    def walk(folder: Path, before: str) -> None:
        entries = sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name))
        shown = entries if len(entries) <= 4 else entries[:3]
        for entry in shown:
            lines.append(f"{before}{entry.name}{'/' if entry.is_dir() else ''}")
            if entry.is_dir():
                walk(entry, before + "    ")
        if len(entries) > len(shown):
            lines.append(f"{before}... {len(entries) - len(shown)} more")

    walk(root, "")
    return lines


def drawn_page() -> str:
    """The part of docs/data.md that shows trees and what they are understood to be."""
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for name, tree in TREES.items():
            if not tree.shown:
                continue
            root = tree.make(Path(folder) / name)
            said = understand(root).lines()
            said[0] = said[0].replace(str(root), "this folder")
            parts.append("\n".join([f"### {tree.title}", "", "```", *drawn(root), "```", "", "```", *said, "```", ""]))
    return "\n".join(parts)


def with_trees(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + drawn_page() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_trees(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
