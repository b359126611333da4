"""keys.json: vectors, and that nothing but the right secret and untouched bytes opens a store."""

import copy
import hashlib
import hmac
import itertools
import json

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from pixstorefs.errors import CorruptStore, InvalidInput, NewerFormat, PixstoreError, WrongKey
from pixstorefs.keys import keyring
from pixstorefs.keys.keyring import create, derive, slot_kinds, unlock
from pixstorefs.keys.secrets import Secret
from pixstorefs.keys.slots import DEFAULT_COST, KdfCost

CHEAP = KdfCost(memory_kib=64, iterations=1, lanes=2)
HEADER = b'{"format":1}'
PASSPHRASE = Secret("passphrase", b"correct horse")
KEYFILE = Secret("keyfile", bytes(range(32)))

# Made with random bytes 00 01 02 ...: master key, salt, nonce.
VECTOR_MASTER_KEY = bytes(range(32))
VECTOR_SALT = bytes(range(32, 48)).hex()
VECTOR_NONCE = bytes(range(48, 60)).hex()
PASSPHRASE_VECTOR = {
    "label": "vector",
    "kind": "passphrase",
    "kdf": {"name": "argon2id", "memory_kib": 64, "iterations": 1, "lanes": 2, "salt": VECTOR_SALT},
    "nonce": VECTOR_NONCE,
    "wrapped": "da1a5cbd41f0afbbdc4fed938fdb81abee9d69a654a8b9e36bb1992588d03cd7"
    "a5dbcca39e94a0c3210b7edae704efe5",
    "commitment": "be00068710f3b29dadcc597c97a6ac4f78610c8d58faef6b7aa6101a1340e2d6",
}
KEYFILE_VECTOR = {
    "label": "vector",
    "kind": "keyfile",
    "kdf": {"name": "hkdf-sha256", "salt": VECTOR_SALT},
    "nonce": VECTOR_NONCE,
    "wrapped": "2202a64084b2d922f7efc571cc841bbe70156955ddd57713648676ed27ab3aa8"
    "002828034ca44674f95c66ecbf61d584",
    "commitment": "0ff36fdc75340ec0c31ce617b574d72d2f3eccb3c8b50a77f72251089b6f9430",
}
VECTORS = [(PASSPHRASE, PASSPHRASE_VECTOR), (KEYFILE, KEYFILE_VECTOR)]


def counting():
    counter = itertools.count()
    return lambda length: bytes(next(counter) % 256 for _ in range(length))


def keys_json(*slots):
    return json.dumps({"format": 1, "slots": slots}).encode()


def changed(slot, path, value):
    """A copy of `slot` with the field at `path` ("kdf.salt") set to `value`."""
    slot = copy.deepcopy(slot)
    *parents, name = path.split(".")
    target = slot
    for parent in parents:
        target = target[parent]
    target[name] = value
    return slot


@pytest.mark.parametrize(("secret", "slot"), VECTORS)
def test_vector(secret, slot):
    """The same secret, header and random bytes give the same slot, byte for byte, and it opens."""
    master_key, written = create(secret, HEADER, label="vector", random=counting(), cost=CHEAP)
    assert master_key == VECTOR_MASTER_KEY
    assert json.loads(written) == {"format": 1, "slots": [slot]}
    assert unlock(written, secret, HEADER) == unlock(keys_json(slot), secret, HEADER) == VECTOR_MASTER_KEY


def test_keyfile_slot_opens_as_the_format_says():
    """A slot opens with the formulas of RFC 5869 alone: extract, expand, compare, decrypt."""
    slot = KEYFILE_VECTOR
    extracted = hmac.digest(bytes.fromhex(VECTOR_SALT), KEYFILE.material, "sha256")
    slot_key = hmac.digest(extracted, b"pixstorefs/1/keyfile slot\x01", "sha256")
    binding = HEADER + (
        f'{{"kdf":{{"name":"hkdf-sha256","salt":"{VECTOR_SALT}"}},"kind":"keyfile","label":"vector"}}'
    ).encode("ascii")
    assert hmac.digest(slot_key, b"commit" + binding + b"\x01", "sha256").hex() == slot["commitment"]
    nonce, wrapped = bytes.fromhex(slot["nonce"]), bytes.fromhex(slot["wrapped"])
    assert AESGCM(slot_key).decrypt(nonce, wrapped, binding) == VECTOR_MASTER_KEY


