"""The report: its tables and sentences by hand-made numbers, and the page itself in a browser."""

import base64
import html.parser
import io
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from drcn_keras import card
from drcn_keras.errors import UserError
from drcn_keras.published import PUBLISHED

pytest.importorskip("jinja2", reason="jinja2 fills the report's page: pip install drcn_keras[report]")
pytest.importorskip("matplotlib", reason="matplotlib draws the learning curves: pip install drcn_keras[report]")

from drcn_keras.reporting import measured, pictures, tables
from drcn_keras.reporting import page as page_module
from drcn_keras.reporting.page import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
LOG = (
    "epoch,loss,alpha,lr,val_psnr,val_bicubic\n1,4.0,1,0.001,,\n2,1.5,0.5,0.001,30.25,29.5\n3,1.2,0,0.001,30.75,29.5\n"
)


def result(
    dataset="Set5", scale=2, model="mobile_x2", psnr=37.0, ssim=0.956, single=(36.0, 36.9), bicubic=(33.66, 0.93)
):
    mean = {"psnr": psnr, "ssim": ssim, "bicubic_psnr": bicubic[0], "bicubic_ssim": bicubic[1]}
    mean["recursion_psnr"] = list(single)
    return {"dataset": dataset, "scale": scale, "model": model, "images": [], "mean": mean, **mean}


def test_marks_go_by_what_is_printed():
    assert tables.marks([36.54, None, 37.001, 36.996, 30.0], 2) == ["second", "", "best", "best", ""]
    assert tables.marks([None], 2) == [""]


def test_a_page_says_of_every_kind_of_card_what_it_can(bicubic_drcn, tmp_path):
    path, network = str(tmp_path / "best.keras"), bicubic_drcn()
    shape = "For x2, F=2 filters, D=2 recursions, 155 parameters."
    trained = {
        "train_images": 1, "train_sets": ["T91"], "epoch": 7, "minutes": 2.5, "machine": "toaster",
        "val_psnr": 31.239, "val_images": 8, "val_bicubic_psnr": 28.5, "flags": {"seed": 5},
    }  # fmt: skip
    others = [{**trained, "share": 2}, {"share": 1, "name": "dark"}, {"train_images": 2, "train_sets": ["T91", "B"]}]
    mean = {"average": others, "val_psnr": 31.5, "val_images": 8, "val_bicubic_psnr": 28.5}
    told = {
        "nothing": ({}, "", ""),
        "training": (
            trained,
            " Trained on 1 image of T91. The best epoch, 7, was reached after 2.5 minutes on toaster; it has 31.24 dB "
            "on 8 validation images (bicubic 28.50 dB).",
            "python -m drcn_keras.train --seed=5",
        ),
        "mean": (
            mean,
            " Trained on 2 images of T91 and B. The mean of the weights of 3 networks has 31.50 dB on "
            "8 validation images (bicubic 28.50 dB).",
            "",
        ),
        "fitted, of a network without a card": ({"refit": {"outputs": [2]}}, "", ""),
    }
    for name, (made, text, command) in told.items():
        card.write(path, made)
        assert page_module._model(path, name, network) == {"name": name, "text": shape + text, "command": command}


def test_benchmark_puts_a_family_into_one_column():
    results = [
        result("Set5", 2, "mobile_x2", 37.00, 0.9600),
        result("Set5", 3, "mobile_x3", 33.10, 0.9150),
        result("my photos", 2, "mobile_x2", 31.00, 0.9000),
    ]
    table = tables.benchmark(results, {"mobile_x2": "mobile", "mobile_x3": "mobile"})
    titles = ["bicubic", "A+", "RFL", "SelfEx", "SRCNN", "DRCN (paper)", "mobile"]
    assert [method.name for method in table["methods"]] == titles
    assert [method.first_ours for method in table["methods"]] == [False] * 6 + [True]
    assert [(row["dataset"], row["scale"], row["group"]) for row in table["rows"]] == [
        ("Set5", 2, True),
        ("Set5", 3, False),
        ("my photos", 2, True),
    ]
    set5, set5_x3, own = table["rows"]
    assert [cell["psnr"] for cell in set5["cells"]] == [33.66, 36.54, 36.54, 36.49, 36.66, 37.63, 37.00]
    assert [cell["mark"] for cell in set5["cells"]] == ["", "", "", "", "", "best", "second"]
    # SSIM was published for bicubic and DRCN alone; ours is higher here.
    assert [cell["ssim_mark"] for cell in set5["cells"]] == ["", "", "", "", "", "second", "best"]
    assert set5_x3["cells"][4]["psnr"] == 32.75
    assert [cell["psnr"] for cell in own["cells"]] == [33.66, None, None, None, None, None, 31.00]


