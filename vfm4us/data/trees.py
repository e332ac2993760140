"""A folder that no publication and no manifest explains: what each of its files is, by its place, its name and its content.

Names come first (`vfm4us.data.words`), content judges them (`vfm4us.data.looks`): a folder called masks that holds photographs
is not taken for masks, and a folder called anything whose files pair with images and have few values in large areas is.
What stays open is an error that shows both readings and the key that decides.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from vfm4us.data import frames, looks, words
from vfm4us.data.records import Record, joined_paths, natural_key, without_extension
from vfm4us.data.understanding import Understanding

MOST_FAMILIES = 60  # endings of names that are looked at
MOSTLY = 0.9  # share of the files whose names say a split
NUMBERED = 10  # more folders named by a number alone are as often patients as classes
MANY_FOLDERS, FEW_IMAGES = 20, 6  # so many folders with fewer images each are not taken for classes without asking
LABEL_PATIENTS = 5  # so many patient folders beside each other are patients, not classes


WORD_BEFORE = re.compile(r"^([^\W\d_]+)[-_ ]*(.*\d.*)$")
WORD_BEHIND = re.compile(r"^(.*\d.*?)[-_ ]+([^\W\d_]+)$")
IMAGE_ENDING = re.compile(r"\.(?:png|jpe?g|bmp|tiff?|dcm)$")
INDEX = re.compile(r"[-_ .(]+\d+\)?$")  # of one of several masks of an image
ENDING_WORD = re.compile(r"[-_ .]+[^\W\d_]+$")
MOST_CLASSES = 12  # folders whose files are looked at, whether they are masks
NO_LABELS = "the first folders are patients or clips, so that there are no labels"
MOST_WORDS = 6  # of names in one folder that are compared


@dataclass
class Item:
    """One file of a tree that is an image or a mask, and what its place and its name say."""

    path: str
    stem: str
    parts: list[str]  # folders
    split: str = ""
    role: str = ""
    domain: str = ""
    rest: tuple[str, ...] = ()  # folders that say neither a split nor a role
    role_folder: str = ""  # the folder that says the role
    base: str = ""  # the name without the word that says what it is
    word: str = ""
    masks: list[str] = field(default_factory=list)
    partner: "Item | None" = None  # the image beside which a mask lies


def understand_tree(root: Path, images: list[str], arrays: list[str], reading, understood: Understanding) -> None:
    """Fill in `found` for the folder `root` with these image files and NumPy arrays, which can only be masks.

    Raises ValueError where two readings are possible.
    """
    understood.layout = "a folder of images"
    items = [_item(path) for path in (*images, *arrays)]
    _apply_reading(items, reading, understood)
    _splits_or_classes(root, items, reading, understood)
    if any(item.domain for item in items):
        return _domains(items, understood)
    if not any(item.role == "mask" and item.word for item in items):
        _known_qualities(root, items, understood)
    if any(item.role in ("low", "high") for item in items):
        _quality_pairs(root, items, understood)
    else:
        _masks(root, items, set(arrays), reading, understood)
    kept = [item for item in items if item.role in ("image", "")]
    _further_folders(kept, understood)
    kept = [item for item in kept if item.role != "left"]
    _labels_and_groups(kept, reading, understood)
    if not reading.folders:
        _classes_or_else(root, kept, understood)
    return None


def _item(path: str) -> Item:
    parts = path.split("/")
    stem = without_extension(parts[-1])
    if stem.lower().endswith(".npy"):
        stem = stem[:-4]
    item = Item(path, stem, parts[:-1])
    rest = []
    for part in item.parts:
        said = words.folder_of(part)
        item.split = said.split or item.split
        item.domain = said.domain or item.domain
        if said.role and said.role != "image" or (said.role and not item.role):
            item.role, item.role_folder = said.role, part
        if said.rest:
            rest.append(said.rest)
    item.rest = tuple(rest)
    item.base, item.word = words.without_role(stem)
    return item


def _apply_reading(items: list[Item], reading, understood: Understanding) -> None:
    """Folders or endings that the reading names as images, masks or passed over."""
    for role, names in (
        ("image", reading.images),
        ("mask", reading.masks),
        ("high", reading.targets),
        ("left", reading.passed_over),
    ):
        for name in names:
            hit = False
            for item in items:
                folder = "/".join(item.parts)
                if (
                    name.strip("/") == folder
                    or folder.startswith(name.strip("/") + "/")
                    or name.strip("/") in item.parts
                ):
                    item.role, item.role_folder, hit = role, name, True
                    item.rest = tuple(part for part in item.rest if part != name)
                elif item.stem.endswith(name) and item.stem != name:
                    base = item.stem[: -len(name)].rstrip("-_ .")
                    item.role, item.base, item.word, hit = role, base, name, True
            if role == "left":
                for item in items:
                    if item.role == "left" and name in (item.role_folder, item.word):
                        understood.add("passed over", f"as reading.passed_over says ({name})", item.path)
            if not hit:
                key = {"image": "images", "mask": "masks", "high": "targets", "left": "passed_over"}[role]
                raise ValueError(f"reading: {key}={name!r} is no folder and no ending of a file here")
    if reading.targets:
        bases = {words.same(item.base) for item in items if item.role == "high"}
        for item in items:
            if item.role in ("", "image"):
                item.role, plain = "low", ENDING_WORD.sub("", item.stem)
                if item.word == "" and words.same(item.stem) not in bases and words.same(plain) in bases:
                    item.base = plain


# ---- splits ---------------------------------------------------------------------------------------------------------


def _splits_or_classes(root: Path, items: list[Item], reading, understood: Understanding) -> None:
    """Whether folders named like splits are splits; they are where two of them lie there, or one with images and masks."""
    _several_folds(root, items)
    names = {item.split for item in items if item.split}
    folders = sorted({part for item in items for part in item.parts if words.folder_of(part).split})
    if not names and not reading.folders and _splits_within_names(root, items, understood):
        return
    if reading.folders == "classes" or not names:
        if names:
            for item in items:
                item.split = ""
                item.rest = tuple(item.parts)
        return
    outside = sorted({item.parts[0] for item in items if not item.split and item.parts})
    if reading.folders == "splits" or len(names) > 1 or any(item.domain for item in items):
        understood.splits = f"by the folders {', '.join(folders)}"
        return
    if not outside and all(item.split for item in items):  # one folder around everything
        for item in items:
            item.split = ""
        understood.notes.append(f"{folders[0]}/ holds everything: splits are made anew")
        return
    if any(item.role == "mask" for item in items) and not outside:
        return
    raise ValueError(
        f"{root} can be read in two ways: {folders[0]}/ is a split beside the further folders "
        f"{_some(outside) or '(loose files)'}, "
        f"or {', '.join([*folders, *outside][:4])} are classes. Say reading.folders=splits or reading.folders=classes "
        "(prepare_data.py --reading folders=splits, or a reading.yaml in the folder), or write a manifest.csv with a "
        "split column"
    )


def _several_folds(root: Path, items: list[Item]) -> None:
    """ValueError for folds that hold a train and a test of their own: the same images in both, taken together."""
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if len(item.parts) > 1:
            splits[item.parts[0]].add(item.split)
    if len(splits) > 1 and all(words.is_fold(top) and len(of - {""}) > 1 for top, of in splits.items()):
        raise ValueError(
            f"{root} holds {len(splits)} folds ({_some(sorted(splits))}), each with splits of its own: give one of them, e.g. "
            f"{root / min(splits)}"
        )


def _splits_within_names(root: Path, items: list[Item], understood: Understanding) -> bool:
    """benign_train/ and benign_test/, or train_7.png and test_8.png: names that say a split beside something else."""
    said = {item.rest[0]: words.split_within(item.rest[0]) for item in items if item.rest}
    several = defaultdict(set)
    for name, split in said.values():
        several[name].add(split)
    if any(len(splits - {""}) > 1 for splits in several.values()):
        if open_ := sorted(top for top, (_, split) in said.items() if not split):
            raise ValueError(
                f"{root} can be read in two ways: {_some(sorted(said.keys() - set(open_)))} are splits of classes beside "
                f"{_some(open_)}, or all are classes. Say reading.folders=classes, or write a manifest.csv with the column split"
            )
        for item in items:
            if item.rest:
                name, item.split = said[item.rest[0]]
                item.rest = (name, *item.rest[1:])
        example = min(said)
        understood.splits = f"by the names of folders: {example}/ is {said[example][1]} of {said[example][0]}"
        return True
    named = [(item, words.split_within(item.stem)[1]) for item in items]
    splits = {split for _, split in named if split}
    if len(splits) < 2 or sum(bool(split) for _, split in named) < MOSTLY * len(named):
        return False
    for item, split in named:
        item.split = split
    understood.splits = f"by the names of files: {named[0][0].path} is {named[0][1] or 'in none'}"
    return True


def _further_folders(items: list[Item], understood: Understanding) -> None:
    """Beside split folders, other folders are neither classes nor splits."""
    if not any(item.split for item in items):
        return
    for item in items:
        if not item.split:
            item.role = "left"
            where = f"{item.parts[0]}/" if item.parts else "loose files"
            understood.add("passed over", f"{where} beside the split folders", item.path)
    left = sorted({item.parts[0] if item.parts else "loose files" for item in items if item.role == "left"})
    if left:
        understood.notes.append(
            f"{_some(left)}: beside the split folders, not used (name its split in a manifest.csv to use it)"
        )


def _domains(items: list[Item], understood: Understanding) -> None:
    """trainA, trainB: two kinds of images without pairs."""
    understood.layout = "unpaired domains A and B"
    understood.said = "two sets of images for translation without pairs; they have no labels and no targets"
    used = [item for item in items if item.domain]
    for item in used:
        understood.add("image", f"domain {item.domain}", item.path)
        understood.records.append(Record(id=without_extension(item.path), path=item.path, split=item.split))
    for item in items:
        if not item.domain:
            understood.add("passed over", "beside the folders of domains A and B", item.path)
    understood.notes.append(
        "A and B are not taken for classes; for pairs of low and high quality give low_quality/ and high_quality/"
    )


# ---- pairs of two qualities -----------------------------------------------------------------------------------------


def _known_qualities(root: Path, items: list[Item], understood: Understanding) -> None:
    """noisy/ with clean/, x_lr.png with x_hr.png: words of two qualities whose files pair one to one and show the same pictures."""
    by_folder: dict[tuple[str, str], dict[tuple, Item]] = defaultdict(dict)
    by_name: dict[tuple[str, str], dict[tuple, Item]] = defaultdict(dict)
    for item in items:
        if item.role == "left":
            continue
        stem, quality, word = words.without_quality(item.stem)
        if quality:
            by_name[quality, word][tuple(item.parts), words.same(stem)] = item
        for place, part in enumerate(item.parts):
            if quality_of := words.quality_of_folder(part):
                key = tuple(item.parts[:place] + item.parts[place + 1 :]), words.same(stem)
                by_folder[quality_of, part][key] = item
                break
    for found in (by_folder, by_name):
        lows, highs = ([name for name in found if name[0] == quality] for quality in ("low", "high"))
        if len(lows) != 1 or len(highs) != 1:
            continue
        low, high = found[lows[0]], found[highs[0]]
        both = sorted(low.keys() & high.keys())
        pairs = [(low[key].path, high[key].path) for key in both]
        if len(both) < 2 or len(both) < 0.8 * max(len(low), len(high)) or not looks.same_pictures(root, pairs):
            continue
        if (looks.share_of_masks(root, [path for _, path in pairs]) or 0) > 0.5:  # GT/ beside original/
            continue
        for role, members, (_, word) in (("low", low, lows[0]), ("high", high, highs[0])):
            for key, item in members.items():
                item.role, item.base, item.word, item.role_folder = role, key[1], "", word
                item.rest = tuple(part for part in item.rest if part != word)
        if any(words.folder_of(word).role not in ("low", "high") for _, word in (lows[0], highs[0])):
            understood.notes.append(
                f"{highs[0][1]!r} is taken for the target of {lows[0][1]!r}: the names pair, and show the same pictures "
                f"(e.g. {pairs[0][0]} and {pairs[0][1]})"
            )
        return


def _quality_pairs(root: Path, items: list[Item], understood: Understanding) -> None:
    understood.layout = "pairs of two qualities"
    targets: dict[tuple, list[Item]] = defaultdict(list)
    loosely: dict[tuple, list[Item]] = defaultdict(list)
    for item in items:
        if item.role == "high":
            targets[_key(item)].append(item)
            loosely[_key(item, loose=True)].append(item)
    low = [item for item in items if item.role == "low"]
    once = Counter(_key(item, loose=True) for item in low)
    if not low:
        raise ValueError(f"{root} holds images of high quality and no folder low_quality/ beside them: nothing pairs")
    used = set()
    for item in low:
        key = _key(item, loose=True)
        pair = _best(item, targets.get(_key(item)) or (loosely[key] if len(loosely[key]) == once[key] == 1 else []))
        if pair:
            item.masks, item.word, item.rest = [pair.path], "target", pair.rest
            used.add(pair.path)
            understood.add("target", "high quality, of the same name", pair.path)
        else:
            understood.add("unmatched", "low quality without an image of the same name in high quality", item.path)
    for item in items:
        if item.role == "high" and item.path not in used:
            understood.add("unmatched", "high quality without an image of the same name in low quality", item.path)
        elif item.role not in ("low", "high"):
            understood.add("passed over", "beside the folders of low and high quality", item.path)
            item.role = "left"
    if not used and any(item.role == "high" for item in items):
        example = next(item.path for item in items if item.role == "high")
        raise ValueError(
            f"no file of low quality has a partner of the same name (e.g. {example}): rename them alike, or write a CSV "
            "with the "
            "columns path,target"
        )
    for item in items:
        if item.role == "low":
            item.role = "image"


# ---- masks ----------------------------------------------------------------------------------------------------------


def _masks(root: Path, items: list[Item], arrays: set[str], reading, understood: Understanding) -> None:
    """Give every image its masks; what is called a mask or an overlay and is none is named."""
    for item in items:
        if item.path in arrays and item.role != "left":
            item.role = "mask"
    _beside_in_one_folder(root, items, understood)
    _by_folder(root, items, understood)
    images = [item for item in items if item.role in ("", "image")]
    masks = [item for item in items if item.role == "mask"]
    if masks and not images:
        given = sorted({item.role_folder for item in masks if item.role_folder})
        if given and not arrays and not looks.share_of_masks(root, [item.path for item in masks]):
            for item in masks:  # a folder that is called so and holds only photographs
                item.role, item.rest = "", tuple(item.parts)
            return
        raise ValueError(
            f"{root} holds {len(masks)} files that are named or look like masks (e.g. {masks[0].path}) and no images: give the "
            "folder above, or say reading.images=FOLDER"
        )
    if not masks:
        return
    _masked_beside_others(root, images, masks)
    by_class = _folder_per_class(root, images, masks, reading)
    matched = _match(images, masks, by_class)
    if not matched:
        _endings_of_masks(root, images, masks)
        raise ValueError(
            f"{root}: no mask has an image of the same name (e.g. {masks[0].path} among {len(masks)} masks, "
            f"{images[0].path} among "
            f"{len(images)} images): rename them alike, or write a manifest.csv with the columns path,mask"
        )
    if not reading.values:
        _masks_by_index(root, matched, understood)
    main = _main_kind(root, matched, reading, understood)
    used = set()
    for mask, image in matched:
        if (mask.role_folder or "", mask.word) in main:
            image.masks.append(mask.path)
            used.add(mask.path)
        else:
            understood.add("passed over", f"a further kind of mask: {mask.word or mask.role_folder}", mask.path)
            used.add(mask.path)
    for image in images:
        image.masks.sort(key=natural_key)
    beside = any(mask.role_folder == "" for mask, _ in matched)
    places = sorted({"/".join(m.parts) or "." for m, _ in matched if (m.role_folder or "", m.word) in main})
    what = (
        f"by its ending or beginning, as {matched[0][0].path}" if beside else f"in {_some(places)}, of the image's name"
    )
    understood.add("mask", what, *(path for image in images for path in image.masks))
    for mask in masks:
        if mask.path not in used:
            understood.add("unmatched", "a mask without an image", mask.path)
    _further_channels(images, understood)
    _others_beside(root, images, understood)
    images = [image for image in images if image.role != "left"]
    missing = [image for image in images if not image.masks]
    if missing:
        understood.notes.append(f"{len(missing)} of {len(images)} images have no mask, e.g. {missing[0].path}")
    if by_class:
        understood.notes.append(f"masks lie in one folder ({by_class}), taken as class 1")


def _masks_by_index(root: Path, matched: list[tuple[Item, Item]], understood: Understanding) -> None:
    """x_1.png and x_2.png of x.png: several lesions where their number differs, else a ValueError, as they may be classes."""
    indices: dict[str, set[str]] = defaultdict(set)
    example, plainly = "", {image.path for mask, image in matched if words.same(mask.stem) == words.same(image.stem)}
    for mask, image in matched:
        index = INDEX.search(mask.stem)
        if (
            mask.partner is None
            and index
            and words.same(mask.stem) != words.same(image.stem)
            and mask.role_folder in mask.parts
        ):
            plain = words.same(INDEX.sub("", mask.stem))
            if plain in (words.same(image.stem), _tail(words.same(image.stem))):
                indices[image.path].add(index[0])
                example = example or mask.path
    for path in plainly & indices.keys():
        indices[path].add("without a number")
    several = {path: of for path, of in indices.items() if len(of) > 1}
    if len(several) > 1 and len(several) == len(indices) and len(set(map(frozenset, several.values()))) == 1:
        told = ", ".join(sorted(next(iter(several.values())))[:4])
        raise ValueError(
            f"{root} can be read in two ways: each image has masks numbered {told} (e.g. {example}), which are one class each, of "
            "several people, or several masks of one class. Say reading.values=binary for one class, or write one mask per image "
            "with class numbers 1, 2, ..."
        )
    if indices:
        understood.notes.append(
            f"{len(indices)} images have masks with a number behind the name, taken for further lesions (e.g. {example})"
        )


def _endings_of_masks(root: Path, images: list[Item], masks: list[Item]) -> None:
    """ValueError where masks are named as their image and a word, which may be classes: x_liver, x_kidney."""
    stems = {words.same(image.stem) for image in images}
    endings: Counter = Counter()
    for mask in masks:
        for cut in range(len(mask.stem) - 1, 0, -1):
            if mask.stem[cut] in "-_ ." and words.same(mask.stem[:cut]) in stems:
                endings[mask.stem[cut:]] += 1
                break
    if len(endings) > 1 and sum(endings.values()) >= 0.8 * len(masks):
        told = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(4))
        raise ValueError(
            f"{root} can be read in two ways: masks are named by their image and an ending ({told}), which are one class "
            f"each, or several masks of one class. Take one of them (reading.masks={endings.most_common(1)[0][0]}), or write one "
            "mask per image with class numbers 1, 2, ..."
        )


def _further_channels(images: list[Item], understood: Understanding) -> None:
    """Leave out x_0001 beside x_0000, where masks are named x: further channels of an image in nnU-Net's form."""
    first = {
        image.stem[:-5]
        for image in images
        if image.stem.endswith("_0000")
        and any(without_extension(mask.rsplit("/", 1)[-1]) == image.stem[:-5] for mask in image.masks)
    }
    if not first:
        return
    known = {(*image.parts, image.stem) for image in images}
    for image in images:
        channel = re.fullmatch(r"(.+)_(\d{4})", image.stem)
        if channel and channel[2] != "0000" and not image.masks and (*image.parts, f"{channel[1]}_0000") in known:
            image.role = "left"
            understood.add("passed over", "further channels of images: x_0001 beside x_0000", image.path)