def test_derived_keys():
    """A derived key is the HKDF output for its purpose; other purposes and stores have other keys."""
    key = derive(VECTOR_MASTER_KEY, b"\x01" * 16, "index")
    extracted = hmac.digest(b"\x01" * 16, VECTOR_MASTER_KEY, hashlib.sha256)
    assert key == hmac.digest(extracted, b"pixstorefs/1/index\x01", "sha256")
    assert key.hex() == "a3624715eb0646f06fc9f679edfb50adb3d2715f022ee74a8ee71908bf87d743"
    assert key != derive(VECTOR_MASTER_KEY, b"\x01" * 16, "other")
    assert key != derive(VECTOR_MASTER_KEY, b"\x02" * 16, "index")


def test_default_cost_is_the_recommendation():
    """The default is the second recommended option of RFC 9106: 64 MiB, 3 passes, 4 lanes."""
    assert KdfCost(memory_kib=65536, iterations=3, lanes=4) == DEFAULT_COST
    master_key, written = create(PASSPHRASE, HEADER, label="default")
    assert unlock(written, PASSPHRASE, HEADER) == master_key


def test_stores_never_share_keys():
    """Two stores made with one secret have two master keys."""
    keys = {create(KEYFILE, HEADER, label="")[0] for _ in range(3)}
    assert len(keys) == 3


def test_any_of_the_slots_opens():
    """Each secret finds its own slot, whatever slots come before it."""
    slots = [PASSPHRASE_VECTOR, KEYFILE_VECTOR]
    master_key, written = create(Secret("passphrase", b"third"), HEADER, label="3", cost=CHEAP)
    document = keys_json(*slots, *json.loads(written)["slots"])
    assert slot_kinds(document) == {"passphrase", "keyfile"}
    assert unlock(document, PASSPHRASE, HEADER) == unlock(document, KEYFILE, HEADER) == VECTOR_MASTER_KEY
    assert unlock(document, Secret("passphrase", b"third"), HEADER) == master_key


@pytest.mark.parametrize(
    ("secret", "slot", "message"),
    [
        (Secret("passphrase", b"wrong"), PASSPHRASE_VECTOR, "opens with the passphrase given"),
        (Secret("passphrase", b"correct horse "), PASSPHRASE_VECTOR, "opens with the passphrase given"),
        (Secret("keyfile", b"\x07" * 32), KEYFILE_VECTOR, "opens with the keyfile given"),
        (PASSPHRASE, KEYFILE_VECTOR, "opens only with a keyfile, and a passphrase was given"),
        (KEYFILE, PASSPHRASE_VECTOR, "opens only with a passphrase, and a keyfile was given"),
    ],
)
def test_wrong_secret(secret, slot, message):
    """A wrong secret is told from a secret of the wrong kind."""
    with pytest.raises(WrongKey, match=message):
        unlock(keys_json(slot), secret, HEADER)


@pytest.mark.parametrize(("secret", "slot"), VECTORS)
def test_every_bit_of_the_header_counts(secret, slot):
    """A header with any bit flipped, shortened or extended opens nothing."""
    altered = [HEADER[:-1], HEADER + b"\n", b"", b" " + HEADER]
    for bit in range(8 * len(HEADER)):
        flipped = bytearray(HEADER)
        flipped[bit // 8] ^= 1 << bit % 8
        altered.append(bytes(flipped))
    for header in altered:
        with pytest.raises(WrongKey):
            unlock(keys_json(slot), secret, header)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("label", "other"),
        ("kind", "keyfile"),
        ("kind", "face"),
        ("kdf.name", "hkdf-sha256"),
        ("kdf.name", "argon2i"),
        ("kdf.memory_kib", 65),
        ("kdf.iterations", 2),
        ("kdf.lanes", 1),
        ("kdf.salt", "00" * 16),
        ("nonce", "00" * 12),
        ("wrapped", "00" * 48),
        ("commitment", "00" * 32),
    ],
)
def test_every_field_of_a_slot_counts(path, value):
    """A slot with any field changed is refused."""
    with pytest.raises((WrongKey, CorruptStore)):
        unlock(keys_json(changed(PASSPHRASE_VECTOR, path, value)), PASSPHRASE, HEADER)


