"""Texts that really kill or stall any process whose tokenizer sees them, for processes that are started with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ABORT", "EXIT", "HANG", "PANIC", "SEGFAULT", "Poison"]

SEGFAULT, ABORT, EXIT, HANG, PANIC = "canarysegfault", "canaryabort", "canaryexit", "canaryhang", "canarypanic"

# One word each, since words are what the tokenizer sees. Python imports a module of this name when it starts; the
# product knows nothing of it.
_SITE = """
import os, signal, time

import tokenizers

class Panic(BaseException):
    pass

def _segfault():
    os.kill(os.getpid(), signal.SIGSEGV)

def _panic():
    raise Panic("canary words of a text")

_DEEDS = {
    "canarysegfault": _segfault,
    "canaryabort": os.abort,
    "canaryexit": lambda: os._exit(3),
    "canaryhang": lambda: time.sleep(3600),
    "canarypanic": _panic,
}

class Poisoned:
    def __init__(self, tokenizer):
        object.__setattr__(self, "_tokenizer", tokenizer)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __setattr__(self, name, value):
        setattr(self._tokenizer, name, value)

    def encode_batch_fast(self, texts, **settings):
        for text in texts:
            for word, deed in _DEEDS.items():
                if word in text:
                    with open(LOG, "a") as log:
                        log.write(f"{word} {len(text.split(' . '))}\\n")
                    deed()
        return self._tokenizer.encode_batch_fast(texts, **settings)

class Factory:
    def __init__(self, kind):
        self._kind = kind

    def __call__(self, *arguments, **named):
        return Poisoned(self._kind(*arguments, **named))

    def __getattr__(self, name):
        return lambda *arguments, **named: Poisoned(getattr(self._kind, name)(*arguments, **named))

tokenizers.Tokenizer = Factory(tokenizers.Tokenizer)
"""


@dataclass(frozen=True)
class Poison:
    """A folder that poisons the processes whose PYTHONPATH it is on.

    Args:
        folder: where it is made.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "sitecustomize.py").write_text(f"LOG = {str(self.folder / 'log')!r}\n{_SITE}")

    @property
    def environment(self) -> dict[str, str]:
        """What poisons a process."""
        return {"PYTHONPATH": str(self.folder)}

    def deeds(self) -> list[tuple[str, int]]:
        """What happened, in order: the canary, and how many distinct words were handed over together with it, with
        its own.
        """
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(word, int(count)) for word, count in map(str.split, lines)]
