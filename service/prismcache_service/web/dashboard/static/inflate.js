// A worker that inflates chunks, so that the page stays free to draw and all cores inflate.

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// A message is {id, buffer, spans}: zlib streams at [first byte, size] of the buffer. The reply has the voxels of each.
self.onmessage = async ({ data: { id, buffer, spans } }) => {
  try {
    const chunks = await Promise.all(spans.map(([at, size]) => inflate(new Uint8Array(buffer, at, size))));
    self.postMessage({ id, chunks }, chunks);
  } catch (error) {
    self.postMessage({ id, error: String(error) });
  }
};
