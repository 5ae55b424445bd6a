// Images: MATLAB's bicubic and YCbCr, tiles with an exact halo. The same arithmetic as tflite/pictures.py and upscale.py.

// An image is {height, width, channels, data}: rows, then columns, then channels.
export function image(height, width, channels, data) {
  return { height, width, channels, data: data ?? new Float32Array(height * width * channels) };
}

function cubic(x) {
  x = Math.abs(x);
  if (x <= 1) return (1.5 * x - 2.5) * x * x + 1;
  return x <= 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// For every output position: 4 mirrored input positions and their weights.
function taps(length, scale) {
  const positions = new Int32Array(4 * scale * length);
  const weights = new Float64Array(4 * scale * length);
  for (let out = 0; out < scale * length; out++) {
    const center = (out + 0.5) / scale - 0.5;
    for (let tap = 0; tap < 4; tap++) {
      const position = Math.floor(center) - 1 + tap;
      const wrapped = ((position % (2 * length)) + 2 * length) % (2 * length);
      positions[4 * out + tap] = wrapped < length ? wrapped : 2 * length - 1 - wrapped;
      weights[4 * out + tap] = cubic(center - position);
    }
  }
  return { positions, weights };
}

// MATLAB's imresize(picture, scale, 'bicubic'), not clipped.
export function enlarge({ height, width, channels, data }, scale) {
  const down = taps(height, scale);
  const row = width * channels;
  const tall = new Float64Array(scale * height * row);
  for (let y = 0; y < scale * height; y++) {
    for (let tap = 0; tap < 4; tap++) {
      const weight = down.weights[4 * y + tap];
      const source = down.positions[4 * y + tap] * row;
      for (let x = 0; x < row; x++) tall[y * row + x] += weight * data[source + x];
    }
  }
  const across = taps(width, scale);
  const result = image(scale * height, scale * width, channels);
  for (let y = 0; y < scale * height; y++) {
    for (let x = 0; x < scale * width; x++) {
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let tap = 0; tap < 4; tap++) {
          sum += across.weights[4 * x + tap] * tall[y * row + across.positions[4 * x + tap] * channels + c];
        }
        result.data[(y * scale * width + x) * channels + c] = sum;
      }
    }
  }
  return result;
}

// RGB in [0, 1] to MATLAB's YCbCr, not rounded; and exactly back.
export function rgbToYcbcr(rgb) {
  const out = image(rgb.height, rgb.width, 3);
  for (let i = 0; i < rgb.data.length; i += 3) {
    const [r, g, b] = [rgb.data[i], rgb.data[i + 1], rgb.data[i + 2]];
    out.data[i] = (16 + 65.481 * r + 128.553 * g + 24.966 * b) / 255;
    out.data[i + 1] = (128 - 37.797 * r - 74.203 * g + 112 * b) / 255;
    out.data[i + 2] = (128 + 112 * r - 93.786 * g - 18.214 * b) / 255;
  }
  return out;
}

export function ycbcrToRgb(ycbcr) {
  const out = image(ycbcr.height, ycbcr.width, 3);
  for (let i = 0; i < ycbcr.data.length; i += 3) {
    const y = 255 * ycbcr.data[i] - 16;
    const b = (255 * ycbcr.data[i + 1] - 128) * INVERSE_CHROMA;
    const r = (255 * ycbcr.data[i + 2] - 128) * INVERSE_CHROMA;
    // Y / 219 is luma in [0, 1]; the chroma factors follow from BT.601's 0.299, 0.587, 0.114.
    out.data[i] = y / 219 + 1.402 * r;
    out.data[i + 1] = y / 219 - 0.344136286 * b - 0.714136286 * r;
    out.data[i + 2] = y / 219 + 1.772 * b;
  }
  return out;
}
const INVERSE_CHROMA = 1 / 224;

export function channel(picture, index) {
  const out = image(picture.height, picture.width, 1);
  for (let i = 0; i < out.data.length; i++) out.data[i] = picture.data[i * picture.channels + index];
  return out;
}

