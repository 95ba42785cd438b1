"use strict";

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 720px)");

// What the page shows: the last answer, which hit of it, which token of the query (null: all).
const state = { answer: null, query: "", selected: -1, token: null };
let searching = null; // aborts the search before

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const number = (value) => value.toLocaleString("en");
const count = (value, one, many) => `${number(value)} ${value === 1 ? one : many}`;
const milliseconds = (value) => (value < 10 ? value.toFixed(1) : Math.round(value)) + " ms";

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  $("where").setAttribute("aria-invalid", String(text.startsWith("where")));
}

async function ask(address, signal) {
  let response;
  try {
    response = await fetch(address, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: it may have been stopped.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Searching

async function search({ remember = true } = {}) {
  const query = $("query").value.trim();
  if (!query) return $("query").focus();
  const asked = new URLSearchParams({ q: query, k: $("k").value });
  if ($("where").value.trim()) asked.set("where", $("where").value.trim());
  if (remember) history.pushState(null, "", `?${asked}`);
  document.title = `${query} · ${$("index-name").textContent}`;
  searching?.abort();
  const own = (searching = new AbortController());
  document.body.classList.add("busy");
  try {
    const answer = await ask(`/api/search?${asked}`, own.signal);
    complain("");
    show(answer, query);
    document.body.classList.remove("stale");
  } catch (error) {
    if (error.name === "AbortError") return;
    complain(error.message);
    document.body.classList.add("stale"); // what is shown answers another question
  } finally {
    if (searching === own) document.body.classList.remove("busy");
  }
}

function show(answer, query) {
  Object.assign(state, { answer, query, selected: -1, token: null });
  $("welcome").hidden = true;
  $("about").hidden = $("list").hidden = false;
  $("viewer").hidden = answer.hits.length === 0;
  const among = count(answer.scanned, "page", "pages");
  $("status").textContent = answer.hits.length
    ? `${number(answer.hits.length)} of ${among}, best first`
    : "No page passes the filter";
  showLatency(answer.milliseconds);
  const best = Math.max(...answer.hits.map((hit) => hit.score), 1e-9);
  $("hits").replaceChildren(...answer.hits.map((hit, i) => hitOf(hit, i, best)));
  $("list").scrollTop = 0;
  showTokens();
  if (answer.hits.length) select(0, { open: false });
}

function showLatency(times) {
  const stages = Object.entries(times).filter(([name]) => name !== "total");
  const parts = stages.map(([name, value]) => element("span", {}, `${name} ${milliseconds(value)}`));
  const total = element("span", {}, element("b", {}, milliseconds(times.total)));
  $("latency").replaceChildren(total, ...parts);
}

const GONE = {
  missing: "file is gone", changed: "file has changed", unreadable: "file cannot be read",
};

function hitOf(hit, position, best) {
  const words = element("span", { className: "words" },
    element("span", { className: "head" },
      element("span", { className: "name", title: hit.doc }, hit.name),
      element("span", { className: "score", title: "sum of the best similarity of each token" }, hit.score.toFixed(3))),
    element("span", { className: "meter", "aria-hidden": "true" },
      element("i", { style: `width:${Math.max(0, (100 * hit.score) / best)}%` })),
    element("span", { className: "where" }, `page ${hit.page} of ${hit.pages}`));
  if (hit.snippet) words.append(element("span", { className: "snippet" }, hit.snippet));
  const tags = Object.entries(hit.meta).map(([key, value]) => element("span", {}, `${key} = ${value}`));
  if (GONE[hit.source]) tags.push(element("span", { className: "gone" }, GONE[hit.source]));
  if (tags.length) words.append(element("span", { className: "tags" }, ...tags));
  const thumbnail = element("img", {
    loading: "lazy", decoding: "async", alt: altOf(hit), src: pictureOf(hit, "thumb"),
  });
  thumbnail.style.aspectRatio = hit.aspect;
  const button = element("button", { type: "button", className: "hit" }, thumbnail, words);
  button.addEventListener("click", () => select(position));
  return element("li", {}, button);
}

const pictureOf = (hit, size) => `/api/page/${hit.page_id}.webp?size=${size}&v=${hit.version}`;

function altOf(hit) {
  const missing = GONE[hit.source] ? `: the ${GONE[hit.source]}` : "";
  return `Page ${hit.page} of ${hit.name}${missing}`;
}

// The page on the right

const buttons = () => [...$("hits").querySelectorAll(".hit")];

function select(position, { open = true, focus = false } = {}) {
  const hit = state.answer?.hits[position];
  if (!hit) return;
  state.selected = position;
  buttons().forEach((button, i) => {
    if (i === position) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  const button = buttons()[position];
  button.scrollIntoView({ block: "nearest" });
  if (focus) button.focus({ preventScroll: true });
  $("title").replaceChildren(
    element("span", { className: "name", title: hit.doc }, hit.name), ` page ${hit.page}`);
  $("previous").disabled = position === 0;
  $("next").disabled = position === state.answer.hits.length - 1;
  $("figure").style.aspectRatio = hit.aspect;
  $("page").src = pictureOf(hit, "full");
  $("page").alt = altOf(hit);
  $("notice").textContent = hit.source === "vectors"
    ? "This document was indexed as vectors: there is no picture of it."
    : GONE[hit.source] ? `The ${GONE[hit.source]}: the heat map is drawn without it.` : "";
  $("notice").hidden = !$("notice").textContent;
  document.querySelector(".paper").scrollTop = 0;
  showScores(hit);
  showHeat();
  if (open && narrow.matches) cover(true);
}

function move(step) {
  const last = (state.answer?.hits.length ?? 0) - 1;
  if (last < 0) return;
  const covering = document.body.classList.contains("viewing");
  select(Math.min(Math.max(state.selected + step, 0), last), { open: false, focus: !covering });
}

// On a narrow screen the page covers the hits, which then cannot be reached behind it.
function cover(on) {
  document.body.classList.toggle("viewing", on);
  for (const part of [document.querySelector(".bar"), $("list"), $("about")]) part.inert = on;
  if (on) $("close").focus();
  else buttons()[state.selected]?.focus();
}

function showTokens() {
  const tokens = state.answer.tokens;
  const made = [null, ...tokens.keys()].map((token) => {
    const text = token === null ? "all" : tokens[token].trim() || "␣";
    const joined = token !== null && token > 0 && !tokens[token].startsWith(" ");
    const chip = element("button", {
      type: "button", className: joined ? "token more" : "token", title: text,
      "aria-pressed": String(token === state.token),
    }, text);
    if (token !== null) chip.append(element("i", { "aria-hidden": "true" }));
    chip.addEventListener("click", () => choose(token));
    return chip;
  });
  $("tokens").replaceChildren(...made);
}

function choose(token) {
  state.token = token;
  [...$("tokens").children].forEach((chip, i) => {
    chip.setAttribute("aria-pressed", String((i === 0 ? null : i - 1) === token));
  });
  $("heat").checked = true;
  showHeat();
}

// Under each token a line as long as its best similarity on this page.
function showScores(hit) {
  [...$("tokens").children].slice(1).forEach((chip, i) => {
    const score = hit.token_scores?.[i] ?? 0;
    chip.lastChild.style.setProperty("--score", `${100 * Math.min(Math.max(score, 0), 1)}%`);
    chip.title = hit.token_scores ? `best similarity on this page: ${score.toFixed(3)}` : "";
  });
}

function showHeat() {
  const hit = state.answer?.hits[state.selected];
  const layer = $("layer");
  const drawn = Boolean(hit?.token_scores);
  $("heat").disabled = $("opacity").disabled = !drawn;
  layer.hidden = true;
  layer.removeAttribute("src");
  if (!drawn || !$("heat").checked) return;
  const asked = new URLSearchParams({ q: state.query });
  if (state.token !== null) asked.set("token", state.token);
  layer.alt = state.token === null
    ? "Heat map of the whole query"
    : `Heat map of the token ${state.answer.tokens[state.token].trim()}`;
  layer.src = `/api/heatmap/${hit.page_id}?${asked}`;
}

// Heat without the page below it would be coloured boxes: it waits.
function uncover() {
  const ready = (image) => image.complete && image.naturalWidth > 0;
  $("layer").hidden = !($("heat").checked && ready($("layer")) && ready($("page")));
}

$("layer").addEventListener("load", uncover);
$("page").addEventListener("load", uncover);

// Events

$("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("k").addEventListener("change", () => { if (state.answer) search(); });
$("heat").addEventListener("change", showHeat);
$("opacity").addEventListener("input", (event) => {
  $("figure").style.setProperty("--strength", event.target.value / 100);
});
$("previous").addEventListener("click", () => move(-1));
$("next").addEventListener("click", () => move(1));
$("close").addEventListener("click", () => cover(false));
narrow.addEventListener("change", () => { if (!narrow.matches) cover(false); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const writing = event.target.matches("input[type=search], input[type=text]");
  const choosing = event.target.matches("select, input[type=range]");
  if (event.key === "Escape" && document.body.classList.contains("viewing")) return cover(false);
  if (choosing) return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (!state.answer?.hits.length) return;
    event.preventDefault();
    if (writing) select(state.selected, { open: false, focus: true });
    else move(event.key === "ArrowDown" ? 1 : -1);
  } else if (event.target.closest?.("#tokens") && /^Arrow(Left|Right)$/.test(event.key)) {
    const next = event.key === "ArrowRight" ? "nextElementSibling" : "previousElementSibling";
    event.target[next]?.focus();
  } else if (!writing && event.key === "/") {
    event.preventDefault();
    $("query").select();
  } else if (!writing && event.key.toLowerCase() === "h" && !$("heat").disabled) {
    $("heat").checked = !$("heat").checked;
    showHeat();
  }
});

function fromAddress() {
  const asked = new URLSearchParams(location.search);
  $("query").value = asked.get("q") ?? "";
  $("where").value = asked.get("where") ?? "";
  const hits = asked.get("k");
  if ([...$("k").options].some((option) => option.value === hits)) $("k").value = hits;
  if ($("query").value) search({ remember: false });
}

addEventListener("popstate", fromAddress);

ask("/healthz").then((about) => {
  $("index-name").textContent = about.index;
  $("index-size").textContent =
    `${count(about.pages, "page", "pages")} · ${count(about.documents, "document", "documents")}`;
  document.title = `${about.index} · compress3g`;
}).catch((error) => complain(error.message)).finally(fromAddress);