def _others_beside(root: Path, images: list[Item], understood: Understanding) -> None:
    """Folders beside images/ and masks/: more masks (predictions, edges) are left out, anything else is an error."""
    masked = {
        words.same(image.stem): image for image in images if image.masks and image.role == "image" and not image.rest
    }
    strange: dict[str, list[Item]] = defaultdict(list)
    for image in images:
        if not image.masks and image.role == "" and image.rest and image.rest[0] == image.parts[0] and not image.split:
            strange[image.rest[0]].append(image)
    if not masked or any(image.masks and image.rest for image in images):
        return
    for name, members in sorted(strange.items()):
        if (looks.share_of_masks(root, [item.path for item in members]) or 0) > 0.5:
            for item in members:
                item.role = "left"
                understood.add(
                    "passed over", f"{name}/: further masks (predictions, edges?) beside those that are used", item.path
                )
            continue
        raise ValueError(
            f"{root} holds images with masks (e.g. {next(iter(masked.values())).path}) and further images in {name}/: a copy, "
            f"a class, or images without masks? Pass them over with reading.passed_over={name}, or say reading.images=[{name}, "
            f"{next(iter(masked.values())).role_folder}]"
        )


def _masked_beside_others(root: Path, images: list[Item], masks: list[Item]) -> None:
    """ValueError for a/images and a/masks beside b/ without either: is b a class, another set, or images without masks?"""
    inner = {
        tuple(item.parts[: item.parts.index(item.role_folder)]) for item in masks if item.role_folder in item.parts
    }
    inner = {parts for parts in inner if parts and not words.folder_of(parts[-1]).split}
    strange = [
        item
        for item in images
        if item.role == ""
        and not item.split
        and not any(tuple(item.parts[:depth]) in inner for depth in range(len(item.parts) + 1))
    ]
    if inner and strange:
        first = "/".join(sorted(inner)[0])
        raise ValueError(
            f"{root} holds masks below {first}/ and images elsewhere (e.g. {strange[0].path}): prepare {root / first} on "
            "its own, pass "
            "the others over with reading.passed_over, or write a manifest.csv with the columns "
            "path,label,group,split,mask,target"
        )


