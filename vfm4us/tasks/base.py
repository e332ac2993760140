"""What a downstream task is, and what all of them share: a run per seed, testing, saved models, evaluation of new images.

    result = classification.TASK.run_seeds(config)      # one run folder per seed below logs/<name>, then one table of all
    model, about = classification.TASK.load(FILE)       # a trained model, and what is known of it

A task is one file: a subclass of `Task` that says what is its own (data, network, how it learns, what is compared), and an instance
of it by the name TASK. Its keys lie in sections.py, and its two scripts call what command_line.py holds.

What one seed's model did on the test images (an outcome, see evaluation/statistics.py) is kept in test.npz.
"""

import copy
import importlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vfm4us import checkpoints, log, markdown
from vfm4us.checkpoints import load_encoder, released, seen
from vfm4us.checkpoints.loading import open_checkpoint
from vfm4us.config import to_dict
from vfm4us.data import splits as splitting
from vfm4us.data.csv_files import write_rows
from vfm4us.data.dataset import PreparedDataset, is_prepared
from vfm4us.data.filling import fill_unpacked
from vfm4us.data.pools import kept_leakage
from vfm4us.data.prepare import open_or_prepare
from vfm4us.data.reading import frames_of, reading_of
from vfm4us.data.records import Record
from vfm4us.data.shares import PRETRAINING
from vfm4us.data.sources import find_source, source_root
from vfm4us.encoders import Encoder
from vfm4us.evaluation.statistics import INTERVAL, Outcome, few_groups
from vfm4us.runtime.device import choose_device, computing, device_name
from vfm4us.runtime.files import write_array, write_text
from vfm4us.runtime.rng import numpy_stream
from vfm4us.runtime.run import RunFolder, refuse_changed
from vfm4us.tasks.finetune import make_encoder, refuse_missing_weights, weights_of
from vfm4us.tasks.settings import TaskConfig, TaskDataConfig
from vfm4us.tasks.trained_on import differences, seen_in_training, trained_on

HEAD = "module.head."  # of a saved model's tensors: all but the encoder's


@dataclass
class Cases:
    """What a model did with images from their files: a row for each that has a truth, and what could not be compared or read."""

    records: list[Record] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(
        default_factory=list
    )  # numbers and words, alike in each: the arrays of the outcome
    without: list[tuple[Record, str]] = field(default_factory=list)  # no truth; and the file that was written, if any
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    more: dict[str, np.ndarray] = field(default_factory=dict)  # of the outcome, not of single images
    rule: str = ""  # how a figure of all images together was measured, or why not

    def readable(self, records: Iterable[Record], read: Callable[[Record], Any]) -> Iterator[tuple[Record, Any]]:
        """Each record with what `read` gives of it; one that it refuses is put on the list of the unreadable."""
        for record in records:
            try:
                content = read(record)
            except ValueError as error:
                self.unreadable.append((record.path, str(error)))
                continue
            yield record, content

    def refuse_unreadable(self, root: Path) -> None:
        """ValueError where a file of a test, which was read when it was packed, could not be read."""
        for path, reason in self.unreadable:
            raise ValueError(f"{root / path}: {reason}; it was readable when it was packed")

    def outcome(self) -> Outcome:
        """Arrays over images (N, ...), for test.npz."""
        records = self.records
        return (
            {
                "paths": np.array([r.path for r in records]),
                "groups": np.array([r.group or r.id for r in records]),
                "sizes": np.array([(r.height, r.width) for r in records]),
            }
            | {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}
            | self.more
        )


# ---- what a task is -------------------------------------------------------------------------------------------------


