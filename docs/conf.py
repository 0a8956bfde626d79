"""The site: `make docs` builds it, and a warning is an error."""

from __future__ import annotations

import re
from typing import Any

import socketio_postgres

project = "socketio-postgres"
copyright = "the socketio-postgres contributors"  # noqa: A001 - Sphinx wants this name
release = version = socketio_postgres.__version__
repository = "https://github.com/socketio-postgres/socketio-postgres"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx", "sphinx_copybutton"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["messages.css"]
html_title = f"socketio-postgres {release}"
html_theme_options = {"source_repository": repository, "source_branch": "main", "source_directory": "docs/"}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
pygments_dark_style = "github-dark"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": "TypedDict,Exception,int,Sequence"}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

PAGES = {"SECURITY.md": "security.md", "ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md"}
"""Files beside the folder that are pages of the site; others are shown in the repository."""

_OUTSIDE = re.compile(r"\]\(\.\./(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_INSIDE = re.compile(r"\]\(docs/(?P<path>[^)\s]+)\)")
_BESIDE = re.compile(r"\]\((?P<path>[A-Z]+\.md|(?:benches|examples|tests|rust|python)/[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
_BACKTICKS = re.compile(r"(?<![`:])`([^`\n]+)`(?!`)")


def lead_out(app: Any, name: str, source: list[str]) -> None:
    """Let a link that leaves the folder lead to the page of that file, or to the repository."""

    def target(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        return f"]({PAGES[path]}{anchor})" if path in PAGES else f"]({repository}/blob/main/{path}{anchor})"

    source[0] = _OUTSIDE.sub(target, source[0])


def lead_in(app: Any, relative_path: Any, parent: str, content: list[str]) -> None:
    """The same for a file from outside that a page includes."""

    def target(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        return f"]({PAGES[path]}{anchor})" if path in PAGES else f"]({repository}/blob/main/{path}{anchor})"

    text = _INSIDE.sub(lambda match: f"]({match['path']})", content[0])
    content[0] = _BESIDE.sub(target, text)


def as_restructured_text(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written for people who read the source: single backticks, and code that is only indented."""
    out: list[str] = []
    is_section = is_code = False
    for line in lines:
        is_section = is_section or bool(re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line))
        if is_code and line and not line.startswith(" "):
            is_code = False
        if not is_section and not is_code and line.startswith("    ") and out and not out[-1]:
            out += ["::", ""]
            is_code = True
        out.append(line if is_code else _BACKTICKS.sub(r"``\1``", line))
    lines[:] = out


def is_elsewhere(app: Any, kind: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """The event store offers its exceptions, too; they are described once."""
    is_theirs = app.env.current_document.docname == "api/events"
    return (
        True
        if kind == "module" and is_theirs and getattr(thing, "__module__", "") == "socketio_postgres.exceptions"
        else None
    )


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", lead_out)
    app.connect("include-read", lead_in)
    app.connect("autodoc-skip-member", is_elsewhere)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
