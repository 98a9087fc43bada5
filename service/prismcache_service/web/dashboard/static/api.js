// Requests to the service, with the token of this tab; errors as the service states them. Also used by workers.

export const base = new URL("../..", import.meta.url);
const STORE = "prismcache-token";

export class Failure extends Error {
  constructor(status, problem) {
    super(problem.detail);
    this.status = status;
    this.code = problem.code;
    this.remedy = problem.remedy || "";
  }

  // One text, as the command line prints it.
  get text() {
    return `error[${this.code}]: ${this.message}${this.remedy ? `\n${this.remedy}` : ""}`;
  }
}

export const token = {
  get: () => sessionStorage.getItem(STORE) || "",
  set: (value) => sessionStorage.setItem(STORE, value),
  clear: () => sessionStorage.removeItem(STORE),
};

export async function request(path, { body, headers: given = {}, bearer = token.get(), ...options } = {}) {
  const headers = { ...given };
  if (bearer) headers.Authorization = `Bearer ${bearer}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, base), {
      ...options, headers, body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, {
      code: "service_unreachable", detail: "the service does not respond",
      remedy: "Check that it runs; this page tries again by itself.",
    });
  }
  if (response.ok) return response;
  let problem;
  try {
    problem = await response.json();
  } catch {
    problem = { code: "error", detail: `the response was HTTP ${response.status}` };
  }
  throw new Failure(response.status, problem);
}

export const json = async (path, options) => (await request(path, options)).json();

// Yield {event, data} of a server-sent event stream. fetch is used since EventSource cannot send a token in a header.
export async function* events(path, options) {
  const response = await request(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r\n", "\n");
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const found = { event: "message", data: "" };
      for (const line of rest.slice(0, end).split("\n")) {
        if (line.startsWith("event: ")) found.event = line.slice(7);
        if (line.startsWith("data: ")) found.data += line.slice(6);
      }
      rest = rest.slice(end + 2);
      if (found.data) yield { event: found.event, data: JSON.parse(found.data) };
    }
  }
}