def _beside_in_one_folder(root: Path, items: list[Item], understood: Understanding) -> None:
    """Masks beside their images: `x.png` with `x_mask.png`, `x_tumor.png`, or an ending unknown to us that looks like masks."""
    by_folder = defaultdict(list)
    for item in items:
        if item.role in ("", "image"):
            by_folder[tuple(item.parts)].append(item)
    families: dict[str, list[tuple[Item, Item]]] = defaultdict(list)
    for group in by_folder.values():
        stems = {words.same(item.stem): item for item in group}
        heads = _heads(stems) if any(item.word for item in group) else {}
        others = [item for item in group if not item.word]
        named_images = [item for item in others if set(words.words_of(item.stem)) <= words.IMAGES]
        alone = (others if len(others) == 1 else named_images if len(named_images) == 1 else [None])[0]
        for item in group:
            base = stems.get(words.same(item.base)) if item.word and item.base else alone if item.word else None
            if base is None and item.word and item.base:  # 000_HC_Annotation of 000_HC, mask_0001 of bus_0001
                base = heads.get(_tail(words.same(item.base)))
            if base is not None and base is not item:
                families[f"*{item.word}"].append((item, base))
                continue
            if item.word:
                continue
            for cut in range(len(item.stem) - 1, 0, -1):
                if item.stem[cut] in "-_ ." and (base := stems.get(words.same(item.stem[:cut]))) and base is not item:
                    families[re.sub(r"\d+", "", item.stem[cut + 1 :])].append((item, base))
                    break
    families = families or _same_names_in_many_folders(by_folder) or _two_words(root, by_folder)
    for name, pairs in sorted(families.items(), key=lambda entry: -len(entry[1]))[:MOST_FAMILIES]:
        named = name.startswith("*")
        share = looks.share_of_masks(root, [item.path for item, _ in pairs])
        of_images = looks.share_of_masks(root, [base.path for _, base in pairs])
        if named and words.is_overlay_word(name[1:]) and not (share and share > 0.5):
            for item, _ in pairs:
                item.role = "left"
                understood.add("passed over", "overlays, by their ending", item.path)
        elif named and share is not None and share < 0.5 and (of_images is None or of_images < 0.5):
            for item, _ in pairs:
                item.role = "left"
                understood.add(
                    "passed over", f"named {name[1:]}, but pictures with many greys: overlays, no masks", item.path
                )
        elif named or (share is not None and share > 0.5 and not (of_images and of_images > 0.5)):
            for item, base in pairs:
                item.role, item.base, item.word, item.role_folder = "mask", base.stem, name.lstrip("*"), ""
                item.partner = base
            if not named:
                understood.notes.append(
                    f"{name!r} in names is taken for masks, as its {len(pairs)} files have few values in large areas "
                    f"(e.g. {pairs[0][0].path})"
                )
    _masks_without_images(root, items, families)
    # a mask by its name whose image is missing, where others have theirs
    taken = {word for name in families if name.startswith("*") for word in [name[1:]]}
    for item in items:
        if item.role in ("", "image") and item.word in taken and item.word not in words.OVERLAYS:
            item.role = "mask"


