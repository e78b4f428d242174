"""The language of a text, and the kind that asks for one.

langdetect draws at random unless it is seeded. It is seeded here, so a text has one language;
published scores were made without a seed, and short or mixed texts can differ from run to run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.errors import MachineError
from align.instructions.base import Instruction

# Names for sentences; codes without one are said as they are.
NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "de": "German", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati",
    "hi": "Hindi", "it": "Italian", "ja": "Japanese", "kn": "Kannada", "ko": "Korean",
    "mr": "Marathi", "ne": "Nepali", "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese",
    "ru": "Russian", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh-cn": "Chinese",
}  # fmt: skip


class ResponseLanguage(Instruction):
    """The answer is in a language, as far as langdetect can tell.

    An answer that tells none, such as "26", is in none; published scores count it as met.
    """

    kind: Literal["language:response_language"] = "language:response_language"
    """Which kind."""
    language: str = Field(min_length=2)
    """Its code, such as de."""
    phrasings: ClassVar = (
        "Answer in {language} only; no other language is allowed.",
        "Your whole answer has to be in {language}.",
    )

    def _holds(self, answer: str) -> bool:
        return language_of(answer) == self.language

    def said(self) -> dict[str, str]:
        """Its English name."""
        return {"language": NAMES.get(self.language, self.language)}


def language_of(text: str) -> str | None:
    """The code of a text's language; None where nothing in it, such as a letter, tells one.

    Raises:
        MachineError: langdetect is not installed.
    """
    return _detector()(text)


@functools.cache
def _detector() -> Callable[[str], str | None]:
    try:
        from langdetect import LangDetectException
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ImportError as error:
        raise MachineError(
            "Instructions about the language of an answer (language:response_language, "
            "change_case:english_capital, change_case:english_lowercase) need the package "
            'langdetect. Install it: pip install "align-toolkit[eval]", or pip install langdetect.'
        ) from error
    factory: Any = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    # Of the factory alone: the package's own default stays as others set it.
    factory.set_seed(0)

    def detected(text: str) -> str | None:
        detector = factory.create()
        detector.append(text)
        try:
            found: str = detector.detect()
        except LangDetectException:
            return None
        return found

    return detected
