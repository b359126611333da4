"""A store belongs to the process that opened it: a child that is forked can neither use nor harm it.

Every test runs a program of its own, for children of pytest would end as pytest does.
"""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from stores import Place, check_store, image

COMMON = """
import contextlib, gc, hashlib, multiprocessing, os, signal, socket, socketserver, sys, threading, warnings
from pathlib import Path

import pixstorefs

# From 3.12 on Python warns of every fork of a process with threads.
warnings.filterwarnings("ignore", category=DeprecationWarning)
path, keyfile = sys.argv[1:]
JPEG = bytes([255, 216, 255])


def open_store():
    return pixstorefs.open_store(path, keyfile=keyfile)


def digests():
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def refused(call):
    try:
        call()
    except pixstorefs.StoreInUse as error:
        assert "was opened before the fork: open it in this process" in str(error), error
    else:
        raise AssertionError(call)


def forked(body):
    # What the child does; it ends as a Python program does.
    pid = os.fork()
    if pid == 0:
        body()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0


@contextlib.contextmanager
def saving(images, threads=2):
    # Threads of the parent save until the block ends; yields the ids.
    ids, stop, failures = [], threading.Event(), []

    def save(number):
        try:
            while not stop.is_set():
                ids.append(images.save_image(JPEG + os.urandom(3000), directory=f"parent {number}").id)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=save, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield ids
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert failures == []


"""


def run(place: Place, program: str) -> None:
    """Run a program, which ends well and says nothing on stderr."""
    place.open().close()
    with started(place, COMMON + textwrap.dedent(program)) as process:
        _, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (0, "")


@contextmanager
def started(place: Place, program: str) -> Iterator[subprocess.Popen[str]]:
    """A program with pipes to and from it; nothing that it forked outlives the block."""
    command = [sys.executable, "-c", program, place.path, place.keyfile]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


EVERY_CALL = """
images = open_store()
kept = images.save_image(JPEG + bytes(300_000), directory="a")
images.save_image(JPEG + bytes(100), directory="a")
source = Path(path).with_name("source")
source.write_bytes(JPEG)
chunks, listed = images.read_image_chunks(kept.id), images.images("a")
next(chunks), next(listed)
late_chunks, late_list = images.read_image_chunks(kept.id), images.images("a")
images._store.sync()
before = digests()


def use():
    calls = [
        lambda: images.save_image(JPEG),
        lambda: images.save_image_from_file(str(source)),
        lambda: images.update_image(kept.id, JPEG),
        lambda: images.update_image_from_file(kept.id, str(source)),
        lambda: images.delete_image(kept.id),
        lambda: images.image_exists(kept.id),
        lambda: images.get_image_record(kept.id),
        lambda: images.read_image(kept.id),
        lambda: next(images.read_image_chunks(kept.id)),
        lambda: next(images.images()),
        lambda: next(chunks),
        lambda: next(listed),
        lambda: next(late_chunks),
        lambda: next(late_list),
        images.sync,
        images.__enter__,
    ]
    public = {name for name in dir(images) if not name.startswith("_")}
    assert public - {"close"} <= {name for call in calls for name in (*call.__code__.co_names, call.__name__)}
    for call in calls:
        refused(call)
    images.close()
    images.__exit__(None, None, None)
    refused(images.sync)


forked(use)
assert digests() == before
images.update_image(kept.id, JPEG + b"parent")
assert next(chunks) and next(listed).id
images.close()
"""


def test_every_call_is_refused(place: Place) -> None:
    """Each call of the API, and what it handed out before, says in a child where the store was opened."""
    run(place, EVERY_CALL)
    assert check_store(place, place.path) == []


ENDS = {
    "close": "images.close()",
    "with": "images.__exit__(None, None, None)",
    "collected": "del globals()['images']; gc.collect()",
    "interpreter": "",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "exit handlers": "import atexit; atexit.register(images.close)",
    "the layer below": "images._opened.close()",
    "grandchild": "forked(images.close)",
}


@pytest.mark.parametrize("end", ENDS)
def test_end_of_a_child(place: Place, end: str) -> None:
    """However a child ends: no file of the store changes, and the store is not marked as closed cleanly."""
    run(
        place,
        f"""
        images = open_store()
        kept = images.save_image(JPEG + bytes(300_000))
        images._store.sync()
        before = digests()
        pid = os.fork()
        if pid == 0:
            {ENDS[end]}
            sys.exit()
        os.waitpid(pid, 0)
        assert digests() == before
        assert str(os.getpid()) in (Path(path) / "lock").read_text()
        images.update_image(kept.id, JPEG + b"after")
        images.sync()
        images.close()
        """,
    )
    assert check_store(place, place.path) == []


POOLS = """
def use_inherited(number):
    refused(lambda: images.save_image(JPEG + bytes(number)))
    refused(lambda: images.image_exists("00" * 16))
    return number


def open_own(number):
    try:
        open_store()
    except pixstorefs.StoreInUse as error:
        assert f"in use by process {os.getppid()}" in str(error), error
        return number


if __name__ == "__main__":
    images = open_store()
    with saving(images) as ids:
        context = multiprocessing.get_context(METHOD)
        with context.Pool(4) as pool:
            assert pool.map(CALL, range(40)) == list(range(40))
            pool.close()
            pool.join()
        process = context.Process(target=CALL, args=(1,))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert [record.id for n in range(2) for record in images.images(f"parent {n}")] and len(ids) > 10
    assert all(images.image_exists(found) for found in ids)
    images.close()
"""


