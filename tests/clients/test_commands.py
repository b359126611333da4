"""Commands as people type them: the same lines on the mount and on the disk do, print and end the same.

Each script starts in a directory that holds `album`, and is one `bash -eu`; a command that should fail says
so with `|| echo`. It prints nothing that no two runs have in common, such as times of day and inode numbers.
"""

import re
import subprocess
import time
from pathlib import Path

import pytest
from programs import TIMEOUT_S, environment, require
from support import Mount
from trees import assert_same, assert_times_agree, describe

# What it needs, and what it does. coreutils, findutils and util-linux are everywhere.
SCRIPTS: dict[str, tuple[tuple[str, ...], str]] = {
    "cp": (
        (),
        """
        cp -a album copied
        cp -al album linked; cp -as "$PWD/album" symbolic; rm -r symbolic
        cp --reflink=auto album/baseline.jpg plain.jpg
        cp --backup=numbered album/progressive.jpeg plain.jpg; cp --backup=simple album/icon.ico plain.jpg
        cp -u album/baseline.jpg copied/baseline.jpg
        cp -n album/icon.ico copied/baseline.jpg || echo kept
        cp --remove-destination album/pixels.ppm linked/baseline.jpg
        cp --sparse=always album/windows.bmp sparse.bmp
        cp --preserve=mode,timestamps,links,xattr album/linked.jpg album/baseline.jpg copied/
        cp album copied || echo "status $?"
        cp -rT album/ copied
        """,
    ),
    "mv": (
        (),
        """
        cp -a album photos; mkdir -p old/2001 new
        mv photos/baseline.jpg photos/renamed.jpg; mv -t new photos/*.png
        mv -n photos/icon.ico photos/renamed.jpg || echo kept; mv -f photos/icon.ico photos/renamed.jpg
        mv -b photos/pixels.ppm photos/windows.bmp; mv -u photos/linked.jpg photos/progressive.jpeg
        mv photos old/2001/; mv old/2001 new/; mv new/2001/photos/-dash.jpg ./-dash.jpg
        mv new new/inside || echo "status $?"
        mv old/missing . || echo "status $?"
        """,
    ),
    "install": (
        (),
        """
        install -d -m 2750 made/by/install
        install -m 640 album/baseline.jpg made/one.jpg; install -p -m 600 album/*.png made/by/install
        install -D -b -m 444 album/pixels.ppm made/one.jpg; install -C -m 444 album/pixels.ppm made/one.jpg
        install -D album/icon.ico deep/er/icon.ico
        """,
    ),
    "dd": (
        (),
        """
        dd if=album/windows.bmp of=whole bs=10000 conv=fsync status=none
        dd if=album/windows.bmp of=whole bs=4096 seek=3 count=2 conv=notrunc,fdatasync status=none
        dd if=album/windows.bmp of=whole bs=1000 oflag=append conv=notrunc status=none
        dd if=album/windows.bmp of=synced bs=8k oflag=sync status=none
        dd if=album/windows.bmp of=direct bs=4096 count=3 oflag=direct conv=fsync status=none
        dd if=whole iflag=direct bs=4096 count=2 status=none | cksum
        dd if=/dev/zero of=sparse bs=1M seek=5 count=0 status=none
        dd if=album/windows.bmp of=holes bs=4096 conv=sparse status=none
        dd if=album/windows.bmp of=exclusive conv=excl status=none
        dd if=album/windows.bmp of=exclusive conv=excl status=none || echo "status $?"
        dd if=album/pixels.ppm of=swapped conv=swab,sync bs=512 status=none
        """,
    ),
    "truncate": (
        (),
        """
        cp album/windows.bmp photo; truncate -s 1000 photo; cksum photo; truncate -s +100000 photo
        cksum photo
        truncate -s %4096 photo; truncate -s '<50000' photo; truncate -r album/pixels.ppm photo; cksum photo
        truncate -c -s 5 missing; truncate -s 0 photo; truncate -s 30M large; stat -c '%s' photo large
        fallocate --posix -l 1000000 allocated; fallocate --posix -o 500 -l 9000 photo
        cksum photo allocated
        """,
    ),
    "split and cat": (
        (),
        """
        split -b 7000 -d -a 3 album/windows.bmp part.; cat part.* > joined; cmp joined album/windows.bmp
        csplit -s -f piece. -n 2 album/pixels.ppm 3; cat piece.* | cmp - album/pixels.ppm
        tac part.000 > reversed; cat part.* >> joined; tee copy.1 copy.2 < joined | cksum; rm part.*
        """,
    ),
    "shred": (
        (),
        """
        cp album/baseline.jpg one; cp album/windows.bmp two; cp album/pixels.ppm three; ln three still
        shred -u -n 2 one; shred -n 1 -z two; cmp two <(head -c "$(stat -c %s two)" /dev/zero)
        shred --remove=wipesync -n 1 -z -s 100 three; stat -c '%n %s %h' one two three still || true
        """,
    ),
    "flock": (
        (),
        """
        flock lock -c 'flock -n lock -c true || echo busy'
        flock -s lock -c 'flock -s -n lock -c "echo shared"; flock -n lock -c true || echo busy'
        exec 9>>lock; flock 9; (flock -u 9; echo inherited); flock -n lock -c 'echo free'
        echo 0 > count
        for n in {1..9}; do flock count.lock -c 'echo $(( $(cat count) + 1 )) > count' & done
        wait; cat count
        flock -E 7 -n lock -c 'flock -n lock -c "exit 3"' || echo "status $?"
        """,
    ),
    "find": (
        (),
        """
        touch -d '2001-02-03 04:05:06.123456789' album/baseline.jpg; touch -d '2021-01-01' album/icon.ico
        touch -r album/baseline.jpg reference
        find album -newer reference | sort; find album ! -newer reference | sort
        find . -newermt 2020-01-01 ! -newermt 2022-01-01 -name '*.ico'
        find album -samefile album/linked.jpg | sort; find . -size +100k -type f -links +1 | sort
        find album -name '*.png' -delete; find . -type d -empty
        find album -name '*.jpg' -exec cksum {} + | sort
        """,
    ),
    "cmp and diff": (
        ("cmp", "diff"),
        """
        cp -a album other; cmp album/baseline.jpg other/baseline.jpg; diff -r album other && echo equal
        printf x | dd of=other/windows.bmp bs=1 seek=77 conv=notrunc status=none; rm other/icon.ico
        mkdir other/new
        cmp album/windows.bmp other/windows.bmp || echo "status $?"
        diff -rq album other | sort; diff -r --brief album other >/dev/null || echo "status $?"
        """,
    ),
    "links and modes": (
        (),
        """
        ln album/icon.ico hard; ln -s album/icon.ico soft; ln -sfn album soft; ln -f album/pixels.ppm hard
        readlink soft; readlink -f soft/icon.ico | sed "s|$PWD||"
        realpath --relative-to=. soft/../hard || true
        chmod -R u=rwX,go=rX album; chmod a-w album/icon.ico; umask 027; touch masked; mkdir -m 1777 sticky
        stat -c '%n %A %h %s %F' hard soft album/icon.ico masked; test -k sticky; mkfifo -m 600 pipe
        ln album linked || echo "status $?"; rmdir album || echo "status $?"; rm album || echo "status $?"
        mkdir album || echo "status $?"; touch album/icon.ico/x || echo "status $?"
        cat album || echo "status $?"
        rm -r sticky; unlink hard; link album/icon.ico "new name"
        touch "$(printf 'n%.0s' {1..256})" || echo long
        """,
    ),
    "redirections": (
        (),
        """
        for n in {1..50}; do echo "line $n" >> log; done; sort -r -o log log; sed -i '/7/d' log; wc log
        exec 3<>log; read -r first <&3; echo "$first" >&3; exec 3>&-; cat log | head -3
        set -C; echo x > log || echo refused; set +C; : > log; echo again > log
        mktemp -p . fixed-XXXX >/dev/null
        rm fixed-*; (rm log; echo written; ls log || echo gone) > log 2>&1 < log; ls
        """,
    ),
    "tar": (
        ("tar",),
        """
        tar --sort=name -cf all.tar album; cksum < all.tar; tar -df all.tar && echo no difference
        mkdir out; tar -C out --xattrs -xpf all.tar; tar -rf all.tar out/album/icon.ico
        tar -tf all.tar | sort
        tar --delete -f all.tar album/windows.bmp; tar -uf all.tar album; tar -C out --overwrite -xf all.tar
        tar --sort=name --mtime=@0 -czf all.tar.gz --remove-files out; gzip -t all.tar.gz
        gunzip all.tar.gz -c | tar -t | wc -l
        """,
    ),
    "zip": (
        ("zip", "unzip"),
        """
        find album | sort | zip -q -X -@ all.zip; cksum all.zip; zip -q -T all.zip; unzip -qq all.zip -d out
        zip -q -X -u all.zip album/*.png || echo "status $?"; rm album/animated.gif
        zip -q -X -d all.zip album/icon.ico
        unzip -qq -o all.zip -d out; unzip -Z1 all.zip | sort; unzip -p all.zip album/baseline.jpg | cksum
        find album -type f | sort | zip -q -X -s 400k -@ split.zip; cksum split.z*
        zip -q -X -m moved.zip album/pixels.ppm; unzip -qq all.zip 'album/missing' || echo "status $?"
        """,
    ),
    "git": (
        ("git",),
        """
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org
        export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
        export GIT_AUTHOR_DATE='2001-02-03 04:05:06 +0000' GIT_COMMITTER_DATE='2001-02-03 04:05:06 +0000'
        export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=init.defaultBranch GIT_CONFIG_VALUE_0=main
        git -C album init -q; git -C album add .; git -C album commit -q -m photos
        git -C album rev-parse HEAD
        git clone -q --local album local; git clone -q --no-hardlinks album copied
        git clone -q --bare album bare.git
        cd local; git checkout -q -b edits; git mv icon.ico moved.ico; echo text > sidecar; git add sidecar
        git commit -q -a -m edits; git rm -q pixels.ppm; git stash -q; git stash pop -q
        git commit -q -a -m more
        git worktree add -q ../tree main; git gc -q --prune=now; git fsck --strict
        git push -q ../bare.git edits; git rev-parse HEAD; git log --stat --format=%s
        git status --porcelain
        cd ../copied; git pull -q ../bare.git edits; git rev-parse HEAD; git archive HEAD | cksum
        git bundle create -q ../all.bundle HEAD; git bundle verify -q ../all.bundle; git clean -q -f -d
        cd ..
        git -C bare.git fsck --strict; git -C album status --porcelain
        git -C local worktree remove ../tree; rm -rf */.git bare.git all.bundle
        """,
    ),
    "vim": (
        ("vim",),
        r"""
        printf '<xmp>\n<rating>5</rating>\n</xmp>\n' > sidecar.xmp; touch -d 2001-02-03 sidecar.xmp
        ln sidecar.xmp linked.xmp; cp -p sidecar.xmp other.xmp
        # A backup gets the time of the original, in whole seconds.
        edit() {
          touch -d 2001-02-03 "$1"
          vim -N -u NONE -i NONE -es -c 'set backupskip=' "${@:2}" -c '%s/5/4/' -c wq -- "$1"
        }
        inode() { stat -c %i sidecar.xmp; }
        before=$(inode)
        edit sidecar.xmp -c 'set backup backupcopy=yes'; [[ $(inode) == "$before" ]] && echo the same inode
        cat sidecar.xmp linked.xmp sidecar.xmp~
        edit other.xmp -c 'set nobackup writebackup backupcopy=no fsync'; ls -A
        edit other.xmp -c 'set patchmode=.orig backupcopy=auto' || echo nothing to replace
        edit other.xmp -c 'set backup backupdir=. backupext=.old' -c '%s/rating/5stars/g'
        edit other.xmp -n -c 'set binary noeol' -c '$s/$/ 5/' -c 'w! album/written.txt'
        chmod a-w linked.xmp; edit linked.xmp -c 'set backupcopy=yes' || echo "status $?"; ls -A
        cat -- *.xmp*
        """,
    ),
}


