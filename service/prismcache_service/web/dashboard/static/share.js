// Links to one cached crop that need no token: for Neuroglancer, which cannot send one, and for colleagues.

import { json } from "./api.js";
import { button } from "./dom.js";
import { attempt, may, say } from "./session.js";

const HOURS = 24 * 7;

const made = (split, crop, hours, note) => json("v1/links", { method: "POST", body: { split, crop, hours, note } });

// Return the controls for a cached crop; nothing where the caller's role makes no links.
export function share(split, crop) {
  const controls = document.createElement("span");
  controls.className = "actions";
  if (!may("requester")) return controls;
  const name = `${split}/${crop}`;
  const view = async () => {
    const link = await made(split, crop, 12, "View in Neuroglancer");
    if (link.neuroglancer_url) location.assign(`${link.path}/neuroglancer`);
    else say('Neuroglancer is not installed where the service runs.\nRun `pip install "prismcache[viewer]"` there.');
  };
  const show = async () => {
    const link = await made(split, crop, HOURS, "Share");
    const base = new URL(`${link.path}/`, document.baseURI).href;
    const viewer = link.neuroglancer_url ? `\n${base}neuroglancer opens it in Neuroglancer` : "";
    say(`Everybody who has an address can read ${name} for a week; \`prismcache links revoke ID\` revokes it.\n`
      + `${base}zarr is for napari and zarr${viewer}`);
  };
  controls.append(
    button("View in Neuroglancer", () => attempt(view), `View ${name} in Neuroglancer`),
    button("Share", () => attempt(show), `Share ${name}`),
  );
  return controls;
}
