"""The number that an answer gives, as an exact fraction, and whether it is the expected one.

Comparison is exact: 3.50 is 7/2, .333 is not 1/3. A percent sign is a unit: 50 % is 50. An answer may leave the
expected unit out but not write another; where none is expected, any will do. Units are compared as they are written:
no unit is converted, and km is not kilometres.
"""

import re
from fractions import Fraction

from deltalens.evaluate.tasks.item import Item, last_line

# Longer texts are no number, and int() refuses more than 4,300 digits.
_MAX_CHARACTERS = 200
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = rf"[+-]? ?(?:(?:{_DECIMAL})(?:e[+-]?[0-9]{{1,2}}(?![0-9]))?(?: ?/ ?[0-9]+)?)"
# What may stand before the number: nothing, an equation's left side, or words that end by announcing it.
_LEAD = r"(?:.*(?<![!<>])=|[^0-9]*(?:\b(?:is|are|equals|answer|result)\b|:))? ?"
# These would change the number rather than name its unit.
_NOT_UNITS = r"(?!(?:or|and|to|not|plus|minus|times|over|hundred|thousand|million|billion|trillion|dozen)\b)"
_UNIT = rf"(?P<unit>(?: ?(?:%|°|{_NOT_UNITS}[a-zµ]+(?:[²³]|\^[23])?(?:/[a-z]+)?)){{0,2}})"
# Signs that have a name, and the two ways to write a power.
_NAMES = str.maketrans(
    {"%": "percent", "°": "degrees", "$": "dollars", "€": "euros", "£": "pounds", "²": "^2", "³": "^3", " ": None}
)
_ANSWER = re.compile(rf"{_LEAD}(?P<currency>[$€£]?)(?P<number>{_NUMBER}){_UNIT}[ .!]*", re.IGNORECASE | re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac *\{ *([0-9]+) *\} *\{ *([0-9]+) *\}")
_BOX = re.compile(r"\\boxed *\{((?:[^{}]|\{[^{}]*\})*)\}")
# Thousands separators and spacing of LaTeX and typography, the minus sign, and what only decorates.
_REWRITES = (
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=[0-9])(?:\\,|[\u00a0\u2009\u202f])(?=[0-9]{3})"), ""),
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\$([^$]+)\$"), r" \1 "),  # mathematics, before a dollar sign that is left is taken for money
    (re.compile(r"\\\(|\\\)|\\\[|\\\]|\\text|\$\$|\$(?![0-9.])|[*{}_`]"), " "),
    (re.compile(r"\s+"), " "),
)


def number(text: str) -> Fraction | None:
    r"""The one number that an answer gives, None where it gives none or several.

    Takes integers, decimals, fractions, thousands separators and exponents up to 99, the last `\boxed{…}`, the right
    side of an equation, a short announcement before and a unit and punctuation behind.
    """
    found = _quantity(text)
    return None if found is None else found[0]


def same_number(expected: str, text: str) -> bool:
    """Whether an answer, or else its last line, gives the expected number, and no other than the expected unit."""
    found, wanted = _quantity(text) or _quantity(last_line(text)), _quantity(expected)
    if found is None or wanted is None:
        return False
    return found[0] == wanted[0] and ("" in (found[1], wanted[1]) or found[1] == wanted[1])


def score(item: Item, text: str) -> bool:
    """Whether an answer gives the item's number, on its own or in its last line."""
    return same_number(item.answer, text)


def well_formed(item: Item, text: str) -> bool:
    """Whether an answer is one number and no more than its announcement and unit."""
    return number(text) is not None


def _quantity(text: str) -> tuple[Fraction, str] | None:
    """The one number that an answer gives, and its unit, empty where there is none."""
    boxes = _BOX.findall(text)
    answer = (boxes[-1] if boxes else text).strip()
    if len(answer) > _MAX_CHARACTERS:
        return None
    answer = _FRACTION.sub(r"\1/\2", answer)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    found = _ANSWER.fullmatch(answer.strip())
    if found is None:
        return None
    above, _, below = found["number"].replace(",", "").replace(" ", "").partition("/")
    if below and not int(below):
        return None
    unit = (found["currency"] + found["unit"]).casefold().translate(_NAMES)
    return Fraction(above) / int(below or 1), unit
