// The service's event stream, followed once for all tabs of a browser: HTTP/1.1 allows six connections to a host, so with a
// stream for each tab the seventh tab would have none. Runs as a shared worker, or in the page where there are none.

import { events } from "./api.js";

const RETRY_MS = [500, 1000, 2000, 5000];
const streams = new Map(); // by token: its listeners, the newest data of each event, and what ends it

// Call `listener` with {event, data} until the function that is returned is called. `connection` says whether the service
// responds, `refused` that the token is not valid.
export function listen(bearer, listener) {
  let stream = streams.get(bearer);
  if (!stream) {
    stream = { listeners: new Set(), newest: new Map(), end: new AbortController() };
    streams.set(bearer, stream);
    run(bearer, stream);
  }
  stream.listeners.add(listener);
  for (const [event, data] of stream.newest) listener({ event, data });
  return () => {
    stream.listeners.delete(listener);
    if (stream.listeners.size) return;
    stream.end.abort();
    if (streams.get(bearer) === stream) streams.delete(bearer);
  };
}

async function run(bearer, { listeners, newest, end: { signal } }) {
  const send = (event, data) => {
    newest.set(event, data);
    for (const listener of listeners) listener({ event, data });
  };
  for (let failures = 0; !signal.aborted; failures += 1) {
    try {
      let isFirst = true;
      for await (const { event, data } of events("v1/events", { bearer, signal })) {
        if (isFirst) send("connection", true);
        isFirst = false;
        failures = 0;
        send(event, data);
      }
    } catch (error) {
      if (error.status === 401) {
        streams.delete(bearer);
        send("refused", error.text);
        return;
      }
    }
    if (failures) send("connection", false);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
  }
}

if (typeof SharedWorkerGlobalScope !== "undefined") {
  self.onconnect = ({ ports: [port] }) => {
    let stop = () => {};
    port.onmessage = ({ data: { bearer } }) => {
      stop();
      stop = bearer === null ? () => {} : listen(bearer, (message) => port.postMessage(message));
    };
  };
}
