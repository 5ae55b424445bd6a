"""The TensorFlow graph that a server runs: guards, decoding, bicubic and colour around the folded network.

An image goes through in tiles with the network's whole halo, so memory follows the tile and the output, not
F times the pixels. Bicubic and colour are in float64 and in the order of operations of `drcn_keras.image`, so that
rounding to 8 or 16 bit falls as it does there.
"""

import numpy as np
import tensorflow as tf

from drcn_keras import image, inference

# File signatures: of PNG with the head of its first chunk, of JPEG.
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_JPEG = b"\xff\xd8\xff"
_PNG_HEADER = 33  # Bytes up to the end of the first chunk.
# Colours as images hold them are in [0, 1] and ILR overshoots a little; 255 where 1 is meant is far outside.
_VALUE_RANGE = (-1.0, 2.0)


class Upscaler(tf.Module):
    """What is saved: one function per signature.

    Args:
        model: `DRCN`.
        max_pixels: most pixels of low-resolution images in one request; scale^2 times as many for `serving_default`.
        tile: side in pixels, of the output, of the squares that are computed at once; more than twice the halo.
    """

    def __init__(self, model, max_pixels, tile):
        super().__init__(name="drcn_upscaler")
        self._network = inference.inference_model(model)
        # Trackable on their own, so that the SavedModel holds variables and nothing of Keras.
        self._weights = [variable.value for variable in self._network.variables]
        self._channels = model.channels
        self._scale = model.scale
        self._halo = model.halo
        self._max_pixels = max_pixels
        self._tile = tile
        self._step = tile - 2 * model.halo

    def signatures(self):
        """{signature name: tf.function with its input signature}."""

        def function(method, **inputs):
            specs = [tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in inputs.items()]
            return tf.function(method, input_signature=specs)

        image_batch = (None, None, None, 3)
        return {
            "serving_default": function(self.ilr_to_sr, ilr=((None, None, None, self._channels), tf.float32)),
            "upscale": function(self.lr_to_sr, lr=(image_batch, tf.float32)),
            "upscale_uint8": function(self.lr_to_sr_uint8, lr=(image_batch, tf.uint8)),
            "upscale_image": function(self.bytes_to_bytes, image_bytes=((None,), tf.string)),
        }

    def ilr_to_sr(self, ilr):
        """The network alone: ilr float32 (batch, height, width, channels) in [0, 1] -> sr of that shape."""
        ilr = self._guarded(ilr, self._max_pixels * self._scale**2)

        def tile(images, rows, columns):
            return self._network(ilr[images, rows, columns])

        return {"sr": self._in_tiles(tf.shape(ilr), tile, self._channels, tf.float32)}

    def lr_to_sr(self, lr):
        """RGB float32 (batch, height, width, 3) in [0, 1] -> sr, scale times as large, clipped to [0, 1]."""
        lr = self._guarded(lr, self._max_pixels)
        return {"sr": self._enlarged(lr, 1.0, _as_float)}

    def lr_to_sr_uint8(self, lr):
        """RGB uint8 (batch, height, width, 3) -> sr uint8, scale times as large."""
        lr = self._guarded(lr, self._max_pixels)
        return {"sr": self._enlarged(lr, 255.0, _as_uint8)}

    def bytes_to_bytes(self, image_bytes):
        """PNG and JPEG files (batch,) of any sizes -> PNG files (batch,), scale times as large.

        Gray stays gray, alpha stays (enlarged by bicubic interpolation), 16 bit stays 16 bit.
        """
        with tf.control_dependencies([_require(tf.size(image_bytes) > 0, "no image: the batch is empty.")]):
            image_bytes = tf.identity(image_bytes)
        # Sizes first, from the headers alone: nothing is decoded of a request that is refused.
        pixels = tf.map_fn(_pixels_declared, image_bytes, fn_output_signature=tf.int64, parallel_iterations=1)
        with tf.control_dependencies([self._require_pixels(tf.reduce_sum(pixels), self._max_pixels)]):
            image_bytes = tf.identity(image_bytes)
        files = tf.map_fn(self._file_to_file, image_bytes, fn_output_signature=tf.string, parallel_iterations=1)
        return {"sr_png_bytes": files}

    def _file_to_file(self, contents):
        pixels, gray, alpha, deep = _decode(contents)
        peak = tf.where(deep, tf.constant(65535.0, tf.float64), tf.constant(255.0, tf.float64))
        # 16 bit hold 8 as well: one graph for both, up to the encoder.
        sr = self._enlarged(pixels[None], peak, lambda sr: _as_uint16(sr, peak), gray, alpha)[0]
        return tf.cond(deep, lambda: tf.io.encode_png(sr), lambda: tf.io.encode_png(tf.cast(sr, tf.uint8)))

    def _enlarged(self, lr, peak, finish, gray=False, alpha=False):
        """Enlarges RGB through the network, alpha by bicubic interpolation.

        Args:
            lr: any number type, (batch, height, width, channels) in [0, peak]: RGB, then alpha if any.
            peak: float, or a float64 tensor.
            finish: function of float64 in about [0, 1] to the result's values.
            gray: bool, or a bool tensor: red, green and blue are the same; the result has one channel for them.
            alpha: bool, or a bool tensor: whether the result has an alpha channel.

        Returns:
            (batch, scale * height, scale * width, 1 to 4).
        """
        shape, scale = tf.shape(lr), self._scale

        def tile(images, rows, columns):
            rows = _contributions(shape[1], rows, scale)
            columns = _contributions(shape[2], columns, scale)
            part, rows, columns = _crop(lr[images], rows, columns)
            # Only now in floating point: a large image stays in its integers.
            ilr = _resize(tf.cast(part, tf.float64), rows, columns) / peak
            sr = self._color_to_sr(ilr[..., :3], gray)
            return finish(_choose(alpha, lambda: tf.concat([sr, ilr[..., 3:]], axis=3), lambda: sr))

        channels = 3 if gray is False and alpha is False else None
        size = tf.stack([shape[0], shape[1] * scale, shape[2] * scale])
        return self._in_tiles(size, tile, channels, finish(tf.zeros((), tf.float64)).dtype)

    def _color_to_sr(self, rgb, gray):
        if self._channels == 3:
            sr = self._network(tf.cast(rgb, tf.float32))
            # The mean in float32, as the package takes it.
            sr = _choose(gray, lambda: (sr[..., :1] + sr[..., 1:2] + sr[..., 2:]) / 3.0, lambda: sr)
            return tf.cast(sr, tf.float64)
        # Gray is taken as the Y it is.
        planes = _choose(gray, lambda: rgb, lambda: _rgb_to_ycbcr(rgb))
        planes.set_shape((None, None, None, 3))
        y = tf.cast(self._network(tf.cast(planes[..., :1], tf.float32)), tf.float64)
        return _choose(gray, lambda: y, lambda: _ycbcr_to_rgb(tf.concat([y, planes[..., 1:]], axis=3)))

    def _in_tiles(self, shape, tile, channels, dtype):
        """Puts an image batch together from overlapping windows, one at a time.

        The windows are those of `drcn_keras.upscale.tiles`, so that the network meets the same shapes here and there.

        Args:
            shape: int32 (batch, height, width, ...) of the result.
            tile: function of three slices, images, rows and columns, to (images, rows, columns, channels).
            channels: last dimension of the result, or None.
            dtype: of the result.
        """
        batch, height, width = shape[0], shape[1], shape[2]
        # Small images of one batch share a step, as long as they are no larger than a tile together.
        images = tf.maximum(self._tile**2 // tf.maximum(height * width, 1), 1)

        def joined(count, make):
            """make(0), make(1) ... side by side along the first axis."""

            def body(index, parts):
                return index + 1, parts.write(index, make(index))

            shape = (None, None, None, channels)
            parts = tf.TensorArray(dtype, size=count, infer_shape=False, element_shape=shape)
            loop = tf.while_loop(lambda index, _: index < count, body, (0, parts), parallel_iterations=1)
            return loop[1].concat()

        def group(index):
            some = slice(index * images, tf.minimum((index + 1) * images, batch))

            def row(index):
                rows, inner_rows = self._span(height, index)

                def column(index):
                    columns, inner_columns = self._span(width, index)
                    return tf.transpose(tile(some, rows, columns)[:, inner_rows, inner_columns], (2, 1, 0, 3))

                return tf.transpose(joined(self._count(width), column), (1, 2, 0, 3))  # Height, batch, width.

            return tf.transpose(joined(self._count(height), row), (1, 0, 2, 3))

        whole = joined((batch + images - 1) // images, group)
        whole.set_shape((None, None, None, channels))
        return whole

    def _count(self, length):
        """How many windows cover `length` pixels."""
        return tf.maximum(-((self._tile - length) // self._step), 0) + 1

    def _span(self, length, index):
        """Along one axis: the window's slice, and the slice within it of what is kept."""
        start = tf.maximum(tf.minimum(index * self._step, length - self._tile), 0)
        stop = tf.minimum(start + self._tile, length)
        begin = tf.where(index == 0, 0, index * self._step + self._halo)
        end = tf.where(stop == length, length, stop - self._halo)
        return slice(start, stop), slice(begin - start, end - start)

    def _guarded(self, images, max_pixels):
        shape = tf.shape(images, out_type=tf.int64)
        pixels = shape[0] * shape[1] * shape[2]
        with tf.control_dependencies(
            [_require(pixels > 0, "empty image: every dimension must be 1 or more; received the shape", shape)]
        ):
            pixels = tf.identity(pixels)
        with tf.control_dependencies([self._require_pixels(pixels, max_pixels)]):
            images = tf.identity(images)
        if not images.dtype.is_floating:
            return images
        low, high = tf.reduce_min(images), tf.reduce_max(images)
        # The negation catches NaN, which no comparison holds for.
        inside = tf.logical_and(low >= _VALUE_RANGE[0], high <= _VALUE_RANGE[1])
        finite = tf.reduce_all(tf.math.is_finite(images))
        with tf.control_dependencies(
            [
                _require(finite, "the image holds NaN or infinity; expected values in [0, 1]."),
                _require(inside, "values in [0, 1] expected; received from, to", low, high),
            ]
        ):
            return tf.identity(images)

    def _require_pixels(self, pixels, max_pixels):
        text = f"too many pixels: at most {max_pixels} in one request; received"
        return _require(pixels <= max_pixels, text, pixels)


def _choose(condition, yes, no):
    """tf.cond, or the branch itself where the condition is known. The channels of the result may be unknown."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    chosen = tf.cond(condition, yes, no)
    chosen.set_shape((None, None, None, None))
    return chosen


def _require(condition, text, *values):
    return tf.debugging.Assert(condition, [text, *values], summarize=4)


def _pixels_declared(contents):
    """The pixels that a PNG's or JPEG's header speaks of, int64; InvalidArgument for anything else."""
    png = tf.strings.substr(contents, 0, len(_PNG)) == _PNG
    jpeg = tf.strings.substr(contents, 0, len(_JPEG)) == _JPEG
    whole = tf.logical_or(jpeg, tf.logical_and(png, tf.strings.length(contents) >= _PNG_HEADER))
    text = "not an image: expected the bytes of a PNG or JPEG file; number of bytes received"
    with tf.control_dependencies([_require(whole, text, tf.strings.length(contents))]):
        contents = tf.identity(contents)

    def of_png():
        sides = tf.cast(_bytes(contents, 16, 8), tf.int64)
        sides = tf.reduce_sum(tf.reshape(sides, (2, 4)) * [[1 << 24, 1 << 16, 1 << 8, 1]], axis=1)
        # PNG's own limit; without it the product could overflow.
        with tf.control_dependencies(
            [_require(tf.reduce_all(sides < 2**31), "PNG header out of range; width and height", sides)]
        ):
            return tf.reduce_prod(sides)

    def of_jpeg():
        shape = tf.io.extract_jpeg_shape(contents)
        text = "JPEG with gray or colour channels, 1 or 3, expected (CMYK is not supported); received"
        with tf.control_dependencies([_require(tf.logical_or(shape[2] == 1, shape[2] == 3), text, shape[2])]):
            return tf.reduce_prod(tf.cast(shape[:2], tf.int64))

    pixels = tf.cond(png, of_png, of_jpeg)
    with tf.control_dependencies([_require(pixels > 0, "empty image: its header says 0 pixels.")]):
        return tf.identity(pixels)


def _decode(contents):
    """An image file's pixels and kind.

    Returns:
        (pixels, gray, alpha, deep): uint16 (height, width, 4) RGBA, in [0, 255] or [0, 65535]; and whether they are
        gray (the same in R, G and B), have an alpha channel, have 16 bits.
    """
    png = tf.strings.substr(contents, 0, len(_PNG)) == _PNG

    def of_png():
        depth, kind = _bytes(contents, 24, 1)[0], _bytes(contents, 25, 1)[0]
        # With an alpha channel for all: so libpng makes one out of a transparent colour too.
        pixels = tf.cond(
            depth == 16,
            lambda: tf.io.decode_png(contents, channels=4, dtype=tf.uint16),
            lambda: tf.cast(tf.io.decode_png(contents, channels=4), tf.uint16),
        )
        # PNG colour types: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
        gray = tf.logical_or(kind == 0, kind == 4)
        # What the decoder fills in where the file has no transparency: the depth's largest value, also where it
        # stretches the colours of 1, 2 or 4 bits to 8.
        opaque = tf.cast(tf.bitwise.left_shift(1, depth) - 1, tf.uint16)
        alpha = tf.logical_or(kind >= 4, tf.reduce_any(pixels[..., 3] != opaque))
        return pixels, gray, alpha, depth == 16

    def of_jpeg():
        # The decoder settings that Pillow uses.
        pixels = tf.io.decode_jpeg(contents, channels=3, fancy_upscaling=True, dct_method="INTEGER_ACCURATE")
        rgba = tf.concat([pixels, tf.fill(tf.shape(pixels[..., :1]), tf.constant(255, tf.uint8))], axis=2)
        gray = tf.io.extract_jpeg_shape(contents)[2] == 1
        return tf.cast(rgba, tf.uint16), gray, tf.constant(False), tf.constant(False)

    pixels, gray, alpha, deep = tf.cond(png, of_png, of_jpeg)
    pixels.set_shape((None, None, 4))
    return pixels, gray, alpha, deep


def _bytes(contents, start, count):
    return tf.cast(tf.io.decode_raw(tf.strings.substr(contents, start, count), tf.uint8), tf.int32)


def _contributions(length, window, scale):
    """`image.enlarge`'s taps for a window, a slice, of output positions: (indices, weights), each a list of vectors.

    The same float64 operations in the same order as in `drcn_keras.image`, so that the weights are the same bits.
    """
    outputs = tf.cast(tf.range(window.start, window.stop), tf.float64)
    centers = (outputs + 0.5) / float(scale) - 0.5
    first = tf.cast(tf.floor(centers - 2.0), tf.int32)
    positions = [first + tap for tap in range(6)]
    weights = [_cubic(centers - tf.cast(position, tf.float64)) for position in positions]
    total = sum(weights[1:], weights[0])
    # Mirrored with the edge pixel repeated: 0 1 2 2 1 0 0 1 2 ...
    folded = [tf.math.floormod(position, 2 * length) for position in positions]
    indices = [tf.where(position < length, position, 2 * length - 1 - position) for position in folded]
    return indices, [weight / total for weight in weights]


def _cubic(x):
    x = tf.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return tf.where(x <= 1.0, near, tf.where(x <= 2.0, far, tf.zeros_like(x)))


def _crop(lr, rows, columns):
    """The part of `lr` that the taps draw on, and the taps with their indices counted from there."""

    def span(indices):
        return tf.reduce_min(indices), tf.reduce_max(indices) + 1

    (top, bottom), (left, right) = span(rows[0]), span(columns[0])
    rows = [index - top for index in rows[0]], rows[1]
    columns = [index - left for index in columns[0]], columns[1]
    return lr[:, top:bottom, left:right], rows, columns


def _resize(lr, rows, columns):
    """Part of `image.enlarge(lr, scale)`: float64 (batch, height, width, channels), rows first as there."""

    def along(source, axis, contributions):
        broadcast = (1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1)
        terms = [
            tf.reshape(weights, broadcast) * tf.gather(source, indices, axis=axis)
            for indices, weights in zip(*contributions, strict=True)
        ]
        return sum(terms[1:], terms[0])

    return along(along(lr, 1, rows), 2, columns)


def _affine(colors, function):
    """A map of colours that is linear but for an offset, taken from its values at 0 and at the unit vectors."""
    offset = function(np.zeros(3))
    return tf.tensordot(colors, function(np.eye(3)) - offset, axes=1) + offset


def _rgb_to_ycbcr(rgb):
    return _affine(rgb, image.rgb_to_ycbcr)


def _ycbcr_to_rgb(ycbcr):
    return _affine(ycbcr, image.ycbcr_to_rgb)


def _as_float(sr):
    return tf.cast(tf.clip_by_value(sr, 0.0, 1.0), tf.float32)


def _as_uint8(sr):
    return tf.cast(tf.round(tf.clip_by_value(sr, 0.0, 1.0) * 255.0), tf.uint8)


def _as_uint16(sr, peak):
    return tf.cast(tf.round(tf.clip_by_value(sr, 0.0, 1.0) * peak), tf.uint16)
