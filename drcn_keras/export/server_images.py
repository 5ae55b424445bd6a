"""Images in a TensorFlow graph: decoding, bicubic and colour as the package has them in NumPy, and guards.

Bicubic and colour are in float64 and in the order of operations of `drcn_keras.image`, so that rounding to 8 or 16 bit
falls as it does there.
"""

import tensorflow as tf

from drcn_keras import transparency

# File signatures: of PNG with the head of its first chunk, of JPEG.
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_JPEG = b"\xff\xd8\xff"
_PNG_HEADER = 33  # Bytes up to the end of the first chunk.


def choose(condition, yes, no):
    """tf.cond, or the branch itself where the condition is known. The channels of the result may be unknown."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    chosen = tf.cond(condition, yes, no)
    chosen.set_shape((None, None, None, None))
    return chosen


def require(condition, text, *values):
    """An operation that refuses the request with a sentence: `text`, each {} filled with one of the values."""
    return tf.debugging.Assert(condition, [tf.strings.format(text, values) if values else text])


def pixels_declared(contents, image="the image"):
    """The pixels that a PNG's or JPEG's header speaks of, int64; InvalidArgument for anything else.

    Args:
        contents: bytes of a file, a string tensor.
        image: what a refusal calls it, a string tensor.
    """
    png = tf.strings.substr(contents, 0, len(_PNG)) == _PNG
    jpeg = tf.strings.substr(contents, 0, len(_JPEG)) == _JPEG
    whole = tf.logical_or(jpeg, tf.logical_and(png, tf.strings.length(contents) >= _PNG_HEADER))

    def refusal(text, *values):
        return tf.strings.join([image, tf.strings.format(text, values)])

    text = refusal(" is not an image: expected a PNG or JPEG file; received {} bytes", tf.strings.length(contents))
    with tf.control_dependencies([require(whole, text)]):
        contents = tf.identity(contents)

    def of_png():
        sides = tf.cast(_bytes(contents, 16, 8), tf.int64)
        sides = tf.reduce_sum(tf.reshape(sides, (2, 4)) * [[1 << 24, 1 << 16, 1 << 8, 1]], axis=1)
        # PNG's own limit; without it the product could overflow.
        text = refusal(" has a PNG header out of range: width and height {}", sides)
        with tf.control_dependencies([require(tf.reduce_all(sides < 2**31), text)]):
            return tf.reduce_prod(sides)

    def of_jpeg():
        shape = tf.io.extract_jpeg_shape(contents)
        known = tf.logical_or(shape[2] == 1, shape[2] == 3)
        text = refusal(" is a JPEG of {} channels: expected gray or colour, 1 or 3 (CMYK is not supported)", shape[2])
        with tf.control_dependencies([require(known, text)]):
            return tf.reduce_prod(tf.cast(shape[:2], tf.int64))

    pixels = tf.cond(png, of_png, of_jpeg)
    with tf.control_dependencies([require(pixels > 0, refusal(" is empty: its header says {} pixels", pixels))]):
        return tf.identity(pixels)


def decode(contents):
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


def extend_colors(pixels, peak, distance):
    """`transparency.extend_colors` of one image: uint16 (height, width, 4) RGBA in [0, peak]."""
    largest = tf.cast(peak, tf.float32)
    shape = tf.shape(pixels)[:2]

    def ring(step, colors, alpha, changed):
        # Beyond the border lies nothing: alpha 0, which has no weight.
        alpha_around = tf.pad(alpha / 4.0, ((1, 1), (1, 1)))
        colors_around = tf.pad(colors, ((1, 1), (1, 1), (0, 0)))
        total, weights, opacity = tf.zeros_like(colors), tf.zeros_like(alpha), alpha
        for row, column in transparency.NEIGHBOURS:
            rows, columns = slice(row, row + shape[0]), slice(column, column + shape[1])
            weight = tf.maximum(alpha_around[rows, columns] - alpha, 0.0)
            total += weight[..., None] * colors_around[rows, columns]
            weights += weight
            opacity = tf.maximum(opacity, alpha_around[rows, columns])
        taken = (weights > 0.0)[..., None]
        own = alpha[..., None]
        # Where both are 0 the quotient is not taken.
        spread = (own * colors + total) / tf.where(taken, own + weights[..., None], 1.0)
        return step + 1, tf.where(taken, spread, colors), opacity, changed | taken

    colors, alpha = tf.cast(pixels[..., :3], tf.float32), tf.cast(pixels[..., 3], tf.float32) / largest
    start = (0, colors, alpha, tf.zeros_like(alpha, tf.bool)[..., None])
    # Opaque from the start: nothing to do.
    steps = tf.where(tf.reduce_all(alpha == 1.0), 0, distance)
    _, colors, _, changed = tf.while_loop(lambda step, *_: step < steps, ring, start, parallel_iterations=1)
    extended = tf.where(changed, tf.cast(tf.round(colors), pixels.dtype), pixels[..., :3])
    return tf.concat([extended, pixels[..., 3:]], axis=2)


def _bytes(contents, start, count):
    return tf.cast(tf.io.decode_raw(tf.strings.substr(contents, start, count), tf.uint8), tf.int32)


def contributions(length, window, scale):
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


def crop(lr, rows, columns):
    """The part of `lr` that the taps draw on, and the taps with their indices counted from there."""

    def span(indices):
        return tf.reduce_min(indices), tf.reduce_max(indices) + 1

    (top, bottom), (left, right) = span(rows[0]), span(columns[0])
    rows = [index - top for index in rows[0]], rows[1]
    columns = [index - left for index in columns[0]], columns[1]
    return lr[:, top:bottom, left:right], rows, columns


def resize(lr, rows, columns):
    """Part of `image.enlarge(lr, scale)`: float64 (batch, height, width, channels), rows first as there."""

    def along(source, axis, contributions):
        broadcast = (1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1)
        terms = [
            tf.reshape(weights, broadcast) * tf.gather(source, indices, axis=axis)
            for indices, weights in zip(*contributions, strict=True)
        ]
        return sum(terms[1:], terms[0])

    return along(along(lr, 1, rows), 2, columns)


def as_float(sr):
    return tf.cast(tf.clip_by_value(sr, 0.0, 1.0), tf.float32)


def as_uint8(sr):
    return tf.cast(tf.round(tf.clip_by_value(sr, 0.0, 1.0) * 255.0), tf.uint8)


def as_uint16(sr, peak):
    return tf.cast(tf.round(tf.clip_by_value(sr, 0.0, 1.0) * peak), tf.uint16)
