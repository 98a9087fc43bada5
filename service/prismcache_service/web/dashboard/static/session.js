// What all pages share: signing in, notices, and the one event stream of this tab.

import { events, json, token } from "./api.js";

const RETRY_MS = [500, 1000, 2000, 5000];
const notice = document.getElementById("notice");
const form = document.getElementById("sign-in");
const signOut = document.getElementById("sign-out");
export const page = document.getElementById("page");

export function say(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

const ROLES = ["reader", "requester", "admin"];
let caller = { name: "", role: "reader" };
export const may = (role) => ROLES.indexOf(caller.role) >= ROLES.indexOf(role);
export const isMine = (job) => job.owner === caller.name || may("admin");

// Run `act`; show its error as a notice. A token that is refused leads back to the form.
export async function attempt(act) {
  try {
    return await act();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (error.status === 401) askForToken(token.get() ? error.text : "");
    else say(error.text || String(error));
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

// Sign in if the service wants it, then run `start`.
export async function begin(start) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    token.set(document.getElementById("token").value.trim());
    attempt(enter);
  });

  async function enter() {
    caller = await json("v1/me");
    say("");
    form.hidden = true;
    signOut.hidden = !token.get();
    await start();
  }
  await attempt(enter);
}

// Follow the service for as long as the page is open: `handlers` by event name. Reconnects by itself.
export async function follow(handlers) {
  for (let failures = 0; ; failures += 1) {
    try {
      for await (const { event, data } of events("v1/events")) {
        if (failures) say("");
        failures = 0;
        handlers[event]?.(data);
      }
    } catch (error) {
      if (error.status === 401) {
        askForToken(error.text);
        return;
      }
    }
    if (failures) say("The service does not respond. This page tries again by itself.");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
  }
}
