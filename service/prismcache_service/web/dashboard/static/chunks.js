// Chunks of a cached file, fetched in the background and kept inflated while there is room.
//
// The chunks of a slice lie side by side in the file, so that one range request fetches many; `places` says where each lies.

const KEEP_BYTES = 400e6;
const GAP_BYTES = 64e3; // two chunks this near are fetched together with what lies between them
const RUN_BYTES = 2e6; // of one request
const AT_ONCE = 3; // requests; a browser opens six connections to a host, and the others are for the page

const waiting = new Map(); // what to do with a worker's reply, by the number of the message
let workers = [];
let sent = 0;
let queue = []; // requests that have not begun
let underWay = 0;

// Return the voxels of zlib streams at [first byte, length] of `buffer`, which is given away; each has `size` bytes.
function inflate(buffer, spans, size) {
  if (!workers.length) {
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
  const id = (sent += 1);
  workers[id % workers.length].postMessage({ id, buffer, spans, size }, [buffer]);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

// Fetch [{chunks, numbers}] in this order; what was asked for before and has not begun is no longer wanted.
export function fetchBehind(wanted) {
  queue = wanted.flatMap(({ chunks, numbers }) => chunks.runs(numbers).map((run) => ({ chunks, run })));
  startNext();
}

function startNext() {
  while (underWay < AT_ONCE && queue.length) {
    const { chunks, run } = queue.shift();
    underWay += 1;
    chunks.fetchRun(run)
      .catch(() => {}) // the slices of these chunks come from the service one by one
      .finally(() => {
        underWay -= 1;
        startNext();
      });
  }
}

export class Chunks {
  // `read` requests a range of the file; `places` are offset and length of each chunk, in C order of the grid; a chunk
  // inflates to `size` bytes.
  constructor(read, places, size) {
    this.read = read;
    this.places = places;
    this.size = size;
    this.kept = new Map(); // voxels by the chunk's number; the last used at the end
    this.coming = new Set(); // numbers
  }

  // Return the inflated bytes of chunks, null for each that was never written; or null if one of them is not at hand.
  atHand(numbers) {
    const isThere = (number) => this.kept.has(number) || this.places[2 * number + 1] === 0;
    if (!numbers.every(isThere)) return null;
    return numbers.map((number) => {
      const found = this.kept.get(number);
      if (!found) return null;
      this.kept.delete(number);
      this.kept.set(number, found);
      return found;
    });
  }

  // Return lists of chunks, each for one request, that are neither there nor on their way.
  runs(numbers) {
    const start = (number) => this.places[2 * number];
    const stop = (number) => start(number) + this.places[2 * number + 1];
    const missing = numbers.filter((number) => !this.kept.has(number) && !this.coming.has(number) && stop(number) > start(number));
    const found = [];
    for (const number of missing.sort((one, other) => start(one) - start(other))) {
      const run = found.at(-1);
      if (run && start(number) - stop(run.at(-1)) <= GAP_BYTES && stop(number) - start(run[0]) <= RUN_BYTES) run.push(number);
      else found.push([number]);
    }
    return found;
  }

  async fetchRun(run) {
    const first = this.places[2 * run[0]];
    const spans = run.map((number) => [this.places[2 * number] - first, this.places[2 * number + 1]]);
    for (const number of run) this.coming.add(number);
    try {
      const response = await this.read(first, first + spans.at(-1)[0] + spans.at(-1)[1]);
      const voxels = await inflate(await response.arrayBuffer(), spans, this.size);
      run.forEach((number, place) => this.kept.set(number, voxels[place]));
    } finally {
      for (const number of run) this.coming.delete(number);
    }
    while (this.kept.size * this.size > KEEP_BYTES) this.kept.delete(this.kept.keys().next().value);
  }
}
