// A worker that inflates chunks, so that the page stays free to draw and all cores inflate.

// Return the voxels of one zlib stream. Reading a Blob's stream instead would take three times as long.
async function inflate(bytes, size) {
  const stream = new DecompressionStream("deflate");
  const writer = stream.writable.getWriter();
  Promise.all([writer.write(bytes), writer.close()]).catch(() => {}); // the reader gets the error, too
  const voxels = new Uint8Array(size);
  const reader = stream.readable.getReader();
  for (let at = 0; ;) {
    const { done, value } = await reader.read();
    if (done) return voxels.buffer;
    voxels.set(value, at);
    at += value.length;
  }
}

// A message is {id, buffer, spans, size}: zlib streams at [first byte, length] of the buffer, each of which inflates to
// `size` bytes. The reply has the voxels of each.
self.onmessage = async ({ data: { id, buffer, spans, size } }) => {
  try {
    const chunks = [];
    for (const [at, length] of spans) chunks.push(await inflate(new Uint8Array(buffer, at, length), size));
    self.postMessage({ id, chunks }, chunks);
  } catch (error) {
    self.postMessage({ id, error: String(error) });
  }
};
