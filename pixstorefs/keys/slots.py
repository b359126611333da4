"""The form of keys.json: what is read is checked down to the last field, and nothing else is ever written.

No secret and no cipher comes near it: whether a slot opens is the keyring's matter.
"""

import json
from dataclasses import dataclass
from typing import Any

from pixstorefs.errors import CorruptStore, InvalidInput, NewerFormat

FORMAT = 1
MASTER_KEY_SIZE_BYTES = 32
SALT_SIZE_BYTES = 16  # RFC 9106 section 3.1 recommends 16 bytes
NONCE_SIZE_BYTES = 12
COMMITMENT_SIZE_BYTES = 32
_WRAPPED_SIZE_BYTES = MASTER_KEY_SIZE_BYTES + 16  # and the tag of GCM

# Whoever can write keys.json must not be able to make opening the store take the machine's memory or hours.
MAX_MEMORY_KIB = 1 << 20
MAX_ITERATIONS = 16
MAX_LANES = 16
MAX_SLOTS = 32
# Of all slots together, memory in KiB times passes over it: one slot at its limits, which takes 9 to 15 s
# (measured on 2 cores, with 16 lanes and with one), or twice as much as 32 slots of the default cost.
MAX_WORK_KIB = MAX_MEMORY_KIB * MAX_ITERATIONS
MAX_LABEL_CHARACTERS = 200
MAX_KEYS_JSON_SIZE_BYTES = 64 * 1024

_SLOT_FIELDS = {"label", "kind", "kdf", "nonce", "wrapped", "commitment"}


@dataclass(frozen=True, slots=True)
class KdfCost:
    """What one guess at a passphrase costs: memory in KiB, passes over it, and lanes (threads).

    Raises InvalidInput outside what argon2id allows (8 KiB a lane) and this format opens.
    """

    memory_kib: int
    iterations: int
    lanes: int

    def __post_init__(self) -> None:
        if not (
            1 <= self.lanes <= MAX_LANES
            and 1 <= self.iterations <= MAX_ITERATIONS
            and 8 * self.lanes <= self.memory_kib <= MAX_MEMORY_KIB
        ):
            raise InvalidInput(
                f"The argon2id cost of {self.memory_kib} KiB, {self.iterations} iterations and {self.lanes} "
                f"lanes is outside the limits: {MAX_MEMORY_KIB} KiB (and at least 8 a lane), "
                f"{MAX_ITERATIONS} and {MAX_LANES}."
            )


# The second recommended option of RFC 9106 section 4, for where 2 GiB are too much to ask for.
DEFAULT_COST = KdfCost(memory_kib=64 * 1024, iterations=3, lanes=4)


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """What everybody may know of a slot. `cost` is None for a keyfile, which needs no stretching."""

    label: str
    kind: str
    cost: KdfCost | None


