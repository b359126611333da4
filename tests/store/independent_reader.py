"""A second reader of stores, written from docs/format.md alone: it imports nothing of pixstorefs.

What it and pixstorefs read alike is what the document says. The numbers in the comments are its sections.
"""

import hmac
import json
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

SEGMENT = 131_072


class Refused(Exception):
    """The store, or one image of it, is not as the document says."""


@dataclass(frozen=True)
class Secret:
    """A passphrase's bytes or the 32 bytes of a keyfile."""

    kind: str
    material: bytes


@dataclass(frozen=True)
class StoredVersion:
    """What the index tells of a version."""

    version_id: int
    key: bytes
    iv: bytes
    tag: bytes
    size_bytes: int
    stored_size_bytes: int
    runs: bytes


def passphrase(text: str) -> Secret:
    """4.1: the bytes as given."""
    return Secret("passphrase", text.encode())


def keyfile(path: Path) -> Secret:
    """4.1: one line."""
    magic, digits = path.read_text().split()
    assert magic == "pixstorefs-keyfile-1"
    return Secret("keyfile", bytes.fromhex(digits))


def read_store(store: Path, secret: Secret) -> dict[bytes, bytes | Refused]:
    """The content of every file by its path, or why it is refused.

    Links show where they point; the paths of directories end with a slash.
    """
    header = (store / "store.json").read_bytes()
    store_id = _store_id(header)
    master_key = unlock((store / "keys.json").read_bytes(), secret, header)
    with tempfile.TemporaryDirectory() as folder:
        # A copy: opening SQLite's log changes it, and a reader changes nothing.
        for name in ("index.db", "index.db-wal"):
            if (store / name).exists():
                (Path(folder) / name).write_bytes((store / name).read_bytes())
        db = _open_index(Path(folder) / "index.db", derive(master_key, store_id, "index"), store_id)
        try:
            return dict(_walk(db, store, store_id, 1, b""))
        finally:
            db.close()


def unlock(keys_json: bytes, secret: Secret, header: bytes) -> bytes:
    """4: the master key."""
    content = json.loads(keys_json)
    assert content["format"] == 1
    for slot in content["slots"]:
        if slot["kind"] != secret.kind:
            continue
        key = _slot_key(slot["kdf"], secret.material)
        parameters = {"kdf": slot["kdf"], "kind": slot["kind"], "label": slot["label"]}
        binding = header + json.dumps(parameters, sort_keys=True, separators=(",", ":")).encode("ascii")
        commitment = HKDFExpand(SHA256(), 32, info=b"commit" + binding).derive(key)
        if hmac.compare_digest(commitment, bytes.fromhex(slot["commitment"])):
            return AESGCM(key).decrypt(bytes.fromhex(slot["nonce"]), bytes.fromhex(slot["wrapped"]), binding)
    raise Refused("no slot opens")


def derive(master_key: bytes, store_id: bytes, purpose: str) -> bytes:
    """5: the key of one purpose."""
    return HKDF(SHA256(), 32, salt=store_id, info=b"pixstorefs/1/" + purpose.encode()).derive(master_key)


