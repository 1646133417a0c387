"""Tables of the files in each folder, from the first paragraph of each file's own docstring.

`python -m tests.file_tables` writes them to the folders' pages.
"""

import ast

from profiles.report.pages import ROOT, Part

FLOORS = (
    "sharding",
    "model",
    "model/weights",
    "decode",
    "decode/batching",
    "decode/serving",
    "scripts",
)
ROOMS = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/__init__.py"))
FOLDERS = (*FLOORS, *(f"profiles/{room}" for room in ROOMS))
PARTS = {folder: Part(f"{folder}/README.md", "files", "tests.file_tables") for folder in FOLDERS}


def table(folder: str) -> str:
    """A row for each file of Python, in Markdown."""
    lines = ["| file | what is in it |", "|---|---|"]
    for path in sorted((ROOT / folder).glob("*.py")):
        if path.name != "__init__.py":
            said = ast.get_docstring(ast.parse(path.read_text())) or ""
            words = " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")
            lines.append(f"| [`{path.name}`]({path.name}) | {words} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for folder, part in PARTS.items():
        part.write(table(folder))