def parse(keys_json: bytes) -> list[dict[str, Any]]:
    """The slots, checked down to the last field, so that no KDF runs on what a stranger wrote.

    Raises CorruptStore, or NewerFormat where keys.json is of a later format.
    """
    if len(keys_json) > MAX_KEYS_JSON_SIZE_BYTES:
        raise _corrupt(f"it has more than {MAX_KEYS_JSON_SIZE_BYTES} bytes")
    try:
        content = json.loads(keys_json.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _corrupt("it is not JSON") from None
    if not isinstance(content, dict) or not _is_number(content.get("format")):
        raise _corrupt("it has no format number")
    if content["format"] > FORMAT:
        raise NewerFormat(
            f"keys.json has format {content['format']}, and this pixstorefs knows {FORMAT}: "
            "install a newer one. Nothing was changed."
        )
    slots = content.get("slots")
    if content["format"] != FORMAT or set(content) != {"format", "slots"}:
        raise _corrupt("it does not have the fields of format 1")
    if not isinstance(slots, list) or not 1 <= len(slots) <= MAX_SLOTS:
        raise _corrupt(f"it does not hold 1 to {MAX_SLOTS} key slots")
    for number, slot in enumerate(slots, start=1):
        _check_slot(slot, f"key slot {number}")
    if sum(map(work_kib, slots)) > MAX_WORK_KIB:
        raise _corrupt(
            f"all its slots together have an argon2id cost of more than {MAX_WORK_KIB} KiB times iterations"
        )
    return slots


def work_kib(slot: dict[str, Any]) -> int:
    """What trying a secret on a checked slot costs: memory in KiB times passes over it, 0 for a keyfile."""
    kdf = slot["kdf"]
    return int(kdf["memory_kib"] * kdf["iterations"]) if slot["kind"] == "passphrase" else 0


def written(slots: list[dict[str, Any]]) -> bytes:
    """keys.json with these slots. Raises InvalidInput where it would be too large to be read."""
    content = json.dumps({"format": FORMAT, "slots": slots}, indent=1).encode("ascii") + b"\n"
    if len(content) > MAX_KEYS_JSON_SIZE_BYTES:
        raise InvalidInput(
            f"keys.json would have more than {MAX_KEYS_JSON_SIZE_BYTES} bytes: use shorter labels. "
            "Nothing was changed."
        )
    return content


def infos(keys_json: bytes) -> list[SlotInfo]:
    """What keys.json says of each slot. Nothing is verified: that needs the secret.

    Raises CorruptStore and NewerFormat as `parse` does.
    """
    return [_info(slot) for slot in parse(keys_json)]


def require_room(slots: list[dict[str, Any]], label: str) -> None:
    """Raises InvalidInput where no slot with this label can be added."""
    require_label(label)
    if label in [slot["label"] for slot in slots]:
        raise InvalidInput(f"There is a key {label!r} already: give another label. Nothing was changed.")
    if len(slots) >= MAX_SLOTS:
        raise InvalidInput(
            f"A store has at most {MAX_SLOTS} keys, and this one has them all: remove one first. "
            "Nothing was changed."
        )


def require_work(slots: list[dict[str, Any]], cost: KdfCost) -> None:
    """Raises InvalidInput if a slot of this cost would make all slots too costly to be read."""
    if sum(map(work_kib, slots)) + cost.memory_kib * cost.iterations > MAX_WORK_KIB:
        raise InvalidInput(
            "With this argon2id cost all keys together would take too long to try: give a smaller one, or "
            "remove a key. Nothing was changed."
        )


def require_label(label: str) -> None:
    """Raises InvalidInput where a label is too long."""
    if len(label) > MAX_LABEL_CHARACTERS:
        raise InvalidInput(f"The label of a key has at most {MAX_LABEL_CHARACTERS} characters.")


def without(keys_json: bytes, label: str) -> bytes:
    """keys.json less the slot with this label.

    Raises InvalidInput where there is none, more than one, or no other; CorruptStore, NewerFormat.
    """
    slots = parse(keys_json)
    labels = [slot["label"] for slot in slots]
    if labels.count(label) != 1:
        many = "has several keys" if label in labels else "has no key"
        raise InvalidInput(
            f"The store {many} {label!r}; its keys are {', '.join(map(repr, labels))}. Nothing was changed."
        )
    if len(slots) == 1:
        raise InvalidInput(
            f"{label!r} is the only key of the store: without it nobody could read the images. "
            "Add another one first. Nothing was changed."
        )
    return written([slot for slot in slots if slot["label"] != label])


def _check_slot(slot: Any, name: str) -> None:
    if not isinstance(slot, dict) or set(slot) != _SLOT_FIELDS:
        raise _corrupt(f"{name} does not have the fields of format 1")
    label, kdf = slot["label"], slot["kdf"]
    if not isinstance(label, str) or len(label) > MAX_LABEL_CHARACTERS:
        raise _corrupt(f"the label of {name} is not a short text")
    sizes = {"nonce": NONCE_SIZE_BYTES, "wrapped": _WRAPPED_SIZE_BYTES, "commitment": COMMITMENT_SIZE_BYTES}
    if not all(_is_hex(slot[field], size_bytes) for field, size_bytes in sizes.items()):
        raise _corrupt(f"the wrapped key of {name} is damaged")
    if not isinstance(kdf, dict) or not _is_hex(kdf.get("salt"), SALT_SIZE_BYTES):
        raise _corrupt(f"the salt of {name} is damaged")
    match (slot["kind"], kdf.get("name")):
        case ("keyfile", "hkdf-sha256"):
            known = set(kdf) == {"name", "salt"}
        case ("passphrase", "argon2id"):
            known = set(kdf) == {"name", "salt", "memory_kib", "iterations", "lanes"}
        case _:
            known = False
    if not known:
        raise _corrupt(f"{name} has a kind or key derivation that format 1 does not know")
    if slot["kind"] == "passphrase":
        _check_cost(kdf, name)


def _info(slot: dict[str, Any]) -> SlotInfo:
    kdf = slot["kdf"]
    cost = None
    if slot["kind"] == "passphrase":
        cost = KdfCost(kdf["memory_kib"], kdf["iterations"], kdf["lanes"])
    return SlotInfo(slot["label"], slot["kind"], cost)


def _check_cost(kdf: dict[str, Any], name: str) -> None:
    if not all(_is_number(kdf[field]) for field in ("memory_kib", "iterations", "lanes")):
        raise _corrupt(f"the argon2id cost of {name} is not made of numbers")
    try:
        KdfCost(kdf["memory_kib"], kdf["iterations"], kdf["lanes"])
    except InvalidInput as error:
        raise _corrupt(f"{name} was refused before anything was computed. {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_hex(value: object, size_bytes: int) -> bool:
    """Whether this is exactly what bytes.hex() writes: no upper case, no blanks, so one spelling a value."""
    return (
        isinstance(value, str) and len(value) == 2 * size_bytes and not set(value) - set("0123456789abcdef")
    )


def _corrupt(what: str) -> CorruptStore:
    return CorruptStore(
        f"keys.json is damaged: {what}. The images are intact; restore keys.json from a backup."
    )