def _masks_without_images(root: Path, items: list[Item], families: dict) -> None:
    """Files that are called masks, look like masks and pair with nothing are masks all the same, not images."""
    alone: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.role in ("", "image") and item.word in words.SURELY_MASKS and f"*{item.word}" not in families:
            alone[item.word].append(item)
    for members in alone.values():
        if len(members) > 1 and (looks.share_of_masks(root, [item.path for item in members]) or 0) > 0.75:
            for item in members:
                item.role = "mask"


def _same_names_in_many_folders(by_folder: dict[tuple, list[Item]]) -> dict[str, list[tuple[Item, Item]]]:
    """a/scan.png with a/x.png, b/scan.png with b/x.png: each name is a family, with the other file of its folder."""
    pairs = [pair for pair in by_folder.values() if len(pair) == 2]
    stems = Counter(words.same(item.stem) for pair in pairs for item in pair)
    families: dict[str, list[tuple[Item, Item]]] = defaultdict(list)
    if len(pairs) >= 2 and len(pairs) >= 0.8 * len(by_folder) and len(stems) == 2:
        for one, other in pairs:
            families[one.stem].append((one, other))
            families[other.stem].append((other, one))
    return families


def _two_words(root: Path, by_folder: dict[tuple, list[Item]]) -> dict[str, list[tuple[Item, Item]]]:
    """I_007.png with M_007.png, 7_raw.png with 7_lab.png: words that share their numbers, one of them with few values."""
    families: dict[str, list[tuple[Item, Item]]] = defaultdict(list)
    for members in by_folder.values():
        named: dict[str, dict[str, Item]] = defaultdict(dict)
        for item in members:
            for pattern, word, rest in ((WORD_BEFORE, 1, 2), (WORD_BEHIND, 2, 1)):
                if match := pattern.match(item.stem):
                    named[f"{word} {match[word]}"][match[rest]] = item
        often = sorted((word for word in named if len(named[word]) > 2), key=lambda word: -len(named[word]))[
            :MOST_WORDS
        ]
        for a in often:
            for b in often:
                both = named[a].keys() & named[b].keys()
                if a == b or a[0] != b[0] or len(both) < 0.8 * len(named[a]):
                    continue
                if (looks.share_of_masks(root, [named[a][k].path for k in both]) or 0) > 0.5:
                    families[a[2:]] += [(named[a][k], named[b][k]) for k in sorted(both)]
    return families


def _heads(stems: dict[str, Item]) -> dict[str, Item]:
    """Names without their first word, where that leaves each its own: bus_0001 -> 0001."""
    tails = Counter(_tail(stem) for stem, item in stems.items() if not item.word)
    return {_tail(s): item for s, item in stems.items() if not item.word and tails[_tail(s)] == 1 and _tail(s) != s}


def _tail(stem: str) -> str:
    """A name without the words before its first number, or without its first word: Test_Image_1 -> 1, bus_a -> a."""
    return re.sub(r"^(?:[^\W\d_]+[-_ ]*)+(?=\d)|^[^\W\d_]+[-_ ]*", "", stem) or stem


