// The page: choosing a model, enlarging a picture, checking, exporting. What is computed lies in the other files.

import { check } from "/judge.js";
import { compile, start, wasmMegabytes } from "/model.js";
import { readNpz } from "/npz.js";
import { countTiles, image, upscale } from "/picture.js";

const RUNS = 30;
const MAX_SECONDS = 10;
const ACCELERATORS = { webgpu: "WebGPU", wasm: "WebAssembly" };
// Beyond this many output pixels phones refuse a canvas.
const MOST_PIXELS = 16e6;

const $ = (id) => document.getElementById(id);
const state = { models: {}, borderDb: 6, busyRatio: 1.5, device: {}, files: new Map(), reports: new Map(), source: null, job: 0 };

function fail(error) {
  console.error(error);
  $("problem").textContent = error?.message ?? String(error);
  $("problem").hidden = false;
}

// Wraps a handler: an error becomes a sentence on the page.
const guarded = (work) => async (...args) => {
  $("problem").hidden = true;
  try {
    await work(...args);
  } catch (error) {
    fail(error);
  }
};

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: the server answers ${response.status}`);
  return response;
}

// Lets the page draw now and then, so that a progress bar moves while WebAssembly computes.
let drawn = 0;
async function breathe() {
  if (performance.now() - drawn < 40) return;
  await new Promise((resolve) => setTimeout(resolve));
  drawn = performance.now();
}

async function filesOf(name) {
  if (!state.files.has(name)) {
    const stem = `/exports/${name.replace(/\.tflite$/, "")}`;
    const [model, json, npz] = await Promise.all([`${stem}.tflite`, `${stem}.json`, `${stem}.npz`].map(get));
    const npzBytes = await npz.arrayBuffer();
    state.files.set(name, {
      manifest: await json.json(),
      bytes: new Uint8Array(await model.arrayBuffer()),
      npzBytes,
      golden: await readNpz(npzBytes),
    });
  }
  return state.files.get(name);
}

async function begin() {
  const { models, border_db, busy_ratio } = await (await get("/exports.json")).json();
  Object.assign(state, { models, borderDb: border_db, busyRatio: busy_ratio });
  $("model").replaceChildren(...Object.entries(models).map(([name, { refused }]) => {
    const option = new Option(name.replace(/\.tflite$/, ""), name);
    option.disabled = Boolean(refused);
    return option;
  }));
  const refused = Object.entries(models).filter(([, about]) => about.refused);
  $("refused").replaceChildren(...refused.map(([name, about]) => element("li", `${name}: ${about.refused}`)));
  $("refused").hidden = refused.length === 0;
  if (!runnable().length) throw new Error("none of the models here can run in a browser; what each needs stands below the list");
  $("model").value = preferred();
  const offered = await start();
  state.device = {
    user_agent: navigator.userAgent,
    cores: navigator.hardwareConcurrency,
    memory_gb: navigator.deviceMemory ?? null,
    screen: `${screen.width}x${screen.height} at ${devicePixelRatio}`,
    secure: isSecureContext,
    isolated: crossOriginIsolated,
    ...offered,
  };
  const kinds = offered.webgpu ? ["webgpu", "wasm"] : ["wasm"];
  $("accelerator").replaceChildren(...kinds.map((kind) => new Option(ACCELERATORS[kind], kind)));
  $("device").textContent = [
    `${state.device.cores} cores`,
    offered.webgpu ? "WebGPU" : "no WebGPU",
    `WebAssembly with ${offered.threads} thread${offered.threads > 1 ? "s" : ""}`,
    isSecureContext ? "" : "not a secure page: threads, WebGPU and hashing are off; use https or localhost",
  ].filter(Boolean).join(" · ");
  await describe();
  for (const id of ["check", "check-all"]) $(id).disabled = false;
  document.body.dataset.ready = "yes";
}

const runnable = () => Object.keys(state.models).filter((name) => !state.models[name].refused);

// int8 is three times as fast as float32 and looks the same.
function preferred() {
  const names = runnable();
  for (const mode of ["int8", "float32"]) {
    const found = names.filter((name) => state.models[name].mode === mode);
    if (found.length) return found.find((name) => state.models[name].pipeline === "luma") ?? found[0];
  }
  return names[0];
}

async function describe() {
  const { manifest, bytes } = await filesOf($("model").value);
  const [, height, width] = manifest.input.shape;
  $("about").textContent = [
    `×${manifest.scale}`, manifest.mode, manifest.pipeline === "rgb" ? "RGB to RGB" : "luma",
    manifest.filters && `F = ${manifest.filters}, D = ${manifest.recursions}`,
    manifest.parameters && `${manifest.parameters.toLocaleString("en")} parameters`,
    `${Math.round(bytes.length / 1024)} KiB`, `tiles of ${height} × ${width}`,
  ].filter(Boolean).join(" · ");
}

// ---- Enlarging a picture

async function open(file) {
  if (!file) return;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "this file"} is not a picture that the browser can read`);
  }
  state.source = { bitmap, name: (file.name || "picture").replace(/\.[^.]*$/, "") };
  await enlargeSource();
}

