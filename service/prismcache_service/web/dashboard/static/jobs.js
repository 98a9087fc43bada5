// The page Jobs: what waits, what runs, and what has ended.

import { json, request } from "./api.js";
import { bar, button, bytes, element, failure, replace, table } from "./dom.js";
import { Rates } from "./rates.js";
import { attempt, begin, follow, isMine, may, page } from "./session.js";

let open = [];
let recent = [];
const rates = new Rates();

async function load() {
  recent = (await json("v1/jobs?limit=50")).jobs;
  draw();
}

function crops(job) {
  return element("ul", {}, ...job.crops.map((crop) => {
    const name = `${job.split}/${crop.crop}`;
    if (crop.problem) return element("li", {}, `${name}: `, failure(crop.problem));
    if (crop.state === "running") {
      const rate = rates.of(`${job.id} ${crop.crop}`, crop.bytes_done);
      return element("li", {}, `${name}: `, bar(crop, name), rate ? `, ${bytes(rate)}/s` : null);
    }
    return element("li", {}, `${name}: ${crop.state}`);
  }));
}

function row(job) {
  const isOpen = job.state === "queued" || job.state === "running";
  const cancel = isOpen && may("requester") && isMine(job)
    ? button("Cancel", () => attempt(async () => {
      await request(`v1/jobs/${job.id}`, { method: "DELETE" });
      await load();
    }), `Cancel ${job.id}`)
    : null;
  return element("tr", {},
    element("th", { scope: "row", title: job.id }, job.id.slice(0, 8)),
    element("td", {}, job.state),
    element("td", {}, job.owner || "–"),
    element("td", {}, job.created_at ? new Date(job.created_at).toLocaleString() : ""),
    element("td", {}, crops(job)),
    element("td", { class: "actions" }, cancel));
}

function draw() {
  const live = new Map(open.map((job) => [job.id, job]));
  const ended = recent.filter((job) => !live.has(job.id) && job.state !== "queued" && job.state !== "running");
  const heads = ["Job", "State", "Owner", "Asked for", "Crops", "Actions"];
  replace(page,
    element("h2", {}, "Waiting and running"), table("Waiting and running jobs", heads, open.map(row), "No job is waiting or running."),
    element("h2", {}, "Ended"), table("Ended jobs", heads, ended.map(row), "No job has ended yet."));
}

begin(async () => {
  await load();
  follow({
    jobs: (data) => {
      open = data.jobs.filter((job) => job.state === "queued" || job.state === "running");
      draw();
    },
    changed: () => attempt(load),
  });
});