// Along one axis: [start, first, last] per tile; a tile covers start to start + side and gives first to last.
export function plan(length, side, halo) {
  if (length <= side) return [[0, 0, length]];
  if (side <= 2 * halo) throw new Error(`a model of ${side} pixels a side cannot be tiled: ${halo} on each side are halo`);
  const found = [];
  for (let done = 0; done < length;) {
    const start = Math.max(0, Math.min(done - halo, length - side));
    const last = start + side === length ? length : start + side - halo;
    found.push([start, done, last]);
    done = last;
  }
  return found;
}

// How many tiles a low-resolution picture of this size is cut into.
export function countTiles(manifest, height, width) {
  const rgb = manifest.pipeline === "rgb";
  const factor = rgb ? 1 : manifest.scale;
  const halo = rgb ? (manifest.lr_halo ?? manifest.halo) : manifest.halo;
  const [, tileHeight, tileWidth] = manifest.input.shape;
  return plan(factor * height, tileHeight, halo).length * plan(factor * width, tileWidth, halo).length;
}

// One tile of the picture, mirrored beyond its right and bottom edge where the picture is smaller than the tile.
function cut(picture, top, left, height, width, Type) {
  const { channels } = picture;
  const data = new Type(height * width * channels);
  const mirror = (at, length) => {
    const wrapped = at % (2 * length);
    return wrapped < length ? wrapped : 2 * length - 1 - wrapped;
  };
  for (let y = 0; y < height; y++) {
    const row = mirror(top + y, picture.height) * picture.width;
    for (let x = 0; x < width; x++) {
      const from = (row + mirror(left + x, picture.width)) * channels;
      for (let c = 0; c < channels; c++) data[(y * width + x) * channels + c] = picture.data[from + c];
    }
  }
  return data;
}

// Runs `model` (see model.js) over a picture of any size; progress(done, total) may return a promise to wait for.
export async function runTiled(model, picture, factor, halo, progress) {
  const [, height, width] = model.inputShape;
  const downward = plan(picture.height, height, halo);
  const across = plan(picture.width, width, halo);
  let result = null;
  let done = 0;
  for (const [top, firstRow, lastRow] of downward) {
    for (const [left, firstColumn, lastColumn] of across) {
      const output = await model.run(cut(picture, top, left, height, width, model.InputArray));
      const channels = model.outputShape[3];
      result ??= image(factor * picture.height, factor * picture.width, channels);
      for (let y = factor * firstRow; y < factor * lastRow; y++) {
        const from = ((y - factor * top) * factor * width + factor * (firstColumn - left)) * channels;
        const row = output.subarray(from, from + factor * (lastColumn - firstColumn) * channels);
        result.data.set(row, (y * factor * picture.width + factor * firstColumn) * channels);
      }
      await progress?.(++done, downward.length * across.length);
    }
  }
  return result;
}

// Enlarges RGB in [0, 1] with a model. Returns {bicubic, drcn}, both RGB in [0, 1], not clipped.
export async function upscale(model, manifest, rgb, progress) {
  const { scale, halo } = manifest;
  if (manifest.pipeline === "rgb") {
    const levels = image(rgb.height, rgb.width, 3, rgb.data.map((value) => Math.round(255 * value)));
    const sr = await runTiled(model, levels, scale, manifest.lr_halo ?? halo, progress);
    return { bicubic: enlarge(rgb, scale), drcn: image(sr.height, sr.width, 3, sr.data.map((value) => value / 255)) };
  }
  const ycbcr = enlarge(rgbToYcbcr(rgb), scale);
  const bicubic = ycbcrToRgb(ycbcr);
  if (manifest.channels === 3) return { bicubic, drcn: await runTiled(model, bicubic, 1, halo, progress) };
  const sr = await runTiled(model, channel(ycbcr, 0), 1, halo, progress);
  for (let i = 0; i < sr.data.length; i++) ycbcr.data[3 * i] = sr.data[i];
  return { bicubic, drcn: ycbcrToRgb(ycbcr) };
}
