"""What the words in the names of folders and files say: masks, overlays, pairs, splits, patients, frames of a clip."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MASKS = frozenset(
    "mask masks maskes seg segs segm segmentation segmentations segmentationmask gt gts groundtruth groundtruths truth truths "
    "annotation annotations annot annots anno annos label labels labelmap labelmaps contour contours outline outlines boundary "
    "boundaries delineation delineations roi rois lesion lesions tumor tumors tumour tumours nodule nodules masque "
    "masques maske "
    "masken mascara mascaras máscara máscaras maschera maschere segmentierung manual ann anns msk msks lbl lbls маска маски maski "
    "maskeler 掩膜 掩码 标签 标注 分割 金标准 マスク 마스크".split()
)
# words that are as often the name of a class: they are masks only where the files pair and look like masks
PERHAPS_MASKS = frozenset("lesion lesions tumor tumors tumour tumours nodule nodules manual label labels".split())
SURELY_MASKS = frozenset("mask masks seg segs segmentation segmentations gt gts groundtruth labelmap".split())
OUTLINES = frozenset("annotation annotations annot anno contour contours outline outlines boundary boundaries".split())
OVERLAYS = frozenset(
    "overlay overlays overlaid viz visual visuals visualisation visualisations visualization visualizations vis preview previews "
    "blend blends blended superimposed heatmap heatmaps cam cams montage montages".split()
)
IMAGES = frozenset(
    "image images img imgs picture pictures photo photos raw original originals org orig source src input inputs frames "
    "scan scans bild bilder bmode us ultrasound imagenes imágenes imagens immagini изображения снимки obrazy görüntüler 原图 图像 "
    "图片 画像 이미지".split()
)
LOW = frozenset("lq lowquality".split())
HIGH = frozenset("hq highquality".split())
# words of two qualities, where the files pair and show the same pictures: what is given, and what is wanted of it
GIVEN = LOW | frozenset(
    "noisy noise noised degraded corrupted speckled speckle lr lowres lowresolution low input inputs source blurred blurry blur "
    "raw original originals compressed".split()
)
WANTED = HIGH | frozenset(
    "clean cleaned hr highres highresolution high target targets despeckled denoised enhanced sharp reference gt "
    "groundtruth".split()
)
SPLITS = {
    **dict.fromkeys("train training trainset trainingset traindata trn trainval trainvalidation".split(), "train"),
    **dict.fromkeys("val valid validation validate validating valset validset validationset dev devset".split(), "val"),
    **dict.fromkeys("test testing testset testingset testdata tst holdout heldout".split(), "test"),
    **dict.fromkeys(
        "entrenamiento entrainement entraînement apprentissage treinamento treino addestramento eğitim обучение 训练 训练集 学習 "
        "훈련".split(),
        "train",
    ),
    **dict.fromkeys(
        "validacion validación validacao validação validazione validierung валидация 验证 验证集 検証 검증".split(),
        "val",
    ),
    **dict.fromkeys("prueba pruebas teste testes prüfung тест 测试 测试集 テスト 시험".split(), "test"),
}
SHORT_SPLITS = {"tr": "train", "ts": "test", "te": "test", "va": "val", "vl": "val"}  # nnU-Net: imagesTr, labelsTs
FORMS = frozenset("jpeg jpg png bmp tif tiff dicom dir dirs".split())  # beside a word for images they say nothing
FILLERS = frozenset("set sets data dataset datasets folder split splits part subset cohort public published".split())
# whether there are masks is no class
SET_ASIDE = frozenset(
    "exclude excluded excludes reject rejected rejects discard discarded trash deleted backup duplicate duplicates unused unusable "
    "ausgeschlossen papierkorb result results figure figures plots output outputs logs docs checkpoints runs screenshots".split()
)
LABELLED = frozenset("labelled labeled unlabelled unlabeled annotated unannotated supervised unsupervised".split())
# what servers and systems leave behind
LITTER = frozenset(
    "thumbs.db desktop.ini @eadir .@__thumb #recycle #snapshot @recycle $recycle.bin __macosx lost+found .ds_store "
    "system volume information .thumbnails .picasa.ini picasa.ini .ipynb_checkpoints .git .cache .trash".split()
) | {"system volume information"}
THUMBNAILS = re.compile(r"(?i)(synophoto_.*|synoindex_.*|syno@.*|thumbs?|\.?thumbnails?|_thumbs?|albumart.*)")

PATIENT = (
    "patient|patients|patiente|pat|subject|subj|sub|case|person|volunteer|proband|study|exam|fall|pt|pid|p|mrn|paciente|pac|"
    "paziente|paz|пациент|患者|病人"
)
PATIENT_NAME = re.compile(rf"(?i)(?:{PATIENT})[-_ #]*\d+[a-z]?")
PATIENT_IN_NAME = re.compile(rf"(?i)(?:^|[-_ /])((?:{PATIENT})[-_ #]?\d+)(?=[-_ .]|$)")
PATIENT_BEFORE = re.compile(rf"(?i)((?:{PATIENT})[-_ #]?\d+)[-_ ]+([^\W\d_].*)")
PATIENT_BEHIND = re.compile(rf"(?i)([^\W\d_].*?)[-_ ]+((?:{PATIENT})[-_ #]?\d+)")
CLIP_IN_NAME = re.compile(r"(?i)^(.*?(?:^|[-_ ])(?:clip|video|vid|cine|loop|movie|sweep)[-_ ]?\d+)(?=[-_ .]|$)")
FOLD_NAME = re.compile(
    r"(?i)(?:fold|kfold|k|cv|split|batch|chunk)[-_ ]?\d+|"
    r"(?:part|set|center|centre|site|hospital|clinic|klinik|institution)(?:[-_ ]?\d+|[-_ ][a-z]|(?-i:[A-Z]))"
)
FRAME_IN_NAME = re.compile(r"(?i)^(.+?)[-_ ]*(?:frame|frm|frames|fr|slice|slc|tile|patch|crop)[-_ ]?\d+$")


WHOLE = frozenset(SPLITS) | MASKS | OVERLAYS | IMAGES
CLIP_FOLDER = re.compile(
    r"(?i)(?:video|vid|clip|cine|loop|movie|sweep|seq|sequence|series|visit|session|ses|acq|acquisition)[-_ #]*\d+[a-z]?"
)
MONTH, DAY = "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
DATE = rf"(?:19|20)\d\d([-_.]?){MONTH}\1{DAY}|{DAY}[-_.]{MONTH}[-_.](?:19|20)\d\d"
DATE_FOLDER = re.compile(rf"(?:{DATE})(?:[-_ T]?\d{{2}}[-_.:]?\d{{2}}(?:[-_.:]?\d{{2}})?)?")
# what servers call patients, studies and series: UIDs, UUIDs, hashes, PA000001/ST000002/SE000003
NUMBER_OF_SERVER = re.compile(
    r"(?i)\d+(?:\.\d+){4,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=.*\d)(?=.*[a-f])[0-9a-f]{16,64}|(?:pa|st|se|ser|im)\d{3,}"
)
SIDES = frozenset(
    "l r lt rt li re left right links rechts izquierda derecha gauche droite sinistra destra esquerda direita".split()
)
VIEWS = SIDES | frozenset(
    "long longitudinal trans transv transverse transversal sag sagittal ax axial cor coronal cc mlo 2ch 3ch 4ch a2c a3c a4c psax "
    "plax längs quer".split()
)
VERSION_BEHIND = re.compile(r"^(.+)\.rf\.[0-9a-f]{3,}$", re.IGNORECASE)  # Roboflow's varied copies of one image
VIEW_BEHIND = re.compile(rf"(?i)^(.*\d.*?)[-_ .]+(?:{'|'.join(sorted(VIEWS, key=len, reverse=True))})$")
SPLIT_WORDS = "|".join(sorted(SPLITS, key=len, reverse=True))
SPLIT_BEFORE = re.compile(rf"(?i)^({SPLIT_WORDS})[-_ .]+(.+)$")
SPLIT_BEHIND = re.compile(rf"(?i)^(.+?)[-_ .]+({SPLIT_WORDS})$")
VARIED = re.compile(
    r"(?i)^(.+?)(?:[-_ .]*[-_ .(](?:aug(?:mented)?|[hv]?flip(?:ped)?|mirror(?:ed)?|rot(?:at(?:ed?|ion))?|copy|noise|noisy|"
    r"bright(?:ness)?|contrast|shift(?:ed)?|zoom(?:ed)?|blur(?:red)?|elastic)[-_ ]?\d*\)?)+$"
)


@dataclass(frozen=True)
class Folder:
    """What the name of one folder says. `rest` is "" where nothing else is said than what stands in the other fields."""

    name: str
    split: str = ""
    role: str = ""  # image, mask, overlay, low, high
    domain: str = ""  # A or B, of trainA
    rest: str = ""


@lru_cache(maxsize=100_000)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in small letters: `imagesTr` -> images, tr; `Ground-Truth_2` -> ground, truth, 2."""
    name = unicodedata.normalize("NFC", name)
    parts = re.findall(r"\d+|[^\W\d_]+", name)
    words = []
    for part in parts:
        if part.lower() in WHOLE:  # TeSt
            words.append(part)
            continue
        words += re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+|[A-Z]+", part) if not part.isdigit() else [part]
    return tuple(word.lower() for word in words)


