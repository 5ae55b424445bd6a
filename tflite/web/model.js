// A .tflite file in the browser, through LiteRT.js: on WebGPU where there is one, else in WebAssembly.

import { loadLiteRt, loadAndCompile, Tensor, supportsFeature, isWebGPUSupported, getWebGpuDevice } from "@litertjs/core";

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

let runtime = null;

// Loads LiteRT.js once. Returns {threads, webgpu, wasmMb}: what this browser offers.
export async function start() {
  if (!runtime) {
    const threaded = self.crossOriginIsolated && (await supportsFeature("relaxedSimd")) && (await supportsFeature("threads"));
    runtime = await loadLiteRt("/litertjs/core/wasm/", { threads: threaded });
    runtime.threaded = threaded;
  }
  return {
    threads: runtime.threaded ? runtime.liteRtWasm.getThreadCount() : 1,
    webgpu: isWebGPUSupported() && Boolean(await gpu()),
  };
}

async function gpu() {
  try {
    return getWebGpuDevice();
  } catch {
    return null;
  }
}

export function wasmMegabytes() {
  return runtime ? runtime.liteRtWasm.HEAPU8.length / 2 ** 20 : null;
}

// bytes: Uint8Array. accelerator: "webgpu" or "wasm". threads: for wasm.
export async function compile(bytes, accelerator, threads) {
  const began = performance.now();
  const compiled = await loadAndCompile(bytes, {
    accelerator,
    cpuOptions: { numThreads: threads },
    // The whole image is judged to a fraction of a level: half precision would not do.
    gpuOptions: { precision: "fp32" },
  });
  return new Model(compiled, accelerator, performance.now() - began);
}

class Model {
  constructor(compiled, asked, loadMs) {
    this.compiled = compiled;
    this.loadMs = loadMs;
    this.asked = asked;
    // LiteRT.js compiles a model again for WebAssembly when WebGPU cannot run all of it.
    this.ran = compiled.options.accelerator;
    this.fullyAccelerated = compiled.isFullyAccelerated;
    const input = compiled.getInputDetails()[0];
    const output = compiled.getOutputDetails()[0];
    this.inputShape = Array.from(input.shape);
    this.outputShape = Array.from(output.shape);
    this.inputType = input.dtype;
    this.outputType = output.dtype;
    this.InputArray = ARRAYS[input.dtype];
    if (!this.InputArray || !ARRAYS[output.dtype]) {
      throw new Error(`${input.dtype} input and ${output.dtype} output: LiteRT.js takes float32, int32 and uint8`);
    }
  }

  // data: typed array of the input's size. Returns a copy of the output.
  async run(data) {
    const input = new Tensor(data, this.inputShape);
    const outputs = await this.compiled.run([input]);
    input.delete();
    const result = (await outputs[0].data()).slice();
    for (const output of outputs) output.delete();
    return result;
  }

  delete() {
    this.compiled.delete();
  }
}
