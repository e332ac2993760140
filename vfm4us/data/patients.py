"""Whose DICOM files a tree holds: what their headers say of patients, laid beside what its folders say.

Archives hold a folder for each patient, each study or each class, and nothing in the names tells which. The headers do.
"""

from collections import defaultdict

from vfm4us.data.containers import Told
from vfm4us.data.reading import Reading
from vfm4us.data.understanding import Understanding

BY_PLACE = ("folders ", "by the names of files")  # how `trees` says that groups come from names
BY_FIRST_FOLDER = "by the first folder"


def settle(understood: Understanding, told: Told, reading: Reading) -> None:
    """Let the patients that headers name correct labels and groups that were taken from folders; say so, and what is doubtful."""
    _say_alike(understood, told)
    whose = told.patients
    if not whose or reading.groups == "none":
        return
    patients = set(whose.values())
    if len(patients) > 1:
        if understood.labels == BY_FIRST_FOLDER and not reading.folders:
            _first_folders_of_patients(understood, whose)
        if understood.groups.startswith(BY_PLACE):
            _join(understood, whose)
    records = [record for record in understood.records if record.group in patients]
    if records:
        others = any(record.group and record.path not in whose for record in understood.records)
        understood.groups = "of DICOM files the patient, as a keyed hash" + "; of other clips the file" * others
    if len(patients) == 1 < len(whose):
        where = understood.groups if not records else ""
        understood.warnings.append(
            f"all {len(whose)} DICOM files name one patient: if the same ID was written into all, "
            + (
                f"the groups are right ({where})"
                if where
                else "tell the patients apart in a manifest.csv with a column group"
            )
        )


def _say_alike(understood: Understanding, told: Told) -> None:
    several = [sorted(files.values()) for files in told.alike.values() if len(files) > 1]
    if several:
        understood.warnings.append(
            f"{len(several)} IDs of patients are written in several ways, which differ in zeros, signs or who issued them (e.g. in "
            f"{several[0][0]} and {several[0][1]}): they are taken for different patients; if they are not, splits may divide a "
            "patient, so name the groups in a manifest.csv"
        )


def _first_folders_of_patients(understood: Understanding, whose: dict[str, str]) -> None:
    """Where each first folder holds one patient, folders are no classes."""
    of_label: dict[str, set] = defaultdict(set)
    for record in understood.records:
        if not record.reason:
            of_label[record.label] |= {whose[record.path]} if record.path in whose else set()
    files = {record.path for record in understood.records if not record.reason}
    if len(whose) < len(files) / 2:  # a few DICOM files among others tell nothing of the folders
        return
    if "" in of_label or len(of_label) < 2 or any(len(patients) != 1 for patients in of_label.values()):
        return
    for record in understood.records:
        record.group = next(iter(of_label.get(record.label, ())), record.group)
        record.label = ""
    for label in of_label:
        for kind in [kind for kind in understood.kinds if kind.role == "image" and f"label {label}" in kind.what]:
            understood.kinds.remove(kind)
            said = kind.what.replace(f"label {label}", "").replace(", ,", ",").strip(", ")
            understood.add("image", said or "without a label", *kind.paths)
    understood.labels = understood.groups = ""
    understood.notes.append(
        f"each of the {len(of_label)} first folders holds the files of one patient: they are taken for patients, so that there are "
        "no labels (reading.folders=classes takes them for classes)"
    )


def _join(understood: Understanding, whose: dict[str, str]) -> None:
    """Make one group of the folders in which one patient lies; nothing where that would make one group of all."""
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            name = above[name]
        return name

    records = [record for record in understood.records if record.group and record.path in whose]
    folders = {record.group for record in records}
    for record in records:
        a, b = top(record.group), top(whose[record.path])
        above[max(a, b)] = min(a, b)
    members = defaultdict(set)
    for name in above:
        members[top(name)].add(name)
    if len(members) == 1 < len(folders):
        understood.warnings.append(
            f"every folder shares a patient with another by PatientID: the folders stay the groups ({understood.groups}), so "
            "splits may divide a patient; name the groups in a manifest.csv"
        )
        return
    patients = set(whose.values())
    for record in understood.records:  # images of other kinds in these folders are of the same patients
        if record.group in above:
            record.group = min(members[top(record.group)] & patients)
    divided = sum(len(together & folders) > 1 for together in members.values())
    if divided:
        understood.notes.append(
            f"{divided} patients lie in several of these folders, which are one group ({understood.groups})"
        )
