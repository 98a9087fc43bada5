// What the viewer shows of a crop, kept in the URL, so that a link or a reload shows the same.

import { AXES } from "./volume.js";

const URL_MS = 250; // between changes of the URL: browsers ignore more than 200 in 30 s
const DARK = 5; // times brighter, where the brightness of the channels is not known
const OPACITY = 0.3; // of labels

const query = new URLSearchParams(location.search);
export const split = query.get("split") || "instance";
export const crop = Number(query.get("crop") || 0);

function number(name, fallback) {
  const value = query.has(name) ? Number(query.get(name)) : NaN;
  return Number.isFinite(value) ? value : fallback;
}

export const hasWindows = (volume) => volume.channels.some(({ low, high }) => low > 0 || high < 255);

// Return the view that the URL names, or the middle slice in the first three channels.
export function viewOf(volume) {
  const axis = Math.max(0, AXES.indexOf(query.get("axis") || "z"));
  const count = volume.labels.shape[axis];
  const isKnown = (text) => text === "all" || (/^\d+$/.test(text) && Number(text) < volume.channels.length);
  return {
    axis,
    at: Math.max(0, Math.min(Math.floor(number("at", count / 2)), count - 1)),
    channels: (query.get("c") ?? "0,1,2").split(",").map((text) => (isKnown(text) ? text : "")),
    windows: number("windows", 1) === 1,
    gain: number("gain", hasWindows(volume) ? 1 : DARK),
    opacity: number("labels", OPACITY),
  };
}

// Windows that come later take the place of a brightness that nobody chose.
export const isGainChosen = () => query.has("gain");

// Return the channels to add: three chosen ones in red, green and blue, or all, channel i in colour i mod 3.
export function shownChannels(view, volume) {
  if (view.channels[0] === "all") return volume.channels.map((_, index) => ({ index, colour: index % 3 }));
  return view.channels.flatMap((text, colour) => (text === "" ? [] : [{ index: Number(text), colour }]));
}

let timer = 0;

export function keepInUrl(view) {
  if (timer) return;
  const write = () => history.replaceState(null, "", `?${new URLSearchParams({
    split, crop, axis: AXES[view.axis], at: view.at, c: view.channels.join(","), gain: view.gain, labels: view.opacity,
    windows: Number(view.windows),
  })}`);
  write();
  timer = setTimeout(() => {
    timer = 0;
    write();
  }, URL_MS);
}
