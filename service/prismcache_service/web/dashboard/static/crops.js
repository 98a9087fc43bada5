// The page Crops: every published crop, what the cache has of it, and what the caller may do with it.

import { json, request } from "./api.js";
import { bar, button, bytes, element, failure, LiveTable, replace } from "./dom.js";
import { contentOf, cropFirst, hasContext } from "./files.js";
import { commandLine, copyButton, pythonLine } from "./lines.js";
import { attempt, begin, follow, may, page, say } from "./session.js";

const RELOAD_MS = 30_000;
const STATES = { absent: "not cached", making: "being made", partial: "partly cached", cached: "cached" };
let crops = [];
let jobs = [];
const failed = new Map(); // problems of crops that failed while this page was open
let old = null; // ids of jobs whose end has been taken note of
const previews = new Map(); // object URLs of previews, by the digest of the file they show
const busy = new Set();

const nameOf = (crop) => `${crop.split}/${crop.crop}`;
const isFinal = (job) => job.state !== "queued" && job.state !== "running";
const isComplete = (crop) => crop.state === "cached";
const shapeOf = (crop) => crop.labels_shape ?? crop.raw_shape?.slice(1); // (Z, Y, X); undefined if it was not read yet

async function load() {
  crops = (await json("v1/crops")).crops;
  draw();
}

async function act(crop, label, work) {
  const key = `${label} ${nameOf(crop)}`;
  if (busy.has(key)) return;
  busy.add(key);
  draw();
  await attempt(async () => {
    await work();
    await load();
  });
  busy.delete(key);
  draw();
}

function progressOf(crop) {
  for (const job of jobs) {
    if (job.split !== crop.split) continue;
    const found = job.crops.find((item) => item.crop === crop.crop);
    if (found && (found.state === "queued" || found.state === "running")) return found;
  }
  return null;
}

function actions(crop, progress) {
  const path = `v1/crops/${crop.split}/${crop.crop}`;
  const name = nameOf(crop);
  const made = [];
  const add = (label, work) => {
    const control = button(label, () => act(crop, label, work), `${label} ${name}`);
    control.disabled = busy.has(`${label} ${name}`);
    made.push(control);
  };
  if (isComplete(crop)) {
    const depth = shapeOf(crop)?.[0];
    const middle = depth ? `&axis=z&at=${Math.floor(depth / 2)}` : ""; // with it, the page can ask for the slice at once
    made.push(element("a", { href: `view?split=${crop.split}&crop=${crop.crop}${middle}`, "aria-label": `View ${name}` }, "View"));
  }
  if (!isComplete(crop) && !progress && may("requester")) {
    add("Fetch", () => {
      failed.delete(name);
      return json("v1/jobs", { method: "POST", body: { split: crop.split, crops: [crop.crop] } });
    });
  }
  if (may("admin") && crop.files.length) {
    add("Verify", async () => {
      const report = await json("v1/verify", { method: "POST", body: { split: crop.split, crops: [crop.crop] } });
      say(report.results.map((found) => `${found.path}: ${found.verdict} ${found.reason}`.trim()).join("\n"));
    });
    if (!crop.pinned) add("Evict", () => request(path, { method: "DELETE" }));
  }
  if (may("admin")) {
    add(crop.pinned ? "Unpin" : "Pin", () => request(`${path}/pin`, { method: crop.pinned ? "DELETE" : "PUT" }));
  }
  return made;
}

function state(crop, progress) {
  return element("span", { class: crop.state },
    progress ? bar(progress, nameOf(crop)) : STATES[crop.state], crop.pinned ? ", pinned" : "");
}

// Return what is cached, or why it could not be.
function cached(crop) {
  const problem = failed.get(nameOf(crop)) || crop.problem;
  return [
    crop.files.length ? lines(cropFirst(crop.files).map((file) => `${bytes(file.size)} ${contentOf(file, crop)}`)) : null,
    problem ? failure(problem) : null,
  ];
}

