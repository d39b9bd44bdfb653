"""`stce prepare` in processes of its own: stopped, two at once, full disks, memory."""

import signal
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from helpers import wait_for
from image_sources import (
    IMAGES,
    WANTED,
    WNIDS,
    kaggle_zip,
    left_in,
    parquet,
    picture,
    start_slowly,
    tars,
    tree,
)

from stce_jax.data import class_lists
from stce_jax.verbs.prepare import prepare


@pytest.fixture
def classes(tmp_path):
    """A list of four classes."""
    path = tmp_path / "four.txt"
    path.write_text("\n".join(WNIDS))
    return str(path)


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory):
    """What an undisturbed run makes of the images."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "four.txt").write_text("\n".join(WNIDS))
    source = str(tree(root / "in", IMAGES))
    return prepare("imagenet100", source, classes=str(root / "four.txt"), data_dir=str(root / "out")).fingerprint


def config_of(wnids, name="four"):
    return f"{name}-{class_lists.list_hash(wnids)}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_that_is_stopped_leaves_nothing_that_looks_finished(tmp_path, fingerprint, classes, number):
    source, out = tree(tmp_path / "in", IMAGES), tmp_path / "out"
    words = ("prepare", "imagenet100", f"--source={source}", f"--classes={classes}", f"--data_dir={out}")
    process = start_slowly(*words, "--workers=1")
    wait_for(lambda: list(out.rglob("*array_record*")), "shard", process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert not (out / "imagenet100" / config_of(WNIDS)).exists(), "half a data set under the final name"
    if number == signal.SIGKILL:
        assert list(out.rglob("incomplete*")), "the test came too late"
    else:
        assert process.returncode == 75, error
        assert f"stopped by {number.name}; nothing is left half-written" in error
        assert error.count("\n") == 1 and error.startswith("stce: "), error
        assert left_in(out) == []
    report = prepare("imagenet100", str(source), classes=classes, data_dir=str(out))
    assert report.fingerprint == fingerprint and left_in(out) == []


def test_two_at_once_make_one_data_set(tmp_path, fingerprint, classes):
    source, out = tree(tmp_path / "in", IMAGES), tmp_path / "out"
    words = ("prepare", "imagenet100", f"--source={source}", f"--classes={classes}", f"--data_dir={out}")
    processes = [start_slowly(*words, "--workers=8") for _ in range(2)]
    said = []
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        said.append(output)
    assert sum("prepared in" in output for output in said) == 1, "it was made twice"
    assert sum("already prepared" in output for output in said) == 1
    assert all(fingerprint in output for output in said) and left_in(out) == []


@pytest.mark.parametrize("form", ["tree", "parquet"])
def test_a_full_disk_is_said_in_one_line(tmp_path, classes, form):
    """A limit on the size of files stands for it. Parquet's images are copied first."""
    images = {key: content + bytes(20_000) for key, content in IMAGES.items()}
    source, out = {"tree": tree, "parquet": parquet}[form](tmp_path / "in", images), tmp_path / "out"
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
    code = f"{limit} from stce_jax.cli import main; import sys; main(sys.argv[1:])"
    words = ("prepare", "imagenet100", f"--source={source}", f"--classes={classes}", f"--data_dir={out}")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot write" in done.stderr and "--data_dir" in done.stderr
    assert left_in(out) == [] and not list(out.rglob("1.0.0"))


# --- bounded memory

MEMORY = """
import sys
import tensorflow_datasets, pyarrow.parquet  # what is needed anyway is no part of the question
from stce_jax.cli import main
def peak():  # of this program; ru_maxrss would begin with what the process that started it had
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
try:
    main(sys.argv[1:])
finally:
    print("grew by", (peak() - before) // 1024)
"""


