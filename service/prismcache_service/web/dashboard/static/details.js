// What the page of one crop shows besides its slices: lines to copy, files, facts, and how to have more of them made.

import { json, request } from "./api.js";
import { bar, button, bytes, element, failure, replace, table } from "./dom.js";
import { contentOf, cropFirst, fileName, isWhole } from "./files.js";
import { commandLine, copyButton, curlLine, pythonLine } from "./lines.js";
import { attempt, follow, may } from "./session.js";
import { share } from "./share.js";

const CONTEXTS = [["context 16,46,46", { context: [16, 46, 46] }], ["context all", { context: "all" }]];
const isOpen = ({ state }) => state === "queued" || state === "running";

const number = (value) => value.toFixed(1);
const heading = (text) => element("h2", {}, text);

function lines(split, crop, files) {
  const known = [["Python", pythonLine(split, crop)], ["Shell", commandLine(split, crop)], ["curl", curlLine(split, crop)]];
  const whole = files.find(isWhole);
  if (whole) known.push(["napari", `napari ${whole.path}`]);
  return element("dl", { class: "facts" }, ...known.flatMap(([name, text]) => [
    element("dt", {}, name),
    element("dd", {}, copyButton("Copy", text, `Copy the line for ${name}`), " ", element("code", {}, text)),
  ]));
}

function summary({ raw_shape: raw, labels_shape: labels, voxel_size: size, expansion }) {
  const parts = [raw ? `${raw[0]} channels` : "", labels ? `labels of ${labels.join(" × ")} voxels (Z × Y × X)` : ""];
  if (size) {
    const tissue = size.map((extent) => Math.round(extent / expansion)).join(" × ");
    parts.push(`${size.join(" × ")} nm expanded, ≈ ${tissue} nm in tissue`);
  }
  return element("p", {}, parts.filter(Boolean).join("; "));
}

function fileTable(crop) {
  return table("Cached files", ["File", "Content", "Size", "Note"], cropFirst(crop.files).map((file) => element("tr", {},
    element("th", { scope: "row" }, fileName(file)),
    element("td", {}, contentOf(file, crop)),
    element("td", { class: "number" }, bytes(file.size)),
    element("td", {}, [...file.notes, file.missing_chunks ? `${file.missing_chunks} chunks are absent from the bucket` : ""].join(" ")))),
  "No file of this crop is cached.");
}

function factTables(facts) {
  const label = Object.entries(facts.label_voxels).map(([share, voxels]) => `${Number(share)} %: ${voxels}`).join(", ");
  const shares = Object.keys(facts.channels[0]?.percentiles ?? {});
  const heads = ["Channel", "Mean", "Std", "Min", ...shares.map((share) => `${Number(share)} %`), "Max"];
  const rows = facts.channels.map((each) => element("tr", {},
    element("th", { scope: "row" }, String(each.channel)),
    ...[number(each.mean), number(each.std), each.min, ...shares.map((share) => each.percentiles[share]), each.max]
      .map((value) => element("td", { class: "number" }, String(value)))));
  return [
    element("p", {}, `${facts.labels} labels, ${number(100 * facts.foreground)} % foreground`,
      label ? `; voxels of a label at ${label}` : ""),
    facts.classes ? element("p", {}, `Voxels of each class: ${Object.entries(facts.classes).map(([id, voxels]) => `${id}: ${voxels}`).join(", ")}`) : null,
    table("Brightness of channels", heads, rows, "The crop has no channels.", { class: "numbers" }),
  ];
}

// Show the details of a crop in `place` and keep them up to date; `onFacts` is called with the facts once they are there.
export async function showDetails(place, split, crop, onFacts) {
  const name = `${split}/${crop}`;
  let [info, facts, progress, problem, wanted] = [null, null, null, null, null];

  const choices = () => {
    const products = [...info.products].sort((one, other) => (other === "facts") - (one === "facts"));
    return [...products.map((product) => [product, { product }]), ...(info.has_labels ? CONTEXTS : [])]; // context is raw around labels
  };
  const order = () => attempt(async () => {
    const body = { split, crops: [crop], ...Object.fromEntries(choices())[wanted] };
    problem = null;
    await json("v1/jobs", { method: "POST", body });
    await load();
  });

  function draw() {
    wanted ??= choices()[0]?.[0];
    const options = choices().map(([text]) => element("option", { value: text, selected: text === wanted }, text));
    const choice = element("select", { "aria-label": "What to make", onchange: (event) => { wanted = event.target.value; } }, ...options);
    const { files } = info;
    replace(place, summary(info),
      heading("Use it"), lines(split, crop, files), files.some(isWhole) ? element("p", {}, share(split, crop)) : null,
      heading("Files"), fileTable(info),
      wanted && may("requester") ? element("p", {}, "Also make ", choice, " ", button("Make", order, `Make a file of ${name}`)) : null,
      progress ? element("p", {}, bar(progress, name)) : null,
      problem ? element("p", {}, failure(problem)) : null,
      ...(facts || info.products.includes("facts") ? [heading("Facts")] : []),
      ...(facts ? factTables(facts) : info.products.includes("facts") ? [element("p", {}, "Not computed yet: make the product facts.")] : []));
  }

  async function load() {
    info = await json(`v1/crops/${split}/${crop}`);
    if (!facts && info.files.some((file) => file.product === "facts")) {
      facts = await json(`v1/crops/${split}/${crop}/file?product=facts`);
      onFacts(facts);
    }
    draw();
  }

  await load();
  let first = true;
  const seen = new Set();
  follow({
    jobs: ({ jobs }) => {
      const mine = jobs.filter((job) => job.split === split);
      const found = mine.flatMap((job) => job.crops.filter((item) => item.crop === crop).map((item) => ({ job, item })));
      progress = found.find(({ item }) => isOpen(item))?.item ?? null;
      for (const { job, item } of found) {
        if (isOpen(job) || seen.has(job.id)) continue;
        seen.add(job.id);
        if (!first && item.problem) problem = item.problem;
      }
      first = false;
      draw();
    },
    changed: () => attempt(load),
  });
}
