// What all pages share: signing in, notices, and the event stream.

import { json, token } from "./api.js";
import { listen } from "./stream.js";

const notice = document.getElementById("notice");
const form = document.getElementById("sign-in");
const signOut = document.getElementById("sign-out");
export const page = document.getElementById("page");

export function say(text) {
  notice.querySelector("p").textContent = text;
  notice.hidden = !text;
}
notice.querySelector("button").addEventListener("click", () => say(""));

const RETRY_MS = 2000;
let isLost = false; // whether the notice is that the service does not respond

const ROLES = ["reader", "requester", "admin"];
let caller = { name: "", role: "reader" };
export const may = (role) => ROLES.indexOf(caller.role) >= ROLES.indexOf(role);
export const isMine = (job) => job.owner === caller.name || may("admin");

// Run `act`; show its error as a notice. A token that is refused leads back to the form.
export async function attempt(act) {
  try {
    const result = await act();
    if (isLost) say("");
    isLost = false;
    return result;
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (error.status === 401) askForToken(token.get() ? error.text : "");
    else say(error.text || String(error));
    isLost ||= error.status === 0;
    return undefined;
  }
}

function askForToken(text) {
  say(text);
  form.hidden = false;
  page.replaceChildren();
  document.getElementById("token").focus();
}

signOut.addEventListener("click", () => {
  token.clear();
  location.reload();
});

// Sign in if the service wants it, then run `start` once; a later sign-in loads the page anew.
export async function begin(start) {
  let hasStarted = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    token.set(document.getElementById("token").value.trim());
    attempt(enter);
  });

  async function enter() {
    caller = await json("v1/me");
    if (hasStarted) location.reload();
    hasStarted = true;
    say("");
    form.hidden = true;
    signOut.hidden = !token.get();
    await start();
  }

  async function tryToEnter() {
    await attempt(enter);
    if (isLost && !hasStarted) setTimeout(tryToEnter, RETRY_MS);
  }
  await tryToEnter();
}

// Follow the service for as long as the page is open: `handlers` by event name. All tabs share one stream.
export function follow(handlers) {
  const receive = ({ event, data }) => {
    if (event === "refused") askForToken(data);
    else if (event === "connection") connect(data);
    else handlers[event]?.(data);
  };
  const connect = (isConnected) => {
    if (!isConnected) say("The service does not respond. This page tries again by itself.");
    else if (isLost) {
      say("");
      handlers.changed?.(); // the page may have missed something
    }
    isLost = !isConnected;
  };
  if (typeof SharedWorker === "undefined") {
    listen(token.get(), receive);
    return;
  }
  const tell = (bearer) => port.postMessage({ bearer });
  let port;
  const start = () => {
    const worker = new SharedWorker(new URL("stream.js", import.meta.url), { type: "module" });
    worker.onerror = () => { // its script could not be loaded
      connect(false);
      setTimeout(start, RETRY_MS);
    };
    port = worker.port;
    port.onmessage = ({ data }) => receive(data);
    tell(token.get());
  };
  start();
  addEventListener("pagehide", () => tell(null));
  addEventListener("pageshow", ({ persisted }) => persisted && tell(token.get()));
}
