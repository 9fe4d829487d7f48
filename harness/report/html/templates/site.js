"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const data = JSON.parse(one("#data").textContent);
const KINDS = ["method", "benchmark", "metric"];
const form = one("#filters");

function element(name, properties, ...inside) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...inside);
  return made;
}

/* Cells and headings become buttons: a reader without this script still has every table. */
const text = new WeakMap();
for (const table of all("main table:not(.forest)")) {
  const cells = all("tbody [data-why]", table);
  for (const cell of cells) {
    const mark = one("i", cell);
    const shown = one(".v", cell) || cell;
    text.set(cell, (mark ? shown.textContent.slice(0, -mark.textContent.length) : shown.textContent).trim());
    const button = element("button", { type: "button", tabIndex: -1 });
    button.append(...cell.childNodes);
    const state = one("b", button) ? ", best" : mark ? ", not significantly different from the best" : "";
    if (cell.dataset.spoken || state) button.setAttribute("aria-label", cell.dataset.spoken || text.get(cell) + state);
    cell.append(button);
  }
  for (const cell of all("tbody :is(th, td):not([data-why])", table)) text.set(cell, cell.firstChild ? cell.firstChild.textContent.trim() : "");
  if (cells.length) cells[0].firstChild.tabIndex = 0;
  for (const head of all("thead th", table)) {
    text.set(head, head.textContent.trim());
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(table, head));
  }
  all("tbody tr", table).forEach((row, place) => { row.dataset.place = place; });
  if (table.closest(".board")) continue;
  const save = element("button", { type: "button" }, "CSV of the rows shown");
  save.addEventListener("click", () => download(`${table.id}.csv`, shownAsCsv(table)));
  const tools = element("div", { className: "tools" }, save, element("span", { className: "count" }));
  table.parentElement.before(tools);
  table.parentElement.after(element("p", { className: "none", hidden: true }, "No row fits the filters."));
}

/* What stands behind a cell: its seeds as dots, the command that makes them again, where they are from. */
const SVG = "http://www.w3.org/2000/svg";
function drawn(name, properties) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  return made;
}

function dots(opened) {
  const values = opened.lanes.flatMap(([, seeds]) => seeds.map(([, value]) => value));
  if (!values.length) return [];
  const low = Math.min(...values), room = Math.max(Math.max(...values) - low, 0.2);
  const at = (value) => `${4 + 92 * (value - low) / room}%`;
  const table = element("table", { className: "seeds" }), body = table.createTBody();
  for (const [name, seeds] of opened.lanes) {
    const mean = seeds.reduce((sum, [, value]) => sum + value, 0) / seeds.length;
    const svg = drawn("svg", { height: 22, width: "100%", role: "img", "aria-label": seeds.map(([seed, value]) => `seed ${seed}: ${value.toFixed(2)}`).join(", ") || "no seed" });
    if (seeds.length) svg.append(drawn("line", { class: "mean", x1: at(mean), x2: at(mean), y1: 3, y2: 19 }));
    for (const [seed, value] of seeds) {
      const dot = drawn("circle", { cx: at(value), cy: 11, r: 5 }), said = drawn("title", {});
      said.textContent = `seed ${seed}: ${value.toFixed(2)}`;
      dot.append(said);
      svg.append(dot);
    }
    const row = body.insertRow(), lane = element("td", { className: "lane" });
    lane.append(svg);
    row.append(element("th", { scope: "row" }, name), lane, element("td", { className: "n" }, seeds.length ? mean.toFixed(2) : "–"));
  }
  return [table, element("p", { className: "below" }, `${opened.unit}; the bar is the mean. From ${low.toFixed(1)} to ${Math.max(...values).toFixed(1)}.`)];
}