def run_script(script: str, folder: Path, home: Path) -> tuple[str, str]:
    """What it prints and what it complains of, with its own place taken out."""
    result = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=folder,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, f"{folder}: status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout.replace(str(folder), "."), result.stderr.replace(str(folder), ".")


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_as_on_the_disk(shared: Mount, albums: tuple[Path, Path], name: str) -> None:
    programs, script = SCRIPTS[name]
    require("bash", *programs)
    on_mount, on_disk = (album.parent for album in albums)
    started_ns = time.time_ns()
    wanted = run_script(script, on_disk, shared.directory)
    assert run_script(script, on_mount, shared.directory) == wanted
    ended_ns = time.time_ns()
    assert_same(on_mount, describe(on_disk, times=False), times=False)
    assert_times_agree(on_mount, on_disk, started_ns, ended_ns)
    seen = describe(on_mount)
    shared.remount()
    assert_same(on_mount, seen)


# What cannot be had on the mount, however it is asked for, and what the program then says.
REFUSED: dict[str, tuple[str, str]] = {
    "chattr +i album/icon.ico": ("chattr", "Operation not supported|Inappropriate ioctl"),
    "chattr +a album": ("chattr", "Operation not supported|Inappropriate ioctl"),
    "fallocate -l 1M album/icon.ico": ("fallocate", "not supported"),
    "fallocate --punch-hole -l 4096 album/windows.bmp": ("fallocate", "unsupported"),
    "fallocate --collapse-range -l 4096 album/windows.bmp": ("fallocate", "not supported"),
    "setfattr -n user.pixstore.id -v 1 album/icon.ico": ("setfattr", "Operation not permitted"),
    "setfattr -n other.namespace -v 1 album/icon.ico": ("setfattr", "Operation not supported"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused(albums: tuple[Path, Path], line: str) -> None:
    """A program that wants what FUSE or we do not offer is told so, and nothing has changed.

    Nothing but a time: the kernel stamps a file before it finds out that nobody here can fallocate.
    """
    program, message = REFUSED[line]
    require(program)
    place = albums[0].parent
    before = describe(place, times=False)
    result = subprocess.run(
        ["bash", "-c", line],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr
    assert_same(place, before, times=False)
