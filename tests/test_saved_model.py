"""The SavedModel as a server sees it: its names, its numbers, its refusals, what it is made of."""

import io
import os
import re

import numpy as np
import png
import pytest

tf = pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")
pytest.importorskip("tensorflow_serving", reason="the warm-up records need `pip install tensorflow-serving-api`")

from kit import PHOTOGRAPHS  # noqa: E402
from PIL import Image  # noqa: E402
from serving_kit import MAX_PIXELS, exported, graph_of, run_in_c, small_model  # noqa: E402

import drcn_keras  # noqa: E402
from drcn_keras import (  # noqa: E402
    image,
    image_files,
    inference,
)
from drcn_keras.errors import UserError  # noqa: E402
from drcn_keras.export import servable, server_graph, server_images, warmup  # noqa: E402

# Operations of TensorFlow 2.12 or older, most of them of 1.x: arithmetic, shapes and control flow; the network; files
# and bytes; variables and their reading from disk. A new one is added after looking up its age.
OLD_OPERATIONS = """
    Abs AddV2 All Any Assert Cast ConcatV2 Const Equal ExpandDims Fill Floor FloorDiv FloorMod GatherV2 Greater
    GreaterEqual Identity If IsFinite LeftShift Less LessEqual LogicalAnd LogicalOr MatMul Max Maximum Mean Min Minimum
    Mul Neg NoOp NotEqual Pack Placeholder Prod Range RealDiv Relu Reshape Round Select SelectV2 Shape Size Squeeze
    StatefulPartitionedCall StatelessIf StatelessWhile StridedSlice Sub Sum TensorListConcatV2 TensorListFromTensor
    TensorListGetItem TensorListReserve TensorListSetItem TensorListStack Transpose Unpack While ZerosLike
    ArgMin BiasAdd Conv2D Pad
    DecodeJpeg DecodePng DecodeRaw EncodePng ExtractJpegShape StringFormat StringLength Substr
    AssignVariableOp DisableCopyOnRead MergeV2Checkpoints ReadVariableOp RestoreV2 SaveV2 ShardedFilename
    StaticRegexFullMatch StringJoin VarHandleOp VarIsInitializedOp
"""


@pytest.fixture(scope="module")
def model():
    return exported()[0]


@pytest.fixture(scope="module")
def path():
    return exported()[1]


@pytest.fixture(scope="module")
def loaded(path):
    return tf.saved_model.load(str(path), tags=["serve"])


def photograph(height, width):
    return np.asarray(Image.open(PHOTOGRAPHS / "astronaut.png"))[40 : 40 + height, 180 : 180 + width]


def as_png(pixels):
    """uint8 or uint16 (height, width) or (height, width, 1 to 4), through pypng: not the encoder of the tools."""
    planes = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = planes.shape
    file = io.BytesIO()
    depth = 8 * pixels.dtype.itemsize
    png.Writer(width, height, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=depth).write(
        file, planes.reshape(height, -1).tolist()
    )
    return file.getvalue()


def as_jpeg(pixels, **settings):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **settings)
    return file.getvalue()


def strings(*values):
    return np.array(values, dtype=object)


def test_signatures_are_frozen(path):
    """Clients are written against these names: a change breaks them."""
    float32, uint8, string = (int(tf.as_dtype(name).as_datatype_enum) for name in ("float32", "uint8", "string"))

    def sides(tensors):
        return {name: (t.dtype, tuple(dim.size for dim in t.tensor_shape.dim)) for name, t in tensors.items()}

    signatures = {
        name: (sides(definition.inputs), sides(definition.outputs), definition.method_name)
        for name, definition in graph_of(path).signature_def.items()
        if name != "__saved_model_init_op"
    }
    predict = "tensorflow/serving/predict"
    assert signatures == {
        "serving_default": ({"ilr": (float32, (-1, -1, -1, 1))}, {"sr": (float32, (-1, -1, -1, 1))}, predict),
        "upscale": ({"lr": (float32, (-1, -1, -1, 3))}, {"sr": (float32, (-1, -1, -1, 3))}, predict),
        "upscale_uint8": ({"lr": (uint8, (-1, -1, -1, 3))}, {"sr": (uint8, (-1, -1, -1, 3))}, predict),
        "upscale_image": ({"image_bytes": (string, (-1,))}, {"sr_png_bytes": (string, (-1,))}, predict),
    }


