// The page Jobs: what waits, what runs, and what has ended.

import { json, request } from "./api.js";
import { bar, button, bytes, element, failure, LiveTable, replace } from "./dom.js";
import { extraOf } from "./files.js";
import { Rates } from "./rates.js";
import { attempt, begin, follow, isMine, may, page } from "./session.js";

let open = [];
let recent = [];
const rates = new Rates();
const heads = ["Job", "State", "Owner", "Asked for", "Crops"];
const openTable = new LiveTable("Waiting and running jobs", [...heads, "Actions"], "No job is waiting or running.");
const endedTable = new LiveTable("Ended jobs", heads, "No job has ended yet.");

async function load() {
  recent = (await json("v1/jobs?limit=50")).jobs;
  draw();
}

function crops(job) {
  return element("ul", { class: "plain" }, ...job.crops.map((crop) => {
    const name = [`${job.split}/${crop.crop}`, extraOf(job)].filter(Boolean).join(", ");
    if (crop.problem) return element("li", {}, `${name}: `, failure(crop.problem));
    if (crop.state === "running") {
      const rate = rates.of(`${job.id} ${crop.crop}`, crop.bytes_done);
      return element("li", {}, `${name}: `, bar(crop, name), rate ? `, ${bytes(rate)}/s` : null);
    }
    return element("li", {}, `${name}: ${crop.state}${crop.waiting_for ? `, waiting for ${crop.waiting_for}` : ""}`);
  }));
}

function row(job) {
  const isOpen = job.state === "queued" || job.state === "running";
  const cancel = () => attempt(async () => {
    await request(`v1/jobs/${job.id}`, { method: "DELETE" });
    await load();
  });
  const mayCancel = isOpen && may("requester") && isMine(job);
  return element("tr", {},
    element("th", { scope: "row", title: job.id }, job.id.slice(0, 8)),
    element("td", {}, job.state),
    element("td", {}, job.owner || "–"),
    element("td", {}, job.created_at ? new Date(job.created_at).toLocaleString() : ""),
    element("td", {}, crops(job)),
    isOpen ? element("td", { class: "actions" }, mayCancel ? button("Cancel", cancel, `Cancel ${job.id}`) : "") : null);
}

function draw() {
  const live = new Map(open.map((job) => [job.id, job]));
  const ended = recent.filter((job) => !live.has(job.id) && job.state !== "queued" && job.state !== "running");
  const rows = (jobs) => jobs.map((job) => ({ key: job.id, data: job, make: () => row(job) }));
  openTable.show(rows(open));
  endedTable.show(rows(ended));
}

begin(async () => {
  replace(page, element("h2", {}, "Waiting and running"), openTable.node, element("h2", {}, "Ended"), endedTable.node);
  await attempt(load);
  follow({
    jobs: (data) => {
      open = data.jobs.filter((job) => job.state === "queued" || job.state === "running");
      draw();
    },
    changed: () => attempt(load),
  });
});
