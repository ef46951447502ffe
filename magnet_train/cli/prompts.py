"""Captions for `generate`, from the command line or a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from magnet_train.errors import UserError
from magnet_train.storage.plain_text import is_text, lines_of, load_json, read_text

_MOST_CLIPS = 1_000_000  # of one command


@dataclass(frozen=True)
class Prompt:
    """A clip to generate, as a line of a prompts file describes it."""

    text: str | None  # caption; None for a clip without one
    id: str  # in results.jsonl
    seed: int | None = None  # makes the clip as if it were alone, with this seed
    negative: str | None = None


def read_prompts(texts: Sequence[str] | None, file: Path | None, unconditional: int | None) -> list[Prompt]:
    """Collect captions from one of three sources; the others are None.

    A file is .jsonl with `text` and optionally `id`, `seed` and `negative`, or has a caption per line; `unconditional`
    is a number of clips.

    Raises:
        UserError: There is no caption, one is empty, or the file cannot be read.
    """
    if unconditional is not None:
        if not 1 <= unconditional <= _MOST_CLIPS:
            raise UserError(f"--unconditional {unconditional} must lie in 1..{_MOST_CLIPS:,}.")
        return [Prompt(None, str(index)) for index in range(unconditional)]
    where, prompts = "--text", [Prompt(text, str(index)) for index, text in enumerate(texts or ())]
    if file is not None:
        where, prompts = str(file), list(_prompts_of_file(file))
    for number, prompt in enumerate(prompts, start=1):
        if not (prompt.text or "").strip():
            raise UserError(f"caption {number} of {where} is empty; write one, or use --unconditional N.")
        if not is_text(prompt.text or ""):  # as Python decodes bytes of the command line that are not UTF-8
            raise UserError(f"caption {number} of {where} is not text in UTF-8; write it again.")
    if not prompts:
        raise UserError(f"{where} holds no caption; write one per line.")
    return prompts


def _prompts_of_file(path: Path) -> Iterator[Prompt]:
    try:
        lines = lines_of(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {path} cannot be read ({error}); give a .txt or .jsonl file.") from error
    filled_in = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    for index, (number, line) in enumerate(filled_in):
        if path.suffix.lower() != ".jsonl":
            yield Prompt(line.strip(), str(index))
            continue
        try:
            record = load_json(line)
            if not isinstance(record, dict) or "text" not in record:
                raise ValueError("it has no text")
            text, negative, seed = record["text"], record.get("negative"), record.get("seed")
            if not isinstance(text, str):
                raise ValueError(f"text is a {type(text).__name__}")
            if negative is not None and not (isinstance(negative, str) and is_text(negative)):
                raise ValueError("negative is not text")
            if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
                raise ValueError("seed is not a whole number in 0..2^63-1")
            yield Prompt(text, str(record.get("id", index)), seed, negative)
        except ValueError as error:
            raise UserError(
                f'line {number} of {path} should look like {{"text": "..."}} ({error}); correct it.'
            ) from error