def enlarged_by_hand(model, rgb):
    """RGB in [0, 1] through NumPy and the unfolded Keras model: the network on Y, bicubic for the rest."""
    ycbcr = image.enlarge(image.rgb_to_ycbcr(rgb), model.scale)
    ycbcr[..., 0] = np.asarray(model(np.float32(ycbcr[None, ..., :1])))[0, ..., 0]
    return np.clip(image.ycbcr_to_rgb(ycbcr), 0.0, 1.0)


def batch_with(value):
    """Three images, the second with one value that is wrong."""
    images = np.zeros((3, 2, 2, 3), np.float32)
    images[1, 1, 0, 2] = value
    return images


def test_c_library_answers_every_signature_and_survives_bad_requests(path, model, tmp_path):
    """No Python TensorFlow: the session that TF Serving makes. Refusals in between must not end it."""
    sizes = [(1, 1), (9, 14), (45, 50)]  # The last is three by four tiles.
    random = np.random.default_rng(0)
    ilrs = [random.random((2, *size, 1), np.float32) for size in sizes]
    rgbs = [photograph(*size) for size in sizes]
    batch = strings(*[as_png(rgb) for rgb in rgbs])
    good = [("serving_default", {"ilr": ilr}) for ilr in ilrs]
    good += [("upscale", {"lr": np.float32(rgb[None] / 255.0)}) for rgb in rgbs]
    good += [("upscale_uint8", {"lr": rgb[None]}) for rgb in rgbs]
    good += [("upscale_image", {"image_bytes": batch})]
    bad = [
        ("serving_default", {"ilr": np.zeros((1, 0, 4, 1), np.float32)}, "empty image"),
        ("upscale", {"lr": batch_with(255.0)}, "[image 2 of 3: values in [0, 1] expected; received from 0 to 255]"),
        ("upscale", {"lr": batch_with(np.nan)}, "[image 2 of 3: values in [0, 1] expected; received NaN or infinity]"),
        (
            "upscale_uint8",
            {"lr": np.zeros((1, 64, 65, 3), np.uint8)},
            f"at most {MAX_PIXELS} in one request; received 4160]",
        ),
        (
            "upscale_image",
            {"image_bytes": strings(batch[0], b"GIF89a")},
            "[image 2 of 2 is not an image: expected a PNG",
        ),
        ("upscale_image", {"image_bytes": strings(batch[2][:200])}, "Invalid PNG"),
    ]
    order = [request for pair in zip(bad, good, strict=False) for request in pair] + good[len(bad) :]
    answers = run_in_c(path, [request[:2] for request in order], tmp_path)
    refusals = [answer for answer, request in zip(answers, order, strict=True) if len(request) == 3]
    answers = [answer for answer, request in zip(answers, order, strict=True) if len(request) == 2]
    for refusal, (*_, sentence) in zip(refusals, bad, strict=True):
        assert refusal.startswith("3: ")  # INVALID_ARGUMENT
        assert sentence in refusal
    for ilr, answer in zip(ilrs, answers[:3], strict=True):
        np.testing.assert_allclose(answer["sr"], np.asarray(model(ilr)), atol=1e-5)
    for rgb, exact, rounded in zip(rgbs, answers[3:6], answers[6:9], strict=True):
        expected = enlarged_by_hand(model, rgb / 255.0)
        np.testing.assert_allclose(exact["sr"][0], expected, atol=1e-5)
        # A value near a half may round to either side: float32 sums in the two networks.
        assert np.abs(rounded["sr"][0] - 255.0 * expected).max() < 0.51
    for rgb, contents in zip(answers[6:9], answers[9]["sr_png_bytes"], strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(contents))), rgb["sr"][0])


