// A crop's voxels by URL: metadata, and chunks that are inflated once and kept while there is room.

import { json, request } from "./api.js";

const KEEP_BYTES = 400e6;

async function inflate(buffer) {
  const stream = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// One array of the zarr hierarchy: (C, Z, Y, X) uint8 or (Z, Y, X) uint32.
class ZarrArray {
  constructor(url, metadata, kept) {
    this.url = url;
    this.shape = metadata.shape;
    this.chunks = metadata.chunks;
    this.Type = metadata.dtype === "|u1" ? Uint8Array : Uint32Array;
    this.kept = kept;
  }

  // Return a promise of the voxels of a chunk, or of null where none was written. `index` has one number an axis.
  chunk(index) {
    const key = `${this.url}/${index.join(".")}`;
    let found = this.kept.get(key);
    if (found) {
      this.kept.delete(key); // the last used goes to the end
    } else {
      found = this.fetch(key);
      found.catch(() => this.kept.delete(key));
    }
    this.kept.set(key, found);
    const size = this.chunks.reduce((product, extent) => product * extent, this.Type.BYTES_PER_ELEMENT);
    while (this.kept.size * size > KEEP_BYTES) this.kept.delete(this.kept.keys().next().value);
    return found;
  }

  async fetch(key) {
    try {
      const response = await request(key);
      return new this.Type(await inflate(await response.arrayBuffer()));
    } catch (error) {
      if (error.status === 404) return null; // zarr's fill value, 0
      throw error;
    }
  }

  // Return a plane of voxels across `axis` (0, 1, 2 for Z, Y, X) at `at`, rows by columns; `channel` for raw only.
  async plane(axis, at, channel) {
    const lead = this.shape.length === 4 ? [channel] : [];
    const shape = this.shape.slice(-3);
    const size = this.chunks.slice(-3);
    const [row, column] = [0, 1, 2].filter((other) => other !== axis);
    const [height, width] = [shape[row], shape[column]];
    const plane = new this.Type(height * width);
    const wanted = [];
    for (let r = 0; r * size[row] < height; r += 1) {
      for (let c = 0; c * size[column] < width; c += 1) {
        const index = [0, 0, 0];
        [index[axis], index[row], index[column]] = [Math.floor(at / size[axis]), r, c];
        wanted.push(this.chunk([...lead, ...index]).then((voxels) => {
          if (!voxels) return;
          const step = [size[1] * size[2], size[2], 1];
          const start = (at % size[axis]) * step[axis];
          const rows = Math.min(size[row], height - r * size[row]);
          const columns = Math.min(size[column], width - c * size[column]);
          for (let y = 0; y < rows; y += 1) {
            const to = (r * size[row] + y) * width + c * size[column];
            const from = start + y * step[row];
            if (step[column] === 1) plane.set(voxels.subarray(from, from + columns), to);
            else for (let x = 0; x < columns; x += 1) plane[to + x] = voxels[from + x * step[column]];
          }
        }));
      }
    }
    await Promise.all(wanted);
    return { plane, height, width };
  }
}

// Open a cached crop.
export async function openVolume(split, crop) {
  const url = `v1/crops/${split}/${crop}/zarr`;
  const [attributes, raw, labels, idsOf] = await Promise.all([
    json(`${url}/.zattrs`), json(`${url}/0/.zarray`), json(`${url}/labels/${split}/0/.zarray`), json(`${url}/labels_ids/.zarray`),
  ]);
  const ids = idsOf.shape[0]
    ? new BigUint64Array(await (await request(`${url}/labels_ids/0`)).arrayBuffer())
    : new BigUint64Array(1);
  const kept = new Map();
  return {
    raw: new ZarrArray(`${url}/0`, raw, kept),
    labels: new ZarrArray(`${url}/labels/${split}/0`, labels, kept),
    ids,
    channels: attributes.omero.channels.map((channel) => channel.label),
    voxelSize: attributes.multiscales[0].datasets[0].coordinateTransformations[0].scale.slice(1),
  };
}
