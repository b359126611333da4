"""Editing photos where they lie: the same edit on the mount and on the disk gives the same bytes.

Every edit runs twice, in both folders, with the same relative names; programs that put the time of day into
their output are told not to.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pictures
import pytest
from PIL import Image
from programs import require, run
from support import Mount
from trees import Tree, assert_same, assert_times_agree, describe

Edit = Callable[[Path], None]

# IFD0 of a photo from an older camera, none of it the time of the edit.
_FIXED_TAGS = ["-Artist=Somebody Else", "-ModifyDate=2001:02:03 04:05:06", "-Keywords=Größe", "-Rating=4"]


def names(folder: Path, *suffixes: str) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
    assert found
    return found


def mogrify_resize(folder: Path) -> None:
    """ImageMagick writes over the original."""
    # It puts the file's times into PNG and TIFF otherwise, and its change time is nobody's to set.
    without_dates = ["-define", "png:exclude-chunks=date,time", "+set", "date:create", "+set", "date:modify"]
    for name in names(folder, ".jpg", ".jpeg", ".png", ".gif", ".webp"):
        run("mogrify", *without_dates, "-resize", "61%", f"./{name}", cwd=folder)


def mogrify_rotate_many(folder: Path) -> None:
    """All photos in one process."""
    run("mogrify", "-rotate", "90", *(f"./{name}" for name in names(folder, ".jpg", ".jpeg")), cwd=folder)


def exiftool_overwrite(folder: Path) -> None:
    """A temporary file renamed over the original."""
    # Twice quiet: it warns of odd maker notes in real photos.
    run("exiftool", "-q", "-q", "-overwrite_original", *_FIXED_TAGS, *exif_files(folder), cwd=folder)


def exiftool_keep_original(folder: Path) -> None:
    """The original is renamed to *_original."""
    run("exiftool", "-q", *_FIXED_TAGS, *exif_files(folder), cwd=folder)
    assert len(list(folder.glob("*_original"))) == len(exif_files(folder))


def exiftool_in_place(folder: Path) -> None:
    """The original is opened and its content replaced; links and xattrs stay."""
    run("exiftool", "-q", "-P", "-overwrite_original_in_place", *_FIXED_TAGS, *exif_files(folder), cwd=folder)


def exiftool_rename_by_date(folder: Path) -> None:
    """Photos are renamed by the date in them, as importers do."""
    pattern = "-filename<%-.3nc ${DateTimeOriginal}.%le"
    run("exiftool", "-q", "-d", "%Y-%m-%d %H%M%S", pattern, *exif_files(folder), cwd=folder)


def jpegoptim_lossy(folder: Path) -> None:
    """A temporary file renamed over the original, with its times."""
    jpegs = [f"./{name}" for name in names(folder, ".jpg", ".jpeg")]
    run("jpegoptim", "--quiet", "--preserve", "--max=70", "--strip-all", *jpegs, cwd=folder)


def jpegoptim_progressive(folder: Path) -> None:
    """The same without quality loss."""
    jpegs = [f"./{name}" for name in names(folder, ".jpg", ".jpeg")]
    run("jpegoptim", "--quiet", "--force", "--all-progressive", *jpegs, cwd=folder)


def optipng_in_place(folder: Path) -> None:
    """A backup beside the original, which is then removed; times kept."""
    run("optipng", "-quiet", "-o1", "-preserve", *names(folder, ".png"), cwd=folder)


def optipng_keep_original(folder: Path) -> None:
    """The original is renamed to *.bak, and the new one without extra chunks takes its name."""
    run("optipng", "-quiet", "-o1", "-force", "-keep", "-strip", "all", *names(folder, ".png"), cwd=folder)


def jhead_change_dates(folder: Path) -> None:
    """A temporary file renamed over the original; at the end the file's time is that in EXIF."""
    for options in (["-dt", "-cl", "By jhead"], ["-ta+1:30"], ["-ft"]):
        run("jhead", "-q", *options, *exif_files(folder), cwd=folder)


def jhead_rename_by_date(folder: Path) -> None:
    """Renamed by the date in them."""
    run("jhead", "-q", "-n%Y-%m-%d %H%M%S %i", *exif_files(folder), cwd=folder)