@pytest.mark.parametrize("field", ["nonce", "wrapped", "commitment"])
def test_every_byte_of_the_wrapped_key_counts(field):
    """A slot with any byte of its wrapped key changed is refused; a damaged key is not called a wrong one."""
    value = bytes.fromhex(KEYFILE_VECTOR[field])
    expected = WrongKey if field == "commitment" else CorruptStore
    for position in range(len(value)):
        flipped = bytearray(value)
        flipped[position] ^= 1
        with pytest.raises(expected):
            unlock(keys_json(changed(KEYFILE_VECTOR, field, flipped.hex())), KEYFILE, HEADER)


def test_commitment_is_compared_before_the_unwrap(monkeypatch):
    """Without the right commitment nothing is decrypted: no partitioning oracle."""

    def never(key):
        raise AssertionError("decrypted")

    monkeypatch.setattr(keyring, "AESGCM", never)
    with pytest.raises(WrongKey):
        unlock(keys_json(KEYFILE_VECTOR), Secret("keyfile", b"\x07" * 32), HEADER)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kdf.memory_kib", (1 << 20) + 1),
        ("kdf.memory_kib", 15),
        ("kdf.memory_kib", 64.0),
        ("kdf.memory_kib", 10**30),
        ("kdf.iterations", 17),
        ("kdf.iterations", 0),
        ("kdf.iterations", True),
        ("kdf.lanes", 17),
        ("kdf.lanes", -1),
        ("kdf.lanes", None),
    ],
)
def test_cost_is_capped_before_the_kdf_runs(monkeypatch, path, value):
    """Costs beyond the caps are refused with a clear message, before any memory is taken."""
    monkeypatch.setattr(keyring, "Argon2id", None)
    with pytest.raises(CorruptStore, match="cost of"):
        unlock(keys_json(changed(PASSPHRASE_VECTOR, path, value)), PASSPHRASE, HEADER)


def test_cost_of_all_slots_together_is_capped_before_the_kdf_runs(monkeypatch):
    """32 slots at the limits of one would take minutes to try: refused, and one such slot is not."""
    costly = changed(changed(PASSPHRASE_VECTOR, "kdf.memory_kib", 1 << 20), "kdf.iterations", 16)
    assert slot_kinds(keys_json(costly, *[KEYFILE_VECTOR] * 31)) == {"passphrase", "keyfile"}
    monkeypatch.setattr(keyring, "Argon2id", None)
    for slots in ([costly] * 32, [costly, PASSPHRASE_VECTOR]):
        for secret in (PASSPHRASE, KEYFILE):
            with pytest.raises(CorruptStore, match="all its slots together"):
                unlock(keys_json(*slots), secret, HEADER)


def test_as_many_slots_as_there_may_be_open_at_the_default_cost():
    """The cap on all slots together takes nothing from a store that a writer made."""
    usual = changed(
        changed(PASSPHRASE_VECTOR, "kdf.memory_kib", DEFAULT_COST.memory_kib), "kdf.iterations", 3
    )
    assert slot_kinds(keys_json(*[usual] * 32)) == {"passphrase"}


def test_what_costs_less_is_tried_first(monkeypatch):
    """A costly slot that stands first does not hold up a cheap one that opens."""
    costly = changed(PASSPHRASE_VECTOR, "kdf.memory_kib", 128)
    tried = []
    derived = keyring._slot_key
    monkeypatch.setattr(
        keyring, "_slot_key", lambda secret, kdf: tried.append(kdf["memory_kib"]) or derived(secret, kdf)
    )
    assert unlock(keys_json(costly, PASSPHRASE_VECTOR), PASSPHRASE, HEADER) == VECTOR_MASTER_KEY
    assert tried == [64]


def test_no_key_is_added_that_would_make_opening_too_costly():
    """Each cost is within its limits; together they are not, and the store stays as it was."""
    one, most = KdfCost(1 << 20, 16, 16), keys_json(PASSPHRASE_VECTOR)
    with pytest.raises(InvalidInput, match="too long to try"):
        keyring.add(most, PASSPHRASE, lambda: Secret("passphrase", b"new"), HEADER, label="b", cost=one)


def test_create_refuses_what_unlock_would_refuse():
    """Costs and labels beyond the limits are refused when a slot is made."""
    for cost in [(1 << 21, 1, 1), (64, 17, 1), (64, 1, 17), (15, 1, 2), (64, 0, 1)]:
        with pytest.raises(InvalidInput, match="outside the limits"):
            KdfCost(*cost)
    with pytest.raises(InvalidInput, match="label"):
        create(KEYFILE, HEADER, label="x" * 201)


