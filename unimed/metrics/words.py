"""Words of a text: Penn Treebank tokens for caption metrics, signs-and-words for comparing answers.

Two readings of a text are kept apart on purpose. `ptb_tokens` follows the tokenizer of the COCO caption tools, so that
BLEU and its kin are the numbers of the literature. `answer_tokens` decides whether two answers say the same: it loses
no sign, comparison, unit or lone letter, and forgives what carries no meaning (case, punctuation, articles, the way a
sign or a power is typed).
"""

from __future__ import annotations

import html
import unicodedata

import regex

#: Letters, marks (vowel signs of many scripts), digits.
_W = r"[\p{L}\p{M}\p{N}_]"
#: The same without fractions and powers, which the treebank sets apart.
_V = r"[\p{L}\p{M}\p{Nd}_]"
#: What the COCO tools leave out after tokenizing. Brackets stay, as "-lrb-" and so on: their list has them in upper
#: case and the tokenizer writes them in lower case.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "dr mr mrs ms prof st jr sr vs etc fig figs inc ltd co corp dept est jan feb mar apr jun jul aug sept? oct nov"
    " dec mon tue tues wed thu thurs fri sat sun ave blvd rd gen col sgt lt capt rev hon gov pres"
).split()
_PTB = regex.compile(
    rf"""
      </?[A-Za-z][\w:.-]*(?:[ ]+[^<>]*)?/?>                 # a tag
    | https?://[^\s<>()]+ | [\w.+-]+@\w[\w-]*(?:\.[\w-]+)+  # addresses
    | [!?]+
    | \.\.\.+ | …
    | -{{2,}} | [–—]
    | n't\b | '(?:s|re|ve|ll|d|m|S|RE|VE|LL|D|M)\b
    | (?i:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|(?<=gon|wan)na\b|(?<=got)ta\b)
    | (?:[A-Za-z]\.)+[A-Za-z]\b\.? | [A-Za-z]\.(?!\p{{L}})            # U.S.A., e.g., and an initial
    | (?i:(?:{"|".join(_ABBREVIATIONS)}))\.(?!{_V})
    | (?i:no)\.(?=\s*\d)
    | [-+]?(?<!{_V}[-+]?)(?:\d+(?:[.,:]\d+)+|\.\d+)(?=[\p{{L}}%°]|\b)
    | (?:(?<!{_V})[-+])?\d+(?:[.,:]\d+)*(?:[-/]\d+(?:,\d+)*)*(?!{_V}|[-/]{_V})
    | {_V}+?(?=n't\b)
    | {_V}+(?:(?:[-/]|['’](?!(?:s|re|ve|ll|d|m)\b)|\.(?=\p{{L}})){_V}+)*
    | '{_V}'(?!{_V})
    | [^\s]
    """,
    regex.VERBOSE,
)
_ASCII = str.maketrans({"€": "$", "£": "#", "’": "'", "‘": "`", "“": '"', "”": '"', "¼": "1/4", "½": "1/2", "¾": "3/4"})


