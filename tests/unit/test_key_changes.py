"""Adding, removing and changing keys: exactly the current secrets open a store, and none is locked out."""

import base64
import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pixstorefs.errors import CorruptStore, InvalidInput, WrongKey
from pixstorefs.keys import keyring, recovery_code
from pixstorefs.keys.secrets import Secret
from pixstorefs.keys.slots import KdfCost, infos

CHEAP = KdfCost(memory_kib=16, iterations=1, lanes=2)
HEADER = b'{"format":1}'
KEYFILE = Secret("keyfile", bytes(32))
PASSPHRASE = Secret("passphrase", b"correct horse")
CODE = "0123-4567-89AB-CDEF-GHJK-MNPQ-RSTV-WXYZ"


def keyfile(number):
    return Secret("keyfile", bytes([number]) * 32)


def created(secret=KEYFILE, label="first"):
    return keyring.create(secret, HEADER, label=label, cost=CHEAP)


def added(keys_json, secret, label, opened_with=KEYFILE):
    return keyring.add(keys_json, opened_with, lambda: secret, HEADER, label=label, cost=CHEAP)


def never():
    raise AssertionError("a new secret was asked for")


def labels(keys_json):
    return [info.label for info in infos(keys_json)]


SECRETS = [Secret("passphrase", bytes([65 + number])) for number in range(3)] + [
    keyfile(number) for number in range(3)
]


class AnyChanges(RuleBasedStateMachine):
    """Any sequence of changes, allowed and refused ones, beside a dictionary of what should open it."""

    def __init__(self):
        super().__init__()
        self.master_key, self.keys_json = created(SECRETS[0], "0")
        self.model = {"0": SECRETS[0]}

    @rule(opener=st.sampled_from(SECRETS), new=st.sampled_from(SECRETS), label=st.sampled_from("01234"))
    def add(self, opener, new, label):
        known = self.model.values()
        allowed = opener in known and new not in known and label not in self.model
        self._do(allowed, lambda: added(self.keys_json, new, label, opener))
        if allowed:
            self.model[label] = new

    @rule(opener=st.sampled_from(SECRETS), label=st.sampled_from("01234"))
    def remove(self, opener, label):
        allowed = opener in [secret for other, secret in self.model.items() if other != label]
        allowed = allowed and label in self.model
        self._do(allowed, lambda: keyring.remove(self.keys_json, label, opener, HEADER))
        if allowed:
            del self.model[label]

    @rule(opener=st.sampled_from(SECRETS), new=st.sampled_from(SECRETS))
    def change(self, opener, new):
        known = self.model.values()
        allowed = opener in known and new not in known
        self._do(allowed, lambda: keyring.change(self.keys_json, opener, lambda: new, HEADER, cost=CHEAP)[0])
        if allowed:
            label = next(label for label, secret in self.model.items() if secret == opener)
            self.model[label] = new

    @precondition(lambda self: len(self.model) > 1)
    @rule()
    def slots_do_not_depend_on_each_other(self):
        """Each slot opens alone with its own secret."""
        document = json.loads(self.keys_json)
        for slot in document["slots"]:
            alone = json.dumps(document | {"slots": [slot]}).encode()
            assert keyring.unlock(alone, self.model[slot["label"]], HEADER) == self.master_key

    @invariant()
    def exactly_the_current_secrets_open(self):
        assert labels(self.keys_json) == list(self.model)
        for secret in SECRETS:
            if secret in self.model.values():
                assert keyring.unlock(self.keys_json, secret, HEADER) == self.master_key
            else:
                with pytest.raises(WrongKey):
                    keyring.unlock(self.keys_json, secret, HEADER)

    def _do(self, allowed, change):
        if allowed:
            self.keys_json = change()
        else:
            with pytest.raises((InvalidInput, WrongKey)):
                change()


AnyChanges.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None, database=None)
TestAnyChanges = AnyChanges.TestCase


def test_other_slots_keep_every_byte():
    """A change touches no slot but its own: what opens stays what it was, damaged or not."""
    _, one = created()
    two = added(one, PASSPHRASE, "second")
    before = json.loads(two)["slots"]
    changed, label = keyring.change(two, PASSPHRASE, lambda: keyfile(1), HEADER)
    assert label == "second"
    after = json.loads(changed)["slots"]
    assert (before[0], len(after)) == (after[0], 2)
    assert json.loads(keyring.remove(two, "second", KEYFILE, HEADER))["slots"] == before[:1]


def test_what_can_be_refused_is_refused_before_a_new_secret_is_asked_for():
    """Nobody types a passphrase, and no keyfile is made, for a change that cannot be."""
    _, one = created()
    for label in ("first", "x" * 201):
        with pytest.raises(InvalidInput, match="label"):
            keyring.add(one, KEYFILE, never, HEADER, label=label)
    with pytest.raises(WrongKey):
        keyring.add(one, keyfile(1), never, HEADER, label="second")
    with pytest.raises(WrongKey):
        keyring.change(one, keyfile(1), never, HEADER)
    with pytest.raises(CorruptStore):
        keyring.add(b"{}", KEYFILE, never, HEADER, label="second")