@lru_cache(maxsize=100_000)
def folder_of(name: str) -> Folder:
    """What the name of a folder says of the files in it."""
    words = words_of(name)
    joined = "".join(words)
    if joined in LOW or joined in HIGH:
        return Folder(name, role="low" if joined in LOW else "high")
    if joined == "groundtruth":
        return Folder(name, role="mask")
    if words and set(words) <= LABELLED | FILLERS and LABELLED & set(words):
        return Folder(name)
    domain = ""
    if (
        len(words) == 2
        and words[0] in SPLITS
        and words[1] in ("a", "b")
        and (name[-1] in "AB" or not re.search(r"[-_ ]", name))
    ):
        return Folder(name, split=SPLITS[words[0]], domain=words[1].upper())
    splits = [SPLITS[word] for word in words if word in SPLITS]
    roles = [word for word in words if word in MASKS | OVERLAYS | IMAGES]
    if not splits and (roles or len(words) == 1):
        splits = [SHORT_SPLITS[word] for word in words if word in SHORT_SPLITS]
    if joined in SPLITS and not splits:  # Train_Set, train-val
        splits = [SPLITS[joined]]
    if set(words) >= {"train", "val"}:
        splits = ["train"]
    others = [
        word
        for word in words
        if word not in SPLITS
        and word not in SHORT_SPLITS
        and word not in FILLERS
        and word not in roles
        and not word.isdigit()
    ]
    split = splits[0] if len(set(splits)) == 1 and (domain or not others) else ""
    role, whose = "", without_image_word(name)
    if any(word in OVERLAYS for word in words):
        role = "overlay"
    elif any(word in MASKS for word in words):
        role = "mask"
    elif roles and (is_patient_folder(whose) or not [word for word in others if len(word) > 1 and word not in FORMS]):
        role = "image"
    if role in ("mask", "overlay") and not split and [w for w in others if len(w) > 1] and set(roles) <= PERHAPS_MASKS:
        role = ""  # "malignant lesions" is a class
    rest = "" if split or role or (words and set(words) <= FILLERS) else name  # data/ around everything says nothing
    if role in ("image", "mask") and not split:  # p007_images/ beside p007_masks/
        whose = whose if role == "image" else without_role(name)[0]
        rest = whose if is_patient_folder(whose) else ""
    return Folder(name, split, role, domain, rest)