def test_benchmark_of_unknown_sets_has_no_published_columns():
    table = tables.benchmark([result("my photos")], {"mobile_x2": "mobile"})
    assert [method.name for method in table["methods"]] == ["bicubic", "mobile"]


def test_every_published_method_has_every_set_and_scale():
    for rows in PUBLISHED.values():
        assert set(rows) == {"bicubic", *tables.OTHERS}
        assert all(len(values) == 3 for values in rows.values())
        # Larger scales are harder, and DRCN led its table.
        assert all(values[0] > values[1] > values[2] for values in rows.values())
        assert all(max(rows, key=lambda method: rows[method][scale][0]) == "DRCN" for scale in range(3))


def test_findings_say_what_holds_and_what_does_not():
    text = " ".join(tables.findings([result(psnr=37.0, single=(36.0, 36.9))]))
    assert "match the published ones" in text
    assert (
        "mobile_x2 reaches 37.00 dB, +3.34 against bicubic, +0.34 against SRCNN as published, -0.63 against DRCN"
        in text
    )
    assert "holds on average in 1 of 1 measurements" in text

    assert "ensemble" not in " ".join(tables.findings([result(single=(36.9,))]))

    text = " ".join(tables.findings([result(), result("Set14", psnr=32.5, single=(32.75, 32.0), bicubic=(30.5, 0.8))]))
    assert "does not hold in 1 of 2 measurements: mobile_x2 on Set14 x2 (-0.250 dB)" in text
    assert "30.50 dB on Set14 x2, published 30.24" in text
    assert "match the published ones" not in text


def test_pictures_are_not_only_the_best():
    def images(*gains):
        return [{"psnr": 30.0 + gain, "bicubic_psnr": 30.0} for gain in gains]

    group = [{"images": images(1.0, 3.0, -0.5, 2.0, 0.0)}, {"images": images(1.0, 5.0, -0.5, 2.0, 0.0)}]
    assert pictures.chosen(group) == [
        (1, "largest gain: +4.00 dB"),
        (0, "middle gain: +1.00 dB"),
        (2, "smallest gain: -0.50 dB"),
    ]
    assert pictures.chosen([{"images": images(1.0)}]) == [(0, "smallest gain: +1.00 dB")]
    exact = {"psnr": float("inf"), "bicubic_psnr": float("inf")}
    assert tables.gain(exact) == 0.0


def test_the_part_shown_is_where_bicubic_errs():
    hr = np.zeros((400, 600, 3), np.uint8)
    bicubic = hr.copy()
    bicubic[250:330, 400:480] = 50
    (rows, columns), (x, y) = pictures.hardest_part(hr, bicubic)
    # 80 pixels of error in the middle of 160.
    assert (rows.start, rows.stop, columns.start, columns.stop) == (210, 370, 360, 520)
    assert (x, y) == (0.5, 0.5)

    bicubic = hr.copy()
    bicubic[:80, 520:] = 50
    (rows, columns), (x, y) = pictures.hardest_part(hr, bicubic)
    assert (rows.start, columns.start) == (0, 440)
    assert (x, y) == (1.0, 0.0)

    (rows, columns), _ = pictures.hardest_part(np.zeros((12, 30), np.uint8), np.ones((12, 30), np.uint8))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (12, 12)


