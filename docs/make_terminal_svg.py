"""Makes docs/terminal.svg from a real session. Needs `pip install rich` and a release build.

    python3 docs/make_terminal_svg.py
"""

import os
import pathlib
import subprocess
import tempfile

from rich.console import Console
from rich.text import Text

ROOT = pathlib.Path(__file__).resolve().parent.parent
SESSION = [
    "magray index docs config",
    'magray search "what happens when a plugin crashes" -k 2',
    'magray add "The staging key rotates on Mondays" --tag ops',
    'magray search "when do credentials change" -k 1 --tag ops',
]

console = Console(record=True, width=104, file=open(os.devnull, "w"))
with tempfile.TemporaryDirectory() as home:
    env = os.environ | {
        "MAGRAY_HOME": home,
        "CLICOLOR_FORCE": "1",
        "COLUMNS": "104",
        "PATH": f"{ROOT}/target/release:{os.environ['PATH']}",
    }
    for command in SESSION:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        ran = subprocess.run(
            command, shell=True, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        console.print(Text.from_ansi(ran.stdout.rstrip()))
        console.print()
console.save_svg(str(ROOT / "docs" / "terminal.svg"), title="magray")
