// Cached files of a crop in words.

const PRODUCTS = {
  unlabelled: "mask of labelled voxels",
  avg_barcodes: "average barcodes",
  fgbg: "mask of the foreground",
  border_mask: "mask of borders",
  facts: "facts",
};

export const fileName = (file) => file.path.split("/").at(-1);
export const isWhole = (file) => fileName(file) === `crop_${file.crop}.h5`;

// Return channels as ranges: 0–2, 5.
function ranges(channels) {
  const found = [];
  for (const channel of channels) {
    if (found.at(-1)?.[1] === channel - 1) found.at(-1)[1] = channel;
    else found.push([channel, channel]);
  }
  return found.map(([first, last]) => (first === last ? first : `${first}–${last}`)).join(", ");
}

const contextOf = (context) => (context === "all" ? "all context" : `${context.join(" × ")} voxels of context`);
export const hasContext = ({ context }) => context === "all" || context.some((extent) => extent > 0);

// Return files with the crop itself before those with context, and these before what is made from it.
export function cropFirst(files) {
  const rank = (file) => (file.product === "crop" ? Number(hasContext(file)) : 2);
  return [...files].sort((one, other) => rank(one) - rank(other));
}

// Return what a job asks for besides the crop itself.
export function extraOf(job) {
  if (job.product !== "crop") return PRODUCTS[job.product] ?? job.product;
  return hasContext(job) ? contextOf(job.context) : "";
}

// Return what a file holds; `crop` is its crop.
export function contentOf(file, crop) {
  const isPart = crop.raw_shape && file.channels.length < crop.raw_shape[0] && file.product !== "facts";
  const channels = isPart ? `, ${file.channels.length === 1 ? "channel" : "channels"} ${ranges(file.channels)}` : "";
  if (file.product !== "crop") return `${PRODUCTS[file.product] ?? file.product}${channels}`;
  const arrays = ["raw", ...(crop.has_labels ? ["labels"] : []), ...crop.arrays.map(({ name }) => name)].join(", ");
  return `${arrays}${channels}${hasContext(file) ? `, ${contextOf(file.context)}` : ""}`;
}