async function enlargeSource() {
  if (!state.source) return;
  const job = ++state.job;
  const { bitmap } = state.source;
  const { manifest, bytes, golden } = await filesOf($("model").value);
  const side = Number($("part").value) || Infinity;
  const width = Math.min(bitmap.width, side);
  const height = Math.min(bitmap.height, side);
  if (width * height * manifest.scale ** 2 > MOST_PIXELS) {
    throw new Error(`${width} × ${height} enlarged ×${manifest.scale} is more than ${MOST_PIXELS / 1e6} megapixels; choose a smaller part`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  // What is transparent is laid over white, as the page shows it: the result has no transparency.
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, Math.floor((bitmap.width - width) / 2), Math.floor((bitmap.height - height) / 2), width, height, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height).data;
  const rgb = image(height, width, 3);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) rgb.data[3 * i + c] = pixels[4 * i + c] / 255;
  }

  $("working").hidden = false;
  $("progress").removeAttribute("value");
  $("progress-text").textContent = "loading the model";
  await breathe();
  const model = await compile(bytes, $("accelerator").value, state.device.threads);
  try {
    const ahead = (countTiles(manifest, height, width) * (await millisecondsOf(model, manifest, golden))) / 1000;
    const estimate = `about ${ahead < 10 ? ahead.toFixed(1) : Math.round(ahead)} s`;
    $("progress-text").textContent = estimate;
    await new Promise((resolve) => setTimeout(resolve));
    const began = performance.now();
    const { bicubic, drcn } = await upscale(model, manifest, rgb, async (done, total) => {
      $("progress").value = done / total;
      $("progress-text").textContent = `tile ${done} of ${total}, ${estimate} in all`;
      await breathe();
      if (job !== state.job) throw new Cancelled();
    });
    const seconds = (performance.now() - began) / 1000;
    draw($("bicubic"), bicubic);
    draw($("drcn"), drcn);
    const megapixels = (drcn.width * drcn.height) / 1e6;
    const small = smallerThanTile(manifest, height, width)
      ? " The picture is smaller than the model's tile: beyond its right and bottom edge it was mirrored, so a strip there is approximate."
      : "";
    $("caption").textContent =
      `${width} × ${height} → ${drcn.width} × ${drcn.height} in ${seconds.toFixed(2)} s ` +
      `(${(megapixels / seconds).toFixed(2)} megapixels/s) on ${ACCELERATORS[model.ran]}.${small}`;
    $("figure").hidden = false;
    $("zoom").disabled = $("save").disabled = false;
    layout();
  } catch (error) {
    if (!(error instanceof Cancelled)) throw error;
  } finally {
    model.delete();
    if (job === state.job) $("working").hidden = true;
  }
}

class Cancelled extends Error {}

// What one tile takes: as the check of this model found on this accelerator, else measured on a golden vector.
async function millisecondsOf(model, manifest, golden) {
  const { accelerator, speed } = state.reports.get(manifest.model.file) ?? {};
  if (speed && accelerator.ran === model.ran) return speed.p50_ms;
  const input = golden.inputs.data.slice(0, golden.inputs.data.length / golden.names.data.length);
  await model.run(input);
  const began = performance.now();
  await model.run(input);
  return performance.now() - began;
}

function smallerThanTile(manifest, height, width) {
  const factor = manifest.pipeline === "rgb" ? 1 : manifest.scale;
  return factor * height < manifest.input.shape[1] || factor * width < manifest.input.shape[2];
}

function draw(canvas, picture) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  const data = new ImageData(picture.width, picture.height);
  for (let i = 0, j = 0; i < picture.data.length; i += 3, j += 4) {
    // A clamped array rounds and clips.
    for (let c = 0; c < 3; c++) data.data[j + c] = 255 * picture.data[i + c];
    data.data[j + 3] = 255;
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
}

// The divider stands still in the frame while the picture scrolls below it.
function layout() {
  const { width, height } = $("drcn");
  const zoom = Number($("zoom").value);
  // 100 % is one image pixel per screen pixel.
  const shown = zoom ? (zoom * width) / devicePixelRatio : Math.min($("figure").clientWidth, 2 * width, (0.75 * innerHeight * width) / height);
  $("frame").style.maxWidth = zoom ? "" : `${shown}px`;
  $("pair").style.width = `${shown}px`;
  $("pair").style.height = `${(shown * height) / width}px`;
  $("pair").classList.toggle("large", zoom > 1);
  split();
}

function split() {
  const frame = $("frame").getBoundingClientRect();
  const pair = $("pair").getBoundingClientRect();
  const at = (frame.width * $("slider").value) / 1000;
  $("divider").style.left = `${at}px`;
  const cut = pair.width - Math.min(pair.width, Math.max(0, frame.left + at - pair.left));
  $("bicubic").style.clipPath = `inset(0 ${cut}px 0 0)`;
}