def _by_folder(root: Path, items: list[Item], understood: Understanding) -> None:
    """Judge folders that are called masks or overlays by their content, and those that pair without being called anything."""
    folders = defaultdict(list)
    for item in items:
        if item.role in ("mask", "overlay") and item.role_folder:
            folders[item.role, item.role_folder].append(item)
    others: list[Item] | None = None
    for (role, name), members in folders.items():
        if others is None:
            others = [
                item
                for item in items
                if item.role in ("", "image") and (item.role_folder or item.rest or not item.parts)
            ]
            keys = {_key(item) for item in others} | {_key(item, loose=True) for item in others}
        pairing = sum(_key(item) in keys or _key(item, loose=True) in keys for item in members)
        share = looks.share_of_masks(root, [item.path for item in members])
        if role == "overlay":
            if share is not None and share > 0.5 and not any(i.role == "mask" for i in items):
                for item in members:
                    item.role = "mask"
            elif pairing or others:
                for item in members:
                    item.role = "left"
                    understood.add(
                        "passed over", f"{name}/: overlays, pictures of images with something drawn on them", item.path
                    )
            continue
        if share is not None and share < 0.5:
            overlaid = bool(pairing) and _same_pictures(root, members, others)
            if pairing and not words.SURELY_MASKS.isdisjoint(words.words_of(name)):
                raise ValueError(
                    f"{root}: {name}/ pairs with images and is named like masks, but holds pictures with many greys, e.g. "
                    f"{members[0].path}: masks, or images with something drawn on them? Write masks with class numbers or 0 "
                    "and 255, or "
                    f"pass them over with reading.passed_over={name}"
                )
            if overlaid:
                for item in members:
                    item.role = "left"
                    understood.add("passed over", f"{name}/: named like masks, but pictures with many greys", item.path)
                understood.notes.append(f"{name}/ pairs with images but does not look like masks: passed over")
            else:
                for item in members:  # a class that is called lesion
                    item.role, item.rest = "", tuple(p for p in item.parts if not words.folder_of(p).split)
                others = None  # these are among them now
    if not any(item.role == "mask" for item in items):
        _unnamed_mask_folders(root, items, understood)


def _same_pictures(root: Path, items: list[Item], others: list[Item]) -> bool:
    """Whether files show the same as those of the same name elsewhere: overlays do, numbers that begin anew do not."""
    by_key = {_key(item, loose=True): item for item in others}
    pairs = [(item.path, partner.path) for item in items if (partner := by_key.get(_key(item, loose=True)))]
    return looks.same_pictures(root, pairs)


def _unnamed_mask_folders(root: Path, items: list[Item], understood: Understanding) -> None:
    """Two folders beside each other whose files pair one to one, one of them with few values: image and mask."""
    by_parent: dict[tuple, dict[str, dict[str, Item]]] = defaultdict(lambda: defaultdict(dict))
    for item in items:
        if item.role in ("", "image") and item.parts:
            by_parent[tuple(item.parts[:-1])][item.parts[-1]][words.same(item.base)] = item
    for parent, folders in sorted(by_parent.items()):
        if not 2 <= len(folders) <= 12:
            continue
        shares = {
            name: looks.share_of_masks(root, [i.path for i in members.values()]) for name, members in folders.items()
        }
        for name, members in folders.items():
            if shares[name] is None or shares[name] < 0.75:
                continue
            for other, images in folders.items():
                both = members.keys() & images.keys()
                if other == name or (shares[other] or 0) > 0.25 or len(both) < 0.8 * len(members):
                    continue
                for item in members.values():
                    item.role, item.role_folder = "mask", name
                    item.rest = tuple(part for part in item.rest if part != name)
                for item in images.values():
                    item.role, item.role_folder = "image", other
                    item.rest = tuple(part for part in item.rest if part != other)
                where = "/".join((*parent, name))
                understood.notes.append(
                    f"{where}/ is taken for the masks of {'/'.join((*parent, other))}/: the names pair one to one, and "
                    "its files "
                    "have few values in large areas"
                )
                break


def _key(item: Item, loose: bool = False) -> tuple:
    """What an image and its mask have in common: split, folders between, name."""
    stem = item.base if (item.role == "mask" and item.word) or item.role in ("low", "high") else item.stem
    stem = IMAGE_ENDING.sub("", words.same(stem))  # x.jpg.png is the mask of x.jpg
    return (item.split, () if loose else tuple(words.same(part) for part in item.rest), stem)


def _best(item: Item, candidates: list[Item]) -> Item | None:
    exact = [other for other in candidates if other.path.rsplit("/", 1)[-1] == item.path.rsplit("/", 1)[-1]]
    return (exact or sorted(candidates, key=lambda other: other.path) or [None])[0]


def _folder_per_class(root: Path, images: list[Item], masks: list[Item], reading) -> str:
    """The one sub-folder of masks that images do not have; several are one class each, which is an error."""
    below = {item.rest for item in images}
    further = sorted({item.rest[-1] for item in masks if item.rest and item.rest not in below and item.role_folder})
    if len(further) > 1 and {item.rest[:-1] for item in masks} <= below:
        stems = Counter(words.same(item.base) for item in masks)
        if stems and stems.most_common(1)[0][1] > 1:
            raise ValueError(
                f"{root} can be read in two ways: the folders {_some(further)} of masks are one class each, or several masks of "
                f"one class (of several people, perhaps). Give one of them (reading.masks={masks[0].role_folder}/{further[0]}, the "
                "others with reading.passed_over), or write one mask per image with class numbers 1, 2, ..."
            )
    if len(further) == 1 and {item.rest[:-1] for item in masks if item.rest} <= below:
        for item in masks:
            item.rest = item.rest[:-1] if item.rest and item.rest not in below else item.rest
        return further[0]
    return ""