def test_at_most_32_slots():
    """The 33rd is refused, and so are labels that together are too long; what was written can be read."""
    _, keys_json = created()
    for number in range(1, 32):
        keys_json = added(keys_json, keyfile(number), f"key {number}")
    with pytest.raises(InvalidInput, match="at most 32"):
        keyring.add(keys_json, KEYFILE, never, HEADER, label="one more")
    assert keyring.unlock(keys_json, keyfile(31), HEADER)
    _, keys_json = created()
    for number in range(1, 24):
        keys_json = added(keys_json, keyfile(number), f"{number}" + "\U0001f4f7" * 198)
    with pytest.raises(InvalidInput, match="shorter labels"):
        added(keys_json, keyfile(24), "\U0001f4f7" * 200)


def test_removing_needs_a_key_that_stays():
    """Neither the last key, nor an unknown one, nor with nothing but the secret that is to go."""
    _, one = created()
    with pytest.raises(InvalidInput, match="only key"):
        keyring.remove(one, "first", KEYFILE, HEADER)
    two = added(one, PASSPHRASE, "second")
    with pytest.raises(InvalidInput, match="'first', 'second'"):
        keyring.remove(two, "third", KEYFILE, HEADER)
    with pytest.raises(InvalidInput, match="of a key that stays"):
        keyring.remove(two, "first", KEYFILE, HEADER)
    with pytest.raises(WrongKey):
        keyring.remove(two, "first", Secret("passphrase", b"wrong"), HEADER)


def test_a_label_that_two_slots_have_names_neither():
    """Another program may have written it: nothing is removed by guessing."""
    _, one = created()
    twice = json.loads(one)
    twice["slots"] *= 2
    with pytest.raises(InvalidInput, match="several keys 'first'"):
        keyring.remove(json.dumps(twice).encode(), "first", KEYFILE, HEADER)


def test_a_damaged_slot_can_be_replaced():
    """The secret of a slot whose wrapped key is damaged opens nothing, so it may be given a new slot."""
    _, one = created()
    document = json.loads(added(one, PASSPHRASE, "second"))
    document["slots"][1]["wrapped"] = "00" * 48
    damaged = json.dumps(document).encode()
    replaced = added(keyring.remove(damaged, "second", KEYFILE, HEADER), PASSPHRASE, "second")
    assert keyring.unlock(replaced, PASSPHRASE, HEADER)
    assert keyring.unlock(added(damaged, PASSPHRASE, "third"), PASSPHRASE, HEADER)


def test_infos_show_the_cost():
    """Label, kind and cost of each slot, for everybody."""
    _, one = created()
    first, second = infos(added(one, PASSPHRASE, "second"))
    assert (first.label, first.kind, first.cost) == ("first", "keyfile", None)
    assert (second.label, second.kind, second.cost) == ("second", "passphrase", CHEAP)


def test_a_recovery_code_shows_all_its_bits():
    """20 random bytes, in groups of four digits that are not mistaken for each other."""
    assert recovery_code.new_code(lambda length: bytes(length)) == "-".join(["0000"] * 8)
    bits = bytes(range(235, 255))
    code = recovery_code.new_code(lambda length: bits[:length])
    digits = code.replace("-", "").translate(
        str.maketrans("0123456789ABCDEFGHJKMNPQRSTVWXYZ", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
    )
    assert base64.b32decode(digits) == bits


@pytest.mark.parametrize(
    "typed",
    [
        CODE,
        CODE.lower(),
        CODE.replace("-", ""),
        CODE.replace("-", " "),
        f" {CODE} ",
        CODE.replace("0", "O").replace("1", "l"),
        CODE.replace("0", "o").replace("1", "I"),
    ],
)
def test_a_recovery_code_may_be_typed_in_any_way(typed):
    """Whatever paper and typing did to it, the code opens the store; and it is known as a key of it."""
    _, keys_json = created(Secret("passphrase", CODE.encode()))
    secret = Secret("passphrase", typed.encode())
    assert keyring.unlock(keys_json, secret, HEADER)
    with pytest.raises(InvalidInput, match="already"):
        added(keys_json, secret, "again", opened_with=secret)


@pytest.mark.parametrize("typed", [CODE[:-1], CODE + "0", CODE.replace("Z", "U"), CODE.replace("2", "3")])
def test_another_code_opens_nothing(typed):
    """A digit too few, too many, unknown or wrong."""
    _, keys_json = created(Secret("passphrase", CODE.encode()))
    with pytest.raises(WrongKey):
        keyring.unlock(keys_json, Secret("passphrase", typed.encode()), HEADER)


def test_a_passphrase_that_looks_like_a_code_stays_what_it_is():
    """A passphrase counts as the bytes it came as, before anything else is made of it."""
    looks_like = Secret("passphrase", CODE.lower().encode())
    _, keys_json = created(looks_like)
    assert keyring.unlock(keys_json, looks_like, HEADER)
    with pytest.raises(WrongKey):
        keyring.unlock(keys_json, Secret("passphrase", CODE.encode()), HEADER)
