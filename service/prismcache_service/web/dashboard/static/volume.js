// A crop's voxels by URL: metadata, and chunks that are inflated once, by workers, and kept while there is room.
//
// The chunks of a slice lie side by side in the cached file, so they are fetched with few range requests of the file
// instead of one request each; `.chunks` beside an array says where each lies.

import { json, request } from "./api.js";

const KEEP_BYTES = 400e6;
const GAP_BYTES = 64e3; // two chunks this near are fetched together with what lies between them
const RUN_BYTES = 4e6;

const waiting = new Map(); // what to do with a worker's reply, by the number of the message
let workers = [];
let sent = 0;

function startWorkers() {
  workers = Array.from({ length: Math.min(4, navigator.hardwareConcurrency || 2) }, () => {
    const worker = new Worker(new URL("inflate.js", import.meta.url));
    worker.onmessage = ({ data: { id, chunks, error } }) => {
      const { resolve, reject } = waiting.get(id);
      waiting.delete(id);
      if (error) reject(new Error(error));
      else resolve(chunks);
    };
    return worker;
  });
}

// Return the voxels of zlib streams at [first byte, length] of `buffer`, which is given away; each has `size` bytes.
function inflate(buffer, spans, size) {
  const id = (sent += 1);
  workers[id % workers.length].postMessage({ id, buffer, spans, size }, [buffer]);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

// One array of the zarr hierarchy: (C, Z, Y, X) uint8 or (Z, Y, X) uint32.
class ZarrArray {
  constructor(file, etag, metadata, places) {
    this.file = file;
    this.etag = etag;
    this.shape = metadata.shape;
    this.chunks = metadata.chunks;
    this.grid = this.shape.map((extent, axis) => Math.ceil(extent / this.chunks[axis]));
    this.places = places; // offset and size of each chunk, in C order
    this.Type = metadata.dtype === "|u1" ? Uint8Array : Uint32Array;
    this.size = this.chunks.reduce((product, extent) => product * extent, this.Type.BYTES_PER_ELEMENT);
    this.kept = new Map(); // promises of voxels, by the chunk's number; the last used at the end
  }

  number(index) {
    return index.reduce((sum, place, axis) => sum * this.grid[axis] + place, 0);
  }

  // Return promises of the voxels of chunks, null where none was written; `numbers` are places in C order.
  fetch(numbers) {
    const missing = [];
    for (const number of numbers) {
      const found = this.kept.get(number);
      this.kept.delete(number);
      if (found) this.kept.set(number, found);
      else if (this.places[2 * number + 1] === 0) this.kept.set(number, Promise.resolve(null));
      else missing.push(number);
    }
    missing.sort((a, b) => this.places[2 * a] - this.places[2 * b]);
    let run = [];
    const end = () => (run.length ? this.places[2 * run.at(-1)] + this.places[2 * run.at(-1) + 1] : 0);
    for (const number of missing) {
      const start = this.places[2 * number];
      if (run.length && (start - end() > GAP_BYTES || start - this.places[2 * run[0]] > RUN_BYTES)) {
        this.fetchRun(run);
        run = [];
      }
      run.push(number);
    }
    if (run.length) this.fetchRun(run);
    while (this.kept.size * this.size > KEEP_BYTES && this.kept.size > numbers.length) {
      this.kept.delete(this.kept.keys().next().value);
    }
    return numbers.map((number) => this.kept.get(number));
  }

  fetchRun(run) {
    const [start, last] = [this.places[2 * run[0]], run.at(-1)];
    const stop = this.places[2 * last] + this.places[2 * last + 1];
    const spans = run.map((number) => [this.places[2 * number] - start, this.places[2 * number + 1]]);
    const chunks = request(this.file, { headers: { Range: `bytes=${start}-${stop - 1}`, "If-Match": this.etag } })
      .then((response) => response.arrayBuffer())
      .then((buffer) => inflate(buffer, spans, this.size));
    run.forEach((number, place) => {
      const voxels = chunks.then((found) => new this.Type(found[place]));
      voxels.catch(() => this.kept.delete(number));
      this.kept.set(number, voxels);
    });
  }

  // Return the chunks that a plane across `axis` (0, 1, 2 for Z, Y, X) at `at` meets, by rows and columns of chunks.
  met(axis, at, channel) {
    const [shape, size] = [this.shape.slice(-3), this.chunks.slice(-3)];
    const [row, column] = [0, 1, 2].filter((other) => other !== axis);
    const found = [];
    for (let r = 0; r * size[row] < shape[row]; r += 1) {
      for (let c = 0; c * size[column] < shape[column]; c += 1) {
        const index = [0, 0, 0];
        [index[axis], index[row], index[column]] = [Math.floor(at / size[axis]), r, c];
        found.push({ r, c, number: this.number(this.shape.length === 4 ? [channel, ...index] : index) });
      }
    }
    return found;
  }

  // Have the chunks of a plane at hand before they are asked for.
  prefetch(axis, at, channel) {
    for (const chunk of this.fetch(this.met(axis, at, channel).map(({ number }) => number))) chunk.catch(() => {});
  }

  // Return a plane of voxels across `axis` at `at`, rows by columns; `channel` for raw only.
  async plane(axis, at, channel) {
    const [shape, size] = [this.shape.slice(-3), this.chunks.slice(-3)];
    const [row, column] = [0, 1, 2].filter((other) => other !== axis);
    const [height, width] = [shape[row], shape[column]];
    const plane = new this.Type(height * width);
    const met = this.met(axis, at, channel);
    const voxels = await Promise.all(this.fetch(met.map(({ number }) => number)));
    const step = [size[1] * size[2], size[2], 1];
    const first = (at % size[axis]) * step[axis];
    met.forEach(({ r, c }, place) => {
      const chunk = voxels[place];
      if (!chunk) return;
      const rows = Math.min(size[row], height - r * size[row]);
      const columns = Math.min(size[column], width - c * size[column]);
      for (let y = 0; y < rows; y += 1) {
        const to = (r * size[row] + y) * width + c * size[column];
        const from = first + y * step[row];
        if (step[column] === 1) plane.set(chunk.subarray(from, from + columns), to);
        else for (let x = 0; x < columns; x += 1) plane[to + x] = chunk[from + x * step[column]];
      }
    });
    return { plane, height, width };
  }
}

async function openArray(crop, name) {
  const [metadata, response] = await Promise.all([
    json(`${crop}/zarr/${name}/.zarray`), request(`${crop}/zarr/${name}/.chunks`),
  ]);
  const places = Float64Array.from(new BigUint64Array(await response.arrayBuffer()), Number);
  return new ZarrArray(`${crop}/file`, response.headers.get("ETag"), metadata, places);
}

// Labels of a crop that has none: 0 everywhere.
class NoLabels {
  constructor(raw) {
    this.shape = raw.shape.slice(1);
    this.chunks = raw.chunks.slice(1);
  }

  prefetch() {}

  plane(axis) {
    const [height, width] = this.shape.filter((_, other) => other !== axis);
    return { plane: new Uint32Array(height * width), height, width };
  }
}

function absent(error) {
  if (error.status !== 404) throw error;
  return null;
}

// Open a cached crop.
export async function openVolume(split, number) {
  const crop = `v1/crops/${split}/${number}`;
  const documents = [
    json(`${crop}/zarr/.zattrs`), openArray(crop, "0"), openArray(crop, `labels/${split}/0`).catch(absent),
    request(`${crop}/zarr/labels_ids/0`).then((response) => response.arrayBuffer(), absent),
  ];
  startWorkers(); // while the service responds
  const [attributes, raw, labels, ids] = await Promise.all(documents);
  return {
    raw,
    labels: labels || new NoLabels(raw),
    ids: new BigUint64Array(ids || 1),
    channels: attributes.omero.channels.map(({ label, window: { start, end } }) => ({ label, low: start, high: end })),
    voxelSize: attributes.multiscales[0].datasets[0].coordinateTransformations[0].scale.slice(1),
  };
}
