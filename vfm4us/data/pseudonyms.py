"""Names of groups that tell patients apart and say nothing of who they are: a keyed hash of what identifies them.

The key is 32 random bytes in a file that only its owner can read, made at the first use and kept, so that one patient has one
name in all sets that are packed with it. Without the file nobody can find a patient by trying all numbers.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from vfm4us.runtime.files import sweep, temporary

PREFIX = "patient-"
KEY_FILE = "VFM4US_PATIENT_KEY"  # environment variable: where the key lies, for several machines that share it


def key_file() -> Path:
    """Where the key lies."""
    named = os.environ.get(KEY_FILE)
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(named) if named else base / "vfm4us" / "patient.key"


def pseudonym(*identity: str) -> str:
    """`patient-` and 16 hex digits (HMAC-SHA256) for what identifies a patient; the same key and identity, the same name.

    Raises OSError where the key can neither be read nor made; the message names the variable that moves it.
    """
    text = "\0".join(part.strip() for part in identity)
    return PREFIX + hmac.new(_key(), text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:16]


def _key() -> bytes:
    path = key_file()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            unfinished = temporary(path.with_name(f"{path.name}.{secrets.token_hex(4)}"))
            handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(unfinished, path)  # fails where another process was first: its key is the one
            except FileExistsError:
                pass
            finally:
                unfinished.unlink()
        key = path.read_bytes().strip()
    except OSError as error:
        raise OSError(
            error.errno,
            f"the key that hides patients' names cannot be kept at {path} ({error.strerror}): set {KEY_FILE} to a file "
            "that can be written",
        ) from error
    if len(key) < 32:
        raise ValueError(f"{path} holds no key of 32 characters or more: delete it, and a new one is made")
    return key
