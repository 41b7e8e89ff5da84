"""Changes a message where its fields are, and keeps the lengths around the change true."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Field = tuple[int, bytes]
"""A tag, and all that follows it but a length."""

_DEEPEST = 8

TEXTS = [
    text.encode()
    for text in (
        *("", "fraud", "ü", "12.3ms", "1e-3", "850µs"),
        *("model.name", "model.version", "model.stage", "data_source", "service.name", "service.version"),
        *("gen_ai.request.model", "triton.model_name", "gen_ai.latency.e2e", "queue_time", "faas.coldstart"),
        *("QUEUE_START", "COMPUTE_INPUT_END", "triton-server"),
    )
]
"""What readers look for: no fuzzer guesses them."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def fields(raw: bytes) -> list[Field] | None:
    """The fields of a message without groups; None where it is none."""
    found, pos = [], 0
    while pos < len(raw):
        tag, pos = _varint(raw, pos)
        start = pos
        kind = tag & 7
        if kind == 0:
            _, pos = _varint(raw, pos)
        elif kind == 2:
            size, start = _varint(raw, pos)
            pos = start + size
        elif kind in (1, 5):
            pos += 8 if kind == 1 else 4
        else:
            return None
        if tag < 8 or pos > len(raw):
            return None
        found.append((tag, raw[start:pos]))
    return found


def _varint(raw: bytes, pos: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if pos >= len(raw):
            break
        value |= (raw[pos] & 0x7F) << shift
        pos += 1
        if raw[pos - 1] < 0x80:
            return value, pos
    return 0, len(raw) + 1


def encoded(parts: list[Field]) -> bytes:
    return b"".join(
        varint(tag) + (varint(len(payload)) if tag & 7 == 2 else b"") + payload for tag, payload in parts
    )


def mutated(raw: bytes, random: Random, bytewise: Callable[[bytes], bytes], depth: int = 0) -> bytes:
    """The message with one change somewhere inside it; `bytewise` changes what is no message."""
    parts = fields(raw)
    if not parts or depth > _DEEPEST:
        return bytewise(raw) if depth == 0 or random.random() < 0.15 else random.choice(TEXTS)
    place = random.randrange(len(parts))
    tag, payload = parts[place]
    step = random.randrange(20)
    if step == 0:
        del parts[place]
    elif step == 1:
        parts.insert(random.randrange(len(parts) + 1), parts[place])
    elif step == 2:
        random.shuffle(parts)
    elif step == 3 and tag & 7 == 2:  # a submessage in two pieces
        inner = fields(payload) or []
        cut = random.randrange(len(inner) + 1)
        parts[place : place + 1] = [(tag, encoded(inner[:cut])), (tag, encoded(inner[cut:]))]
    elif step == 4:
        parts[place] = (tag ^ 1 << random.randrange(8), payload)
    elif tag & 7 == 2:
        parts[place] = (tag, mutated(payload, random, bytewise, depth + 1))
    elif tag & 7 == 0:
        parts[place] = (tag, varint(random.getrandbits(random.choice((1, 2, 5, 31, 32, 33, 63, 64)))))
    else:
        parts[place] = (tag, random.choice((bytes(len(payload)), random.randbytes(len(payload)))))
    return encoded(parts)