def padme(length: int) -> int:
    """7.5, with floor(log2 x) counted by hand."""
    if length < 2:
        return length
    exponent = _floor_log2(length)
    step = 2 ** max(exponent - (_floor_log2(exponent) + 1), 0)
    return -(-length // step) * step


def stored_segments(runs: bytes) -> list[int]:
    """7.3: the segment index of each slot."""
    numbers = [int.from_bytes(runs[at : at + 8], "big") for at in range(0, len(runs), 8)]
    segments: list[int] = []
    for first, count in zip(numbers[::2], numbers[1::2], strict=True):
        assert count > 0
        assert not segments or first > segments[-1] + 1
        segments.extend(range(first, first + count))
    return segments


def open_object(sealed: bytes, version: StoredVersion, store_id: bytes, image_id: bytes) -> bytes:
    """7: the image in an object, every slot of it verified."""
    slots = -(-version.stored_size_bytes // SEGMENT)
    if len(sealed) != 16 + version.stored_size_bytes + 16 * slots:
        raise Refused("wrong length")
    header = b"PXSO" + bytes([1, 1, 17, 0]) + version.version_id.to_bytes(8, "big")
    if sealed[:16] != header:
        raise Refused("wrong header")
    segments = stored_segments(version.runs)
    image = bytearray(version.size_bytes)
    cipher = AESGCM(version.key)
    for slot in range(slots):
        index = segments[slot] if slot < len(segments) else segments[-1] + 1 + slot - len(segments)
        start = 16 + slot * (SEGMENT + 16)
        nonce = (int.from_bytes(version.iv, "big") ^ index).to_bytes(12, "big")
        aad = header + store_id + image_id + index.to_bytes(8, "big") + bytes([slot == slots - 1])
        assert len(aad) == 57
        part = sealed[start : min(start + SEGMENT + 16, len(sealed))]
        try:
            plaintext = cipher.decrypt(nonce, part, aad)
        except InvalidTag:
            raise Refused(f"slot {slot} does not open") from None
        shown = max(0, min(len(plaintext), version.size_bytes - index * SEGMENT))
        if slot >= len(segments):
            shown = 0
        assert not any(plaintext[shown:]), "padding that is not zeros"
        image[index * SEGMENT : index * SEGMENT + shown] = plaintext[:shown]
    if slots and sealed[-16:] != version.tag:
        raise Refused("wrong tag")
    return bytes(image)


def _store_id(header: bytes) -> bytes:
    fields = json.loads(header)
    assert (fields["magic"], fields["format"], fields["cipher"]) == ("pixstorefs", 1, "aes-256-gcm")
    assert fields["segment_size_log2"] == 17
    assert fields["padding"] in ("padme", "none")
    return bytes.fromhex(fields["store_id"])


def _slot_key(kdf: dict[str, object], secret: bytes) -> bytes:
    salt = bytes.fromhex(str(kdf["salt"]))
    if kdf["name"] == "hkdf-sha256":
        return HKDF(SHA256(), 32, salt=salt, info=b"pixstorefs/1/keyfile slot").derive(secret)
    memory, passes, lanes = (int(str(kdf[name])) for name in ("memory_kib", "iterations", "lanes"))
    return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(secret)


def _open_index(path: Path, key: bytes, store_id: bytes) -> apsw.Connection:
    db = apsw.Connection(str(path))
    db.pragma("cipher", "aegis")
    db.pragma("key", f"raw:{key.hex()}")
    assert db.pragma("application_id") == int.from_bytes(b"PXST", "big")
    assert db.pragma("user_version") == 1
    assert db.execute("SELECT store_id FROM state").fetchall() == [(store_id,)]
    return db


def _walk(
    db: apsw.Connection, store: Path, store_id: bytes, directory: int, path: bytes
) -> Iterator[tuple[bytes, bytes | Refused]]:
    rows = db.execute(
        "SELECT name, entry.ino, mode, image_id, version_id, size_bytes, target "
        "FROM entry JOIN inode ON inode.ino = entry.ino WHERE parent = ? ORDER BY cookie",
        (directory,),
    ).fetchall()
    for name, ino, mode, image_id, version_id, size_bytes, target in rows:
        assert 1 <= len(name) <= 255
        assert not set(name) & {0, ord("/")}
        if stat.S_ISDIR(mode):
            yield path + name + b"/", b""
            yield from _walk(db, store, store_id, ino, path + name + b"/")
        elif stat.S_ISREG(mode):
            assert image_id[:8] == ino.to_bytes(8, "big")
            try:
                version = _version(db, version_id)
                assert version.size_bytes == size_bytes
                yield path + name, _content(store, version, store_id, image_id)
            except Refused as refusal:
                yield path + name, refusal
        else:
            yield path + name, target or b""


def _version(db: apsw.Connection, version_id: int) -> StoredVersion:
    rows = db.execute(
        "SELECT version_id, key, iv, tag, size_bytes, stored_size_bytes, runs FROM version "
        "WHERE version_id = ? AND retired_by IS NULL",
        (version_id,),
    ).fetchall()
    if len(rows) != 1 or rows[0][1] is None:
        raise Refused("the key is lost")
    return StoredVersion(*rows[0])


def _content(store: Path, version: StoredVersion, store_id: bytes, image_id: bytes) -> bytes:
    if not version.runs:
        assert version.stored_size_bytes == 0
        assert version.tag == b""
        return bytes(version.size_bytes)
    folder, name = str(version.version_id // 4096), str(version.version_id)
    try:
        sealed = (store / "objects" / folder / name).read_bytes()
    except FileNotFoundError:
        raise Refused("the object is missing") from None
    return open_object(sealed, version, store_id, image_id)


def _floor_log2(number: int) -> int:
    return len(bin(number)) - 3
