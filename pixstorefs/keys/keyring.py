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
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from pixstorefs.errors import CorruptStore, InvalidInput, WrongKey
from pixstorefs.keys import recovery_code
from pixstorefs.keys.secrets import Secret
from pixstorefs.keys.slots import (
    COMMITMENT_SIZE_BYTES,
    DEFAULT_COST,
    MASTER_KEY_SIZE_BYTES,
    NONCE_SIZE_BYTES,
    SALT_SIZE_BYTES,
    KdfCost,
    infos,
    parse,
    require_label,
    require_room,
    require_work,
    without,
    work_kib,
    written,
)

_PURPOSES = "pixstorefs/1/"
_KEYFILE_INFO = b"pixstorefs/1/keyfile slot"
_COMMIT_INFO = b"commit"

_OPENS_WITH = {"passphrase": "a passphrase", "keyfile": "a keyfile"}


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
    require_label(label)
    master_key = random(MASTER_KEY_SIZE_BYTES)
    slot = _sealed_slot(master_key, secret, header, label, random, cost)
    return master_key, written([slot])


def unlock(keys_json: bytes, secret: Secret, header: bytes) -> bytes:
    """The master key (32 bytes), from the first slot that opens with `secret`.

    Raises WrongKey where no slot does, CorruptStore where keys.json is damaged or asks for more than the
    caps, NewerFormat where it is of a later format; MemoryError where argon2id cannot get its memory.
    """
    _, master_key = _open(parse(keys_json), secret, header)
    return master_key


def add(
    keys_json: bytes,
    secret: Secret,
    make_new: Callable[[], Secret],
    header: bytes,
    *,
    label: str,
    random: Callable[[int], bytes] = os.urandom,
    cost: KdfCost = DEFAULT_COST,
) -> bytes:
    """keys.json with one more slot, which opens with a new secret; `secret` is one that opens it now.

    `make_new` is asked for the new secret when nothing else can be refused any more: it may ask a person, or
    make a keyfile. Raises InvalidInput where the label is taken, there are too many slots, or the new secret
    opens the store already (or removing one of the two keys would not lock it out); otherwise as `unlock`.
    """
    slots = parse(keys_json)
    require_room(slots, label)
    _, master_key = _open(slots, secret, header)
    new = make_new()
    _refuse_known(slots, new, header)
    if new.kind == "passphrase":
        require_work(slots, cost)
    return written([*slots, _sealed_slot(master_key, new, header, label, random, cost)])


def remove(keys_json: bytes, label: str, secret: Secret, header: bytes) -> bytes:
    """keys.json less one slot; `secret` opens another one, or nobody could tell that any still opens.

    Raises InvalidInput where no slot has the label, it is the last one, or the only one that `secret` opens;
    otherwise as `unlock`.
    """
    remaining = without(keys_json, label)
    try:
        unlock(remaining, secret, header)
    except WrongKey:
        unlock(keys_json, secret, header)
        raise InvalidInput(
            f"The {secret.kind} given opens only the key {label!r}, which is to be removed. Give the secret "
            "of a key that stays, to show that there is one. Nothing was changed."
        ) from None
    return remaining


def change(
    keys_json: bytes,
    secret: Secret,
    make_new: Callable[[], Secret],
    header: bytes,
    *,
    random: Callable[[int], bytes] = os.urandom,
    cost: KdfCost = DEFAULT_COST,
) -> tuple[bytes, str]:
    """keys.json where the slot that `secret` opens opens with a new secret instead; and its label.

    Raises InvalidInput where the new secret opens the store already; otherwise as `unlock`.
    """
    slots = parse(keys_json)
    number, master_key = _open(slots, secret, header)
    label: str = slots[number]["label"]
    new = make_new()
    _refuse_known(slots, new, header)
    if new.kind == "passphrase":
        require_work(slots[:number] + slots[number + 1 :], cost)
    slots[number] = _sealed_slot(master_key, new, header, label, random, cost)
    return written(slots), label


def slot_kinds(keys_json: bytes) -> set[str]:
    """Which kinds of secret open the store: "passphrase", "keyfile" or both.

    Raises CorruptStore and NewerFormat as `unlock` does. Nothing is verified: that needs the secret.
    """
    return {info.kind for info in infos(keys_json)}


def derive(master_key: bytes, store_id: bytes, purpose: str) -> bytes:
    """The 32-byte key of one purpose ("index", ...): HKDF-SHA256 (RFC 5869) with the store id as salt."""
    info = (_PURPOSES + purpose).encode()
    return HKDF(SHA256(), MASTER_KEY_SIZE_BYTES, salt=store_id, info=info).derive(master_key)


def _open(slots: list[dict[str, Any]], secret: Secret, header: bytes) -> tuple[int, bytes]:
    """Which slot opens with a secret, and the master key in it. Raises WrongKey, CorruptStore.

    What costs less to try is tried first. `parse` has bounded the sum; what looks like a mistyped recovery
    code takes it twice.
    """
    damaged_label = None
    cheap_first = sorted(enumerate(slots), key=lambda numbered: work_kib(numbered[1]))
    for candidate in filter(None, (secret, recovery_code.as_typed(secret))):
        for number, slot in cheap_first:
            if slot["kind"] != candidate.kind:
                continue
            slot_key = _slot_key(candidate, slot["kdf"])
            binding = _binding(header, slot)
            if not hmac.compare_digest(_commitment(slot_key, binding), bytes.fromhex(slot["commitment"])):
                continue
            try:
                nonce, wrapped = bytes.fromhex(slot["nonce"]), bytes.fromhex(slot["wrapped"])
                return number, AESGCM(slot_key).decrypt(nonce, wrapped, binding)
            except InvalidTag:
                damaged_label = slot["label"]
    if damaged_label is not None:
        raise CorruptStore(
            f"The secret fits key slot {damaged_label!r}, but the key in it is damaged. "
            "Restore keys.json from a backup, or open the store with another of its keys."
        )
    raise WrongKey(_why_none_opens({slot["kind"] for slot in slots}, secret))


def _refuse_known(slots: list[dict[str, Any]], secret: Secret, header: bytes) -> None:
    try:
        number, _ = _open(slots, secret, header)
    except (WrongKey, CorruptStore):
        return
    raise InvalidInput(
        f"This {secret.kind} opens the store already, as its key {slots[number]['label']!r}. "
        "Nothing was changed."
    )


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
