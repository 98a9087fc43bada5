// A cached crop's voxels by URL, slice by slice: from chunks that are at hand, else as one slice that the service makes.

import { json, request } from "./api.js";
import { Chunks, fetchBehind } from "./chunks.js";

export const AXES = ["z", "y", "x"];

// The cached file behind all arrays of a crop. A crop that is made anew meanwhile is another file.
class File {
  constructor(crop) {
    this.crop = crop;
    this.etag = null;
  }

  async request(path, options) {
    const response = await request(`${this.crop}/${path}`, { ...options, cache: "no-cache" });
    const etag = response.headers.get("ETag");
    this.etag ??= etag;
    if (etag !== this.etag) throw new Error("This crop was made again from a changed source. Reload the page.");
    return response;
  }
}

// One array: raw, (C, Z, Y, X) uint8, or labels, (Z, Y, X) uint32.
class Voxels {
  constructor(file, name, key, metadata) {
    this.file = file;
    this.name = name; // among the slices
    this.key = key; // of the array in chunks
    this.shape = metadata.shape.slice(-3);
    this.size = metadata.chunks.slice(-3);
    this.grid = this.shape.map((extent, axis) => Math.ceil(extent / this.size[axis]));
    this.Type = metadata.dtype === "|u1" ? Uint8Array : Uint32Array;
    this.isDeflated = metadata.dtype !== "|u1"; // the slices
    this.chunks = null;
  }

  // Learn where the chunks lie, so that they can be fetched.
  async openChunks() {
    const response = await this.file.request(`zarr/${this.key}/.chunks`);
    const places = Float64Array.from(new BigUint64Array(await response.arrayBuffer()), Number);
    const read = (start, stop) => this.file.request("file", { headers: { Range: `bytes=${start}-${stop - 1}` }, priority: "low" });
    this.chunks = new Chunks(read, places, this.size.reduce((product, extent) => product * extent, this.Type.BYTES_PER_ELEMENT));
  }

  // Return [height, width] of a slice across `axis` (0, 1, 2 for Z, Y, X).
  extent(axis) {
    return this.shape.filter((_, other) => other !== axis);
  }

  // Return a slice across `axis` at `at`, rows by columns, and whether it was at hand; `channel` for raw only.
  async plane(axis, at, channel) {
    const [height, width] = this.extent(axis);
    const known = this.fromChunks(axis, at, channel);
    const plane = known ?? await this.fromService(axis, at, channel) ?? new this.Type(height * width);
    return { plane, height, width, wasAtHand: known !== null };
  }

  async fromService(axis, at, channel) {
    const index = [0, 0, 0];
    index[axis] = at;
    const key = (channel === undefined ? index : [channel, ...index]).join(".");
    let response;
    try {
      response = await this.file.request(`zarr/slices/${AXES[axis]}/${this.name}/${key}`);
    } catch (error) {
      return absent(error);
    }
    const body = this.isDeflated ? response.body.pipeThrough(new DecompressionStream("deflate")) : response.body;
    return new this.Type(await new Response(body).arrayBuffer());
  }

  // Return the slice's voxels if all its chunks are at hand, else null.
  fromChunks(axis, at, channel) {
    const met = this.met(axis, at, channel);
    const voxels = this.chunks?.atHand(met.map(({ number }) => number));
    if (!voxels) return null;
    const [row, column] = [0, 1, 2].filter((other) => other !== axis);
    const [height, width] = this.extent(axis);
    const plane = new this.Type(height * width);
    const step = [this.size[1] * this.size[2], this.size[2], 1];
    const first = (at % this.size[axis]) * step[axis];
    met.forEach(({ r, c }, place) => {
      if (!voxels[place]) return;
      const chunk = new this.Type(voxels[place]);
      const rows = Math.min(this.size[row], height - r * this.size[row]);
      const columns = Math.min(this.size[column], width - c * this.size[column]);
      for (let y = 0; y < rows; y += 1) {
        const to = (r * this.size[row] + y) * width + c * this.size[column];
        const from = first + y * step[row];
        if (step[column] === 1) plane.set(chunk.subarray(from, from + columns), to);
        else for (let x = 0; x < columns; x += 1) plane[to + x] = chunk[from + x * step[column]];
      }
    });
    return plane;
  }

  // Return the chunks that a slice meets, by rows and columns of chunks, each with its number in C order.
  met(axis, at, channel = 0) {
    const [row, column] = [0, 1, 2].filter((other) => other !== axis);
    const found = [];
    for (let r = 0; r < this.grid[row]; r += 1) {
      for (let c = 0; c < this.grid[column]; c += 1) {
        const index = [0, 0, 0];
        [index[axis], index[row], index[column]] = [Math.floor(at / this.size[axis]), r, c];
        const number = [channel, ...index].reduce((sum, place, level) => (level ? sum * this.grid[level - 1] + place : place), 0);
        found.push({ r, c, number });
      }
    }
    return found;
  }
}

// Labels of a crop that has none: 0 everywhere.
class NoLabels {
  constructor(raw) {
    this.shape = raw.shape;
  }

  async plane(axis) {
    const [height, width] = this.shape.filter((_, other) => other !== axis);
    return { plane: new Uint32Array(height * width), height, width, wasAtHand: true };
  }
}

function absent(error) {
  if (error.status !== 404) throw error;
  return null;
}

// Open a cached crop.
export async function openVolume(split, number) {
  const crop = `v1/crops/${split}/${number}`;
  const file = new File(crop);
  const labelsKey = `labels/${split}/0`;
  const [attributes, rawArray, labelsArray] = await Promise.all([
    json(`${crop}/zarr/.zattrs`), json(`${crop}/zarr/0/.zarray`), json(`${crop}/zarr/${labelsKey}/.zarray`).catch(absent),
  ]);
  const raw = new Voxels(file, "raw", "0", rawArray);
  const labels = labelsArray && new Voxels(file, "labels", labelsKey, labelsArray);
  const arrays = [raw, labels].filter(Boolean);
  return {
    raw,
    hasLabels: Boolean(labels),
    labels: labels ?? new NoLabels(raw),
    ids: null, // in the bucket, by label; once they are there
    channels: attributes.omero.channels.map(({ label, window: { start, end } }) => ({ label, low: start, high: end })),
    voxelSize: attributes.multiscales[0].datasets[0].coordinateTransformations[0].scale.slice(1),

    // Fetch what is not needed for the first slice: where chunks lie, and the ids of labels.
    async openRest() {
      const ids = labels && file.request("zarr/labels_ids/0").then((response) => response.arrayBuffer());
      await Promise.all(arrays.map((array) => array.openChunks()));
      if (ids) this.ids = new BigUint64Array(await ids);
    },

    // Fetch the chunks of slices across `axis` in the background: labels and these channels at each place.
    prefetch(axis, places) {
      if (arrays.some((array) => !array.chunks)) return;
      fetchBehind(places.flatMap(({ at, channels }) => [
        ...channels.map((channel) => ({ chunks: raw.chunks, numbers: raw.met(axis, at, channel).map(({ number: each }) => each) })),
        ...(labels ? [{ chunks: labels.chunks, numbers: labels.met(axis, at).map(({ number: each }) => each) }] : []),
      ]));
    },
  };
}