def _match(images: list[Item], masks: list[Item], by_class: str) -> list[tuple[Item, Item]]:
    """(mask, image) pairs: by folders and name, or else by name alone, or else by names without their first word."""

    def without_word(item: Item, loose: bool = False) -> tuple:
        split, rest, _ = _key(item, loose)
        return (split, rest, _tail(words.same(item.base)))

    def by_first_number(item: Item, loose: bool = True) -> tuple:
        split, rest, _ = _key(item, loose)
        return (split, rest, "".join(c for c in _tail(words.same(item.base)) if c.isalnum()))

    pairs: list[tuple[Item, Item]] = []
    beside = [(mask, mask.partner) for mask in masks if mask.partner is not None and mask.partner.role in ("", "image")]
    masks = [mask for mask in masks if mask.partner is None or mask.partner.role not in ("", "image")]

    def without_channel(item: Item, loose: bool = False) -> tuple:
        split, rest, stem = _key(item, loose)
        return (split, rest, re.sub(r"_0000$", "", stem))  # nnU-Net's number of the channel

    def without_index(item: Item, loose: bool = False) -> tuple:
        split, rest, stem = _key(item, loose)
        return (split, rest, INDEX.sub("", stem) if item.role == "mask" else stem)

    def without_index_and_word(item: Item, loose: bool = False) -> tuple:
        split, rest, stem = without_index(item, loose)
        return (split, rest, _tail(stem))

    def beside_each_other(item: Item, loose: bool = True) -> tuple:
        """The folder around images/ with one image and masks/ with many."""
        return (item.split, tuple(part for part in item.parts if part != item.role_folder))

    def without_image_word(item: Item, loose: bool = True) -> tuple:
        split, rest, stem = _key(item, loose)
        return (split, rest, words.without_image_word(stem))

    for key, loose in (
        (_key, False),
        (_key, True),
        (without_channel, False),
        (without_image_word, False),
        (without_image_word, True),
        (without_word, False),
        (without_word, True),
        (by_first_number, True),
        (without_index, False),
        (without_index, True),
        (without_index_and_word, True),
        (beside_each_other, True),
    ):
        if pairs:
            break
        if key is beside_each_other and len({key(mask) for mask in masks}) < 2:
            continue
        by_stem = defaultdict(list)
        for image in images:
            by_stem[key(image, loose)].append(image)
        for mask in masks:
            candidates = by_stem.get(key(mask, loose), [])
            if len(candidates) > 1 and loose:  # pos_gt/1.png: the 1.png of pos/, not of neg/
                folder = set(words.words_of(mask.parts[-1])) if mask.parts else set()
                near = [c for c in candidates if c.parts and folder >= set(words.words_of(c.parts[-1]))]
                candidates = near if len(near) == 1 else candidates
            if len(candidates) == 1 or (candidates and key is _key and not loose):
                pairs.append((mask, _best(mask, candidates)))
            elif (
                not candidates
                and key is _key
                and (image := by_stem.get((mask.split, key(mask, loose)[1], words.same(mask.stem))))
            ):
                pairs.append((mask, _best(mask, image)))
        if pairs and key is beside_each_other:
            for mask, image in pairs:  # the folder is that of one image
                mask.rest, image.rest = mask.rest[:-1], image.rest[:-1]
    if pairs:  # x_1.png beside x.png: a further lesion
        matched = {id(mask) for mask, _ in pairs}
        by_key = defaultdict(list)
        for image in images:
            by_key[_key(image)].append(image)
        for mask in masks:
            if id(mask) not in matched and len(candidates := by_key.get(without_index(mask), [])) == 1:
                pairs.append((mask, candidates[0]))
    return beside + pairs


def _main_kind(
    root: Path, matched: list[tuple[Item, Item]], reading, understood: Understanding
) -> set[tuple[str, str]]:
    """The kind of mask that is used, where images have several: the one that nearly all images have."""
    kinds = Counter((mask.role_folder or "", mask.word) for mask, _ in matched)
    per_split = defaultdict(set)
    for mask, image in matched:
        per_split[mask.role_folder or "", mask.word].add(id(image))
    if len(kinds) == 1:
        return set(kinds)
    if named := {kind for kind in kinds if {kind[0], kind[1]} & {name.strip("/") for name in reading.masks}}:
        return named
    (first, count), (second, next_count) = kinds.most_common(2)
    shared = len(per_split[first] & per_split[second])
    if not shared:  # another word for other images: train_masks and test_masks
        overlapping = [kind for kind in kinds if kind != first and per_split[kind] & per_split[first]]
        return set(kinds) - set(overlapping)
    if next_count <= 0.5 * count:
        others = [kind for kind in kinds if kind != first]
        names = ", ".join(kind[1] or kind[0] for kind in others)
        understood.notes.append(
            f"{first[1] or first[0]} is taken for the mask; further kinds of masks are left out: {names}"
        )
        return {first}
    if one := _same_in_another_form(root, matched, list(kinds)):
        others = [kind[0] or kind[1] for kind in kinds if kind != one]
        understood.notes.append(
            f"{one[0] or one[1]} is taken for the mask; the same in another form is left out: {_some(others)}"
        )
        return {one}
    raise ValueError(
        f"{root} can be read in two ways: images have masks called {first[1] or first[0]!r} ({count}) and "
        f"{second[1] or second[0]!r} ({next_count}). Say which with reading.masks={first[1] or first[0]}, or write one "
        "mask per "
        "image with class numbers 1, 2, ... and name it in the mask column of a manifest.csv"
    )


def _same_in_another_form(
    root: Path, matched: list[tuple[Item, Item]], kinds: list[tuple[str, str]]
) -> tuple[str, str] | None:
    """The kind that counts of VOC's classes and objects, and of images and arrays; None for others."""
    classes = [
        kind for kind in kinds if not {"object", "objects", "instance", "instances"} & set(words.words_of(kind[0]))
    ]
    if len(classes) == 1:
        return classes[0]
    arrays = {
        kind for kind in classes if all(m.path.endswith(".npy") for m, _ in matched if (m.role_folder, m.word) == kind)
    }
    pictures = [kind for kind in classes if kind not in arrays]
    return pictures[0] if len(pictures) == 1 else None


# ---- labels and groups ----------------------------------------------------------------------------------------------


@dataclass
class Levels:
    """What the folders around images are, level by level.

    tops:        names of the first folders
    below:       the further folders of each first one that has any
    patients:    the first folders are patients, days or clips
    days:        they are days
    labelled:    the folders below patients are labels
    grouped:     the folders below classes are groups
    views_first: the first folders are views, and a patient is in every one
    """

    tops: set[str]
    below: list[tuple[str, ...]]
    patients: bool
    days: bool
    labelled: bool
    grouped: bool
    views_first: bool


def _levels(items: list[Item], reading, understood: Understanding) -> Levels:
    """What the folders are; those that say nothing are taken out of `rest`. ValueError where two readings are possible."""
    if items and not all(item.role == "image" for item in items):
        for item in items:  # a class called `original` beside others
            if item.role == "image" and not item.masks and item.word != "target":
                item.rest = tuple(part for part in item.parts if not words.folder_of(part).split)
    _drop_common_folder(items)
    around = [
        item.role == "image" and item.role_folder in item.parts and item.rest[:1] == tuple(item.parts[:1])
        for item in items
        if item.parts and item.parts[0] != item.role_folder
    ]
    if len({item.rest for item in items}) == 1 and len(around) == len(items) and all(around):
        for item in items:
            item.rest = ()  # one folder around images/ and masks/
    if _a_folder_each(items):
        for item in items:
            item.rest = item.rest[:-1]
    tops = {item.rest[0] for item in items if item.rest}
    surely = all(re.match(r"(?i)(pat|subj|sub[-_]|person|volunteer|proband|pac|paz|mrn)", top) for top in tops)
    patients = len(tops) >= (2 if surely else LABEL_PATIENTS) and all(map(words.is_patient_folder, tops))
    _set_aside(understood.source, tops, reading)
    both = {top: words.patient_and_class(top) for top in tops}
    if len(tops) > 1 and all(both[top][1] for top in tops) and not reading.folders:
        _patients_and_classes(items, both, understood)
        tops = {item.rest[0] for item in items if item.rest}
    while len(tops) == 1 and all(item.rest for item in items) and _is_no_class_but_for_patients(*tops):
        for item in items:  # one day, one study, one clip: it divides nothing
            item.rest = item.rest[1:]
        tops = {item.rest[0] for item in items if item.rest}
    ids = len(tops) > 1 and all(map(_is_no_class_but_for_patients, tops))
    patients = patients or reading.folders == "patients" or (ids and not reading.folders)
    days = ids and patients and any(map(words.is_date, tops))
    deeper = defaultdict(set)
    for item in items:
        if len(item.rest) > 1:
            deeper[item.rest[0]].add(item.rest[1:])
    if not patients and not reading.folders:
        _classes_at_one_level(understood.source, tops, deeper)
        _few_in_each(understood.source, tops, items)
    kinds = {rest[0] for several in deeper.values() for rest in several}
    if patients and (len(kinds) < 2 or any(map(words.is_no_class, kinds))):
        kinds = set()  # visits, days or sides below patients are no labels
    below = [rest for several in deeper.values() for rest in several]
    named = bool(below) and all(
        any(map(words.is_no_class, rest)) and not all(map(words.is_side, rest)) for rest in below
    )
    numbered = all(re.search(r"\d", rest[-1]) for rest in below) or len(below) >= 5 * len(deeper)
    one_each = numbered and not all(
        words.is_side(rest[0]) for rest in below
    )  # not kinds of a class, nor left and right
    many = one_each and bool(below) and len(below) >= 2 * len(deeper) and reading.folders not in ("below", "both")
    views_first = bool(tops) and all(map(words.is_view, tops))
    labelled = bool(kinds) and len(set(below)) < len(below)
    return Levels(tops, below, patients, days, labelled, named or many, views_first)


