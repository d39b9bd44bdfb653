"""The formats of image files by their first bytes: which are read, and which package reads the others."""

import functools
import importlib
import re
from typing import NamedTuple

from PIL import Image, features

HEAD = 64  # bytes of a file that tell its format
# What Pillow may try. More formats than these are a risk without a use: EPS, say, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# Files with these endings are images, whatever they hold: what is damaged is to be named, not passed over.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
)
# They begin as TIFF does, but what a reader of TIFF finds in them is a thumbnail.
CAMERA_RAW = (".arw", ".cr2", ".dcr", ".dng", ".erf", ".kdc", ".mef", ".mos", ".nef", ".nrw", ".pef", ".sr2", ".srw")

_BEGINNINGS = {  # the first that matches
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM....\0{4}....[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0{3}",  # two letters alone would be many a text
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6][ \t\r\n]+[#0-9]",
    "JPEG 2000": rb"\0{3}\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "AVIF": rb"....ftyp(?:avi[fs]|(?:mif1|msf1|miaf).*avi[fs])",
    "HEIC": rb"....ftyp(?:he[iv][cxms]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0{3}\x0cJXL \r\n\x87\n",
}
_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _BEGINNINGS.items()}


class _Plugin(NamedTuple):
    """What adds a format to Pillow: its name there, Pillow's own feature, and the package and module that have it."""

    name: str
    feature: str
    package: str
    module: str


_PLUGINS = {
    "JPEG 2000": _Plugin("JPEG2000", "jpg_2000", "pillow with JPEG 2000", ""),
    "AVIF": _Plugin("AVIF", "avif", "pillow-avif-plugin", "pillow_avif"),
    "HEIC": _Plugin("HEIF", "", "pillow-heif", "pillow_heif"),
    "JPEG XL": _Plugin("JXL", "", "pillow-jxl-plugin", "pillow_jxl"),
}


def format_of(head: bytes) -> str:
    """The format of an image file by its first HEAD bytes or more; "" if it begins like none that is known here."""
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(head[:HEAD])), "")


@functools.cache
def pillow_formats(name: str) -> tuple[str, ...]:
    """What Pillow shall try for a file of a format of `format_of`; () if nothing here reads it.

    A package that reads it is imported if it is installed; there are no others than those named here.
    """
    plugin = _PLUGINS.get(name)
    if plugin is None:
        return FORMATS
    if plugin.feature in features.get_supported():
        return (plugin.name,)
    Image.init()
    if plugin.name not in Image.OPEN or plugin.feature:  # Pillow registers AVIF even where it cannot read it
        try:
            module = importlib.import_module(plugin.module or "no package")
        except ImportError:
            return ()
        getattr(module, "register_heif_opener", lambda: None)()
    return (plugin.name,) if plugin.name in Image.OPEN else ()


def missing(name: str) -> str:
    """The package that would read files of a format that nothing here reads; "" if they are read."""
    return "" if pillow_formats(name) else _PLUGINS[name].package


def advice(name: str) -> str:
    """Why a file of this format cannot be read, and what to do, for a message."""
    if not name:
        return f"it begins like no image that is read ({', '.join(FORMATS)}, ...); repair or remove it"
    if package := missing(name):
        return f"it is a {name} image, which only the package {package} reads; install that, or convert the image"
    return "it is damaged; repair or remove it"
