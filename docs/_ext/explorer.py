"""Sphinx extension: writes explorer.html and report.html into the root of the HTML output.

The explorer is that of docs/make_explorer.py. The report is that of `polarlib report`, from the
values in docs/data/papers.json, each study's expected.json, and the pictures in
docs/figures/papers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from polarlib import report
from polarlib.files.whole import write_whole

ROOT = Path(__file__).resolve().parents[2]
VALUES = ROOT / "docs" / "data" / "papers.json"
PICTURES = ROOT / "docs" / "figures" / "papers"
# The schedules of the explorer depend on these files.
SOURCES = ("docs/make_explorer.py", "polarlib/design/*.py", "polarlib/_schedules/*.py")
HOME = ("index.html", "Documentation")
EXPLORER = ("explorer.html", "Explorer of schedules")
REPORT = ("report.html", "Results of the studies")


def _script(name: str, *folders: str) -> Any:
    """Import a script of the repository that is in no package."""
    known = f"{'_'.join(folders)}_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, ROOT.joinpath(*folders, f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    return sys.modules[known]


def study_results() -> dict[str, dict[str, Any]]:
    """Return what `polarlib report` reads of each study, from the file of values.

    Raises
    ------
    ValueError
        If the file of values and an expected.json have different values.
    """
    verdicts = _script("verdicts", "analysis")
    found = {}
    for name, data in json.loads(VALUES.read_text(encoding="utf-8")).items():
        entry = verdicts.expected(ROOT / "analysis" / name / "expected.json")
        if set(data["values"]) != {figure["name"] for figure in entry["figures"]}:
            raise ValueError(
                f"{VALUES} and analysis/{name}/expected.json must have the same values; run "
                f"python benchmarks/papers.py --run {name}"
            )
        picture = {"name": name, "png": f"{name}.png", "caption": data["caption"]}
        if (PICTURES / f"{name}.svg").exists():
            picture["svg"] = f"{name}.svg"
        found[name] = {
            "study": name,
            "command": f"python analysis/{name}/run.py",
            "quick": False,
            **{key: entry[key] for key in ("title", "source", "claims")},
            **{key: data[key] for key in ("versions", "seconds", "machine")},
            "figures": verdicts.judged(entry["figures"], data["values"]),
            "tables": [],
            "plots": [picture],
            "notes": [],
        }
    return found


def report_page() -> str:
    """Return the report of the studies as HTML."""
    with tempfile.TemporaryDirectory() as name:
        for study, result in study_results().items():
            folder = Path(name, study)
            folder.mkdir()
            text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / "result.json").write_text(text, encoding="utf-8")
            for kind in ("png", "svg"):
                for plot in result["plots"]:
                    if kind in plot:
                        content = (PICTURES / plot[kind]).read_bytes()
                        (folder / plot[kind]).write_bytes(content)
        return report.render(report.collect(name), [HOME, EXPLORER])


def explorer_page(cache: Path) -> str:
    """Return the explorer as HTML, with schedules from a file if their sources are unchanged."""
    maker = _script("make_explorer", "docs")
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    saved = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    if saved.get("sources") != digest.hexdigest():
        saved = {"sources": digest.hexdigest(), "data": maker.designs()}
        content = json.dumps(saved).encode()
        write_whole(cache, lambda file: file.write(content))
    return str(maker.page(saved["data"], [HOME, REPORT]))


def write_pages(app: Any, exception: Exception | None) -> None:
    """Write both pages after an HTML build without errors."""
    if exception is not None or app.builder.format != "html":
        return
    pages = {
        EXPLORER[0]: explorer_page(Path(app.doctreedir, "explorer.json")),
        REPORT[0]: report_page(),
    }
    for name, text in pages.items():
        content = text.encode()
        write_whole(Path(app.outdir, name), lambda file, content=content: file.write(content))


def setup(app: Any) -> dict[str, Any]:
    """Connect the extension; a missing package ends the build at its beginning."""
    _script("make_explorer", "docs")
    app.connect("build-finished", write_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