def vips_convert(folder: Path) -> None:
    """Threads that read by mapping and write tiles, pyramids and thumbnails."""
    run("vips", "copy", "./baseline.jpg", "./tiled.tif[tile,pyramid,compression=deflate]", cwd=folder)
    run("vips", "rot", "./windows.bmp", "./turned.png", "d90", cwd=folder)
    run("vips", "resize", "./progressive.jpeg", "./half.v", "0.5", cwd=folder)
    run("vips", "invert", "./half.v", "./inverted.webp", cwd=folder)
    run("vips", "dzsave", "./baseline.jpg", "./zoom", cwd=folder)
    (folder / "zoom_files" / "vips-properties.xml").unlink()  # the date is in it
    run("vipsthumbnail", "--size", "128", "-o", "tn_%s.jpg", *exif_files(folder), cwd=folder)


def ffmpeg_timelapse(folder: Path) -> None:
    """A video from stills, rewritten in place to move its index to the front; a cut and a thumbnail of it."""

    def ffmpeg(*arguments: str) -> None:
        exact = ["-fflags", "+bitexact", "-flags", "+bitexact", "-threads", "1"]
        run("ffmpeg", "-v", "error", "-nostdin", "-y", *arguments[:-1], *exact, arguments[-1], cwd=folder)

    (folder / "frames").mkdir()
    for number in range(8):
        (folder / "frames" / f"IMG_{number:04}.jpg").write_bytes(pictures.jpeg(number, (160, 120)))
    stills = ["-framerate", "8", "-i", "frames/IMG_%04d.jpg", "-c:v", "mpeg4", "-q:v", "4"]
    ffmpeg(*stills, "-movflags", "+faststart", "timelapse.mp4")
    ffmpeg("-ss", "0.25", "-i", "timelapse.mp4", "-c", "copy", "-metadata", "title=cut", "cut.mkv")
    ffmpeg("-ss", "0.5", "-i", "timelapse.mp4", "-frames:v", "1", "thumbnail.jpg")


def pillow_rotate(folder: Path) -> None:
    """Open, rotate, save over itself: the file is truncated while it is known."""
    for name in names(folder, ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".ppm"):
        with Image.open(folder / name) as image:
            turned = image.transpose(Image.Transpose.ROTATE_270)
        turned.save(folder / name)


def pillow_append_a_page(folder: Path) -> None:
    """Pillow reads and writes at many places of one open TIFF."""
    name = "two pages.tiff"
    with Image.open(folder / name) as image:
        image.seek(1)
        image.load()
        page = image.rotate(180)
    page.save(folder / name, append=True)


def patch_bytes(folder: Path) -> None:
    """dd changes some bytes in the middle, as repair tools do."""
    for name in names(folder, ".jpg", ".bmp"):
        run(
            "dd",
            f"of={name}",
            "bs=1",
            "seek=1000",
            "conv=notrunc",
            "status=none",
            cwd=folder,
            input_text="patched",
        )


def cut_and_append(folder: Path) -> None:
    """truncate, then append."""
    for name in names(folder, ".jpg", ".tiff"):
        run("truncate", "-s", "-777", "--", name, cwd=folder)
        run(
            "dd",
            f"of={name}",
            "oflag=append",
            "conv=notrunc",
            "status=none",
            cwd=folder,
            input_text="end" * 99,
        )


def sed_in_place(folder: Path) -> None:
    """sed -i, the plain way to replace a file by rename."""
    run("sed", "-i", "s/Imaginary/imaginary/g", "--", *names(folder, ".jpg", ".tiff"), cwd=folder)


EDITS = [
    mogrify_resize,
    mogrify_rotate_many,
    exiftool_overwrite,
    exiftool_keep_original,
    exiftool_in_place,
    exiftool_rename_by_date,
    jpegoptim_lossy,
    jpegoptim_progressive,
    optipng_in_place,
    optipng_keep_original,
    jhead_change_dates,
    jhead_rename_by_date,
    vips_convert,
    ffmpeg_timelapse,
    pillow_rotate,
    pillow_append_a_page,
    patch_bytes,
    cut_and_append,
    sed_in_place,
]


def exif_files(folder: Path) -> list[str]:
    return [f"./{name}" for name in names(folder, ".jpg", ".jpeg")]


@pytest.mark.parametrize("edit", EDITS)
def test_same_result_as_on_the_disk(shared: Mount, albums: tuple[Path, Path], edit: Edit) -> None:
    on_mount, on_disk = albums
    before = describe(on_disk, times=False)
    started_ns = time.time_ns()
    edit(on_disk)
    edit(on_mount)
    ended_ns = time.time_ns()

    wanted = describe(on_disk, times=False)
    assert wanted != before, "the edit changed nothing"
    assert_same(on_mount, wanted, times=False)
    assert_times_agree(on_mount, on_disk, started_ns, ended_ns)
    seen = describe(on_mount)
    shared.remount()
    assert_same(on_mount, seen)


