// The page of one crop: slices along Z, Y or X, channels in colours, labels over them. Its state is in the URL.

import { compose } from "./colours.js";
import { showDetails } from "./details.js";
import { element, replace } from "./dom.js";
import { attempt, begin, page, say } from "./session.js";
import { openVolume } from "./volume.js";

const AXES = ["z", "y", "x"];
const URL_MS = 250; // between changes of the URL: browsers ignore more than 200 in 30 s
const DARK = 5; // times brighter, where the brightness of the channels is not known
const query = new URLSearchParams(location.search);
const split = query.get("split") || "instance";
const crop = Number(query.get("crop") || 0);
const number = (name, fallback) => (query.has(name) ? Number(query.get(name)) : fallback);

// Without tokens, the voxels need not wait for the response to who is asking.
const opening = page.dataset.tokens ? null : openVolume(split, crop);
opening?.catch(() => {}); // shown when it is waited for
let volume;
const view = { axis: 0, at: 0, channels: ["0", "1", "2"], gain: DARK, opacity: 0.3, windows: true };
let shown = null; // the slice on the canvas
let [isDrawing, isStale] = [false, false];
let urlTimer = 0;

const hasWindows = () => volume.channels.some(({ low, high }) => low > 0 || high < 255);

function keepInUrl() {
  if (urlTimer) return;
  const write = () => history.replaceState(null, "", `?${new URLSearchParams({
    split, crop, axis: AXES[view.axis], at: view.at, c: view.channels.join(","), gain: view.gain, labels: view.opacity,
    windows: Number(view.windows),
  })}`);
  write();
  urlTimer = setTimeout(() => {
    urlTimer = 0;
    write();
  }, URL_MS);
}

// Planes to add: three chosen channels in red, green and blue, or all, channel i in colour i mod 3.
function chosen() {
  if (view.channels[0] === "all") return volume.channels.map((_, index) => ({ index, colour: index % 3 }));
  return view.channels.flatMap((text, colour) => (text === "" ? [] : [{ index: Number(text), colour }]));
}

// Draw the present view. While a slice is being drawn, only the newest view is remembered.
async function draw() {
  keepInUrl();
  isStale = true;
  if (isDrawing) return;
  isDrawing = true;
  try {
    while (isStale) {
      isStale = false;
      await drawSlice();
    }
  } finally {
    isDrawing = false;
  }
}

async function drawSlice() {
  const { axis, at, windows } = view;
  const [labels, ...raw] = await Promise.all([
    volume.labels.plane(axis, at),
    ...chosen().map(async ({ index, colour }) => {
      const { low, high } = windows ? volume.channels[index] : { low: 0, high: 255 };
      return { ...(await volume.raw.plane(axis, at, index)), colour, low, high };
    }),
  ]);
  const { width, height } = labels;
  const canvas = document.getElementById("slice");
  if (canvas.width !== width || canvas.height !== height) {
    [canvas.width, canvas.height] = [width, height];
    const [rows, columns] = volume.voxelSize.filter((_, other) => other !== axis); // voxels are no cubes
    canvas.style.aspectRatio = `${width * columns} / ${height * rows}`;
  }
  const pixels = compose(raw, view.gain, labels.plane, view.opacity, width * height);
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  canvas.dataset.at = `${AXES[axis]}${at}`; // which slice the canvas shows
  canvas.dataset.windows = windows && hasWindows() ? "facts" : "none";
  if (!shown) performance.mark("first slice");
  shown = labels;
  prefetch();
}

// The slices beyond the present chunks, in both directions: fetch them before they are asked for.
function prefetch() {
  const depth = volume.labels.chunks[view.axis];
  const first = Math.floor(view.at / depth) * depth;
  for (const at of [first + depth, first - 1]) {
    if (at < 0 || at >= volume.labels.shape[view.axis]) continue;
    for (const { index } of chosen().slice(0, 3)) volume.raw.prefetch(view.axis, at, index);
    volume.labels.prefetch(view.axis, at);
  }
}

function move(to) {
  view.at = Math.max(0, Math.min(volume.labels.shape[view.axis] - 1, to));
  document.getElementById("at").value = view.at;
  document.getElementById("at-text").textContent = `${view.at}`;
  attempt(draw);
}

function turn(axis) {
  view.axis = axis;
  const slider = document.getElementById("at");
  slider.max = volume.labels.shape[axis] - 1;
  move(Math.floor(volume.labels.shape[axis] / 2));
}

