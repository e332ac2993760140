"""The command `vfm4us`: every script of the repository by one name, wherever it was installed.

`vfm4us classify ...` is `python Downstream/Classification/train.py ...`. Under torchrun: `torchrun ... -m vfm4us.cli pretrain ...`.
"""

import difflib
import sys
import types
from pathlib import Path

from vfm4us import __version__, config

COMMANDS = {
    "pretrain": "Pretraining/US-SSL/adv_main.py",
    "classify": "Downstream/Classification/train.py",
    "segment": "Downstream/Segmentation/train.py",
    "enhance": "Downstream/Generation/train.py",
    "evaluate-classifier": "Downstream/Classification/evaluate.py",
    "evaluate-segmenter": "Downstream/Segmentation/evaluate.py",
    "evaluate-enhancer": "Downstream/Generation/evaluate.py",
    "probe": "scripts/probe.py",
    "embed": "scripts/embed.py",
    "prepare": "scripts/prepare_data.py",
    "inspect": "scripts/inspect_checkpoint.py",
    "export": "scripts/export_encoder.py",
    "tables": "scripts/reproduce_tables.py",
    "cross-validate": "scripts/cross_validate.py",
    "benchmark": "scripts/benchmark.py",
    "gpu-check": "scripts/gpu_check.py",
    "label-efficiency": "scripts/label_efficiency.py",
    "model-card": "scripts/model_card.py",
    "soak": "scripts/soak.py",
}


def commands() -> dict[str, Path]:
    """The commands whose scripts are here, and where."""
    return {name: config.REPOSITORY / file for name, file in COMMANDS.items() if (config.REPOSITORY / file).is_file()}


def summary(script: Path) -> str:
    """The first sentence of a script's docstring, read without running it."""
    return script.read_text(encoding="utf-8").split('"""', 2)[1].strip().splitlines()[0]


def overview() -> str:
    """What `vfm4us --help` prints."""
    rows = [f"  {name:<20} {summary(script)}" for name, script in commands().items()]
    return (
        f"VFM4US {__version__}: pretrain an encoder on ultrasound, adapt it, and know how far to trust the result.\n\n"
        "    vfm4us COMMAND [--config FILE] [section.key=value ...]\n"
        "    vfm4us COMMAND --help\n\n"
        + "\n".join(rows)
        + "\n\nConfigs that come along can be named from any folder, such as "
        "configs/classification/busi.yaml."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name, as its script would be; the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name in ("-V", "--version"):
        print(f"vfm4us {__version__}")
        return 0
    known = commands()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(known)}"
        print(f"error: vfm4us has no command {name!r}: {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"vfm4us {name}", *rest]  # what its own help calls it
    script = known[name]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    module.__file__ = str(script)
    try:
        exec(
            compile(script.read_bytes(), script, "exec"), module.__dict__
        )  # runpy would put the file's name into the help
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