function behind(cell) {
  const row = cell.parentElement, table = cell.closest("table");
  const cells = [...row.children].map((other) => text.get(other)), place = cell.cellIndex;
  const second = one("thead tr", table).children[1];
  const named = table.dataset.words !== undefined || Boolean(second?.classList.contains("w"));
  const most = table.dataset.words === undefined ? place : Math.min(place, 1 + Number(table.dataset.words));
  const title = text.get(one("thead tr", table).children[place]);
  const head = [table.dataset.heading, row.dataset.label, ...(named ? cells.slice(1, most) : []), `${title}: ${text.get(cell)}`];
  one("#why-h").textContent = head.join(" · ");
  const lines = data.behind[cell.dataset.why].map((line) => element("span", {}, data.lines[line] + "\n"));
  one("#behind").replaceChildren(...lines);
  const opened = data.opened[cell.dataset.why];
  one("#seeds").replaceChildren(...(opened ? dots(opened) : []));
  one("#again").hidden = !opened || !opened.command;
  one("#again pre").textContent = opened ? opened.command : "";
  if (cell.id) history.replaceState(null, "", `#${cell.id}`);
  one("#why").showModal();
}

document.addEventListener("click", (event) => {
  const cell = event.target.closest("tbody [data-why]");
  if (cell && getSelection().isCollapsed) behind(cell);
  if (event.target === one("#why")) one("#why").close();
  const button = event.target.closest("[data-numbers]");
  if (button) download(`${button.dataset.numbers}-numbers.csv`, data.csv[button.dataset.numbers]);
  const copied = event.target.closest("[data-copy]");
  if (copied) copy(copied.dataset.copy);
  for (const open of all("details.choices[open]")) if (!open.contains(event.target)) open.open = false;
});

/* A page of a disk may not always use the clipboard: then its text is a file. */
async function copy(name) {
  try {
    await navigator.clipboard.writeText(data.copies[name]);
    one("#said").textContent = `${name} is copied`;
  } catch {
    download(name === "LaTeX" ? "table.tex" : "cite.bib", data.copies[name]);
    one("#said").textContent = `${name} is saved: this page may not use the clipboard`;
  }
}

/* A link to a cell opens it, one to what is folded unfolds it. */
function follow() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let place = target; place; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
  target.scrollIntoView({ block: "center" });
  if (target.dataset.why && !one("#why").open) behind(target);
}
addEventListener("hashchange", follow);

/* Arrow keys move between the cells of a table; one of them is in the order of the tab key. */
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const open of all("details.choices[open]")) open.open = false;
  const cell = event.target.closest("tbody [data-why]"), step = STEPS[event.key];
  if (!cell || !step || event.ctrlKey || event.altKey || event.metaKey) return;
  const rows = all("tbody tr:not([hidden])", cell.closest("table"));
  const row = rows[rows.indexOf(cell.parentElement) + step[0]];
  let place = cell.cellIndex + step[1];
  while (row && row.children[place] && row.children[place].hidden) place += step[1];
  const next = row && row.children[place];
  if (!next) return;
  event.preventDefault();
  for (const other of all('tbody button[tabindex="0"]', cell.closest("table"))) other.tabIndex = -1;
  one("button", next).tabIndex = 0;
  one("button", next).focus();
});