@pytest.mark.parametrize(
    "kind", ["gray", "gray and alpha", "RGB", "RGBA", "16 bit gray", "16 bit RGBA", "jpeg", "gray jpeg"]
)
def test_upscale_image_has_the_values_of_the_package(loaded, model, kind, tmp_path):
    """Of 8 bit every value is equal, under transparency too; 16 bit are finer than the last bits of float32 sums."""
    rgb = photograph(45, 50)
    alpha = np.uint8(255 - rgb[..., :1] // 2)
    alpha[10:25, 5:30], alpha[25:40, 20:22], alpha[30:33] = 0, 60, 3
    rgba = np.concatenate([rgb, alpha], axis=2)
    contents = {
        "gray": lambda: as_png(rgb[..., 1]),
        "gray and alpha": lambda: as_png(rgba[..., 2:]),
        "RGB": lambda: as_png(rgb),
        "RGBA": lambda: as_png(rgba),
        "16 bit gray": lambda: as_png(rgb[..., 1] * np.uint16(257) - np.uint16(3)),
        "16 bit RGBA": lambda: as_png(rgba * np.uint16(255) + np.uint16(1)),
        "jpeg": lambda: as_jpeg(rgb),
        "gray jpeg": lambda: as_jpeg(rgb[..., 1]),
    }[kind]()
    (tmp_path / "file").write_bytes(contents)
    expected = drcn_keras.upscale(image_files.read_pixels(str(tmp_path / "file"))[0], model)
    answer = loaded.signatures["upscale_image"](image_bytes=tf.constant([contents]))["sr_png_bytes"].numpy()[0]
    (tmp_path / "answer").write_bytes(answer)
    received = image_files.read_pixels(str(tmp_path / "answer"))[0]
    assert received.dtype == expected.dtype
    if received.dtype == np.uint16:
        assert np.abs(received.astype(int) - expected).max() <= 1
        assert np.mean(received != expected) < 0.02
    else:
        assert np.array_equal(received, expected)


def test_c_library_replays_the_warmup_records(path, tmp_path):
    requests = warmup.read(path)
    assert len(requests) == 8
    assert {name for name, _ in requests} == {"serving_default", "upscale", "upscale_uint8", "upscale_image"}
    assert not [answer for answer in run_in_c(path, requests, tmp_path) if isinstance(answer, str)]


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("upscale_image", {"image_bytes": strings(b"no image")}),
        ("upscale", {"image": np.zeros((1, 4, 4, 3), np.float32)}),
        ("upscale", {"lr": np.zeros((1, 4, 4, 3), np.uint8)}),
        ("enlarge", {"lr": np.zeros((1, 4, 4, 3), np.float32)}),
    ],
    ids=["refused", "wrong name", "wrong type", "no such signature"],
)
def test_a_wrong_warmup_record_is_caught(loaded, tmp_path, signature, inputs):
    warmup.write(tmp_path, [("upscale_uint8", {"lr": np.zeros((1, 2, 2, 3), np.uint8)}), (signature, inputs)])
    with pytest.raises(UserError, match="warm-up request 2"):
        warmup.replay(loaded, tmp_path)


@pytest.fixture
def quick_export(monkeypatch):
    """An export of `serving_default` alone, for what does not depend on the signatures."""
    whole = server_graph.Upscaler.signatures
    monkeypatch.setattr(
        server_graph.Upscaler, "signatures", lambda self: {"serving_default": whole(self)["serving_default"]}
    )
    ilr = np.zeros((1, 4, 4, 1), np.float32)
    monkeypatch.setattr(servable, "warmup_requests", lambda source, sizes: [("serving_default", {"ilr": ilr})])
    return lambda output, **arguments: servable.export(small_model(recursions=1), str(output), **arguments)