ROLE_WORDS = "|".join(
    sorted(MASKS | OVERLAYS | {"ground[-_ ]?truth", "tumou?r", "bw", "binary"}, key=len, reverse=True)
)
ROLE_SOMEWHERE = re.compile(rf"(?i){ROLE_WORDS}")
ENDING = re.compile(rf"(?i)^(.*?)[-_ .(]+({ROLE_WORDS})(?:[-_ .]*({ROLE_WORDS}))*[-_ ]*(\d*)\)?$")
CAMEL_ENDING = re.compile(r"^(.*[a-z0-9)])((?:Mask|Seg|GT|Label|Annotation|Segmentation|Contour|Overlay)s?)(\d*)$")
BEGINNING = re.compile(rf"(?i)^({ROLE_WORDS})[-_ .]+(.+)$")


@lru_cache(maxsize=200_000)
def without_role(stem: str) -> tuple[str, str]:
    """A file's name without the word that says what it is, and that word: `x_mask_1` -> x, mask; `gt-7` -> 7, gt."""
    if not ROLE_SOMEWHERE.search(stem):
        return stem, ""
    if match := ENDING.match(stem) or CAMEL_ENDING.match(stem):
        if match[1]:
            return match[1], match[2].lower()
    if match := BEGINNING.match(stem):
        return match[2], match[1].lower()
    if (
        (of_stem := words_of(stem))
        and all(word in MASKS | OVERLAYS or word.isdigit() for word in of_stem)
        and not of_stem[0].isdigit()
    ):
        overlay = [word for word in of_stem if word in OVERLAYS]  # label_viz.png beside label.png
        return "", (overlay or of_stem)[0]  # mask.png beside image.png, in a folder for each patient
    return stem, ""


