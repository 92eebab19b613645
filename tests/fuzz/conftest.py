"""Inputs that nobody thought of: mutations of what is kept in `corpus/`, one file an input, one folder a target.

Each file is tried as it is, then mutated. The ordinary run is the same each time; `FUZZ=20000` tries so many inputs
for each target, new ones each time. An input that broke something is added to the corpus.
"""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_CORPUS = Path(__file__).with_name("corpus")
_INPUTS = int(os.environ.get("FUZZ", "0"))

settings.register_profile(
    "fuzz",
    max_examples=_INPUTS or 300,
    derandomize=not _INPUTS,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
FUZZ = settings.get_profile("fuzz")
# What parsers fall over, in one place each: separators, other line ends, NUL, what is not ASCII, what is not UTF-8.
_SPICES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\t",
        b" ",
        b":",
        b";",
        b'"',
        b"%00",
        b"\xff",
        "ﬀ。".encode(),
        b"-1",
        b"0x7f",
        b"[",
        b"*",
    ]
)


def seeds(target: str) -> list[bytes]:
    """Return a target's inputs."""
    return [path.read_bytes() for path in sorted((_CORPUS / target).iterdir())]


@st.composite
def _mutated(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    data = draw(st.sampled_from(corpus))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        data = (
            data[:start] + draw(_SPICES | st.binary(max_size=4) | st.just(data[start:end] * 2)) + data[end:]
        )
    return data


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """Mutations of a target's inputs, and bytes of no form."""
    return _mutated(seeds(target)) | st.binary(max_size=200)