def test_versions_count_up_and_are_never_replaced(quick_export, tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    assert quick_export(tmp_path) == str(tmp_path / "8")
    assert oct((tmp_path / "8").stat().st_mode)[-3:] == "755"
    with pytest.raises(UserError, match="8 exists"):
        quick_export(tmp_path, version=8)


def test_fewer_pixels_than_the_export_tries_are_refused_before_it_begins(tmp_path):
    # At x2 and --tile=64 the check's largest image has 69x35 = 2415 enlarged pixels, 604 of low resolution.
    for sizes, least in ([(8, 8)], 604), ([(8, 8), (30, 40)], 1200):
        with pytest.raises(UserError, match=f"`max_pixels` must be {least} or more.*received {least - 1}"):
            servable.export(
                small_model(recursions=1), str(tmp_path / "x"), max_pixels=least - 1, tile=64, warmup_sizes=sizes
            )
    assert not list(tmp_path.iterdir())


def test_a_saved_model_is_for_one_scale(tmp_path):
    with pytest.raises(ValueError, match="scale"):
        servable.export(small_model(scale=(2, 3)), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_wrong_record_fails_the_export_and_leaves_nothing(quick_export, monkeypatch, tmp_path):
    wrong = [("serving_default", {"ilr": np.zeros((1, 0, 4, 1), np.float32)})]
    monkeypatch.setattr(servable, "warmup_requests", lambda source, sizes: wrong)
    with pytest.raises(UserError, match="would not load this version"):
        quick_export(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_fails_the_export_and_leaves_nothing(quick_export, monkeypatch, tmp_path):
    whole = inference.inference_model
    monkeypatch.setattr(inference, "inference_model", lambda *_, **__: whole(small_model(seed=4, recursions=1)))
    with pytest.raises(UserError, match="differs from the Keras model"):
        quick_export(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_has_a_servers_name_before_it_is_complete(quick_export, monkeypatch, tmp_path):
    """A server loads any folder whose name is a number."""
    seen = []
    replay = warmup.replay
    monkeypatch.setattr(warmup, "replay", lambda *given: (seen.extend(os.listdir(tmp_path)), replay(*given)))
    quick_export(tmp_path)
    assert len(seen) == 1
    assert not seen[0].isdigit()
    assert os.listdir(tmp_path) == ["1"]


def test_graph_is_made_of_old_operations_alone(path):
    definition = graph_of(path).graph_def
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    assert {node.op for node in nodes} <= set(OLD_OPERATIONS.split())
    attributes = {name for node in nodes for name in node.attr}
    attributes |= {name for function in definition.library.function for name in function.attr}
    assert not [name for name in attributes if "xla" in name.lower() or "jit" in name.lower()]


def test_weights_are_stored_once(path, model):
    names = dict(tf.train.list_variables(str(path / "variables" / "variables")))
    sizes = [int(np.prod(shape)) for name, shape in names.items() if name.endswith("VARIABLE_VALUE")]
    assert sum(sizes) == model.count_params()


def test_no_path_of_this_machine_is_in_the_files(path):
    names = re.compile(rb"/(?:home|root|tmp|usr|var|work|Users|opt)/|site-packages|\.py\b")
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {str(file.relative_to(path)) for file in files} >= {"saved_model.pb", "variables/variables.index"}
    assert not [str(file.relative_to(path)) for file in files if names.search(file.read_bytes())]


def with_transparent_color(pixels):
    file = io.BytesIO()
    key = pixels[0, 0]
    Image.fromarray(pixels).save(file, "PNG", transparency=tuple(map(int, key)) if key.ndim else int(key))
    return file.getvalue()


def with_palette(colors, **settings):
    file = io.BytesIO()
    Image.fromarray(photograph(13, 10)).quantize(colors).save(file, "PNG", **settings)
    return file.getvalue()


def with_low_depth(bits):
    file = io.BytesIO()
    gray = np.random.default_rng(bits).integers(0, 2**bits, (6, 7), np.uint8)
    png.Writer(7, 6, greyscale=True, bitdepth=bits).write(file, gray)
    return file.getvalue()


def noise(dtype, *shape):
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


FILES = {
    **{f"png 8 bit, {channels} channels": as_png(noise("u1", 9, 7, channels)) for channels in (1, 2, 3, 4)},
    **{f"png 16 bit, {channels} channels": as_png(noise("u2", 9, 7, channels)) for channels in (1, 2, 3, 4)},
    "gray with transparent value": with_transparent_color(noise("u1", 5, 6)),
    "RGB with transparent colour": with_transparent_color(noise("u1", 5, 6, 3)),
    **{f"palette of {colors}": with_palette(colors) for colors in (2, 16, 200)},
    "palette with transparency": with_palette(16, transparency=3),
    **{f"gray of {bits} bits": with_low_depth(bits) for bits in (1, 2, 4)},
    "jpeg": as_jpeg(photograph(61, 47)),
    "jpeg without subsampling": as_jpeg(photograph(31, 22), quality=95, subsampling=0),
    "jpeg, progressive": as_jpeg(photograph(40, 41), progressive=True, quality=40),
    "jpeg, gray": as_jpeg(photograph(33, 20)[..., 0]),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_decode_as_the_package_decodes_them(kind, tmp_path):
    (tmp_path / "file").write_bytes(FILES[kind])
    expected, _ = image_files.read_pixels(str(tmp_path / "file"))
    rgba, gray, alpha, deep = (part.numpy() for part in server_images.decode(tf.constant(FILES[kind])))
    planes = ([0] if gray else [0, 1, 2]) + ([3] if alpha else [])
    assert np.array_equal(rgba[..., planes], expected.reshape(*expected.shape[:2], -1))
    assert deep == (expected.dtype == np.uint16)
    assert server_images.pixels_declared(tf.constant(FILES[kind])) == expected.shape[0] * expected.shape[1]


def test_a_bomb_is_refused_by_its_header():
    header = bytearray(as_png(noise("u1", 2, 2)))
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    assert int(server_images.pixels_declared(tf.constant(bytes(header)))) == (2**31 - 1) ** 2
    header[16:24] = b"\xff" * 8
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        server_images.pixels_declared(tf.constant(bytes(header)))


def test_cmyk_is_refused_with_a_sentence():
    file = io.BytesIO()
    Image.fromarray(photograph(8, 8)).convert("CMYK").save(file, "JPEG")
    with pytest.raises(tf.errors.InvalidArgumentError, match="CMYK"):
        server_images.pixels_declared(tf.constant(file.getvalue()))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (33, 21)])
def test_bicubic_has_the_bits_of_the_package(scale, shape):
    """Ties are common where 8-bit values are interpolated: one bit decides which way they are rounded."""
    lr = noise("u1", *shape, 2) / 255.0
    expected = image.enlarge(lr, scale)
    window = slice(shape[0] // 3, shape[0] * scale), slice(shape[1] // 2, shape[1] * scale - 1)
    rows, columns = (server_images.contributions(*given, scale) for given in zip(shape, window, strict=True))
    part, rows, columns = server_images.crop(tf.constant(lr[None]), rows, columns)
    assert np.array_equal(server_images.resize(part, rows, columns)[0], expected[window])


def test_a_network_of_several_scales_is_exported_for_one(tmp_path):
    from drcn_keras.inputs import load_at

    several = small_model(scale=(2, 3))
    with pytest.raises(UserError, match=r"`scale` is required, one of \(2, 3\)"):
        load_at(several)
    with pytest.raises(UserError, match="weights are for x2 and x3"):
        load_at(several, 4)
    assert load_at(several, 3).scale == 3


def test_bfloat16_is_rounded_and_no_more(random_drcn, tmp_path):
    model = random_drcn()
    folder = servable.export(model, str(tmp_path), warmup_sizes=[(4, 4)], tile=64, precision="bfloat16")
    loaded = tf.saved_model.load(folder)
    ilr = np.random.default_rng(0).random((1, 9, 12, 1), np.float32)
    received = loaded.signatures["serving_default"](ilr=tf.constant(ilr))["sr"].numpy()
    assert received.dtype == np.float32
    assert 0 < np.abs(received - np.asarray(model(ilr))).max() < 0.05
