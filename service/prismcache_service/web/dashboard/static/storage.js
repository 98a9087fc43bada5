// The page Storage: how full the cache folder is.

import { json } from "./api.js";
import { bytes, element, replace } from "./dom.js";
import { attempt, begin, follow, page } from "./session.js";

function facts(pairs) {
  return element("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function draw(status) {
  const usage = status.usage;
  const limit = usage.max_bytes ?? usage.used_bytes + usage.free_bytes;
  const share = limit ? Math.round((100 * (usage.used_bytes + usage.reserved_bytes)) / limit) : 0;
  replace(page,
    element("p", {}, element("progress", { max: 100, value: share, "aria-label": `${share} % of the room is used` }),
      ` ${share} % of ${usage.max_bytes ? "the quota" : "the disk"} is used or reserved`),
    facts([
      ["Cached files", `${usage.files}, ${bytes(usage.used_bytes)}`],
      ["Reserved", `${bytes(usage.reserved_bytes)} for crops that are being made`],
      ["Quota", usage.max_bytes ? bytes(usage.max_bytes) : "none; the disk is the limit"],
      ["Free on the disk", `${bytes(usage.free_bytes)} of ${bytes(usage.total_bytes)}; ${bytes(usage.min_free_bytes)} are kept free`],
      ["Quarantine", usage.quarantine_files
        ? `${usage.quarantine_files} files, ${bytes(usage.quarantine_bytes)}; deleted first when room is needed` : "empty"],
      ["Crops", `${status.crops_running} being made, ${status.crops_queued} waiting`],
      ["Engine", `${status.engine}, ${status.workers} ${status.workers === 1 ? "worker" : "workers"}`],
      ["Version", status.version],
    ]));
}

begin(async () => {
  draw(await json("v1/status"));
  follow({ changed: () => attempt(async () => draw(await json("v1/status"))), status: draw });
});
