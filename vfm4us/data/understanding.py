"""What a source is understood to be, in words, before anything is packed: `sources.understand` makes it."""

import heapq
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vfm4us.data.csv_files import shown
from vfm4us.data.records import Record, natural_key

EXAMPLES = 3
MOST_KINDS = 40  # of one role, that are printed: each damaged file may have a reason of its own
ROLES = ("image", "mask", "target", "table", "unmatched", "unreadable", "passed over")


@dataclass
class Kind:
    """Files that are taken for the same: how many there are, three of their paths, and why."""

    role: str
    what: str
    paths: list[str] = field(default_factory=list)

    @property
    def examples(self) -> list[str]:
        """The first few paths, in the order people count."""
        return heapq.nsmallest(EXAMPLES, self.paths, key=natural_key)


@dataclass
class Understanding:
    """What a source is understood to be.

    layout:    name of the layout, and `said` what it means in a sentence
    records:   the images, in order, with label, group, split, masks and target as far as the source says them
    kinds:     every file of the source by what it is taken for: image, mask, target, table, unmatched, unreadable, passed over
    groups, splits, labels: how each was found, in words
    notes:     guesses and everything that somebody should know; `warnings` those that may spoil a figure
    reading:   the keys that were given to decide
    burnt_in:  how many images carry text or marks, whether they were filled, and where; known once they are packed
    fill_outlines: masks are outlines whose inside is meant
    """

    source: str
    layout: str
    said: str = ""
    records: list[Record] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    labels: str = ""
    groups: str = ""
    splits: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reading: dict = field(default_factory=dict)
    fill_outlines: bool = False
    burnt_in: dict = field(default_factory=dict)

    def add(self, role: str, what: str, *paths: str) -> None:
        """Count files under a role and a reason."""
        for kind in self.kinds:
            if (kind.role, kind.what) == (role, what):
                kind.paths += paths
                return
        self.kinds.append(Kind(role, what, list(paths)))

    def counts(self) -> dict[str, int]:
        """Files per role."""
        counts = Counter()
        for kind in self.kinds:
            counts[kind.role] += len(kind.paths)
        return dict(counts)

    def lines(self) -> list[str]:
        """The short table that is printed."""
        lines = [f"{shown(self.source)} is understood as {self.layout}" + (f": {self.said}" if self.said else "")]
        for role in ROLES:
            kinds = [kind for kind in self.kinds if kind.role == role]
            if len(kinds) > MOST_KINDS:
                kinds.sort(key=lambda kind: -len(kind.paths))
            for kind in kinds[:MOST_KINDS]:
                examples = ", ".join(shown(path) for path in kind.examples)
                more = ", ..." if len(kind.paths) > len(kind.examples) else ""
                lines.append(f"  {len(kind.paths):7d}  {role:<12}{kind.what}: {examples}{more}")
            if left := kinds[MOST_KINDS:]:
                count = sum(len(kind.paths) for kind in left)
                lines.append(f"  {count:7d}  {role:<12}{len(left)} further kinds, not larger than these")
        for name, text in (("labels", self.labels), ("groups", self.groups), ("splits", self.splits)):
            lines.append(f"  {name:<9}{text or 'none'}")
        lines += [f"  note     {shown(note)}" for note in self.notes]
        lines += [f"  warning  {shown(warning)}" for warning in self.warnings]
        return lines

    def to_plain(self) -> dict:
        """The same as JSON holds it; the records are left out, they stand in the manifest."""
        return {
            "source": self.source,
            "layout": self.layout,
            "said": self.said,
            "files": [
                {"role": k.role, "what": k.what, "count": len(k.paths), "examples": k.examples} for k in self.kinds
            ],
            "images": len(self.records),
            "labels": dict(sorted(Counter(record.label for record in self.records).items())),
            "labels_from": self.labels,
            "groups": len({record.group for record in self.records if record.group}),
            "groups_from": self.groups,
            "splits": dict(sorted(Counter(record.split for record in self.records).items())),
            "splits_from": self.splits,
            "notes": self.notes,
            "warnings": self.warnings,
            "reading": self.reading,
            "burnt_in": self.burnt_in,
        }

    def write(self, path: Path, masks: dict | None = None) -> None:
        """Write understood.json; `masks` is what was decided about the values of masks."""
        plain = {**self.to_plain(), **({"mask_coding": masks} if masks else {})}
        path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