class Task:
    """A subclass says what is its own; what stands here is the same for all."""

    name: str  # the module's, in configs, tables, metrics.json and saved models
    config: type[TaskConfig]
    figures: ModuleType  # of vfm4us.evaluation: outcome_scores(outcome, counts) and evaluate(outcomes)
    file: str  # the trained model in a run folder
    model: str  # what it is called: "classifier"
    truth: str  # what images are compared with: "label"
    explained = ""  # the page that says what each figure means
    writes_images = True  # an evaluation writes images, which must not lie in its data

    # -- its own

    def check(self, config) -> None:
        """ValueError for settings that cannot go together, before anything is read."""

    def read(self, config) -> Any:
        """The data: `dataset` (PreparedDataset), `train`, `val` and `test` (rows of it), and what else the task needs."""
        raise NotImplementedError

    def describe(self, data) -> str:
        """One line: classes, numbers of images, what is left out."""
        raise NotImplementedError

    def train(
        self, config, data, encoder: Encoder, folder: RunFolder, device: torch.device
    ) -> tuple[nn.Module, dict[str, np.ndarray]]:
        """The trained (or continued) model, and what of its validation belongs into the outcome, by names that begin with val_."""
        raise NotImplementedError

    def test(self, config, data, model: nn.Module, where: Path, validated: dict[str, np.ndarray]) -> Outcome:
        """What the model does on the test images; writes what a user wants to see of it into `where`."""
        raise NotImplementedError

    def learnt_from(self, data) -> list[str]:
        """sha256 of every image that the model learns from or is chosen by."""
        return [data.dataset.sha256[i] for i in (*data.train, *data.val)]

    def protocol(self, config, data, outcome: Outcome, result: dict) -> dict[str, Any]:
        """Lines of metrics.json that say how the figures were measured."""
        raise NotImplementedError

    def ensemble(self, outcomes: list[Outcome]) -> dict[str, dict]:
        """Figures of all seeds' models taken together."""
        return {}

    def conclusion(self, result: dict[str, dict]) -> str:
        """What is said below the table, if anything."""
        return ""

    def encoder_of(self, model: nn.Module) -> Encoder:
        """The encoder within a model of this task."""
        return model.encoder

    def head_of(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a saved model beside its encoder's, by names below `module.`."""
        return {f"head.{k}": v for k, v in model.head.state_dict().items()}

    def facts(self, model: nn.Module, config) -> dict[str, Any]:
        """What a saved model says beside its tensors, enough to `build` it again."""
        raise NotImplementedError

    def build(self, about: dict[str, Any], encoder: Encoder, head: dict[str, Tensor]) -> nn.Module:
        """The model of a file: what it says, its encoder, its head's tensors."""
        raise NotImplementedError

    def use(self, model: nn.Module, about: dict[str, Any], root: Path, records: list[Record], options) -> Cases:
        """What a trained model does with other images, for the evaluation script; writes it into options.out."""
        raise NotImplementedError

    def report(self, model: nn.Module, about: dict[str, Any], root: Path, cases: Cases, options) -> None:
        """Pictures and lists of an evaluation."""

    def evaluation_protocol(self, model: nn.Module, about: dict[str, Any], cases: Cases, options) -> dict[str, Any]:
        """Lines of an evaluation's metrics.json."""
        return {}

    # -- the same for all

    def below(self, said: str) -> list[str]:
        """What stands below a table of figures: the conclusion, and where the figures are explained."""
        return [*filter(None, [said, self.explained and f"what each figure means: {self.explained}"])]

    def run_seeds(self, config, say=log.say) -> dict[str, dict]:
        """Every seed's run, then metrics.json and table.md of all of them in logs/<name>."""
        folders = run_each_seed(config, lambda one, folder: self.run_seed(one, folder, say), say)
        outcomes = [read_outcome(folder) for folder in folders]
        result = self.figures.evaluate(outcomes)
        if result and (few := few_groups(outcomes)):
            say(f"note: {few}")
        if len(outcomes) > 1 and not config.data.folds:  # cross-fitted models were tested on other images each
            result |= self.ensemble(outcomes)
        write_summary(folders, config.seeds, result)
        return result

    def run_seed(self, config, where: Path, say=log.say) -> None:
        """Train (or continue) and test the run of `config.seed` in the folder `where`."""
        self.check(config)
        device = choose_device(config.device)
        say(computing(device, config.precision))
        data = self.read(config)
        encoder, report = make_encoder(config.encoder, config.seed)
        folder = RunFolder(where, config, config.resume)
        try:
            say(f"{where}: images of {data.dataset.size} px, {self.describe(data)}")
            say(f"encoder: {report or 'random ' + config.encoder.name}")
            weights = weights_of(config.encoder, config.seed)
            known = seen.seen(weights)
            shared = () if len(known) else shared_with_pretraining(config)
            duplicates = report_duplicates(data.dataset, config.data, where, shared, weights, known)
            say(duplicates)
            torch.manual_seed(config.seed)
            model, validated = self.train(config, data, encoder, folder, device)
            images = {
                "digests": seen.kept(seen.digests(self.learnt_from(data))),
                "pretraining_digests": seen.kept(known),
            }
            self.save(where / self.file, model, config, data.dataset.size, trained_on(data.dataset) | images)
            outcome = self.test(config, data, model, where, validated) | validated
            if folds := config.data.folds:
                outcome["fold"] = np.array([config.seed % folds, folds])
            write_outcome(where, outcome)
            result = self.figures.evaluate([outcome])
            about = self.protocol(config, data, outcome, result) | {"duplicates": duplicates}
            write_metrics(where, self.name, config, data.dataset, result, **about)
            if said := self.conclusion(result):
                say(said)
        finally:
            folder.close()

    def save(self, path: Path, model: nn.Module, config, size: int, known: dict[str, Any] | None = None) -> None:
        """`module.base_encoder.*` as in every checkpoint, beside it the head and the `size` of training images, px.

        known: what `trained_on` says of the training images, and their digests
        """
        encoder = self.encoder_of(model)
        tensors = {checkpoints.ENCODER_PREFIX + k: v for k, v in encoder.published_state().items()}
        tensors |= {f"module.{k}": v.detach().cpu().contiguous() for k, v in self.head_of(model).items()}
        state = {"state_dict": tensors, "encoder": encoder.spec_dict(), "task": self.name, "size": size}
        state |= {"trained_on": known or {}}
        state |= {"in_channels": encoder.spec.in_channels} | self.facts(model, config) | {"config": to_dict(config)}
        checkpoints.save(path, state)

    def load(self, path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
        """A trained model from its file or run folder, ready to use, and what the file says beside the tensors.

        ValueError where the file is of something else.
        """
        path = Path(path)
        if path.is_dir():
            inside = [path / self.file, *sorted(path.glob(f"seed-*/{self.file}"))]
            inside = [p for p in inside if p.is_file()]
            checkpoint = next(iter(inside), None)
            if len(inside) > 1:
                log.note(f"{path} holds {len(inside)} models: {checkpoint} is used; give another by its path")
            if checkpoint is None:
                others = sorted({p.name for pattern in ("*.pt", "seed-*/*.pt") for p in path.glob(pattern)})
                begun = [place for place in (path, *sorted(path.glob("seed-*"))) if (place / "checkpoints").is_dir()]
                if begun and not others:
                    raise FileNotFoundError(
                        f"{path} holds no {self.file} yet: {begun[0]} is not finished. The command that began it goes on"
                    )
                raise FileNotFoundError(
                    f"{path} holds no {self.file}, which Downstream/{self.name.capitalize()}/train.py writes there"
                    + (f"; it holds {', '.join(others)}, of another task" if others else "")
                )
            path = checkpoint
        state = checkpoints.read(path)
        if state.get("task") != self.name:
            raise ValueError(
                f"{path} is no {self.model} (Downstream/{self.name.capitalize()}/train.py writes {self.file} into its run folder)"
            )
        encoder = load_encoder(state, state["in_channels"])
        tensors = state.pop("state_dict")
        head = {k.removeprefix(HEAD): v for k, v in tensors.items() if k.startswith(HEAD)}
        return self.build(state, encoder, head).eval(), state

    @torch.no_grad()
    def evaluate_files(self, options, say=log.say) -> dict[str, dict]:
        """Use a trained model on other images, compare where there is a truth, write metrics.json; the figures, if any."""
        model, about = self.load(options.checkpoint)
        model, source, out = model.to(choose_device(options.device)), Path(options.data), out_of(options)
        options.out = str(out)
        known = about.get("trained_on", {})
        records = source_records(source, options.split, bool(known.get("blank")), about["size"])
        root = source_root(source)
        if self.writes_images:
            refuse_output_within(root, out)
        out.mkdir(parents=True, exist_ok=True)
        told = differences(known, root, records) + seen_in_training(about, root, records)
        for words in told:
            log.note(words, logging.WARNING)
        cases = self.use(model, about, root, records, options)
        for path, reason in cases.unreadable:
            log.note(f"cannot be read: {path}: {reason}", logging.WARNING)
        if not cases.records and not cases.without:
            raise ValueError(f"none of the {len(records)} images of {source} can be read")
        self.report(model, about, root, cases, options)
        result = self.figures.evaluate([cases.outcome()]) if cases.records else {}
        said = self.conclusion(result)
        if result and (few := few_groups([cases.outcome()])):
            say(f"note: {few}")
        if cases.records and cases.without:
            say(
                f"{len(cases.without)} images without a {self.truth} are left out of the metrics (e.g. {cases.without[0][0].path})"
            )
        if not result:
            say(said or f"no {self.truth}s to compare with: no metrics")
            return {}
        protocol = {
            "checkpoint": str(options.checkpoint),
            "input_size": about["size"],
            "unreadable": len(cases.unreadable),
            f"without_{self.truth}": len(cases.without),
            "warnings": told,
            "interval": "95 %, bootstrap over groups (single images where there are none)",
            "device": device_name(),
        }
        whole = {
            "task": self.name,
            "dataset": str(source),
            "split": options.split,
            "seeds": [],
            "protocol": protocol | self.evaluation_protocol(model, about, cases, options),
            "metrics": result,
        }
        write_text(out / "metrics.json", json.dumps(whole, indent=1))
        say("\n".join(["", table(result, 1), "", *self.below(said), f"written to {out / 'metrics.json'}"]))
        return result


def out_of(options) -> Path:
    """Where an evaluation writes: what it was told, or a folder of this model on these data."""
    if options.out:
        return Path(options.out)
    place = Path(os.path.abspath(options.checkpoint))
    place = place.parent if place.is_file() else place
    model = f"{place.parent.name}-{place.name}" if place.name.startswith("seed-") else place.name
    return Path("evaluation") / f"{model}-on-{Path(os.path.abspath(options.data)).name}"


def task_named(name: str) -> Task:
    """The task of a module of vfm4us.tasks, one of sections.TASKS."""
    return importlib.import_module(f"vfm4us.tasks.{name}").TASK


# ---- data -----------------------------------------------------------------------------------------------------------


def open_dataset(config: TaskDataConfig, wanted: str, seed: int | None = None) -> PreparedDataset:
    """The dataset of a task, packed if need be. `wanted` says in the error what may be given.

    `seed` is the run's, by which a cross-fitted one knows its fold; ValueError where a task that gives none is asked for folds.
    """
    path = Path(config.path)
    if not config.path or not path.exists():
        raise FileNotFoundError(
            f"data.path: {config.path!r} does not exist (looked from {Path.cwd()}); give {wanted} with data.path=DIR"
            + (f"\n{config.hint}" if config.hint else "")
        )
    reading = frames_of(config.frames)
    dataset = open_or_prepare(path, Path(config.cache), config.size, tuple(config.splits), reading=reading)
    if not config.folds:
        return dataset
    if seed is None:
        raise ValueError(f"data.folds: {config.folds}, but this task cannot be cross-fitted: leave it out")
    return dataset.test_on_fold(config.folds, seed % config.folds, config.with_test)


def files_of(dataset: PreparedDataset, config: TaskDataConfig, tested: np.ndarray) -> Path:
    """The folder of the files that a dataset was packed from; FileNotFoundError where the first file to test on is not there."""
    root = source_root(Path(dataset.description["source"] if is_prepared(config.path) else config.path))
    first = root / dataset.records[tested[0]].path
    if not first.is_file():
        raise FileNotFoundError(
            f"{first} is not there: tests are made at the original size, from the files that {config.path} was packed from; "
            "give their folder as data.path"
        )
    return root


def source_records(data: Path, split: str = "all", blank: bool = False, size: int = 0) -> list[Record]:
    """What an evaluation is asked to look at: the images of a folder, manifest or published dataset, or of one `split` of it.

    blank: fill burnt-in text, as a model's training images of `size` px were; a reading.yaml can ask for it as well
    """
    reading = reading_of(data)
    source = find_source(data, reading)
    if blank or reading.blank:
        count = fill_unpacked(source_root(data), source, size)
        log.say(f"text, scales or marks are filled in {count} of {len(source)} images" + ", as in training" * blank)
    records = [r for r in source if r.split != "exclude" and split in ("all", r.split)]
    if not records and split != "all":
        raise ValueError(f"{data} has no images in split {split}: use --split all")
    return records


def file_name(name: str, taken: set[str]) -> str:
    """A relative path that stays below its folder, from an id that may hold `..` or begin with `/`; each is given once."""
    clean = "/".join(part for part in name.split("/") if part not in ("", ".", "..")) or "image"
    unique, number = clean, 2
    while unique.lower() in taken:
        unique, number = f"{clean}#{number}", number + 1
    taken.add(unique.lower())
    return unique


def refuse_output_within(root: Path, out: Path) -> None:
    """ValueError where the folder `out` of an evaluation lies in its data, whose next reading would find what is written."""
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"--out {out} lies in the data {root}, where the next reading would find it: give another folder"
        )


def few_labels(rows: np.ndarray, codes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A seeded share of the training rows, of each class, at least one image of each; codes (all images,) name the class."""
    if share >= 1:
        return rows
    rng, kept = numpy_stream("share of labels", seed), []
    for code in np.unique(codes[rows]):
        of_class = rows[codes[rows] == code]
        kept.append(rng.permutation(of_class)[: max(1, round(share * len(of_class)))])
    return np.sort(np.concatenate(kept)) if kept else rows


def shared_with_pretraining(config: TaskConfig) -> list[tuple[tuple[float, ...], bool, int, int]]:
    """How the encoder's own pretraining used the data of this task: shares of its splits, whether it took all images, its folds
    (0: none) and the one it held back.

    As the config in the encoder's file states it, for files of before, which do not say their images; empty where it does not, or
    where it was pretrained on other folders.
    """
    if config.encoder.weights in ("none", "imagenet"):
        return []
    stated = open_checkpoint(weights_of(config.encoder, config.seed))[1].get("config")
    data = stated.get("data") if isinstance(stated, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(stated.get("stages"), list):
        return []
    root, shares, shared = Path(str(data.get("root", ""))), tuple(data.get("splits") or ()), []
    for stage in stated["stages"]:
        for source in (stage.get("data") or []) if isinstance(stage, Mapping) else []:
            path = source.get("path") if isinstance(source, Mapping) else None
            if isinstance(path, str) and (root / path).resolve() == Path(config.data.path).resolve():
                fold = [source.get(key) if isinstance(source.get(key), int) else 0 for key in ("folds", "fold")]
                shared.append((shares, source.get("split") == "all", *fold))
    return list(dict.fromkeys(shared))


REMEDY = (
    " (duplicates.csv names them): figures may flatter it. To leave them out of it, prepare the folder once "
    "(scripts/prepare_data.py folder) and give the prepared one to both"
)
RELEASED_REMEDY = (
    " (duplicates.csv names them), without labels: figures may flatter it. To test on others alone, give these the split train "
    "in a manifest.csv, or take another encoder"
)


def report_duplicates(
    dataset: PreparedDataset,
    config: TaskDataConfig,
    folder: Path,
    shared: Sequence[tuple[tuple[float, ...], bool, int, int]] = (),
    weights: str = "",
    known: np.ndarray = seen.NONE,
) -> str:
    """Write duplicates.csv: clusters within the dataset, and test images that occur in what was pretrained on.

    shared:  how the encoder's pretraining used this very folder, see `shared_with_pretraining`
    weights, known: an encoder, and the digests of all that it has seen
    """
    rows = []
    used = np.flatnonzero(dataset.splits != "exclude")
    # the perceptual clusters themselves, whatever groups the source came with
    clusters = splitting.duplicate_clusters(
        [dataset.sha256[i] for i in used],
        dataset.phash[used],
        thumbnail_of=lambda i: dataset.thumbnail_of(int(used[i])),
    )
    names, counts = np.unique(clusters, return_counts=True)
    several, divided = names[counts > 1], 0
    for name in several:
        members = used[clusters == name]
        divided += len(set(dataset.splits[members])) > 1
        rows += [["cluster", name, dataset.records[i].path, dataset.splits[i], ""] for i in members]
    test, found = dataset.indices("test"), set()
    compared = []
    for path in config.pretraining:
        if not Path(path).exists():
            raise FileNotFoundError(f"data.pretraining: {path!r} does not exist (looked from {Path.cwd()})")
        other = open_or_prepare(Path(path), Path(config.cache), dataset.size, PRETRAINING)
        compared.append((other, other.indices("train")))
    for shares, whole, folds, fold in shared:  # the same folder, as it was divided then
        other = open_or_prepare(
            Path(config.path), Path(config.cache), dataset.size, shares, reading=frames_of(config.frames)
        )
        other = other.hold_back(folds, fold) if folds else other
        pool = other.indices(None if whole else "train")
        if not whole:  # what nearly equals its own held-out images was left out of pretraining
            held = np.flatnonzero(np.isin(other.splits, ["val", "test"]))
            pool = np.delete(pool, [leak.pool_index for leak in kept_leakage(other, pool, other, held)])
        compared.append((other, pool))
    for other, pool in compared:
        for leak in splitting.leakage(other.fingerprints(pool), dataset.fingerprints(test)):
            row = int(test[leak.protected_index])
            found.add(row)
            rows.append(["pretraining", other.name, dataset.records[row].path, "test", leak.kind])
    seen_rows, warning = _seen_by(dataset, weights, known)
    rows += seen_rows
    write_rows(folder / "duplicates.csv", ["kind", "cluster_or_dataset", "path", "split", "how"], rows)
    images = int(counts[counts > 1].sum())
    text = f"{len(several)} clusters of near-duplicates with {images} images; {divided} of them lie in two splits"
    if shared and found:
        return (
            f"{text}\nWARNING: {len(found)} of {len(test)} test images are among what the encoder was pretrained on, without their "
            "labels. Prepare the folder once (scripts/prepare_data.py folder) and give both the prepared one: its splits are fixed"
        )
    text += f"; {len(found)} test images occur in the pretraining data" if compared else ""
    return text + warning


def _seen_by(dataset: PreparedDataset, weights: str, known: np.ndarray) -> tuple[list[list[str]], str]:
    """Rows of duplicates.csv for the test and val images that an encoder has seen, and a warning; nothing where there are none."""
    told, rows = [], []
    for split in ("test", "val"):
        of_split = dataset.indices(split)
        same_file = seen.among((dataset.sha256[i] for i in of_split), known)
        again = same_file | seen.looks_like(dataset.phash[of_split], weights)
        told.append(f"{again.sum()} of {len(of_split)} {split} images")
        for i, same in zip(of_split[again].tolist(), same_file[again].tolist(), strict=True):
            how = "the same file" if same else "the same picture"
            rows.append(["pretraining", weights, dataset.records[i].path, split, how])
    if not rows:
        return [], ""
    remedy = RELEASED_REMEDY if weights in released.names() else REMEDY
    return rows, f"\nWARNING: {' and '.join(told)} are among those that {weights!r} was trained on{remedy}"


# ---- a run per seed -------------------------------------------------------------------------------------------------


def run_each_seed(config: TaskConfig, run_seed: Callable[[TaskConfig, Path], None], say=log.say) -> list[Path]:
    """The folder of each of `config.seeds`; run_seed(config, folder) trains the missing ones and writes metrics.json last.

    A finished seed costs nothing: no data, no encoder. It is refused where its config was another.
    """
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        what = "is empty" if not config.seeds else f"names a seed twice: {config.seeds}"
        raise ValueError(f"seeds {what}; give at least one, e.g. seeds=[0,1,2]")
    folders = []
    for seed in config.seeds:
        if not (config.resume and (Path(config.logs) / config.name / f"seed-{seed}" / "metrics.json").is_file()):
            refuse_missing_weights(config.encoder, seed)
    for seed in config.seeds:
        one = copy.deepcopy(config)
        one.seed = seed
        folder = Path(config.logs) / config.name / f"seed-{seed}"
        if config.resume and (folder / "metrics.json").is_file():
            refuse_changed(folder, one)
            say(f"{folder} is finished")
        else:
            run_seed(one, folder)
            for model in () if config.keep_model else folder.glob("*.pt"):
                model.unlink()
        # optimizer and all: only a stopped run needs it
        (folder / "checkpoints" / "last.pt").unlink(missing_ok=True)
        folders.append(folder)
    return folders


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write what a seed's model did on the test images to test.npz in its run folder, where `read_outcome` finds it."""
    write_array(folder / "test.npz", np.savez, **outcome)


def read_outcome(folder: Path) -> Outcome:
    """What a finished seed's model did on the test images."""
    path = folder / "test.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: is {folder} the folder of one seed of a finished run?")
    with np.load(path) as arrays:
        return dict(arrays)


# ---- what is written ------------------------------------------------------------------------------------------------


def write_metrics(
    folder: Path, task: str, config: TaskConfig, dataset: PreparedDataset, result: dict, **protocol
) -> None:
    """metrics.json of one seed: the figures with the protocol they were measured by, to which the task adds its own lines."""
    common = {
        "split_unit": "group (patient or near-duplicate cluster)",
        "input_size": dataset.size,
        "initialisation": config.encoder.weights,
        "label_share": config.data.label_share,
        "interval": INTERVAL,
        "device": device_name(),
    }
    if config.data.folds:
        common["cross_fitting"] = f"fold {config.seed % config.data.folds} of {config.data.folds}, from 0"
    whole = {
        "task": task,
        "dataset": config.data.path,
        "split": "test",
        "protocol": common | protocol,
        "seeds": [config.seed],
        "metrics": result,
    }
    write_text(folder / "metrics.json", json.dumps(whole, indent=1))


def write_summary(folders: list[Path], seeds: list[int], result: dict) -> None:
    """metrics.json and table.md of all seeds beside their folders, by the protocol of the first."""
    whole = read_metrics(folders[0]) | {"seeds": list(seeds), "metrics": result}
    out = folders[0].parent
    write_text(out / "table.md", table(result, len(seeds)) + "\n")
    write_text(out / "metrics.json", json.dumps(whole, indent=1))


def read_metrics(folder: Path) -> dict:
    """The content of metrics.json of a finished run; raises FileNotFoundError where there is none."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: is {folder} the folder of a finished run?")
    return json.loads(path.read_text())


def table(result: dict[str, dict], seeds: int) -> str:
    """A Markdown table of the figures; a figure for each of more than a dozen classes stays in metrics.json."""
    kinds = Counter(name.split(" ")[0] for name in result)
    rows = []
    for name, m in result.items():
        if "mean" in m and kinds[name.split(" ")[0]] <= 12:
            limits = f"{m['low']:.3f} to {m['high']:.3f}" if "low" in m else ""
            rows.append([name, f"{m['mean']:.3f}", limits, ", ".join(f"{v:.3f}" for v in m.get("per_seed", []))])
    return markdown.table(["figure", f"mean of {seeds} seed{'s'[: seeds > 1]}", "95 % interval", "each"], rows)