def _label_and_group(rest: tuple[str, ...], levels: Levels, reading) -> tuple[str, str]:
    """What the folders of an image say, "" for what they do not say."""
    if not rest:
        return "", ""
    if levels.patients:
        return rest[1] if len(rest) > 1 and levels.labelled else "", rest[0]
    label = rest[0]
    if reading.folders == "below":
        label = rest[1] if len(rest) > 1 else ""
    elif reading.folders == "both":
        label = " ".join(rest[:2])
    return label, "/".join(_patient_of(rest)[levels.views_first :]) if len(rest) > 1 and levels.grouped else ""


def _labels_and_groups(items: list[Item], reading, understood: Understanding) -> None:
    """Add a record for each image, with the label and the group that folders and names say, and tell where they come from."""
    levels = _levels(items, reading, understood)
    originals, views = _originals(items), {} if reading.groups else _views(items)
    by_name = varied = 0
    for item in items:
        label, group = _label_and_group(item.rest, levels, reading)
        record = Record(id=without_extension(item.path), path=item.path, label=label, group=group, split=item.split)
        if item.word == "target":
            record.target = item.masks[0]
        else:
            record.mask = joined_paths(item.masks)
        # a DICOM file says itself whose it is
        if (
            not group
            and frames.extension_of(item.path) not in ("", *frames.DICOM_EXTENSIONS)
            and (whose := words.group_of_name(item.stem))
        ):
            # numbers of patients begin anew in other folders only by chance; those of clips do so always
            record.group = whose if words.PATIENT_IN_NAME.search(item.stem) else "/".join((*item.parts, whose))
            by_name += 1
        elif not group and item.path in views:
            record.group = views[item.path]
        elif not group and (original := originals.get(item.path, "")):
            record.group = original
            varied += 1
        understood.records.append(record)
        understood.add("image", _what(record), item.path)
    _apart_in_splits(understood)
    _tell_groups(understood, levels, by_name)
    _tell_copies(understood, originals, views, varied)
    if levels.days:
        understood.notes.append(
            "the first folders are days, which are taken for groups and not for classes: a patient who came on several days may "
            "lie in two splits"
        )
    if levels.patients and not levels.days and not any(r.label for r in understood.records):
        understood.notes.append(NO_LABELS)


def _tell_groups(understood: Understanding, levels: Levels, by_name: int) -> None:
    """Say where groups come from; numbered names that give each image a group of its own give none.

    by_name: images whose name says their group
    """
    groups = {record.group for record in understood.records if record.group}
    if levels.patients:
        whose = "days" if levels.days else "clips" if all(map(words.is_clip_folder, levels.tops)) else "patients"
        understood.groups = f"folders of {whose}, e.g. {min(levels.tops)}/"
    elif levels.grouped:
        understood.groups = f"folders below the classes, e.g. {'/'.join(min(levels.below))}/"
        if not levels.views_first and (
            twice := sorted(rest for rest, times in Counter(levels.below).items() if times > 1)
        ):
            understood.notes.append(
                f"{len(twice)} names of folders stand below several classes (e.g. {'/'.join(twice[0])}/) and are taken for "
                "different patients: if one is the same patient, name the groups in a manifest.csv, or splits may divide a patient"
            )
    elif levels.below:
        understood.notes.append(
            f"folders below the first one are used neither as labels nor as groups, e.g. {'/'.join(min(levels.below))}/"
        )
    if by_name and len(groups) < len(understood.records):
        example = next(
            r for r in understood.records if r.group and words.group_of_name(without_extension(r.path.split("/")[-1]))
        )
        understood.groups = f"by the names of files: {example.path} belongs to {example.group}"
    elif by_name and not (levels.patients or levels.grouped):
        for record in understood.records:  # each its own: duplicates are found as ever
            record.group = ""


def _tell_copies(understood: Understanding, originals: dict[str, str], views: dict[str, str], varied: int) -> None:
    """Say that varied copies and views are in the groups of their originals; varied: images that are in one of a copy."""
    if varied:
        understood.notes.append(
            f"{varied} images are varied copies by their names, and their originals (e.g. {next(iter(originals))}): each copy "
            "is in the group of its original; copies in val and test are no independent images"
        )
        understood.groups = understood.groups or "by the names of varied copies"
    if example := next((record for record in understood.records if record.group == views.get(record.path)), None):
        understood.groups = (
            understood.groups
            or f"by the names of files without view or version: {example.path} belongs to {example.group}"
        )


def _classes_at_one_level(source: str, tops: set[str], deeper: dict[str, set]) -> None:
    """ValueError where the classes can be the first folders or those below, or numbered folders classes or patients."""
    padded = any(len(top) > 2 and top.startswith("0") for top in tops)
    if len(tops) > (1 if padded else NUMBERED) and all(top.isdigit() for top in tops):
        raise ValueError(
            f"{source} can be read in two ways: its {len(tops)} numbered folders ({_some(sorted(tops, key=natural_key))}) are "
            "classes, or patients. Say reading.folders=classes or reading.folders=patients"
        )
    counts = Counter(name for several in deeper.values() for name in {rest[0] for rest in several})
    plain = [name for name in counts if not (name.isdigit() or words.is_no_class(name) or words.is_fold(name))]
    repeated = sorted(name for name in plain if counts[name] > 1)
    if len(repeated) > 1 and len(repeated) >= 0.5 * len(counts):
        first = sorted(deeper)
        raise ValueError(
            f"{source} can be read in two ways: the classes are the first folders ({_some(first)}) or those below them "
            f"({_some(repeated)}). Say reading.folders=classes, reading.folders=below, or reading.folders=both for classes such as "
            f"{first[0] + ' ' + repeated[0]!r}; reading.folders=patients where the first are patients"
        )


def _is_no_class_but_for_patients(name: str) -> bool:
    """Whether a folder is named by a day, a number of a server or a clip."""
    return words.is_date(name) or words.is_number_of_server(name) or words.is_clip_folder(name)