@pytest.mark.parametrize("label", ["", "L\u00fcneburg \U0001f4f7", '"}]{\\', "\udcff\n\0", "x" * 200])
def test_any_label(label):
    """Labels are text of any kind and keys.json stays ASCII."""
    master_key, written = create(KEYFILE, HEADER, label=label)
    assert json.loads(written.decode("ascii"))["slots"][0]["label"] == label
    assert unlock(written, KEYFILE, HEADER) == master_key


@pytest.mark.parametrize("number", [2, 3, 10**9])
def test_newer_format(number):
    """A later format is not called damage, whatever else it holds."""
    document = json.dumps({"format": number, "keys": []}).encode()
    with pytest.raises(NewerFormat, match="newer"):
        unlock(document, KEYFILE, HEADER)
    with pytest.raises(NewerFormat):
        slot_kinds(document)


def without(slot, name):
    return {field: value for field, value in slot.items() if field != name}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"[" * 20_000,
        b"9" * 20_000,
        b'{"format": 0, "slots": []}',
        b'{"format": true, "slots": []}',
        b'{"format": "1", "slots": []}',
        b'{"format": 1}',
        keys_json(),
        keys_json(None),
        keys_json(*[KEYFILE_VECTOR] * 33),
        json.dumps({"format": 1, "slots": {"0": KEYFILE_VECTOR}}).encode(),
        json.dumps({"format": 1, "slots": [KEYFILE_VECTOR], "more": 1}).encode(),
        keys_json(KEYFILE_VECTOR | {"more": 1}),
        keys_json(changed(KEYFILE_VECTOR, "kdf.memory_kib", 64)),
        keys_json(changed(KEYFILE_VECTOR, "kdf", [])),
        keys_json(changed(KEYFILE_VECTOR, "kind", ["keyfile"])),
        keys_json(changed(KEYFILE_VECTOR, "label", "x" * 201)),
        keys_json(changed(KEYFILE_VECTOR, "kdf.salt", VECTOR_SALT.upper())),
        keys_json(changed(KEYFILE_VECTOR, "nonce", "00" * 13)),
        keys_json(changed(KEYFILE_VECTOR, "nonce", "0 " * 12)),
        keys_json(KEYFILE_VECTOR) + b" " * 65536,
        *(keys_json(without(KEYFILE_VECTOR, name)) for name in KEYFILE_VECTOR),
    ],
    ids=lambda document: document[:30].decode("latin-1"),
)
def test_malformed_documents(document):
    """What is not exactly format 1 is a damaged keys.json."""
    with pytest.raises(CorruptStore, match=r"keys\.json is damaged"):
        unlock(document, KEYFILE, HEADER)
    with pytest.raises(CorruptStore):
        slot_kinds(document)


def only_our_exceptions(document):
    # With a keyfile no passphrase slot is tried: what is fuzzed is the reading, not argon2id.
    for read in (slot_kinds, lambda content: unlock(content, KEYFILE, HEADER)):
        try:
            read(document)
        except PixstoreError:
            pass


@given(st.binary(max_size=300))
@settings(deadline=None, database=None)
def test_fuzz_bytes(document):
    """Any bytes give a result or one of our exceptions."""
    only_our_exceptions(document)


@given(
    st.sampled_from([keys_json(KEYFILE_VECTOR), keys_json(PASSPHRASE_VECTOR, KEYFILE_VECTOR)]),
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 5), st.binary(max_size=4)), min_size=1, max_size=4
    ),
)
@settings(deadline=None, database=None)
def test_fuzz_edits(document, edits):
    """keys.json with a few bytes replaced, removed or inserted gives a result or one of our exceptions."""
    for position, removed, inserted in edits:
        position %= len(document) + 1
        document = document[:position] + inserted + document[position + removed :]
    only_our_exceptions(document)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PATHS = ["label", "kind", "kdf", "nonce", "wrapped", "commitment", "kdf.name", "kdf.salt", "kdf.memory_kib"]


@given(st.sampled_from([PASSPHRASE_VECTOR, KEYFILE_VECTOR]), st.sampled_from(PATHS), VALUES)
@settings(deadline=None, database=None)
def test_fuzz_fields(slot, path, value):
    """A slot with any value in any field gives a result or one of our exceptions."""
    only_our_exceptions(keys_json(changed(slot, path, value)))
