// Reads NumPy's .npz: a zip of .npy files, stored or deflated.

const TYPES = {
  "<f4": Float32Array, "<f8": Float64Array, "|u1": Uint8Array, "|i1": Int8Array,
  "<i2": Int16Array, "<i4": Int32Array, "<u4": Uint32Array,
};

// buffer: ArrayBuffer. Returns {name: {shape, data}}; data is a typed array, or an array of strings.
export async function readNpz(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("the golden vectors are no .npz file, or cut off");
  const arrays = {};
  let at = view.getUint32(end + 16, true);
  for (let entry = view.getUint16(end + 10, true); entry > 0; entry--) {
    const method = view.getUint16(at + 10, true);
    const size = view.getUint32(at + 20, true);
    const nameLength = view.getUint16(at + 28, true);
    const skip = nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const bytes = new Uint8Array(buffer, start, size);
    arrays[name.replace(/\.npy$/, "")] = readNpy(method === 0 ? bytes.slice() : await inflate(bytes));
    at += 46 + skip;
  }
  return arrays;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wide = bytes[6] > 1;
  const headerLength = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const start = (wide ? 12 : 10) + headerLength;
  const header = new TextDecoder().decode(bytes.subarray(wide ? 12 : 10, start));
  const type = /'descr': *'([^']+)'/.exec(header)[1];
  const shape = /'shape': *\(([^)]*)\)/.exec(header)[1].split(",").filter((side) => side.trim()).map(Number);
  if (/'fortran_order': *True/.test(header)) throw new Error("a golden array is in Fortran order");
  const count = shape.reduce((product, side) => product * side, 1);
  if (type.startsWith("<U")) return { shape, data: readStrings(view, start, count, Number(type.slice(2))) };
  if (!TYPES[type]) throw new Error(`golden arrays of type ${type} are not read here`);
  return { shape, data: new TYPES[type](bytes.slice(start).buffer, 0, count) };
}

function readStrings(view, start, count, length) {
  const strings = [];
  for (let i = 0; i < count; i++) {
    const points = [];
    for (let j = 0; j < length; j++) {
      const point = view.getUint32(start + 4 * (i * length + j), true);
      if (point) points.push(point);
    }
    strings.push(String.fromCodePoint(...points));
  }
  return strings;
}