def _a_folder_each(items: list[Item]) -> bool:
    """Whether each image lies in a folder of its own and is called `img` or so there: the folder is its name, and no class."""
    rests = {item.rest for item in items}
    return (
        len(items) > 2
        and len(rests) == len(items)
        and all(rest and not words.is_no_class(rest[-1]) for rest in rests)
        and all(words.words_of(item.stem) and set(words.words_of(item.stem)) <= words.IMAGES for item in items)
    )


def _set_aside(source: str, tops: set[str], reading) -> None:
    """ValueError where a folder of what was taken out of the set lies beside the classes."""
    copies = sorted(top for top in tops if words.original_of(top) in tops)
    if copies and not reading.folders:
        raise ValueError(
            f"{source} can be read in two ways: {_some(copies)} is a class, or holds varied copies of "
            f"{words.original_of(copies[0])}. Say reading.passed_over=[{', '.join(copies)}] or reading.folders=classes"
        )
    aside = sorted(top for top in tops if words.says_set_aside(top))
    if aside and len(tops) > len(aside) and not reading.folders:
        raise ValueError(
            f"{source} can be read in two ways: {_some(aside)} is a class, or holds what was taken out of the set. Say "
            f"reading.passed_over=[{', '.join(aside)}] or reading.folders=classes"
        )


def _patients_and_classes(items: list[Item], both: dict[str, tuple[str, str]], understood: Understanding) -> None:
    """P012_benign/: the class comes first and the patient below it, as in other trees."""
    for item in items:
        if item.rest:
            patient, label = both[item.rest[0]]
            item.rest = (label, patient, *item.rest[1:])
    example = min(both)
    understood.notes.append(f"folders name a patient and a class: {example}/ is {both[example][0]}, {both[example][1]}")


def _few_in_each(source: str, tops: set[str], items: list[Item]) -> None:
    """ValueError where very many folders hold very few images each: patients more often than classes."""
    if len(tops) > MANY_FOLDERS and len(items) < FEW_IMAGES * len(tops):
        raise ValueError(
            f"{source} can be read in two ways: its {len(tops)} folders ({_some(sorted(tops, key=natural_key))}) with "
            f"{len(items) / len(tops):.0f} images each are classes, or patients. Say reading.folders=classes or "
            "reading.folders=patients"
        )


def _patient_of(rest: tuple[str, ...]) -> tuple[str, ...]:
    """The folders of one patient, below a class: without visits, days and sides below that."""
    while len(rest) > 2 and words.is_no_class(rest[-1]) and not words.is_patient_folder(rest[-1]):
        rest = rest[:-1]
    return rest


def _views(items: list[Item]) -> dict[str, str]:
    """Path of an image -> the group of those that differ in the view alone: 003_L with 003_R, left/003 with right/003."""
    by_name: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        sides = [part for part in item.rest if words.is_side(part)]
        base = words.without_view(item.stem) or (item.stem if sides else "")
        if base:
            by_name["/".join((*(part for part in item.parts if not words.is_side(part)), base))].append(item)
    return {item.path: name for name, several in by_name.items() if len(several) > 1 for item in several}


def _originals(items: list[Item]) -> dict[str, str]:
    """Path of a varied copy, or of an original that has copies -> the group of both."""
    stems = {("/".join(item.parts), words.same(item.stem)): item.path for item in items}
    copies: dict[str, str] = {}
    for item in items:
        folder, original = "/".join(item.parts), words.original_of(item.stem)
        if original and (path := stems.get((folder, words.same(original)))):
            copies[item.path] = copies[path] = without_extension(path)
    return copies


def _apart_in_splits(understood: Understanding) -> None:
    """Names of patients that occur in two split folders: numbers that begin anew, or the same patients on both sides."""
    seen = defaultdict(set)
    for record in understood.records:
        if record.group and record.split:
            seen[record.group].add(record.split)
    both = {group for group, splits in seen.items() if len(splits) > 1}
    if both:
        understood.warnings.append(
            f"{len(both)} names of patients or clips occur in two split folders, e.g. {min(both)}: taken for different "
            "ones, as numbers "
            "often begin anew; if they are the same, the test is not independent"
        )
        for record in understood.records:
            if record.group in both:
                record.group = f"{record.split} {record.group}"


def _what(record: Record) -> str:
    parts = [record.split] * bool(record.split) + [f"label {record.label}"] * bool(record.label)
    if record.mask:
        parts.append("with a mask")
    return ", ".join(parts) or "without a label"


def _classes_or_else(root: Path, items: list[Item], understood: Understanding) -> None:
    """ValueError where folders that would be classes hold the same pictures under the same names, or are named like parts."""
    folders = defaultdict(dict)
    for item in items:
        if item.rest:
            folders[item.rest[0]][(item.split, item.rest[1:], words.same(item.stem))] = item
    names = sorted(folders)
    labelled = {record.label for record in understood.records if record.label}
    if len(names) < 2 or not labelled:
        return
    if all(map(words.is_fold, names)):
        raise ValueError(
            f"{root} can be read in two ways: {_some(names)} are classes, or parts of one set. Say "
            "reading.folders=classes, or reading.folders=below (the classes lie below them, or there are none), give one of "
            "them, or write a manifest.csv with the columns path,label,group,split"
        )
    if len(names) <= MOST_CLASSES:
        _masks_among_classes(root, names, folders)
    if len(names) > 6:
        return
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            both = sorted(folders[first].keys() & folders[second].keys())
            if len(both) < 3 or len(both) < 0.8 * min(len(folders[first]), len(folders[second])):
                continue
            pairs = [(folders[first][key].path, folders[second][key].path) for key in both]
            if looks.same_pictures(root, pairs):
                raise ValueError(
                    f"{root} can be read in two ways: {first}/ and {second}/ are classes, or two versions of the same "
                    "images (e.g. "
                    f"{pairs[0][0]} and {pairs[0][1]}). Say reading.folders=classes, or for pairs reading.targets={second} "
                    f"(or {first}), or pass one over with reading.passed_over"
                )


def _masks_among_classes(root: Path, names: list[str], folders: dict[str, dict]) -> None:
    """ValueError where one of the folders that would be classes holds masks, which pair with nothing."""
    shares = {name: looks.share_of_masks(root, [item.path for item in folders[name].values()]) for name in names}
    masks = [name for name in names if (shares[name] or 0) >= 0.75 and len(folders[name]) > 2]
    if masks and any(shares[name] is not None and shares[name] <= 0.25 for name in names):
        example = next(iter(folders[masks[0]].values())).path
        raise ValueError(
            f"{root} can be read in two ways: {_some(masks)} is a class, or holds masks whose names fit no image (e.g. {example}, "
            "which has few values in large areas). Say reading.folders=classes, pass it over with reading.passed_over, or name "
            "image and mask in a manifest.csv with the columns path,mask"
        )


def _drop_common_folder(items: list[Item]) -> None:
    """Folders around everything say nothing, as long as further ones follow."""
    while items and all(len(item.rest) > 1 for item in items) and len({item.rest[0] for item in items}) == 1:
        for item in items:
            item.rest = item.rest[1:]
    if len({item.rest[:1] for item in items}) == 1 and all(item.split and item.rest for item in items):
        if any(len(item.rest) > 1 for item in items):  # data/train/a/1.png with data/test/2.png
            for item in items:
                item.rest = item.rest[1:]


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