@pytest.mark.parametrize(("method", "call"), [("fork", "use_inherited"), ("fork", "open_own")])
def test_multiprocessing_by_fork(place: Place, method: str, call: str) -> None:
    """Workers of a pool are refused while the parent goes on saving; all that it saved is there."""
    run(place, POOLS.replace("METHOD", repr(method)).replace("CALL", call))
    assert check_store(place, place.path) == []


def test_multiprocessing_by_spawn(place: Place, tmp_path: Path) -> None:
    """A process that is started anew is told who has the store, as any other."""
    place.open().close()
    program = tmp_path / "spawning.py"
    program.write_text(COMMON + POOLS.replace("METHOD", "'spawn'").replace("CALL", "open_own"))
    subprocess.run([sys.executable, program, place.path, place.keyfile], timeout=120, check=True)
    assert check_store(place, place.path) == []


def test_server_that_forks_its_workers(place: Place) -> None:
    """As gunicorn --preload: four workers inherit an open store and serve; each request is told why not."""
    run(
        place,
        """
        class Upload(socketserver.StreamRequestHandler):
            def handle(self):
                try:
                    answer = images.save_image(self.rfile.readline()).id
                except pixstorefs.StoreInUse as error:
                    answer = str(error)
                self.wfile.write(f"{os.getpid()} {answer}".encode())


        def work(server):
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            server.serve_forever()


        images = open_store()
        server = socketserver.TCPServer(("127.0.0.1", 0), Upload)
        workers = []
        with saving(images) as ids:
            for _ in range(4):
                pid = os.fork()
                if pid == 0:
                    work(server)
                workers.append(pid)
            served = set()
            while len(served) < 4:
                with socket.create_connection(server.server_address) as client:
                    client.sendall(JPEG + b"upload" + bytes([10]))
                    pid, answer = client.makefile().read().split(" ", 1)
                assert "was opened before the fork" in answer
                served.add(int(pid))
            assert served == set(workers)
            for pid in workers:
                os.kill(pid, signal.SIGTERM)
            assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 4
        assert len(ids) > 10 and all(images.image_exists(found) for found in ids)
        server.server_close()
        images.close()
        """,
    )
    assert check_store(place, place.path) == []


def test_child_that_outlives_the_parent(place: Place) -> None:
    """A child that lives on keeps the store from nobody: the parent's death, too, gives it free."""
    place.open().close()
    program = COMMON + textwrap.dedent(
        """
        images = open_store()
        print(images.save_image(JPEG).id, flush=True)
        if os.fork() == 0:
            print("forked", flush=True)
            sys.stdin.read()  # until the test ends
            sys.exit()
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with started(place, program) as parent:
        assert parent.stdout is not None
        image_id = parent.stdout.readline().strip()
        assert parent.stdout.readline() == "forked\n"
        parent.wait()
        with place.open() as images:
            images.update_image(image_id, image(200))
            assert images.read_image(image_id) == image(200)
    assert check_store(place, place.path) == []


OWN = """
images = open_store()
kept = images.save_image(JPEG + bytes(300_000))
images._store.sync()
told, closed = os.pipe()
with images._store.lock:  # so that no thread has it
    pid = os.fork()
if pid == 0:
    os.read(told, 1)
    with open_store() as own:
        assert own.read_image(saved := (Path(path).with_name("id").read_text())) == JPEG + b"of the parent"
        own.update_image(saved, JPEG + b"of the child")
        for number in range(50):
            own.save_image(JPEG + bytes(number))
    refused(images.sync)
    sys.exit()
Path(path).with_name("id").write_text(images.save_image(JPEG + b"of the parent").id)
for number in range(50):
    images.save_image(JPEG + bytes(number))
images.close()
os.write(closed, b"x")
assert os.waitpid(pid, 0)[1] == 0
with open_store() as images:
    assert len(list(images.images())) == 102
    assert images.read_image(Path(path).with_name("id").read_text()) == JPEG + b"of the child"
"""


def test_child_that_opens_the_store_itself(place: Place) -> None:
    """When the parent has closed it, a child may own the store, and sees what was saved after the fork."""
    run(place, OWN)
    assert check_store(place, place.path) == []


@pytest.mark.parametrize("held", ["store.lock", "index._log_at_rest", "_copies._at_work"])
def test_fork_while_a_thread_is_at_work(place: Place, held: str) -> None:
    """What a thread of the parent held at the fork keeps nobody waiting in the child, to its very end.

    Nothing of SQLite is called there, neither for this store nor for another: its locks may be held, too.
    """
    run(
        place,
        f"""
        images = open_store()
        images.save_image(JPEG)
        images._store.sync()
        store = images._store
        lock = {held if held.startswith("store") else "store." + held}
        taken, done = threading.Event(), threading.Event()

        def work():
            with lock:
                taken.set()
                done.wait()

        thread = threading.Thread(target=work)
        thread.start()
        taken.wait()
        before = digests()
        pid = os.fork()
        if pid == 0:
            refused(images.sync)
            try:
                with contextlib.closing(pixstorefs.open_store(path, keyfile=keyfile)):
                    raise AssertionError
            except pixstorefs.StoreInUse as error:
                assert f"process {{os.getppid()}}" in str(error)
            images.close()
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        assert digests() == before
        read, closed = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(read, 1)
            for place in (path, path + "-other"):
                try:
                    pixstorefs.open_store(place, keyfile=keyfile)
                except pixstorefs.StoreInUse as error:
                    assert "in a process that is started anew" in str(error), error
                else:
                    raise AssertionError
            sys.exit()
        done.set()
        thread.join()
        images.save_image(JPEG)
        images.close()
        os.write(closed, b"x")
        assert os.waitpid(pid, 0)[1] == 0
        """,
    )
    assert check_store(place, place.path) == []
