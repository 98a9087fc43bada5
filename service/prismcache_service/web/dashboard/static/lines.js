// One line each to have a crop in a program, with buttons that copy it.

import { base, token } from "./api.js";
import { button } from "./dom.js";
import { say } from "./session.js";

const url = base.href.replace(/\/$/, "");

export const pythonLine = (split, crop) =>
  `from prismcache import PrismClient; paths = PrismClient(url="${url}").ensure("${split}", ${crop})`;

export const commandLine = (split, crop) => `prismcache ensure ${split} ${crop} --url ${url}`;

export function curlLine(split, crop) {
  const header = token.get() ? '-H "Authorization: Bearer $PRISMCACHE_TOKEN" ' : "";
  return `curl -fOJ ${header}${url}/v1/crops/${split}/${crop}/file`;
}

async function copy(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else { // a page that came by plain HTTP from another machine has no clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied: ${text}`);
}

export const copyButton = (label, text, described) => button(label, () => copy(text), described);
