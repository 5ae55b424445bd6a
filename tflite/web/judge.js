// The gates of tflite/check.py that a browser can judge, over the same manifests and golden vectors.

const PSNR_CAP = 200;

function psnrOf(sum, count, peak) {
  const error = sum / count;
  if (!Number.isFinite(error)) return 0;
  return error > 0 ? Math.min(PSNR_CAP, 10 * Math.log10((peak * peak) / error)) : PSNR_CAP;
}

const eightBit = (value, peak) => Math.round((255 * Math.min(peak, Math.max(0, value || 0))) / peak);

// Compares two batches {shape: [N, height, width, channels], data}.
export function compare(actual, expected, peak, border) {
  const [count, height, width, channels] = actual.shape;
  const ring = Math.max(1, Math.min(border, Math.floor(Math.min(height, width) / 4)));
  const sums = { border: 0, centre: 0 };
  const counts = { border: 0, centre: 0 };
  let largest = 0;
  let different = 0;
  for (let n = 0, at = 0; n < count; n++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const inside = y >= ring && x >= ring && y < height - ring && x < width - ring;
        const part = inside ? "centre" : "border";
        let seen = false;
        for (let c = 0; c < channels; c++, at++) {
          const difference = Math.abs(actual.data[at] - expected.data[at]);
          sums[part] += difference * difference;
          if (!(difference <= largest)) largest = difference;
          seen ||= eightBit(actual.data[at], peak) !== eightBit(expected.data[at], peak);
        }
        counts[part] += channels;
        different += seen;
      }
    }
  }
  return {
    psnr: psnrOf(sums.border + sums.centre, counts.border + counts.centre, peak),
    max_difference: largest,
    differing_8bit: different / (count * height * width),
    border_psnr: psnrOf(sums.border, counts.border, peak),
    centre_psnr: psnrOf(sums.centre, counts.centre, peak),
  };
}

