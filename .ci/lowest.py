"""Print the lowest versions that pyproject.toml admits, as requirements of pip, one per line.

Of the required packages, and of the extras for the command line, files and plots.
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("cli", "files", "plot")

path = Path(__file__).parents[1] / "pyproject.toml"
project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
needed = [
    *project["dependencies"],
    *(each for name in EXTRAS for each in project["optional-dependencies"][name]),
]
sys.stdout.writelines(re.sub(r">=(.*)", r"==\1.*\n", each) for each in needed)
