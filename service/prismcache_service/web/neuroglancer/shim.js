// Sent by prismcache before each script of Neuroglancer, in the page and in its workers.
// 1. No code is made from text: what Neuroglancer makes so is written here, and the page needs no 'unsafe-eval'.
// 2. There is no Python server: the page does not wait for one.
// 3. The address names the service by a placeholder, which becomes the address that the page was loaded from.
(() => {
  if (globalThis.prismcacheShim) return;
  globalThis.prismcacheShim = true;

  // Write indices of `bits` bits each (0 to 32, a power of two) into `words` words, the first in the lowest bits.
  function pack(output, offset, encoding, indices, bits, words) {
    if (bits === 0) return;
    const each = 32 / bits;
    for (let word = 0, at = 0; word < words; word += 1) {
      let value = 0;
      for (let place = 0; place < each; place += 1, at += 1) value |= indices[encoding[at]] << (place * bits);
      output[offset + word] = value;
    }
  }

  function made(parameters) {
    const code = String(parameters.at(-1) ?? "");
    if (parameters[0] === "outputData") return pack; // sliceview/compressed_segmentation/encode_common.ts
    if (parameters[0] === "dv" && !code.includes("properties[")) return () => {}; // annotation/index.ts: nothing to copy
    if (code === "return this") return () => globalThis;
    throw new EvalError("this page makes no code from text");
  }
  globalThis.Function = new Proxy(Function, {
    apply: (target, self, parameters) => made(parameters),
    construct: (target, parameters) => made(parameters),
  });

  if (!globalThis.document) return;
  globalThis.EventSource = class {
    constructor() {
      setTimeout(() => this.onopen?.());
    }

    close() {}
  };
  const service = encodeURI(new URL("../../..", document.baseURI).href);
  const state = (location.hash || "#!%7B%7D").replaceAll("%7Bservice%7D", service);
  history.replaceState(null, "", state);
})();
