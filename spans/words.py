"""Raw text to the words that tagging heads answer for, each with its place in the text.

A text may only be split where BERT's tokenizer splits it too: joined with single spaces, the words have its token ids.
BERT keeps symbols with the letters beside them, so a word such as "5€" or "😀ok" stays one.
"""

import re
import unicodedata

CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B81F),
    (0x2B920, 0x2CEAF),  # BERT's list leaves out what lies between
    (0x2F800, 0x2FA1F),
)
INVISIBLE = re.compile("[\ufffd\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


class Shape(dict[int, str]):
    """Code point to the character that stands for its class, for `str.translate`; fills itself.

    Printable ASCII stands for itself. `a`: parts of words; `´`: accents and other marks; `字`: CJK; `…`: punctuation;
    a space: white space; `_\\0_`: what BERT deletes.
    """

    def __missing__(self, point: int) -> str:
        self[point] = self.of(chr(point))
        return self[point]

    @staticmethod
    def of(character: str) -> str:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category[0] == "Z":
            return " "
        if category == "Cc" or INVISIBLE.match(character):
            return "\0"
        if character.isascii():
            return character
        if any(first <= ord(character) <= last for first, last in CJK):
            return "字"
        if character in "’‐‑":
            return "'" if character == "’" else "-"
        # What is no punctuation to every version of Unicode may be none to BERT.
        if category[0] == unicodedata.ucd_3_2_0.category(character)[0] == "P":
            return "…"
        return "´" if category in ("Mn", "Me") else "a"


SHAPE = Shape()
PATTERN = r"""
    (?:https?://|www\.)[^ 字]*[PART/]           # a URL, up to its last letter or slash
  | [@#](?:[PART_\0]*[PART_])                   # a mention or hashtag
  | (?:[A-Za-z]\.){2,}(?![PART\0])              # U.S.
  | RUN(?:(?:[-'.@]|(?<=\d)[:,](?=\d))RUN)*     # don't, well-known, 3.5, 10:30, me@example.org
  | [^ \0](?:´++(?![PART\0]))?                  # anything else alone, with the marks upon it
"""
WORD = re.compile(PATTERN.replace("RUN", r"[PART](?:\0*[PART])*").replace("PART", "A-Za-z0-9´"), re.VERBOSE)


def words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text: each with the places of its first character and of the one after its last.

    White space is what BERT takes for it; it deletes other control characters, so they may stand within a word.
    """
    shape = text.translate(SHAPE)
    return [(text[match.start() : match.end()], *match.span()) for match in WORD.finditer(shape)]
