// How fast numbers grow.

const SPAN_MS = 1000;

export class Rates {
  constructor() {
    this.seen = new Map();
  }

  // Return by how much the number called `key` grows in a second, or null in its first second; `now` is in ms.
  of(key, value, now = performance.now()) {
    const known = this.seen.get(key) ?? { value, at: now, rate: null };
    const span = now - known.at;
    const newest = span < SPAN_MS ? known : { value, at: now, rate: (1000 * (value - known.value)) / span };
    this.seen.set(key, newest);
    return newest.rate;
  }
}
