"""Real text that ships with CPython, split once into a training side and a test side.

The language reference (`pydoc_data.topics`) is prose for both sides; the standard library's source is code
for training only. Texts depend on the Python version, and so does the split.
"""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lkv.errors import UserError, one_of
from lkv.files.reading import parse, regular, text_of

KINDS = ("topics", "code")

# Normalised characters from which a shared paragraph ties two documents to one side.
LONG_PARAGRAPH = 80

# Left out of the code: tests, tables of characters, the topics themselves, and what quotes one at length.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "pdb.py"}

# SHA-256 of the texts that RULER is built from: its scripts' essays, SQuAD 2.0 dev, and HotpotQA dev
# distractor from its authors and from the mirror that lm-eval reads.
OFFICIAL = {
    "c991a4f897d482a4c845028f5bd3aa8951569b1ab1708723bcc6ec72e66b9446": "essays",
    "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8": "squad",
    "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea": "hotpotqa",
    "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8": "hotpotqa",
}
HUB_FILES = {"squad": "dev-v2.0.json", "hotpotqa": "hotpot_dev_distractor_v1.json"}
WAYS_OUT = {
    "essays": "haystack to 'pydoc' (ships with Python), to JSON with a \"text\" field, or to a .txt file",
    "squad": "squad to its path, or leave the task out",
    "hotpotqa": "hotpotqa to its path, or leave the task out",
}
PIN = "#sha256="
TIMEOUT = 4  # seconds that the hub has to answer


@dataclass(frozen=True)
class Document:
    """One text of kind `topics` or `code`; `sha256` is of its normalised text (hex)."""

    name: str
    kind: str
    text: str
    sha256: str


def normalised(text: str) -> str:
    """Lower case, every run of white space one blank: what makes two texts the same text."""
    return " ".join(text.lower().split())


def long_paragraphs(text: str) -> set[str]:
    """The normalised paragraphs of at least LONG_PARAGRAPH characters."""
    return {part for part in map(normalised, _paragraphs(text)) if len(part) >= LONG_PARAGRAPH}


def documents(kind: str) -> list[Document]:
    """All documents of a kind, by name; code that quotes a topic is left out."""
    if kind not in KINDS:
        raise one_of("kind of document", kind, KINDS)
    return list(_topics() if kind == "topics" else _code())


def side(document: Document) -> Literal["train", "test"]:
    """The side a document is on, for ever: code trains; a topic goes where its group's hash says.

    A group is what long shared paragraphs connect; its hash is the smallest SHA-256 in it.
    """
    if document.kind == "code":
        return "train"
    group = _groups().get(document.sha256, document.sha256)
    return "test" if int(group, 16) % 2 else "train"


def haystack(source: str) -> tuple[str, str]:
    """(name for the haystack column, text): `pydoc`, the test side's prose, or essays.

    Essays are JSON with a "text" field or plain text, a source as `read_source` takes it; on the hub, a set
    with a text in each row.
    """
    if source == "pydoc":
        return "pydoc", _prose()
    content, name = read_source("essays", source)
    wanted = 'wanted: JSON {"text": "..."} or plain text in UTF-8'
    refused = f"{source} is not an essays file"
    text = text_of(content, f"{refused} ({{}}); {wanted}")
    if unpinned(source).endswith(".json"):
        found = parse(text, f"{refused} ({{}}); {wanted}")
        if not isinstance(found, dict) or "text" not in found:
            raise UserError(f"{refused} (it has no field 'text'); {wanted}")
        text = found["text"]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{source} holds no text; wanted: the essays as one string")
    return name, text


