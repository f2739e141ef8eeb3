"""Lets the operator edit a text in the editor of their choice."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from flypg.reply import BadInput, Refused


def edited(text: str) -> str:
    """What the operator makes of `text` in $VISUAL, $EDITOR or vi. Raises Refused when the editor fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="flypg-") as directory:
        file = Path(directory) / "spec.toml"
        file.write_text(text)
        try:
            ended = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except OSError as error:
            raise BadInput(f"EDITOR {editor!r} cannot be started: {error.strerror}") from None
        if ended.returncode:
            raise Refused(f"{editor} ended with {ended.returncode}; nothing was changed")
        return file.read_text()