function pick(batch, indices) {
  const size = batch.data.length / batch.shape[0];
  const data = new batch.data.constructor(size * indices.length);
  indices.forEach((index, at) => data.set(batch.data.subarray(index * size, (index + 1) * size), at * size));
  return { shape: [indices.length, ...batch.shape.slice(1)], data };
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function percentile(sorted, share) {
  const at = (sorted.length - 1) * share;
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
}

// files: {manifest, bytes, npzBytes, golden}. options: {compile, accelerator, threads, limits by accelerator, borderDb, runs, maxSeconds, progress}.
export async function check(files, options) {
  const { manifest, golden } = files;
  const peak = manifest.pipeline === "rgb" ? 255 : 1;
  const report = { file: manifest.model.file, mode: manifest.mode, pipeline: manifest.pipeline, scale: manifest.scale, gates: [] };
  const gate = (name, passed, measured, limit = "") => report.gates.push({ name, passed, measured, limit });
  const finish = () => ({ ...report, passed: report.gates.every((item) => item.passed !== false) });

  if (globalThis.crypto?.subtle) {
    const same = (await sha256(files.bytes)) === manifest.model.sha256;
    const sameGolden = (await sha256(files.npzBytes)) === manifest.golden.sha256;
    const fault = same ? "the golden vectors are not those of the manifest" : "not the file that the manifest describes";
    gate("File", same && sameGolden, same && sameGolden ? "SHA-256 as in the manifest" : fault);
    if (!same || !sameGolden) return finish();
  } else {
    gate("File", null, "not checked: browsers hash on https and localhost alone");
  }

  const model = await options.compile(files.bytes, options.accelerator, options.threads);
  const limits = options.limits[model.ran];
  try {
    const shapes = [[model.inputShape, manifest.input.shape], [model.outputShape, manifest.output.shape]];
    const fits = shapes.every(([found, said]) => String(found) === String(said));
    const types = model.inputType === manifest.input.dtype && model.outputType === manifest.output.dtype;
    const found = `${model.inputType} ${model.inputShape.join("×")} to ${model.outputType} ${model.outputShape.join("×")}`;
    gate("Interface", fits && types, found);
    if (!fits || !types) return finish();

    const names = golden.names.data;
    const total = 2 * names.length + options.runs + (options.threads > 1 ? names.length : 0);
    let done = 0;
    const step = () => options.progress?.(++done / total);
    const began = performance.now();
    const size = golden.inputs.data.length / names.length;
    const input = (n) => golden.inputs.data.slice(n * size, (n + 1) * size);
    await model.run(input(0));
    const firstMs = performance.now() - began;

    const runAll = async (which) => {
      const batch = { shape: golden.outputs.shape, data: new golden.outputs.data.constructor(golden.outputs.data.length) };
      const each = batch.data.length / names.length;
      for (let n = 0; n < names.length; n++) {
        batch.data.set(await which.run(input(n)), n * each);
        await step();
      }
      return batch;
    };
    const actual = await runAll(model);
    const again = await runAll(model);

    const bad = actual.data.reduce((count, value) => count + !Number.isFinite(value), 0);
    gate("Finite", bad === 0, bad ? `${bad} NaN or infinite values` : "no NaN, no infinity");
    const real = names.map((name, n) => (name.startsWith("patch") ? n : -1)).filter((n) => n >= 0);
    const chosen = real.length ? real : names.map((_, n) => n);
    const cases = names.map((name, n) => ({ name, ...compare(pick(actual, [n]), pick(golden.outputs, [n]), peak, manifest.halo) }));
    const worst = cases.reduce((low, item) => (item.psnr < low.psnr ? item : low));
    const all = compare(actual, golden.outputs, peak, manifest.halo);
    const exact = compare(pick(actual, chosen), pick(golden.float_outputs, chosen), peak, manifest.halo);
    report.numerics = { against_golden: { all, cases }, against_float: { real: exact } };

    gate("Golden output", worst.psnr >= limits.golden_psnr, `${worst.psnr.toFixed(1)} dB at worst (${worst.name})`, `≥ ${limits.golden_psnr} dB`);
    gate("Golden pixels", all.differing_8bit <= limits.golden_differing,
      `${(100 * all.differing_8bit).toFixed(2)} % differ in 8 bit`, `≤ ${100 * limits.golden_differing} %`);
    gate("Float model", exact.psnr >= limits.float_psnr, `${exact.psnr.toFixed(1)} dB, real patches`, `≥ ${limits.float_psnr} dB`);
    const edge = compare(pick(actual, chosen), pick(golden.outputs, chosen), peak, manifest.halo);
    const wrong = edge.border_psnr < limits.golden_psnr && edge.border_psnr < edge.centre_psnr - options.borderDb;
    gate("Border", !wrong, `border ${edge.border_psnr.toFixed(1)} dB, centre ${edge.centre_psnr.toFixed(1)} dB`);
    const changed = actual.data.reduce((count, value, n) => count + !Object.is(value, again.data[n]), 0);
    gate("Repeat", changed === 0, changed ? `${changed} values differ on a second run` : "twice the same");
    if (options.threads > 1 && model.ran === "wasm") {
      const single = await options.compile(files.bytes, "wasm", 1);
      const apart = compare(await runAll(single), actual, peak, manifest.halo).max_difference;
      single.delete();
      // The spacing of float32 just below the peak, as in check.py.
      const ulp = model.outputType === "float32" ? peak * 2 ** -24 : 1;
      gate("Threads", apart <= limits.threads_ulp * ulp, `1 and ${options.threads} threads: ${apart ? `differ by ${apart.toExponential(1)}` : "the same"}`);
    }
    // In WebAssembly, operators that XNNPACK lacks run in LiteRT's own kernels: slower, no other accelerator.
    const fell = model.ran !== model.asked || (model.ran === "webgpu" && !model.fullyAccelerated);
    const label = { wasm: "WebAssembly", webgpu: "WebGPU" };
    const part = model.fullyAccelerated ? "" : model.ran === "wasm" ? ", not all of it in XNNPACK" : " in part";
    gate("Accelerator", !fell, `asked ${label[model.asked]}; ran ${label[model.ran]}${part}`);

    const times = [];
    const deadline = performance.now() + 1000 * options.maxSeconds;
    for (let n = 0; n < options.runs && (n === 0 || performance.now() < deadline); n++) {
      const started = performance.now();
      await model.run(input(0));
      times.push(performance.now() - started);
      await step();
    }
    const half = Math.floor(times.length / 2);
    const median = (list) => percentile([...list].sort((a, b) => a - b), 0.5);
    const sorted = [...times].sort((a, b) => a - b);
    const p50 = percentile(sorted, 0.5);
    report.speed = {
      load_ms: model.loadMs, first_ms: firstMs, runs: times.length,
      min_ms: sorted[0], p50_ms: p50, p95_ms: percentile(sorted, 0.95), p99_ms: percentile(sorted, 0.99),
      megapixels_per_second: (model.outputShape[1] * model.outputShape[2]) / p50 / 1000,
      gflops: (2 * manifest.macs) / p50 / 1e6,
      slowdown: half ? median(times.slice(half)) / median(times.slice(0, half)) : 1,
    };
    report.accelerator = { asked: model.asked, ran: model.ran, fully: model.fullyAccelerated, threads: model.ran === "wasm" ? options.threads : null };
    return finish();
  } finally {
    model.delete();
  }
}