QUALITY_WORDS = "|".join(sorted(GIVEN | WANTED, key=len, reverse=True))
QUALITY_BEHIND = re.compile(rf"(?i)^(.+?)[-_ .]+({QUALITY_WORDS})$")
QUALITY_BEFORE = re.compile(rf"(?i)^({QUALITY_WORDS})[-_ .]+(.+)$")


def quality_of_folder(name: str) -> str:
    """ "low" or "high" where a folder is called by a word of one of two qualities alone, as `noisy_images`; else ""."""
    words = [word for word in words_of(name) if word not in FILLERS and word not in ("image", "images", "img", "imgs")]
    joined = "".join(words)
    return "low" if joined in GIVEN else "high" if joined in WANTED else ""


@lru_cache(maxsize=200_000)
def without_quality(stem: str) -> tuple[str, str, str]:
    """A file's name without the word of a quality, the quality and that word: `x_noisy` -> x, low, noisy; `x` -> x and nothing."""
    if match := QUALITY_BEHIND.match(stem):
        rest, word = match[1], match[2].lower()
    elif match := QUALITY_BEFORE.match(stem):
        rest, word = match[2], match[1].lower()
    else:
        return stem, "", ""
    return rest, "low" if word in GIVEN else "high", word


IMAGE_WORDS = "|".join(sorted((word for word in IMAGES if word.isascii()), key=len, reverse=True))
IMAGE_WORD = re.compile(rf"(?i)[-_ .]+(?:{IMAGE_WORDS})$|^(?:{IMAGE_WORDS})[-_ .]+")


def without_image_word(stem: str) -> str:
    """A file's name without the word that says that it is an image: 7_org -> 7."""
    return IMAGE_WORD.sub("", stem)


def is_fold(name: str) -> bool:
    """Whether a folder is named like a part of a set: fold1, batch_2, site3."""
    return bool(FOLD_NAME.fullmatch(name))


def is_overlay_word(word: str) -> bool:
    """Whether a word of a name, in lower case, says that the picture is drawn over: an overlay and no mask."""
    return word in OVERLAYS


