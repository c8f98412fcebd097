"""Image files decoded to RGB, by the same rules wherever a file comes from.

Files are not to be trusted: the format is told by the content, sizes are checked by
the header before memory is taken, and metadata is neither unpacked nor limited.
"""

import contextlib
import io
import struct
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

# By content, not by suffix. Few, because PIL would run Ghostscript for an EPS.
IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
MAX_PIXELS = 2**26  # of one image, by its header: 256 MiB as RGBA
_PNG = b"\x89PNG\r\n\x1a\n"
# Beside the critical chunks, what of a PNG says how it looks: transparency, orientation
_SHOWN_CHUNKS = (b"tRNS", b"eXIf")


DecodeFault = Literal[
    "unreadable",
    "zero bytes",
    "not an image",
    "truncated or damaged",
    "too large",
    "not a file",
]


class DecodeError(Exception):
    """Why a file cannot be used as an image."""

    def __init__(self, kind: DecodeFault, detail: str) -> None:
        super().__init__(f"{kind} ({detail})")
        self.kind: DecodeFault = kind
        self.detail = detail


def decode(content: bytes, verify: bool = False) -> Image.Image:
    """The image in a file's content as people see it: RGB, upright, on white.

    Of an animation it is the first frame; 16-bit samples keep their upper byte. With
    `verify` the checksums of a PNG are checked, too, up to its end. Raises DecodeError.
    """
    try:
        content = _without_metadata(content)
        if verify:
            _open(content).verify()
        return _upright(_on_white(_open(content), content))
    except DecodeError:
        raise
    except UnidentifiedImageError:
        if _begins_like_an_image(content):
            raise DecodeError("truncated or damaged", "no whole header") from None
        detail = f"none of {', '.join(IMAGE_FORMATS)}"
        raise DecodeError("not an image", detail) from None
    except Image.DecompressionBombError as error:
        raise DecodeError("too large", str(error)) from error
    except Exception as error:  # decoders raise anything on what is broken
        detail = str(error) or type(error).__name__
        raise DecodeError("truncated or damaged", detail) from error


def pixels(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """An image of `decode` as uint8 [H, W, C], by an antialiased bilinear filter."""
    height, width = size
    image = image.convert("L" if channels == 1 else "RGB")
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image).reshape(height, width, channels)


def _without_metadata(content: bytes) -> bytes:
    """A PNG without the chunks that do not change how it looks; others as they are.

    PIL unpacks texts and colour profiles, and refuses the image where they are larger
    than a limit, or damaged. What is cut off stays so, for PIL to find.
    """
    if not content.startswith(_PNG):
        return content
    kept, kept_from, start = [], 0, len(_PNG)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if kind == b"IEND" or end > len(content):
            break
        if kind[0] & 0x20 and kind not in _SHOWN_CHUNKS:  # lower case: ancillary
            kept.append(content[kept_from:start])
            kept_from = end
        start = end
    return b"".join([*kept, content[kept_from:]]) if kept else content


def _begins_like_an_image(content: bytes) -> bool:
    tests = [Image.OPEN[name][1] for name in IMAGE_FORMATS]
    return any(accept is not None and accept(content[:16]) for accept in tests)


def _open(content: bytes) -> ImageFile.ImageFile:
    """The image in a file, by its header; refused here if it is a bomb."""
    image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    assert isinstance(image, ImageFile.ImageFile)
    width, height = image.size
    if width * height > MAX_PIXELS:
        detail = f"{width} x {height} pixels, over {MAX_PIXELS}"
        raise DecodeError("too large", detail)
    return image


def _on_white(opened: ImageFile.ImageFile, content: bytes) -> Image.Image:
    """An opened image as RGB, white where it is transparent; with its metadata."""
    drawn = opened.tile[0][1] if opened.format == "GIF" else None
    opened.load()
    image, opaque = _upper_bytes(opened), _opaque_places(opened, content)
    if opaque is None and opened.has_transparency_data:
        image = image.convert("RGBA")
        opaque = image.getchannel("A")
    whole = (0, 0, *image.size)
    box = drawn or whole  # a GIF's first frame may be a part of the picture
    image = image.convert("RGB")
    if opaque is not None or box != whole:
        shown, image = image, Image.new("RGB", image.size, "white")
        image.paste(shown.crop(box), box, opaque and opaque.crop(box))
    image.info = opened.info
    return image


def _upper_bytes(image: Image.Image) -> Image.Image:
    """An image with 8-bit samples; PIL's convert() would clip 16 bits of grey."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _opaque_places(image: ImageFile.ImageFile, content: bytes) -> Image.Image | None:
    """Where a grey or RGB PNG does not have its one transparent colour; else None.

    PIL compares that colour, as it stands in the file, with samples that it brought to
    8 bits; all bits of both count (PNG specification, 11.3.2.1).
    """
    if image.format != "PNG" or image.mode not in ("L", "I;16", "RGB"):
        return None
    colour = image.info.pop("transparency", None)
    if colour is None:
        return None
    depth = content[24]  # of IHDR
    key, samples = np.array(colour) & (2**depth - 1), np.asarray(image)
    if depth < 8:
        key = key * 255 // (2**depth - 1)  # as PIL spreads the samples
    elif depth == 16 and image.mode == "RGB":  # PIL keeps the upper bytes alone
        lower = _open(content)
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        samples = samples.astype(np.uint16) << 8 | np.asarray(lower)
    return Image.fromarray((samples != key).reshape(*samples.shape[:2], -1).any(-1))


def _upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF asks, without its metadata."""
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)
    image.info = {}
    return image