function drag(event) {
  const frame = $("frame").getBoundingClientRect();
  $("slider").value = Math.round((1000 * (event.clientX - frame.left)) / frame.width);
  split();
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- Checking

async function checkModels(names) {
  for (const id of ["check", "check-all"]) $(id).disabled = true;
  $("checking").hidden = false;
  try {
    for (const [index, name] of names.entries()) {
      $("check-text").textContent = names.length > 1 ? `${name} (${index + 1} of ${names.length})` : name;
      let report;
      try {
        report = await check(await filesOf(name), {
          compile,
          accelerator: $("accelerator").value,
          threads: state.device.threads,
          limits: state.models[name].limits,
          borderDb: state.borderDb,
          runs: RUNS,
          maxSeconds: MAX_SECONDS,
          progress: async (share) => {
            $("check-progress").value = share;
            await breathe();
          },
        });
      } catch (error) {
        report = { file: name, error: error?.message ?? String(error), gates: [], passed: false };
      }
      report.memory = { wasm_mb: wasmMegabytes() };
      state.reports.set(name, report);
      show();
    }
  } finally {
    $("checking").hidden = true;
    for (const id of ["check", "check-all"]) $(id).disabled = false;
    $("export").disabled = state.reports.size === 0;
  }
}

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

function show() {
  $("reports").replaceChildren(...[...state.reports.values()].map(showReport));
}

const short = (value) => value.toFixed(value < 100 ? 1 : 0);

function showReport(report) {
  const block = element("article", "", "report");
  const title = element("h3", report.file);
  const word = report.error ? "could not run" : report.passed ? "passed" : "failed";
  title.prepend(element("span", word, `verdict ${report.passed ? "" : "failed"}`));
  block.append(title);
  if (report.error) block.append(element("p", report.error, "no"));
  if (report.speed) {
    const { accelerator, memory, speed } = report;
    const threads = accelerator.threads ? `, ${accelerator.threads} thread${accelerator.threads > 1 ? "s" : ""}` : "";
    block.append(element("p", `${ACCELERATORS[accelerator.ran]}${threads}; ${speed.runs} timed runs`, "muted"));
    const numbers = element("div", "", "numbers");
    for (const [value, unit, label] of [
      [short(speed.min_ms), "ms", "least"], [short(speed.p50_ms), "ms", "median"], [short(speed.p95_ms), "ms", "p95"],
      [short(speed.p99_ms), "ms", "p99"], [short(speed.first_ms), "ms", "first run"],
      [short(speed.load_ms), "ms", "load"], [speed.megapixels_per_second.toFixed(2), "", "megapixels/s"],
      [speed.gflops.toFixed(1), "", "GFLOP/s"], [memory.wasm_mb.toFixed(0), "MB", "memory"],
    ]) {
      const box = element("div");
      const number = element("b", value);
      number.append(element("small", unit));
      box.append(number, element("span", label));
      numbers.append(box);
    }
    block.append(numbers);
    const ratio = speed.p95_ms / speed.p50_ms;
    if (ratio > state.busyRatio) {
      block.append(element("p", `p95 is ${ratio.toFixed(1)} times the median: other work ran on this device. Times are not its own.`, "no"));
    }
  }
  const table = element("table");
  for (const { name, passed, measured, limit } of report.gates) {
    const row = table.insertRow();
    const result = element("td", measured);
    if (limit) result.append(element("span", limit, "limit"));
    const mark = passed === null ? element("td", "–", "skip") : passed ? element("td", "✓", "ok") : element("td", "✗", "no");
    row.append(mark, element("td", name), result);
  }
  block.append(table);
  return block;
}

function exportJson() {
  const models = [...state.reports.values()];
  const document = { format: 1, device: state.device, models, passed: models.every((report) => report.passed) };
  download(new Blob([JSON.stringify(document, null, 1)], { type: "application/json" }), "on_device_report.json");
}

// ---- Wiring

$("model").addEventListener("change", guarded(async () => { await describe(); await enlargeSource(); }));
$("accelerator").addEventListener("change", guarded(enlargeSource));
$("part").addEventListener("change", guarded(enlargeSource));
for (const id of ["file", "photo"]) {
  $(id).addEventListener("change", guarded(async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    await open(file);
  }));
}
$("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", guarded(async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  await open(event.dataTransfer.files[0]);
}));
addEventListener("paste", guarded(async (event) => open(event.clipboardData?.files[0])));
$("cancel").addEventListener("click", () => { state.job++; $("working").hidden = true; });
$("save").addEventListener("click", guarded(async () => {
  const blob = await new Promise((resolve) => $("drcn").toBlob(resolve, "image/png"));
  download(blob, `${state.source.name}_drcn.png`);
}));
$("zoom").addEventListener("change", layout);
$("slider").addEventListener("input", split);
$("viewport").addEventListener("scroll", split);
$("divider").addEventListener("pointerdown", (event) => { $("divider").setPointerCapture(event.pointerId); drag(event); });
$("divider").addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
addEventListener("resize", () => { if (!$("figure").hidden) layout(); });
$("check").addEventListener("click", guarded(() => checkModels([$("model").value])));
$("check-all").addEventListener("click", guarded(() => checkModels(runnable())));
$("export").addEventListener("click", exportJson);

guarded(begin)();
