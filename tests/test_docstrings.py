"""Every public method says what it does, where it is declared; what a base class has said need not be said again."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FROM_ELSEWHERE = {"forward", "train", "run"}  # of torch.nn.Module and threading.Thread


def undocumented(files) -> list[str]:
    """Class.method of all public methods without a docstring of their own or of a base class among the files."""
    classes = [n for f in files for n in ast.walk(ast.parse(f.read_text())) if isinstance(n, ast.ClassDef)]
    methods = {c.name: {m.name: m for m in c.body if isinstance(m, ast.FunctionDef)} for c in classes}
    bases = {
        c.name: [b.attr if isinstance(b, ast.Attribute) else getattr(b, "id", "") for b in c.bases] for c in classes
    }

    def said(name: str, method: str, seen: frozenset = frozenset()) -> bool:
        if name not in methods or name in seen:
            return False
        declared = methods[name].get(method)
        return bool(declared and ast.get_docstring(declared)) or any(
            said(b, method, seen | {name}) for b in bases[name]
        )

    return [
        f"{c.name}.{m}"
        for c in classes
        for m, node in methods[c.name].items()
        if not (c.name.startswith("_") or m.startswith("_") or m in FROM_ELSEWHERE)
        and not any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)
        and not said(c.name, m)
    ]


def test_every_public_method_is_documented():
    assert undocumented([*(ROOT / "vfm4us").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]) == []


def test_a_method_without_words_is_found(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        'class A:\n    def told(self):\n        "Said."\n\n    def silent(self): ...\n\n    def _private(self): ...\n\n'
        "class B(A):\n    def told(self): ...\n\n    def new(self): ...\n"
    )
    assert undocumented([file]) == ["A.silent", "B.new"]
