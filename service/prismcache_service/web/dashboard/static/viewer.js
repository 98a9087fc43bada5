// The page of one crop: slices along Z, Y or X, channels in colours, labels over them.

import { compose } from "./colours.js";
import { buildControls } from "./controls.js";
import { showDetails } from "./details.js";
import { element, replace } from "./dom.js";
import { attempt, begin, page } from "./session.js";
import { crop, hasWindows, isGainChosen, keepInUrl, shownChannels, split, viewOf } from "./view.js";
import { AXES, openVolume } from "./volume.js";

const SLOW_MS = 300; // a first slice that takes longer is shown channel by channel
let volume;
let view;
let canvas;
let shown = null; // the labels of the slice on the canvas
let [isDrawing, isStale] = [false, false];

// Request the planes of the present view: promises of channels, [{plane, colour, low, high}], and of labels.
function requestPlanes() {
  const { axis, at, windows } = view;
  return {
    channels: shownChannels(view, volume).map(async ({ index, colour }) => {
      const { low, high } = windows ? volume.channels[index] : { low: 0, high: 255 };
      return { ...(await volume.raw.plane(axis, at, index)), colour, low, high };
    }),
    labels: volume.labels.plane(axis, at),
  };
}

async function open() {
  volume = await openVolume(split, crop);
  view = viewOf(volume);
}

// Draw the present view. While a slice is being drawn, only the newest view is remembered.
async function draw() {
  keepInUrl(view);
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
  const began = performance.now();
  const planes = requestPlanes();
  const arrived = [];
  const channels = planes.channels.map(async (coming) => {
    arrived.push(await coming);
    if (!shown && performance.now() - began > SLOW_MS) paint(axis, arrived, null);
  });
  const [labels] = await Promise.all([planes.labels, ...channels]);
  paint(axis, arrived, labels.plane);
  canvas.dataset.at = `${AXES[axis]}${at}`; // which slice the canvas shows
  canvas.dataset.from = [labels, ...arrived].every(({ wasAtHand }) => wasAtHand) ? "chunks" : "service";
  canvas.dataset.windows = windows && hasWindows(volume) ? "facts" : "none";
  if (!shown) firstSliceIsThere();
  shown = labels;
  prefetch();
}

function paint(axis, channels, labels) {
  const [height, width] = volume.raw.extent(axis);
  if (canvas.width !== width || canvas.height !== height) {
    [canvas.width, canvas.height] = [width, height];
    const [rows, columns] = volume.voxelSize.filter((_, other) => other !== axis); // voxels are no cubes
    canvas.style.aspectRatio = `${width * columns} / ${height * rows}`;
  }
  const pixels = compose(channels, view.gain, labels, view.opacity, width * height);
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

function firstSliceIsThere() {
  performance.mark("first slice");
  document.getElementById("under").textContent = volume.hasLabels ? "Move over the slice to read labels." : "This crop has no labels.";
  volume.openRest().then(prefetch, () => {}); // until then, and if it fails, each slice comes from the service
}

// Fetch the chunks of this slice in the background, and of those beyond its chunks in both directions.
function prefetch() {
  const depth = volume.raw.size[view.axis];
  const first = Math.floor(view.at / depth) * depth;
  const channels = shownChannels(view, volume).map(({ index }) => index);
  const beyond = [first + depth, first - 1].filter((at) => at >= 0 && at < volume.raw.shape[view.axis]);
  volume.prefetch(view.axis, [{ at: view.at, channels }, ...beyond.map((at) => ({ at, channels: channels.slice(0, 3) }))]);
}

function move(to) {
  view.at = Math.max(0, Math.min(volume.raw.shape[view.axis] - 1, to));
  document.getElementById("at").value = view.at;
  document.getElementById("at-text").textContent = `${view.at}`;
  attempt(draw);
}

function turn(axis) {
  view.axis = axis;
  document.getElementById("at").max = volume.raw.shape[axis] - 1;
  move(Math.floor(volume.raw.shape[axis] / 2));
}

function point(event) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) * canvas.width) / box.width);
  const y = Math.floor(((event.clientY - box.top) * canvas.height) / box.height);
  if (!shown || !volume.hasLabels || x < 0 || y < 0 || x >= shown.width || y >= shown.height) return;
  const label = shown.plane[y * shown.width + x];
  const id = label && volume.ids ? `, id ${volume.ids[label]} in the bucket` : "";
  document.getElementById("under").textContent = `(${y}, ${x}): ${label ? `label ${label}${id}` : "no label"}`;
}

function buildCanvas() {
  return element("canvas", {
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
}

// Windows of facts that were computed after the crop was opened.
function takeWindows(facts) {
  if (!volume || hasWindows(volume)) return;
  facts.channels.forEach(({ percentiles }, index) => {
    const shares = Object.fromEntries(Object.entries(percentiles).map(([share, value]) => [Number(share), value]));
    Object.assign(volume.channels[index], { low: shares[1], high: shares[99.9] });
  });
  document.getElementById("windows").parentElement.hidden = !hasWindows(volume);
  if (!isGainChosen()) {
    view.gain = 1;
    document.getElementById("gain").value = 1;
  }
  attempt(draw);
}

async function showSlices(place) {
  await (opening ?? open());
  canvas = buildCanvas();
  const controls = buildControls(view, volume, { move, turn, changed: () => attempt(draw) });
  replace(place, controls, canvas, element("p", { id: "under" }, "Loading the slice …"));
  await draw();
}

// Without tokens, the voxels need not wait for the response to who is asking.
const opening = page.dataset.tokens ? null : open();
opening?.catch(() => {}); // shown when it is waited for

begin(async () => {
  document.title = `${split}/${crop} · prismcache`;
  document.querySelector("h1").textContent = `${split}/${crop}`;
  page.classList.add("viewer");
  const [slices, details] = [element("div"), element("div")];
  replace(page, slices, details);
  await attempt(() => showSlices(slices));
  await showDetails(details, split, crop, takeWindows);
});
