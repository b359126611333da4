"""The keyring: the content of keys.json, which lets several secrets open one store.

A store has one random 256-bit master key. Each slot wraps it with AES-256-GCM (NIST SP 800-38D) under a slot
key made from a secret: argon2id (RFC 9106) for a passphrase, HKDF-SHA256 (RFC 5869) for a keyfile, which is
random already. The associated data is the store's whole header and the slot's own parameters, so neither can
be changed, and no slot be carried to another store. Format 1:

    {"format": 1, "slots": [{"label", "kind": "passphrase" | "keyfile",
      "kdf": {"name": "argon2id", "memory_kib", "iterations", "lanes", "salt"}
           | {"name": "hkdf-sha256", "salt"},
      "nonce", "wrapped", "commitment"}]}                      (bytes in lower-case hex)

AES-GCM does not commit to its key: one ciphertext can be made to open under many keys, which turns guessing
passphrases one by one into guessing them by the thousand (Len, Grubbs, Ristenpart, "Partitioning Oracle
Attacks", USENIX Security 2021). So each slot holds a commitment, an HKDF output of the slot key and the
associated data, and nothing is unwrapped before it matches.

Pure functions: no file is touched, and randomness is an argument.
"""

import hmac
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from pixstorefs.errors import CorruptStore, InvalidInput, NewerFormat, WrongKey
from pixstorefs.keys.secrets import Secret

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
MAX_LABEL_CHARACTERS = 200
MAX_KEYS_JSON_SIZE_BYTES = 64 * 1024

_PURPOSES = "pixstorefs/1/"
_KEYFILE_INFO = b"pixstorefs/1/keyfile slot"
_COMMIT_INFO = b"commit"

_SLOT_FIELDS = {"label", "kind", "kdf", "nonce", "wrapped", "commitment"}
_OPENS_WITH = {"passphrase": "a passphrase", "keyfile": "a keyfile"}


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


def create(
    secret: Secret,
    header: bytes,
    *,
    label: str,
    random: Callable[[int], bytes] = os.urandom,
    cost: KdfCost = DEFAULT_COST,
) -> tuple[bytes, bytes]:
    """A new master key (32 bytes), and the keys.json whose only slot opens with `secret`.

    `header` is the exact content of store.json; `random(n)` gives n unpredictable bytes, and is asked for
    the master key, the salt and the nonce, in this order. Raises InvalidInput where the label is too long.
    """
    if len(label) > MAX_LABEL_CHARACTERS:
        raise InvalidInput(f"The label of a key has at most {MAX_LABEL_CHARACTERS} characters.")
    master_key = random(MASTER_KEY_SIZE_BYTES)
    slot = _sealed_slot(master_key, secret, header, label, random, cost)
    return master_key, json.dumps({"format": FORMAT, "slots": [slot]}, indent=1).encode("ascii") + b"\n"


def unlock(keys_json: bytes, secret: Secret, header: bytes) -> bytes:
    """The master key (32 bytes), from the first slot that opens with `secret`.

    Raises WrongKey where no slot does, CorruptStore where keys.json is damaged or asks for more than the
    caps, NewerFormat where it is of a later format; MemoryError where argon2id cannot get its memory.
    """
    slots = _parse(keys_json)
    damaged_label = None
    for slot in slots:
        if slot["kind"] != secret.kind:
            continue
        slot_key = _slot_key(secret, slot["kdf"])
        binding = _binding(header, slot)
        if not hmac.compare_digest(_commitment(slot_key, binding), bytes.fromhex(slot["commitment"])):
            continue
        try:
            nonce, wrapped = bytes.fromhex(slot["nonce"]), bytes.fromhex(slot["wrapped"])
            return AESGCM(slot_key).decrypt(nonce, wrapped, binding)
        except InvalidTag:
            damaged_label = slot["label"]
    if damaged_label is not None:
        raise CorruptStore(
            f"The secret fits key slot {damaged_label!r}, but the key in it is damaged. "
            "Restore keys.json from a backup, or open the store with another of its keys."
        )
    raise WrongKey(_why_none_opens({slot["kind"] for slot in slots}, secret))


def slot_kinds(keys_json: bytes) -> set[str]:
    """Which kinds of secret open the store: "passphrase", "keyfile" or both.

    Raises CorruptStore and NewerFormat as `unlock` does. Nothing is verified: that needs the secret.
    """
    return {slot["kind"] for slot in _parse(keys_json)}


def derive(master_key: bytes, store_id: bytes, purpose: str) -> bytes:
    """The 32-byte key of one purpose ("index", ...): HKDF-SHA256 (RFC 5869) with the store id as salt."""
    info = (_PURPOSES + purpose).encode()
    return HKDF(SHA256(), MASTER_KEY_SIZE_BYTES, salt=store_id, info=info).derive(master_key)


def _sealed_slot(
    master_key: bytes,
    secret: Secret,
    header: bytes,
    label: str,
    random: Callable[[int], bytes],
    cost: KdfCost,
) -> dict[str, Any]:
    salt = random(SALT_SIZE_BYTES).hex()
    kdf: dict[str, Any] = {"name": "hkdf-sha256", "salt": salt}
    if secret.kind == "passphrase":
        kdf = {
            "name": "argon2id",
            "memory_kib": cost.memory_kib,
            "iterations": cost.iterations,
            "lanes": cost.lanes,
            "salt": salt,
        }
    slot: dict[str, Any] = {"label": label, "kind": secret.kind, "kdf": kdf}
    binding = _binding(header, slot)
    slot_key = _slot_key(secret, kdf)
    nonce = random(NONCE_SIZE_BYTES)
    slot["nonce"] = nonce.hex()
    slot["wrapped"] = AESGCM(slot_key).encrypt(nonce, master_key, binding).hex()
    slot["commitment"] = _commitment(slot_key, binding).hex()
    return slot


def _binding(header: bytes, slot: dict[str, Any]) -> bytes:
    """The associated data: the header, then the slot's parameters as JSON (sorted, ASCII, no blanks)."""
    parameters = {name: slot[name] for name in ("label", "kind", "kdf")}
    return header + json.dumps(parameters, sort_keys=True, separators=(",", ":")).encode("ascii")


def _slot_key(secret: Secret, kdf: dict[str, Any]) -> bytes:
    salt = bytes.fromhex(kdf["salt"])
    if kdf["name"] == "hkdf-sha256":
        return HKDF(SHA256(), 32, salt=salt, info=_KEYFILE_INFO).derive(secret.material)
    return Argon2id(
        salt=salt,
        length=32,
        iterations=kdf["iterations"],
        lanes=kdf["lanes"],
        memory_cost=kdf["memory_kib"],
    ).derive(secret.material)


def _commitment(slot_key: bytes, binding: bytes) -> bytes:
    return HKDFExpand(SHA256(), COMMITMENT_SIZE_BYTES, info=_COMMIT_INFO + binding).derive(slot_key)


def _why_none_opens(kinds: set[str], secret: Secret) -> str:
    if secret.kind not in kinds:
        expected = " or ".join(_OPENS_WITH[kind] for kind in sorted(kinds))
        return f"This store opens only with {expected}, and {_OPENS_WITH[secret.kind]} was given."
    return (
        f"No key of this store opens with the {secret.kind} given. Either it is the wrong one, or store.json "
        "or keys.json is not as it was written. Nothing was changed."
    )


def _parse(keys_json: bytes) -> list[dict[str, Any]]:
    """The slots, checked down to the last field, so that no KDF runs on what a stranger wrote."""
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
    return slots


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