// Previews are made from files without context.
const pictured = (crop) => crop.files.find((file) => file.product === "crop" && file.channels.includes(0) && !hasContext(file));

function preview(crop) {
  const file = pictured(crop);
  if (!file) return "";
  const known = previews.get(file.sha256);
  if (known) return element("img", { class: "preview", alt: `Middle slice of ${nameOf(crop)}`, src: known });
  const place = element("span", { class: "preview" });
  if (known === undefined) {
    place.crop = crop;
    inView.observe(place);
  }
  return place;
}

// Previews are asked for when their row comes near, one after the other, since the service draws one at a time.
const inView = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    inView.unobserve(target);
    turn = turn.then(() => fetchPreview(target.crop));
  }
}, { rootMargin: "600px" });
let turn = Promise.resolve();

async function fetchPreview(crop) {
  const { sha256 } = pictured(crop);
  if (previews.has(sha256)) return;
  previews.set(sha256, "");
  try {
    const response = await request(`v1/crops/${crop.split}/${crop.crop}/preview.png`);
    previews.set(sha256, URL.createObjectURL(await response.blob()));
    draw();
  } catch { /* a crop without a picture is shown without one */ }
}

const lines = (texts) => element("ul", { class: "plain" }, ...texts.filter(Boolean).map((text) => element("li", {}, text)));

function published(crop) {
  const shape = shapeOf(crop);
  return lines([
    crop.raw_shape ? `${crop.raw_shape[0]} channels` : "",
    shape ? shape.join(" × ") : "",
    crop.source_bytes ? `${bytes(crop.source_bytes)} in the bucket` : "",
  ]);
}

function row(crop, progress) {
  const name = nameOf(crop);
  return element("tr", {},
    element("td", {}, preview(crop)),
    element("th", { scope: "row" }, name),
    element("td", {}, state(crop, progress)),
    element("td", { class: "figures" }, published(crop)),
    element("td", { class: "files" }, ...cached(crop)),
    element("td", { class: "actions" },
      copyButton("Python", pythonLine(crop.split, crop.crop), `Copy the Python line for ${name}`),
      copyButton("Shell", commandLine(crop.split, crop.crop), `Copy the command for ${name}`)),
    element("td", { class: "actions" }, ...actions(crop, progress)));
}

const heads = ["Preview", "Crop", "State", "Published (Z × Y × X)", "Cached files", "Copy", "Actions"];
const list = new LiveTable("Crops", heads, "The bucket lists no crops, and none is cached.");
const filter = element("input", { type: "search", id: "filter", placeholder: "instance/1, cached …", oninput: () => draw() });
const count = element("span", { "aria-live": "polite" });

// Show the crops whose name or state contains what is typed.
function draw() {
  const wanted = filter.value.trim().toLowerCase();
  const found = crops.filter((crop) => `${nameOf(crop)} ${STATES[crop.state]}`.includes(wanted));
  count.textContent = wanted ? `${found.length} of ${crops.length} crops` : "";
  list.show(found.map((crop) => {
    const [name, progress] = [nameOf(crop), progressOf(crop)];
    const data = [crop, progress, failed.get(name), previews.get(pictured(crop)?.sha256), [...busy].filter((key) => key.endsWith(` ${name}`))];
    return { key: name, data, make: () => row(crop, progress) };
  }));
}

begin(async () => {
  replace(page, element("p", { class: "filter" }, element("label", { for: "filter" }, "Find"), " ", filter, " ", count), list.node);
  setInterval(() => attempt(load), RELOAD_MS);
  await attempt(load);
  follow({
    jobs: (data) => {
      jobs = data.jobs;
      const isFirst = old === null;
      if (isFirst) old = new Set(jobs.filter(isFinal).map((job) => job.id));
      for (const job of jobs) {
        if (!isFinal(job) || old.has(job.id)) continue;
        old.add(job.id);
        for (const crop of job.crops) if (crop.problem) failed.set(`${job.split}/${crop.crop}`, crop.problem);
      }
      draw();
    },
    changed: () => attempt(load),
  });
});