def test_models_with_one_label_are_told_apart(tmp_path):
    assert tables.names_of(["a/x/best.keras", "b/x/best.keras", "c.keras"]) == {
        "a/x/best.keras": "a/x/best.keras",
        "b/x/best.keras": "b/x/best.keras",
        "c.keras": "c",
    }
    assert [tables.family(name) for name in ("mobile-x2", "mobile_x4", "night", "x2")] == [
        "mobile",
        "mobile",
        "night",
        "x2",
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory, photographs):
    """A report on four small pictures, two models, a study and a training: its path, its data folder."""
    import keras

    from drcn_keras.model import DRCN

    folder = tmp_path_factory.mktemp("report")
    data = folder / "small <photos>"
    data.mkdir()
    astronaut = Image.open(photographs / "astronaut.png")
    places = {"eyes": (200, 80), "badge": (40, 300), "flag": (0, 40), "a & b": (300, 200)}
    for name, (left, top) in places.items():
        astronaut.crop((left, top, left + 61, top + 50)).save(data / f"{name}.png")
    Image.open(photographs / "camera.png").crop((200, 60, 250, 110)).save(data / "gray.png")
    models = []
    for name, seed in (("first_x2", 0), ("second_x2", 1)):
        keras.utils.set_random_seed(seed)
        model = DRCN(recursions=2, filters=2, scale=2)
        model.save(folder / f"{name}.keras")
        models.append(str(folder / f"{name}.keras"))
    run = folder / "my_run"
    run.mkdir()
    (run / "log.csv").write_text(LOG)
    studies = folder / "studies"
    studies.mkdir()
    (studies / "weights.json").write_text('{"caption": "F=2 & D=2", "command": "drcn-study weights"}')
    (studies / "weights.csv").write_text("recursion,weight\n1,0.5\n")
    Image.new("RGB", (8, 8), "white").save(studies / "weights.png")
    path = report(models, [str(data)], str(folder / "out"), str(studies), [str(run)], "drcn-report -x")
    return pathlib.Path(path), data


