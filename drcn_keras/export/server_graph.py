"""The TensorFlow graph that a server runs: `server_images` around the folded network, tile by tile.

An image goes through in tiles with the network's whole halo, so memory follows the tile and the output, not
F times the pixels.
"""

import tensorflow as tf

from drcn_keras import image, inference, transparency
from drcn_keras.export import server_images

# Colours as images hold them are in [0, 1] and ILR overshoots a little; 255 where 1 is meant is far outside.
_VALUE_RANGE = (-1.0, 2.0)


class Upscaler(tf.Module):
    """What is saved: one function per signature.

    Args:
        model: `DRCN`.
        max_pixels: most pixels of low-resolution images in one request; scale^2 times as many for `serving_default`.
        tile: side in pixels, of the output, of the squares that are computed at once; more than twice the halo.
        precision: "float32" or "bfloat16", of all convolutions but the first.
    """

    def __init__(self, model, max_pixels, tile, precision="float32"):
        super().__init__(name="drcn_upscaler")
        network = inference.inference_model(model, precision=precision)
        # Behind a function, its variables by themselves: the SavedModel holds each once and nothing of Keras.
        self._network = lambda ilr: network(ilr)
        self._weights = [variable.value for variable in network.variables]
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
        return {"sr": self._enlarged(lr, 1.0, server_images.as_float)}

    def lr_to_sr_uint8(self, lr):
        """RGB uint8 (batch, height, width, 3) -> sr uint8, scale times as large."""
        lr = self._guarded(lr, self._max_pixels)
        return {"sr": self._enlarged(lr, 255.0, server_images.as_uint8)}

    def bytes_to_bytes(self, image_bytes):
        """PNG and JPEG files (batch,) of any sizes -> PNG files (batch,), scale times as large.

        Gray stays gray, alpha stays (enlarged by bicubic interpolation), 16 bit stays 16 bit.
        """
        count = tf.size(image_bytes)
        with tf.control_dependencies([server_images.require(count > 0, "no image: the batch is empty")]):
            image_bytes = tf.identity(image_bytes)
        # Sizes first, from the headers alone: nothing is decoded of a request that is refused.

        def declared(given):
            number, contents = given
            name = tf.strings.format("image {} of {}", (number, count))
            return server_images.pixels_declared(contents, name)

        numbered = (tf.range(1, count + 1), image_bytes)
        pixels = tf.map_fn(declared, numbered, fn_output_signature=tf.int64, parallel_iterations=1)
        with tf.control_dependencies([self._require_pixels(tf.reduce_sum(pixels), self._max_pixels)]):
            image_bytes = tf.identity(image_bytes)
        files = tf.map_fn(self._file_to_file, image_bytes, fn_output_signature=tf.string, parallel_iterations=1)
        return {"sr_png_bytes": files}

    def _file_to_file(self, contents):
        pixels, gray, alpha, deep = server_images.decode(contents)
        peak = tf.where(deep, tf.constant(65535.0, tf.float64), tf.constant(255.0, tf.float64))
        distance = transparency.reach(self._halo, self._scale)
        extended = tf.cond(alpha, lambda: server_images.extend_colors(pixels, peak, distance), lambda: pixels)
        # 16 bit hold 8 as well: one graph for both, up to the encoder.
        sr = self._enlarged(extended[None], peak, lambda sr: server_images.as_uint16(sr, peak), gray, alpha)[0]
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
            rows = server_images.contributions(shape[1], rows, scale)
            columns = server_images.contributions(shape[2], columns, scale)
            part, rows, columns = server_images.crop(lr[images], rows, columns)
            # Only now in floating point: a large image stays in its integers.
            ilr = server_images.resize(tf.cast(part, tf.float64), rows, columns) / peak
            sr = self._color_to_sr(ilr[..., :3], gray)
            return finish(server_images.choose(alpha, lambda: tf.concat([sr, ilr[..., 3:]], axis=3), lambda: sr))

        channels = 3 if gray is False and alpha is False else None
        size = tf.stack([shape[0], shape[1] * scale, shape[2] * scale])
        return self._in_tiles(size, tile, channels, finish(tf.zeros((), tf.float64)).dtype)

    def _color_to_sr(self, rgb, gray):
        if self._channels == 3:
            sr = self._network(tf.cast(rgb, tf.float32))
            # The mean in float32, as the package takes it.
            sr = server_images.choose(gray, lambda: (sr[..., :1] + sr[..., 1:2] + sr[..., 2:]) / 3.0, lambda: sr)
            return tf.cast(sr, tf.float64)
        planes = tf.unstack(rgb, num=3, axis=3)
        # Gray is taken as the Y it is.
        before = server_images.choose(gray, lambda: rgb[..., :1], lambda: image.luma_plane(*planes)[..., None])
        before.set_shape((None, None, None, 1))
        after = tf.cast(self._network(tf.cast(before, tf.float32)), tf.float64)
        change = (after - before)[..., 0]
        return server_images.choose(gray, lambda: after, lambda: tf.stack(image.brightened(planes, change), axis=3))

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
        text = "empty image: every dimension must be 1 or more; received the shape {}"
        with tf.control_dependencies([server_images.require(pixels > 0, text, shape)]):
            pixels = tf.identity(pixels)
        with tf.control_dependencies([self._require_pixels(pixels, max_pixels)]):
            images = tf.identity(images)
        if not images.dtype.is_floating:
            return images
        with tf.control_dependencies([self._require_values(images)]):
            return tf.identity(images)

    def _require_pixels(self, pixels, max_pixels):
        text = f"too many pixels: at most {max_pixels} in one request; received {{}}"
        return server_images.require(pixels <= max_pixels, text, pixels)

    def _require_values(self, images):
        """Refuses NaN, infinity and what is far outside [0, 1], and names the first such image."""
        low, high = tf.reduce_min(images, axis=(1, 2, 3)), tf.reduce_max(images, axis=(1, 2, 3))
        finite = tf.reduce_all(tf.math.is_finite(images), axis=(1, 2, 3))
        inside = finite & (low >= _VALUE_RANGE[0]) & (high <= _VALUE_RANGE[1])
        first = tf.argmin(tf.cast(inside, tf.int32))
        span = tf.strings.format("from {} to {}", (low[first], high[first]))
        found = tf.where(finite[first], span, "NaN or infinity")
        name = tf.strings.format("image {} of {}", (first + 1, tf.shape(images)[0]))
        text = tf.strings.join([name, ": values in [0, 1] expected; received ", found])
        return server_images.require(tf.reduce_all(inside), text)
