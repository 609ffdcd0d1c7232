"""Text of models and users made safe where it is shown: terminal, Markdown tables, HTML, DICOM. Alphabets stay."""

from __future__ import annotations

import html
import unicodedata

#: Format characters that letters need (joiners of Indic and Arabic writing and of emoji, variation of signs).
_NEEDED = {"\u200c", "\u200d"}


def plain_text(text: str) -> str:
    """`text` without what a terminal or viewer would obey.

    Control characters (ESC, backspace), marks that turn the direction of writing and invisible signs are left out;
    halves of surrogate pairs become U+FFFD, tabs spaces, every kind of line end a line feed.
    """
    text = str(text).replace("\r\n", "\n").replace("\t", " ")
    for sign in ("\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"):
        text = text.replace(sign, "\n")
    return "".join(_shown(sign) for sign in text)


def _shown(sign: str) -> str:
    if sign == "\n" or sign in _NEEDED:
        return sign
    kind = unicodedata.category(sign)
    if kind == "Cs":
        return "\ufffd"
    return "" if kind in ("Cc", "Cf") else sign


def plain_line(text: str) -> str:
    """As `plain_text`, in one line with single spaces."""
    return " ".join(plain_text(text).split())


def without_surrogates(text: str) -> str:
    """`text` with halves of surrogate pairs as U+FFFD: tokenizers and UTF-8 have no place for them."""
    return text if text.isascii() else "".join("\ufffd" if "\ud800" <= s <= "\udfff" else s for s in text)


def for_markdown(text: str) -> str:
    """One line of text for a cell or paragraph of Markdown: it makes no cell, tag, link, image or code of its own."""
    text = plain_line(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "|[]`*":
        text = text.replace(sign, "\\" + sign)
    return text


def for_html(text: str) -> str:
    """Text for the body or a quoted attribute of HTML; line feeds stay."""
    return html.escape(plain_text(text), quote=True)


def for_dicom(text: str, length: int = 64) -> str:
    """Text for a DICOM element of one value: one line, no backslash (it parts values), `length` characters at most."""
    return plain_line(text).replace("\\", "/")[:length].strip()