def says_outlines(path: str) -> bool:
    """Whether the name of a mask, or of its folder, says that it is an outline."""
    *folders, name = path.split("/")
    return without_role(name.rsplit(".", 1)[0])[1] in OUTLINES or bool(
        folders and OUTLINES & set(words_of(folders[-1]))
    )


def is_litter(path: str) -> bool:
    """Whether a relative path is what systems and file servers leave behind: `._x.png`, Thumbs.db, @eaDir and thumbnails."""
    parts = path.split("/")
    if any(part.lower() in LITTER or part.startswith(".") for part in parts):
        return True
    name = parts[-1].rsplit(".", 1)[0]
    return bool(THUMBNAILS.fullmatch(name)) or any(THUMBNAILS.fullmatch(part) for part in parts[:-1])


def group_of_name(stem: str) -> str:
    """Whose image a file is by its name: the clip of a numbered frame, the patient, or "" where the name does not say."""
    if match := PATIENT_IN_NAME.search(stem):
        return match[1]
    if match := CLIP_IN_NAME.match(stem):
        return match[1]
    if match := FRAME_IN_NAME.match(stem):
        return match[1].rstrip("-_ ")
    return ""


def split_within(name: str) -> tuple[str, str]:
    """A name without the split it says, and that split: benign_train -> benign, train; "" where it says none."""
    if match := SPLIT_BEHIND.match(name):
        return match[1], SPLITS[match[2].lower()]
    if match := SPLIT_BEFORE.match(name):
        return match[2], SPLITS[match[1].lower()]
    return name, ""


def original_of(stem: str) -> str:
    """The name of the image of which a file is a varied copy by its own: 7_flip, 7 (copy) -> 7; "" for others."""
    match = VARIED.match(stem)
    return match[1] if match else ""


def is_clip_folder(name: str) -> bool:
    """Whether a folder is named like one clip, visit or series."""
    return bool(CLIP_FOLDER.fullmatch(name))


def is_date(name: str) -> bool:
    """Whether a folder is named by a day: 20190103, 2019-01-03, 03.01.2019, with or without the time."""
    return bool(DATE_FOLDER.fullmatch(name))


def is_number_of_server(name: str) -> bool:
    """Whether a folder is named as servers name patients, studies and series."""
    return bool(NUMBER_OF_SERVER.fullmatch(name))


def is_side(name: str) -> bool:
    """Whether a folder is named by a side of the body alone."""
    return same(name) in SIDES


def is_no_class(name: str) -> bool:
    """Whether a folder is named by a patient, a visit, a day, a number of a server or a side: never by a finding."""
    return any(of(name) for of in (is_patient_folder, is_clip_folder, is_date, is_number_of_server, is_side))


def is_view(name: str) -> bool:
    """Whether a folder is named by a view or a side alone."""
    return same(name) in VIEWS


def says_set_aside(name: str) -> bool:
    """Whether a folder is named as what somebody took out of a set."""
    return bool(set(words_of(name)) & SET_ASIDE)


def patient_and_class(name: str) -> tuple[str, str]:
    """The patient and the class that the name of one folder says: P012_benign -> P012, benign; nothing where it says not both."""
    if match := PATIENT_BEFORE.fullmatch(name):
        return match[1], match[2]
    if match := PATIENT_BEHIND.fullmatch(name):
        return match[2], match[1]
    return "", ""


def without_view(stem: str) -> str:
    """The name of what several views show: 003_L -> 003, 7-trans -> 7, a_png.rf.0f3 -> a_png; "" where no view is named."""
    match = VERSION_BEHIND.match(stem) or VIEW_BEHIND.match(stem)
    return match[1] if match else ""


def is_patient_folder(name: str) -> bool:
    """Whether a folder is named like one patient's."""
    return bool(PATIENT_NAME.fullmatch(name))


def same(text: str) -> str:
    """A name as it is compared: without case, in composed Unicode."""
    return unicodedata.normalize("NFC", text).casefold()