@pytest.mark.parametrize("edit", [exiftool_overwrite, jpegoptim_progressive, pillow_rotate])
def test_real_photos(shared: Mount, places: tuple[Path, Path], corpus: Tree, edit: Edit) -> None:
    """Large ones from phones and small ones with every orientation."""
    on_mount, on_disk = (place / "photos" for place in places)
    on_disk.mkdir()
    sources = [
        *sorted((corpus.path / "phones").glob("*.jpg"))[:3],
        *sorted((corpus.path / "exif-orientation").glob("*.jpg")),
    ]
    assert sources, "the folder of real photos has other photos than these tests know"
    for source in sources:
        run("cp", "-p", source, on_disk / source.name)
        (on_disk / source.name).chmod(0o644)
    run("cp", "-a", on_disk, on_mount)
    edit(on_disk)
    edit(on_mount)
    wanted = describe(on_disk, times=False)
    assert_same(on_mount, wanted, times=False)
    shared.remount()
    assert_same(on_mount, wanted, times=False)


def test_editing_leaves_no_objects_behind(mounted: Mount) -> None:
    """After a clean unmount there is one object for each picture, and none of a replaced version."""
    for number in range(4):
        (mounted.mountpoint / f"{number}.jpg").write_bytes(pictures.jpeg(number))
    for edit in (exiftool_overwrite, exiftool_in_place, jpegoptim_lossy, mogrify_rotate_many):
        edit(mounted.mountpoint)
    assert len(list(mounted.mountpoint.iterdir())) == 4
    mounted.unmount()
    objects = [path for path in (mounted.store / "objects").rglob("*") if path.is_file()]
    assert len(objects) == 4


def test_an_edit_keeps_the_image_and_raises_its_token(places: tuple[Path, Path]) -> None:
    """In-place edits keep the image's id and give it a new version; nothing else about it changes hands."""
    require("exiftool")
    folder, _ = places
    photo = folder / "photo.jpg"
    photo.write_bytes(pictures.jpeg(1))
    image_id, token = (os.getxattr(photo, f"user.pixstore.{name}") for name in ("id", "token"))
    exiftool_in_place(folder)
    assert os.getxattr(photo, "user.pixstore.id") == image_id
    assert int(os.getxattr(photo, "user.pixstore.token")) > int(token)
    assert os.getxattr(photo, "user.pixstore.format") == b"jpeg"
    assert (os.getxattr(photo, "user.pixstore.width"), os.getxattr(photo, "user.pixstore.height")) == (
        b"640",
        b"480",
    )


def test_times_that_programs_saw_stay(shared: Mount, places: tuple[Path, Path]) -> None:
    """Edits in quick succession, several in one tick of the kernel's clock: a remount changes no time."""
    paths = [places[0] / f"{number}.jpg" for number in range(60)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * 5000)
        if number % 2:
            os.truncate(path, 3000)
        if number % 3:
            with open(path, "ab") as file:
                file.write(b"appended")
        if number % 5 == 0:
            path.write_bytes(b"again")
    seen = [(status.st_mtime_ns, status.st_ctime_ns) for status in map(os.stat, paths)]
    shared.remount()
    assert [(status.st_mtime_ns, status.st_ctime_ns) for status in map(os.stat, paths)] == seen


def test_git_keeps_photos(shared: Mount, places: tuple[Path, Path]) -> None:
    """git locks, renames, hard-links and maps; a local clone fails where links of a file show other sizes."""
    require("git")
    folder, _ = places
    work, clone = folder / "work", folder / "clone"
    work.mkdir()
    for name, content in pictures.every_format().items():
        (work / name).write_bytes(content)

    def git(*arguments: str, cwd: Path) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
        return run("git", *identity, *arguments, cwd=cwd, quiet=False)

    git("init", "-q", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "photos", cwd=work)
    git("clone", "-q", "--local", str(work), str(clone), cwd=folder)
    (clone / "baseline.jpg").write_bytes(pictures.jpeg(99))
    git("commit", "-q", "-a", "-m", "edited", cwd=clone)
    git("gc", "-q", cwd=clone)
    shared.remount()
    assert git("status", "--porcelain", cwd=clone) == ""
    assert git("status", "--porcelain", cwd=work) == ""
    git("fsck", "--strict", cwd=clone)
    git("pull", "-q", str(clone), "main", cwd=work)
    for name in pictures.every_format():
        assert (work / name).read_bytes() == (clone / name).read_bytes()
    assert (work / "baseline.jpg").read_bytes() == pictures.jpeg(99)