function channelChoice(colour, name) {
  const options = [["", "none"], ...volume.channels.map(({ label }, index) => [String(index), label])];
  if (colour === 0) options.push(["all", "all, mixed"]);
  const choice = element("select", {
    onchange: (event) => {
      view.channels[colour] = event.target.value;
      attempt(draw);
    },
  }, ...options.map(([value, text]) => element("option", { value, selected: view.channels[colour] === value }, text)));
  return element("label", {}, name, choice);
}

function slider(name, attributes, onchange) {
  return element("label", {}, name, element("input", { type: "range", ...attributes, oninput: (event) => onchange(Number(event.target.value)) }));
}

function point(event) {
  const canvas = event.currentTarget;
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) * canvas.width) / box.width);
  const y = Math.floor(((event.clientY - box.top) * canvas.height) / box.height);
  if (!shown || x < 0 || y < 0 || x >= shown.width || y >= shown.height) return;
  const label = shown.plane[y * shown.width + x];
  const text = label ? `label ${label}, id ${volume.ids[label]} in the bucket` : "no label";
  document.getElementById("under").textContent = `(${y}, ${x}): ${text}`;
}

function build(place) {
  const canvas = element("canvas", {
    id: "slice", width: 1, height: 1, tabindex: 0, role: "img", "aria-label": `Slice of ${split}/${crop}; arrow keys change it`,
    onpointermove: point,
    onwheel: (event) => {
      event.preventDefault();
      move(view.at + Math.sign(event.deltaY));
    },
    onkeydown: (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (!step) return;
      event.preventDefault();
      move(view.at + step);
    },
  });
  replace(place,
    element("div", { class: "controls" },
      element("label", {}, "Axis", element("select", { onchange: (event) => turn(Number(event.target.value)) },
        ...AXES.map((name, axis) => element("option", { value: axis, selected: axis === view.axis }, name.toUpperCase())))),
      slider("Slice", { id: "at", min: 0, max: volume.labels.shape[view.axis] - 1, value: view.at }, move),
      element("output", { id: "at-text" }, String(view.at)),
      channelChoice(0, "Red"), channelChoice(1, "Green"), channelChoice(2, "Blue"),
      element("label", { hidden: !hasWindows() }, element("input", {
        id: "windows", type: "checkbox", checked: view.windows,
        onchange: (event) => {
          view.windows = event.target.checked;
          attempt(draw);
        },
      }), "Windows from facts"),
      slider("Brightness", { id: "gain", min: 1, max: 20, step: 0.5, value: view.gain }, (value) => {
        view.gain = value;
        attempt(draw);
      }),
      slider("Labels", { min: 0, max: 1, step: 0.05, value: view.opacity }, (value) => {
        view.opacity = value;
        attempt(draw);
      })),
    canvas,
    element("p", { id: "under" }, "Move over the slice to read labels."));
}

// Windows of facts that were computed after the crop was opened.
function takeWindows(facts) {
  if (!volume || hasWindows()) return;
  facts.channels.forEach(({ percentiles }, index) => {
    const shares = Object.entries(percentiles).map(([share, value]) => [Number(share), value]);
    Object.assign(volume.channels[index], { low: Object.fromEntries(shares)[1], high: Object.fromEntries(shares)[99.9] });
  });
  document.getElementById("windows").parentElement.hidden = !hasWindows();
  if (!query.has("gain")) setGain(1);
  attempt(draw);
}

function setGain(gain) {
  view.gain = gain;
  document.getElementById("gain").value = gain;
}

async function showSlices(place) {
  volume = await (opening ?? openVolume(split, crop));
  const last = volume.labels.shape.map((extent) => extent - 1);
  view.axis = Math.max(0, AXES.indexOf(query.get("axis") || "z"));
  view.at = Math.max(0, Math.min(number("at", Math.floor((last[view.axis] + 1) / 2)), last[view.axis]));
  if (query.has("c")) view.channels = query.get("c").split(",");
  else view.channels = [0, 1, 2].map((index) => (index < volume.channels.length ? String(index) : ""));
  view.windows = number("windows", 1) === 1;
  view.gain = number("gain", hasWindows() ? 1 : DARK);
  view.opacity = number("labels", 0.3);
  build(place);
  await draw();
}

begin(async () => {
  document.title = `${split}/${crop} · prismcache`;
  document.querySelector("h1").textContent = `${split}/${crop}`;
  const [slices, details] = [element("div"), element("div")];
  replace(page, slices, details);
  await attempt(() => showSlices(slices));
  await showDetails(details, split, crop, takeWindows);
});