def one_line(text: str) -> str:
    """A text without anything an outside program could take for the end of a line or record.

    Line and paragraph separators, control characters and half surrogates become blanks, invisible format characters go,
    and bars in a row ("|||" parts the fields of METEOR's protocol) are parted. Words stay what they are.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(map(_visible, text))
    return regex.sub(r"\|(?=\|)", "| ", text)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Cs", "Zl", "Zp", "Zs"):
        return " "
    return "" if category == "Cf" else character


def ptb_tokens(text: str) -> list[str]:
    """Lower-case Penn Treebank tokens as the COCO caption tools cut them, punctuation left out, in plain Python.

    Brackets are tokens of their own ("-lrb-"), as there; URLs, rare abbreviations and emoticons may be cut otherwise.
    """
    text = unicodedata.normalize("NFC", html.unescape(one_line(text))).translate(_ASCII)
    found = (_BRACKETS.get(token, token) for token in _PTB.findall(text))
    return [token.lower() for token in found if token not in _DROPPED and token.strip("-–—") and token.strip('.…"')]


def tokens(text: str) -> list[str]:
    """`ptb_tokens` without brackets: the words and signs of a text, lower case."""
    return [token for token in ptb_tokens(text) if token not in _BRACKET_NAMES]


_BRACKET_NAMES = frozenset(_BRACKETS.values())


_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_REWRITES = [
    (regex.compile(r"[\u2212\u2010\u2011\u2013\ufe63\uff0d]"), "-"),  # minus, hyphens, en dash
    (regex.compile(r"[\u2014\u2015]|(?<=\s)-{2,}(?=\s)"), " "),  # long dashes are punctuation
    (regex.compile(r"<-+>"), "↔"),
    (regex.compile(r"-+>"), "→"),
    (regex.compile(r">\s?=|[≧⩾⪰≽]"), "≥"),
    (regex.compile(r"<\s?=|[≦⩽⪯≼]"), "≤"),
    (regex.compile(r"\+\s?/\s?-|\+-"), "±"),
    (regex.compile(r"[≈∼≃]"), "~"),
    (regex.compile(r"[×✕]"), "x"),
    (regex.compile(r"⁄"), "/"),
    (regex.compile(r"[‘’ʼ′`´]"), "'"),
    (regex.compile(r"(?<=\p{L})\^(?=[-+]?\d)"), ""),  # cm^2, cm2 and cm² are one unit
    (regex.compile(r"(?<![\p{L}\p{M}\p{N}])\.(?=\d)"), "0."),
    (regex.compile(r"^\s*[-*•·]\s+(?=\p{L})"), ""),  # the bullet of a list
    (regex.compile(r"(?<!\*)(\*{1,3})(?=[^\s*])([^*]*[^\s*])\1(?!\*)"), r"\2"),  # bold and slanted letters of Markdown
]  # fmt: skip
_ANSWER = regex.compile(
    # A star behind a digit belongs to it: T2* is no T2.
    rf"{_W}+(?:(?:[-/.*']|(?<=\d)[:,](?=\d)){_W}+)*(?:(?<=\d)\*)?|[\p{{S}}%‰#&@*-]",
)
_NO_SIGN = frozenset("|¦¨¯¸´`*")
_ARTICLES = frozenset({"a", "an", "the"})
#: Words whose next lone letter is a name and no article: "hepatitis a virus", "grade a stenosis".
_CLASSIFIERS = frozenset(
    "type types group grade class classes category stage level hepatitis influenza vitamin factor protein"
    " option answer choice zone segment lead phase panel pattern blood hemoglobin"
    " haemoglobin immunoglobulin iga coagulation subtype subgroup variant allele strain serotype serogroup"
    " site arm score bosniak child child-pugh stanford weber danis-weber killip nyha"
    " haemophilia hemophilia apolipoprotein pulmonary-vein series letter label"
    "".split()
)
_NO_NOUN = frozenset("and or nor vs versus is are was were".split())


def _folded(text: str) -> str:
    text = regex.sub(rf"(?<=\d)(?=[{_SUPERSCRIPTS}])", "^", one_line(text))
    text = regex.sub(r"(?<=\d)(?=[¼½¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def answer_tokens(text: str) -> list[tuple[str, bool]]:
    """Words and signs of an answer in order, each with whether it is an article that may be left out.

    "a", "an" and "the" are articles where a word follows that they can belong to. A lone "A", "hepatitis A", "A or B",
    "A+" and an upper-case A within a sentence are letters.
    """
    folded = _folded(text)
    found = [match for match in _ANSWER.finditer(folded) if match[0] not in _NO_SIGN]
    upper = folded.upper() == folded  # no case to tell an A from an a by
    words = [unicodedata.normalize("NFC", match[0].casefold()) for match in found]
    result = []
    for place, (match, word) in enumerate(zip(found, words, strict=True)):
        following = words[place + 1] if place + 1 < len(words) else ""
        article = (
            word in _ARTICLES
            and following[:1].isalnum()
            and following not in _NO_NOUN
            and not (place and words[place - 1] in _CLASSIFIERS and word == "a")
            and not (
                match[0] == "A" and not upper and place and folded[: match.start()].rstrip()[-1:] not in ".!?:;\"'("
            )
        )
        result.append((word, article))
    return result


def normal_form(text: str) -> str:
    """A text as it is compared: words and signs joined by one space, no articles; marks alone stay as they are."""
    found = [word for word, article in answer_tokens(text) if not article]
    return " ".join(found) or " ".join(_folded(text).split()).casefold()


def exact_match(hypothesis: str, reference: str) -> bool:
    """Do two answers say the same: every word, sign, comparison, unit and lone letter counts.

    Case, punctuation, articles and the way a sign is typed (">=" or "≥", "−" or "-", "cm²" or "cm2") do not.
    """
    first, second = answer_tokens(hypothesis), answer_tokens(reference)
    if not first or not second:
        return normal_form(hypothesis) == normal_form(reference)
    if [word for word, article in first if not article and word not in _ARTICLES] != [
        word for word, article in second if not article and word not in _ARTICLES
    ]:
        return False
    # An article may be left out on either side; a letter that looks like one may not.
    reached = {(0, 0)}
    while reached:
        following = set()
        for i, j in reached:
            if i == len(first) and j == len(second):
                return True
            if i < len(first) and j < len(second) and first[i][0] == second[j][0]:
                following.add((i + 1, j + 1))
            if i < len(first) and first[i][1]:
                following.add((i + 1, j))
            if j < len(second) and second[j][1]:
                following.add((i, j + 1))
        reached = following
    return False