class Collector(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_page_carries_everything_it_shows(page):
    text = page[0].read_text()
    tags = Collector(text).tags
    sources = [attributes["src"] for _, attributes in tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    # The only addresses that lead away are for the reader to click; nothing is fetched.
    assert {tag for tag, attributes in tags if not attributes.get("href", "#").startswith(("#", "data:"))} == {"a"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)
    assert "small &lt;photos&gt;" in text
    assert "a &amp; b.png" in text


def test_crops_are_pixels_of_the_files(page):
    path, data = page
    figures = re.findall(r"<figure data-x.*?</figure>", path.read_text(), re.S)
    assert len(figures) == 3
    for figure in figures:
        name = re.search(r"<b>(.*?)</b>", figure).group(1).replace("&amp;", "&")
        original = np.asarray(Image.open(data / name))[:50, :60]
        shown = [base64.b64decode(uri) for uri in re.findall(r"data:image/png;base64,([^\"]+)", figure)]
        assert len(shown) == 4  # The original, bicubic and two models.
        crop = np.asarray(Image.open(io.BytesIO(shown[0])))
        assert crop.shape[:2] == (50, 50)
        places = [start for start in range(11) if np.array_equal(original[:, start : start + 50], crop)]
        assert places


def test_a_file_that_is_no_report_is_kept(page, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match="no report of this tool"):
        report(["a.keras"], [str(page[1])], str(tmp_path))
    assert (tmp_path / "report.html").read_text() == "mine"


def test_wrong_folders_are_named_before_anything_is_measured(page, tmp_path):
    data = [str(page[1])]
    with pytest.raises(UserError, match="no image in this folder"):
        report(["a.keras"], [str(tmp_path)], str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"no log.csv in .*expected a folder that drcn_keras.train wrote"):
        report(["a.keras"], data, str(tmp_path / "out"), runs=[str(tmp_path)])
    with pytest.raises(UserError, match="holds no study"):
        report(["a.keras"], data, str(tmp_path / "out"), studies=str(tmp_path))
    (tmp_path / "log.csv").write_text("epoch,loss\n")
    with pytest.raises(UserError, match="is not a log of"):
        report(["a.keras"], data, str(tmp_path / "out"), runs=[str(tmp_path)])
    with pytest.raises(UserError, match="two folders have one name"):
        report(["a.keras"], data * 2, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright opens the page: pip install playwright")
    if not CHROMIUM:
        pytest.skip("needs chromium to open the page: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(params=[1280, 390], ids=["wide", "phone"])
def tab(browser, page, request):
    """The page open in a browser that is offline, and what went wrong in it."""
    context = browser.new_context(viewport={"width": request.param, "height": 844}, offline=True)
    opened = context.new_page()
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("requestfailed", lambda asked: opened.complaints.append(asked.url))
    opened.goto(page[0].as_uri())
    yield opened
    assert opened.complaints == []
    context.close()


def test_nothing_is_wider_than_the_screen(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_rows_sort_by_number_and_filter(tab):
    def column(number):
        cells = f"#images-table tbody tr:not([hidden]) td:nth-child({number})"
        return tab.eval_on_selector_all(cells, "(cells) => cells.map((cell) => cell.textContent)")

    before = column(6)
    assert len(before) == 10
    # Text order would put 9.5 above 10.
    tab.evaluate("document.querySelectorAll('#images-table tbody td:nth-child(6)')[4].textContent = '9.50'")
    tab.click("#images-table th:nth-child(6) button")
    values = [float(text) for text in column(6)]
    assert values == sorted(values, reverse=True)
    tab.click("#images-table th:nth-child(6) button")
    assert [float(text) for text in column(6)] == values[::-1]
    assert tab.get_attribute("#images-table th:nth-child(6)", "aria-sort") == "ascending"
    tab.click("#images-table th:nth-child(4) button")
    names = column(4)
    assert names == sorted(names)
    tab.fill("#filter", "second GRAY")
    assert column(3) == ["second_x2"]
    assert column(4) == ["gray.png"]


def test_all_crops_of_a_picture_zoom_and_move_together(tab):
    def places():
        return tab.evaluate(
            """() => [...document.querySelector("#pictures figure").querySelectorAll(".view")].map((view) => {
                const frame = view.getBoundingClientRect(), image = view.firstChild.getBoundingClientRect();
                return [image.width, frame.x - image.x, frame.y - image.y].map((pixels) => pixels / frame.width);
            })"""
        )

    assert len(places()) == 4
    tab.evaluate("zoom.value = 4; zoom.dispatchEvent(new Event('input'))")
    assert places() == pytest.approx(np.full((4, 3), places()[0]), abs=0.01)
    assert places()[0][0] == pytest.approx(4.0, abs=0.01)
    assert tab.inner_text("#zoom-text").startswith("4")

    tab.focus("#pictures .view")
    for _ in range(12):
        tab.keyboard.press("ArrowLeft")
    for _ in range(12):
        tab.keyboard.press("ArrowDown")
    # At the left border and at the bottom: three of four frame heights are above.
    assert places() == pytest.approx(np.tile([4.0, 0.0, 3.0], (4, 1)), abs=0.01)

    view = tab.locator("#pictures .view").nth(1)
    view.hover(position={"x": 100, "y": 80})
    tab.mouse.down()
    box = view.bounding_box()
    tab.mouse.move(box["x"] + 100 - 0.5 * box["width"], box["y"] + 80, steps=5)
    tab.mouse.up()
    # The picture follows the pointer by half a frame.
    assert places() == pytest.approx(np.tile([4.0, 0.5, 3.0], (4, 1)), abs=0.03)


def test_one_network_of_several_scales_is_one_column():
    class Network:
        def __init__(self, *scales):
            self.scales = scales

    networks = {"drcn-x234": Network(2, 3, 4), "mobile-x2": Network(2), "mobile-x3": Network(3)}
    assert tables.families(networks) == {"drcn-x234": "drcn", "mobile-x2": "mobile", "mobile-x3": "mobile"}
    clash = {"a-x23": Network(2, 3), "a-x3": Network(3)}
    assert tables.families(clash) == {"a-x23": "a-x23", "a-x3": "a-x3"}
    # Another family keeps its column beside them.
    assert tables.families(clash | networks) == tables.families(clash) | tables.families(networks)


def test_measures_every_scale_of_a_network_with_its_folder(bicubic_drcn, photographs, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with Image.open(photographs / "camera.png") as photo:
            photo.crop((200, 100, 240, 140)).save(tmp_path / name / "camera.png")
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    results = measured.measure("m.keras", bicubic_drcn(scale=(2, 3)), folders)
    found = [(result["scale"], result["dataset"], result["folder"]) for result in results]
    assert found == [(2, "one", folders[0]), (2, "two", folders[1]), (3, "one", folders[0]), (3, "two", folders[1])]