/* Sorting: a first click brings the largest number or the first word up, a third one the order of the page back. */
function number(words) {
  const found = words.replaceAll("−", "-").replaceAll(",", "").match(/^[[(]?([-+]?\d+(\.\d+)?(e[-+]?\d+)?)/i);
  return found ? Number(found[1]) : NaN;
}

function sort(table, head) {
  const isWords = head.classList.contains("w") || head.cellIndex === 0;
  const cycle = isWords ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
  const next = cycle[(cycle.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
  for (const other of all("thead th", table)) other.setAttribute("aria-sort", other === head ? next : "none");
  const sign = next === "descending" ? -1 : 1, place = head.cellIndex;
  const order = (first, second) => {
    const rest = first.dataset.place - second.dataset.place;
    if (next === "none") return rest;
    const [a, b] = [first, second].map((row) => text.get(row.children[place]));
    if (isWords) return sign * a.localeCompare(b, "en", { numeric: true }) || rest;
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || rest;
    return sign * (x - y) || rest;
  };
  one("tbody", table).append(...all("tbody tr", table).sort(order));
  one("#status").textContent = next === "none" ? "Rows in the order of the page" : `Sorted by ${text.get(head)}, ${next}`;
}

/* Filters. What belongs to no method, benchmark or metric is never hidden by one. */
function filter() {
  const off = {};
  for (const kind of KINDS) {
    const boxes = all(`input[name="${kind}"]`, form);
    off[kind] = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    const summary = boxes.length && one(".chosen", boxes[0].closest("details"));
    if (summary) summary.textContent = off[kind].size ? `${boxes.length - off[kind].size} of ${boxes.length}` : "all";
  }
  const query = form.elements.query.value.trim().toLowerCase();
  const isOff = (tagged) => KINDS.some((kind) => off[kind].has(tagged.dataset[kind]));
  let shown = 0, rowsOfAll = 0;
  for (const table of all("main table:not(.forest)")) {
    all("thead th", table).forEach((head, place) => {
      const hidden = isOff(head);
      if (head.hidden !== hidden) for (const row of all("tr", table)) row.children[place].hidden = hidden;
    });
    const rows = all("tbody tr", table);
    for (const row of rows) row.hidden = isOff(row) || !(query === "" || row.textContent.toLowerCase().includes(query));
    const visible = rows.filter((row) => !row.hidden).length;
    const section = table.closest("section"), count = one(".count", section), none = one(".none", section);
    if (count) count.textContent = visible === rows.length ? "" : `${visible} of ${rows.length} rows`;
    if (none) none.hidden = visible > 0;
    const reachable = one('tbody button[tabindex="0"]', table);
    if (reachable && reachable.closest("tr, td, th").closest("tr").hidden) {
      reachable.tabIndex = -1;
      const first = one("tbody tr:not([hidden]) button", table);
      if (first) first.tabIndex = 0;
    }
    shown += visible;
    rowsOfAll += rows.length;
  }
  for (const shown of all(".strip, .tile")) shown.hidden = isOff(shown);
  one("#status").textContent = shown === rowsOfAll ? "" : `${shown} of ${rowsOfAll} rows`;
}

if (form) {
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("click", (event) => {
    const kind = event.target.dataset.all || event.target.dataset.none;
    if (!kind) return;
    for (const box of all(`input[name="${kind}"]`, form)) box.checked = "all" in event.target.dataset;
    filter();
  });
}

/* CSV: a cell that a spreadsheet would compute gets an apostrophe. */
function csvCell(words) {
  const safe = /^([=@\t\r]|[+-](?=.*[A-Za-z|!]))/s.test(words) ? `'${words}` : words;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function shownAsCsv(table) {
  const rows = all("thead tr, tbody tr:not([hidden])", table);
  const lines = rows.map((row) => [...row.children].filter((cell) => !cell.hidden).map((cell) => csvCell(text.get(cell))).join(","));
  return lines.join("\n") + "\n";
}

function download(name, content) {
  const mark = name.endsWith(".csv") ? "\ufeff" : ""; // without it Excel takes UTF-8 for something older
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([mark, content], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/* Light and dark: as the system says, until the button says otherwise. */
const theme = one("#theme"), dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
const tell = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; tell(); });
dark.addEventListener("change", tell);
tell();

/* Figures are packed: several megabytes of text become one. */
async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const svg = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  return URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
}

for (const image of all("img[data-picture]")) {
  unpacked(data.pictures[image.dataset.picture]).then((address) => { image.src = address; });
}

/* On paper everything is open. */
let closed = [];
addEventListener("beforeprint", () => { closed = all("main details:not([open], .choices)"); for (const each of closed) each.open = true; });
addEventListener("afterprint", () => { for (const each of closed) each.open = false; });

for (const hidden of [...(form ? [form] : []), ...all(".script-only")]) hidden.hidden = false;
follow();
