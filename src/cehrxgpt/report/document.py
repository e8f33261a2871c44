"""A page as one file: style inside, no script, a content security policy that lets nothing be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cehrxgpt.report.markup import Markup, Section, join, tag, text

_STYLE = Path(__file__).with_name("style.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def document(title: str, first: str, head: Markup, sections: Sequence[Section], foot: str) -> str:
    """The whole page as text.

    Args:
        title: of the window.
        first: what the table of contents calls the head, whose heading has the id `summary`.
        head: the page's head.
        sections: its chapters.
        foot: the last line.
    """
    entries = [tag("li", tag("a", first, href="#summary"))]
    for section in sections:
        inner = tag("ol", *(tag("li", tag("a", name, href=f"#{key}")) for key, name in section.children)) if section.children else ""
        entries.append(tag("li", tag("a", section.title, href=f"#{section.id}"), inner))
    nav = tag("nav", tag("h2", "Contents"), tag("ol", *entries), aria_label="Contents")
    chapters = [tag("section", tag("h2", section.title, id=section.id), section.body, aria_labelledby=section.id) for section in sections]
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#summary">Skip to the content</a>\n{nav}\n<main>\n{head}\n'
        f"{join(chapters, chr(10))}\n{tag('footer', tag('p', foot, class_='note'))}\n</main>\n</body>\n</html>\n"
    )
