// The page Storage: how full the cache folder is, what would be deleted next, and how it came to be so.

import { json } from "./api.js";
import { bytes, element, replace, table } from "./dom.js";
import { plot } from "./plot.js";
import { attempt, begin, follow, page } from "./session.js";

const RELOAD_MS = 60_000;
const NEXT = 5;
const PERIODS = [[1, "day"], [7, "7 days"], [90, "90 days"]];
const [usagePlace, nextPlace, plots] = [element("div"), element("div"), element("div")];
let days = 1;

function drawUsage(status) {
  const usage = status.usage;
  const limit = usage.max_bytes ?? usage.used_bytes + usage.free_bytes;
  const share = limit ? Math.round((100 * (usage.used_bytes + usage.reserved_bytes)) / limit) : 0;
  const facts = [
    ["Cached files", `${usage.files}, ${bytes(usage.used_bytes)}`],
    ["Reserved", `${bytes(usage.reserved_bytes)} for crops that are being made`],
    ["Quota", usage.max_bytes ? bytes(usage.max_bytes) : "none; the disk is the limit"],
    ["Free on the disk", `${bytes(usage.free_bytes)} of ${bytes(usage.total_bytes)}; ${bytes(usage.min_free_bytes)} are kept free`],
    ["Quarantine", usage.quarantine_files
      ? `${usage.quarantine_files} files, ${bytes(usage.quarantine_bytes)}; deleted first when room is needed` : "empty"],
    ["Crops", `${status.crops_running} being made, ${status.crops_queued} waiting`],
    ["Engine", `${status.engine}, ${status.workers} ${status.workers === 1 ? "worker" : "workers"}`],
    ["Version", status.version],
  ];
  replace(usagePlace,
    element("p", {}, element("progress", { max: 100, value: share, "aria-label": `${share} % of the room is used` }),
      ` ${share} % of ${usage.max_bytes ? "the quota" : "the disk"} is used or reserved`),
    element("dl", { class: "facts" },
      ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
}

// What eviction would take first: it spares what is pinned, leased or being made, and begins with what was used longest ago.
function drawNext({ crops }) {
  const cached = crops.filter((crop) => crop.files.length);
  const free = cached.filter((crop) => !crop.pinned && !crop.leases && crop.state !== "making");
  const used = (crop) => (crop.last_used_at ? Date.parse(crop.last_used_at) : 0);
  const rows = free.sort((a, b) => used(a) - used(b)).slice(0, NEXT).map((crop) => element("tr", {},
    element("th", { scope: "row" }, `${crop.split}/${crop.crop}`),
    element("td", {}, bytes(crop.files.reduce((sum, file) => sum + file.size, 0))),
    element("td", {}, crop.last_used_at ? `last used ${new Date(crop.last_used_at).toLocaleString()}` : "not used yet")));
  const kept = cached.length - free.length;
  replace(nextPlace, element("h2", {}, "Evicted next, if space is needed"),
    table("Crops that are deleted next", ["Crop", "Size", "Why"], rows, "Nothing would be deleted."),
    kept ? element("p", {}, `${kept} ${kept === 1 ? "crop is" : "crops are"} kept: pinned, leased or being made.`) : null);
}

function drawPlots({ seconds, figures }) {
  const stop = Math.ceil(Date.now() / 1000 / seconds) * seconds;
  const points = figures.map((each) => ({ ...each, at: Date.parse(each.at) / 1000, asked: each.hits + each.misses }));
  const sum = (name) => points.reduce((total, point) => total + point[name], 0);
  const largest = (name) => points.reduce((top, point) => Math.max(top, point[name]), 0);
  const bars = (value) => points.map((point) => ({ at: point.at, value: value(point) }));
  const axis = { start: stop - days * 86_400, stop, seconds, format: bytes };
  const rate = (value) => `${Math.round(100 * value)} %`;
  const choice = element("select", {
    "aria-label": "Period",
    onchange: (event) => {
      days = Number(event.target.value);
      attempt(loadPlots);
    },
  }, ...PERIODS.map(([value, text]) => element("option", { value, selected: value === days }, text)));
  replace(plots, element("h2", {}, "The last ", choice),
    plot("Bytes fetched", `${bytes(sum("fetched_bytes"))} from the bucket`, bars((point) => point.fetched_bytes),
      { ...axis, top: largest("fetched_bytes") }),
    plot("Hit rate", sum("asked") ? `${rate(sum("hits") / sum("asked"))} of ${sum("asked")} crops asked for were cached` : "no crop was asked for",
      bars((point) => (point.asked ? point.hits / point.asked : 0)), { ...axis, top: 1, format: rate }),
    plot("Cache size", points.length ? `${bytes(points.at(-1).used_bytes)} now` : "not known yet",
      bars((point) => point.used_bytes), { ...axis, top: largest("used_bytes") }));
}

const loadPlots = async () => drawPlots(await json(`v1/history?days=${days}`));
const loadNext = async () => drawNext(await json("v1/crops"));
const load = () => Promise.all([loadNext(), loadPlots()]);

begin(async () => {
  replace(page, usagePlace, nextPlace, plots);
  drawUsage(await json("v1/status"));
  await load();
  setInterval(() => attempt(load), RELOAD_MS);
  follow({
    status: drawUsage,
    changed: () => attempt(async () => {
      drawUsage(await json("v1/status"));
      await load();
    }),
  });
});
