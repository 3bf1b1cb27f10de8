"""Write docs/result.svg, the README's picture: the last screen of a run, in a terminal of 120 columns.

python docs/picture.py resnet18    after `doit`
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

_COLUMNS, _ROWS = 120, 50


def output_of(command: list[str]) -> str:
    """Return the output of a command in a terminal, with its colours."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(command[0], command, {**os.environ, "COLUMNS": str(_COLUMNS), "TERM": "xterm-256color"})  # noqa: S606 - our own
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    with os.fdopen(terminal, "rb") as lines:
        output = b""
        try:
            while part := lines.read1():
                output += part
        except OSError:  # Linux ends a closed terminal's output with EIO
            pass
    os.waitpid(process, 0)
    return output.decode().replace("\r\n", "\n").strip("\n")


def main() -> None:
    """Run `python -m pipeline manifest MODEL`, and write its picture."""
    command = ["python", "-m", "pipeline", "manifest", *sys.argv[1:]]
    console = Console(record=True, width=_COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(output_of([sys.executable, *command[1:]])))
    # The picture names no font of the network: whoever looks at it has a monospaced one.
    form = re.sub(r"<!--.*?-->|@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    picture = console.export_svg(title=f"$ {' '.join(command)}", code_format=form, unique_id="result")
    text = "\n".join(line.strip() for line in picture.splitlines() if line.strip())
    (Path(__file__).parent / "result.svg").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