def memory_of(*words):
    """(completed process, MiB by which its memory grew)."""
    command = [sys.executable, "-c", MEMORY, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done, int(done.stdout.rpartition("grew by")[2])


def huge_png(side):
    """A PNG of some kB that says it is side x side pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(10**6))),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def huge_jpeg(side):
    data = bytearray(picture(0))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def test_bombs_are_refused_with_bounded_memory(tmp_path, classes):
    """Headers that claim gigabytes of pixels, and members of a zip that unpack to 300 MB, or say they do not."""
    path = kaggle_zip(tmp_path / "images.zip", IMAGES)
    folder = f"train.X1/{WNIDS[0]}"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}/png.JPEG", huge_png(60_000))
        archive.writestr(f"{folder}/jpeg.JPEG", huge_jpeg(60_000))
        archive.writestr(f"{folder}/jpeg10.JPEG", huge_jpeg(10_000))
        with archive.open(f"{folder}/long.JPEG", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(2**20))
    words = ("prepare", "imagenet100", f"--source={path}", f"--classes={classes}", f"--data_dir={tmp_path / 'out'}")
    done, grown = memory_of(*words, "--on_bad=skip")
    assert done.returncode == 0, done.stderr
    for name in ("png", "jpeg", "jpeg10", "long"):
        assert f"{WNIDS[0]}/{name}.JPEG" in done.stdout, name
    assert "60000 x 60000 pixels" in done.stdout and "bytes or more" in done.stdout
    print(f"memory grew by {grown} MiB")
    assert grown < 100, f"memory grew by {grown} MiB"


@pytest.mark.parametrize("form", ["tree", "tars", "kaggle zip", "parquet"])
def test_memory_does_not_grow_with_the_data(tmp_path, classes, form):
    """130 MB of images, of which 110 MB in one shard."""
    images = {}
    for (split, wnid, name), content in WANTED.items():
        for k in range(3 if split == "train" else 1):
            padding = np.random.default_rng(k).bytes(3_000_000)
            images[split, wnid, name if split == "val" else f"{wnid}_{name[10:-5]}{k}.JPEG"] = content + padding
    builders = {
        "tree": tree,
        "tars": tars,
        "kaggle zip": lambda root, images: kaggle_zip(root / "x.zip", images),
        "parquet": lambda root, images: parquet(root, images, row_group_size=4),
    }
    source = builders[form](tmp_path / "in", images)
    words = ("prepare", "imagenet100", f"--source={source}", f"--classes={classes}", f"--data_dir={tmp_path / 'out'}")
    done, grown = memory_of(*words, "--workers=2")
    assert done.returncode == 0, done.stderr
    print(f"memory grew by {grown} MiB")
    most = 250 if form == "parquet" else 160  # Arrow holds groups of rows, here of 12 MB, several times over
    assert grown < most, f"memory grew by {grown} MiB"


def test_the_command(tmp_path, stce, classes):
    source, out = tars(tmp_path / "in", IMAGES), tmp_path / "out"
    words = ("prepare", "imagenet100", f"--source={source}", f"--classes={classes}", f"--data_dir={out}")
    done = stce(*words)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "ILSVRC2012_img_train.tar" in done.stdout and "validation labels from" in done.stdout
    again = stce(*words)
    assert again.returncode == 0 and "already prepared" in again.stdout
    missing = stce("prepare", "imagenet100", f"--source={source}", "--classes=cmc", f"--data_dir={out}")
    assert missing.returncode == 3 and missing.stdout.startswith("looking at")
    assert missing.stderr.startswith("stce: ") and missing.stderr.count("\n") == 1
    assert "of the 100 classes" in missing.stderr and left_in(out) == []
    described = stce("prepare", "--help")
    assert described.returncode == 0 and "examples" in described.stdout and "--on_bad" in described.stdout
    usage = stce("prepare", "imagenet100")
    assert usage.returncode == 2 and "--source" in usage.stderr


def test_preparing_starts_no_jax_and_needs_no_tensorflow(tmp_path, classes):
    words = ["prepare", "imagenet100", f"--source={tree(tmp_path / 'in', IMAGES)}", f"--classes={classes}"]
    words.append(f"--data_dir={tmp_path / 'out'}")
    code = f"import sys\nfrom stce_jax.cli import main\ntry: main({words!r})\n"
    code += "except SystemExit as end: assert not end.code\nprint('modules', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"jax", "tensorflow"} & set(done.stdout.rpartition("modules ")[2].split())


# The command, where reading one image never ends; or where the main thread hears nothing, as in a call to C that waits
# for a disk.
HANGS = """
import sys, threading
kind = sys.argv.pop(1)
from stce_jax.prepare import making, staging
from stce_jax.prepare.sources import folders
staging.PATIENCE = 1.0
def never(*arguments):
    print("hangs", file=sys.__stdout__, flush=True)
    threading.Event().wait()
if kind == "read":
    folders.read_file = never
else:
    import ctypes, signal
    def deaf(*arguments):
        print("hangs", file=sys.__stdout__, flush=True)
        lock = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_lock(lock)
        libc.pthread_mutex_lock(lock)
    making.open_source = deaf
from stce_jax.cli import main
main()
"""


@pytest.mark.parametrize("kind", ["read", "deaf"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_is_heard_whatever_preparing_waits_for(tmp_path, kind, number):
    source, out = tree(tmp_path / "in", WANTED), tmp_path / "out"
    words = (sys.executable, "-c", HANGS, kind, "prepare", "folder", f"--source={source}", f"--data_dir={out}")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any("hangs" in line for line in process.stdout), process.stderr.read()
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 75 and error.startswith(f"stce: stopped by {number.name}; "), error
    assert error.count("\n") == 1, error
    assert left_in(out) == [] if out.exists() else True


# The command, with a signal while its modules are imported.
STARTS = """
import os, signal, sys
from stce_jax.cli import main
class Finder:
    def find_spec(name, path, target=None):
        if name == "stce_jax.prepare.making":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder)
main()
"""


def test_a_signal_while_preparing_starts(tmp_path):
    words = (sys.executable, "-c", STARTS, "prepare", "folder", f"--source={tmp_path}", f"--data_dir={tmp_path}/out")
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (75, 1), done.stderr
    assert "stopped by SIGTERM before anything was written" in done.stderr