def read_source(kind: str, source: str) -> tuple[bytes, str]:
    """(content, name for the haystack column) of RULER's `essays`, `squad` or `hotpotqa`.

    `source` is PATH or hub:OWNER/NAME[@REVISION], either with `#sha256=HEX` to pin its content. The name is
    KIND:official for the official file, else it carries 8 digits of the content's SHA-256.
    """
    place, _, pin = source.partition(PIN)
    hub = place.startswith("hub:")
    content = _from_hub(kind, place.removeprefix("hub:")) if hub else _from_file(kind, Path(place))
    digest = hashlib.sha256(content).hexdigest()
    if pin and pin.lower() != digest:
        raise UserError(f"{place} has SHA-256 {digest}, not {pin}; get the right file, or mend the pin")
    if OFFICIAL.get(digest) == kind:
        return content, f"{kind}:official"
    name = kind if kind in HUB_FILES else re.split("[/@]", place)[-1] if hub else Path(place).stem
    return content, f"{name.lower()}:{digest[:8]}"


def unpinned(source: str) -> str:
    """`source` without the SHA-256 it may be pinned to."""
    return source.partition(PIN)[0]


def _from_file(kind: str, path: Path) -> bytes:
    return regular(path, f"no such {kind} file: {path}; set {WAYS_OUT[kind]}").read_bytes()


def _from_hub(kind: str, place: str) -> bytes:
    """A set's file, or for essays the texts of its rows, one blank between, as lm-eval joins them."""
    repository, _, revision = place.partition("@")
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi, hf_hub_download, is_offline_mode
    except ImportError:
        raise UserError("hub data need the package datasets; pip install 'lkv[data]'") from None
    # The hub's libraries raise whatever their HTTP layer does; any of it means: no data from there.
    try:
        commit = revision or None
        if not is_offline_mode():  # asked once and briefly, for the libraries retry for half a minute
            commit = HfApi().dataset_info(repository, revision=commit, timeout=TIMEOUT).sha
        if kind == "essays":
            rows = load_dataset(repository, split="train", revision=commit)
            return " ".join(rows["text"]).encode("utf-8")
        path = hf_hub_download(repository, HUB_FILES[kind], repo_type="dataset", revision=commit)
        return Path(path).read_bytes()
    except Exception as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(
            f"cannot read {kind} from the hub's {repository} ({type(error).__name__}: {first}); "
            f"download the file, and set {WAYS_OUT[kind]}"
        ) from None


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _document(name: str, kind: str, text: str) -> Document:
    return Document(name, kind, text, hashlib.sha256(normalised(text).encode()).hexdigest())


@cache
def _topics() -> tuple[Document, ...]:
    from pydoc_data.topics import topics

    return tuple(_document(name, "topics", text) for name, text in sorted(topics.items()))


@cache
def _code() -> tuple[Document, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    quoted = set().union(*(long_paragraphs(topic.text) for topic in _topics()))
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        # A distribution puts files of its own beside the library (site-packages, build records).
        if SKIPPED.intersection(parts) or parts[0].removesuffix(".py") not in sys.stdlib_module_names:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip() and quoted.isdisjoint(long_paragraphs(text)):
            found.append(_document("/".join(parts), "code", text))
    return tuple(found)


@cache
def _groups() -> dict[str, str]:
    """SHA-256 of each topic -> smallest SHA-256 in its group."""
    owners: dict[str, list[str]] = {}
    for topic in _topics():
        for paragraph in long_paragraphs(topic.text):
            owners.setdefault(paragraph, []).append(topic.sha256)
    group = {topic.sha256: topic.sha256 for topic in _topics()}
    changed = True
    while changed:  # labels only fall, so this ends
        changed = False
        for members in owners.values():
            smallest = min(group[member] for member in members)
            for member in members:
                changed |= group[member] != smallest
                group[member] = smallest
    return group


def _prose() -> str:
    """The test side's paragraphs that are sentences, each once: no headings, grammar or examples."""
    found: dict[str, str] = {}
    for topic in _topics():
        if side(topic) == "test":
            for paragraph in _paragraphs(topic.text):
                line = " ".join(paragraph.split()).removeprefix("* ")
                if (
                    len(line) >= LONG_PARAGRAPH
                    and line[-1] in ".:"
                    and not re.search("::=|>>>|[*=~-]{4}", line)
                ):
                    found.setdefault(normalised(line), line)
    return "\n\n".join(found.values())
