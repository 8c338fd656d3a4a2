"use strict";
// The chat page. Model text reaches the document as text nodes only, so nothing in it can act.

const $ = (id) => document.getElementById(id);
const SAMPLING = ["temperature", "max_tokens", "top_p", "top_k", "repetition_penalty", "seed"];

let turns = [];      // {role, content[, end]}, oldest first
let running = null;  // AbortController of the answer under way

// ---- what this browser keeps ----

function load(store, name, otherwise) {
  try { return JSON.parse(store.getItem("easyllm." + name)) ?? otherwise; } catch { return otherwise; }
}
function save(store, name, value) {
  try { store.setItem("easyllm." + name, JSON.stringify(value)); } catch { /* full, or forbidden */ }
}

// ---- showing ----

// Fenced code becomes <pre>, the rest paragraphs; both hold nothing but text.
function show(item, text) {
  const parts = text.split(/^```[^\n]*\n?/m);
  item.replaceChildren(...parts.flatMap((part, index) => {
    const code = index % 2 === 1;
    const body = code ? part.replace(/\n$/, "") : part.trim();
    if (!body && !(parts.length === 1)) return [];
    const block = document.createElement(code ? "pre" : "p");
    block.textContent = body;
    if (code) block.tabIndex = 0;  // a keyboard can scroll it
    return [block];
  }));
}

function note(item, text) {
  const small = document.createElement("small");
  small.textContent = text;
  item.append(small);
}

function add(turn) {
  const item = document.createElement("li");
  item.className = turn.role;
  show(item, turn.content);
  if (turn.end) note(item, turn.end);
  $("messages").append(item);
  $("welcome").hidden = true;
  return item;
}

function render() {
  $("messages").replaceChildren();
  $("welcome").hidden = turns.length > 0;
  turns.forEach(add);
  follow(true);
}

// Scroll along, unless the reader has scrolled up.
function follow(always) {
  const scroll = $("scroll");
  if (always || scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 120) {
    scroll.scrollTop = scroll.scrollHeight;
  }
}

function complain(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function busy(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
  $("messages").setAttribute("aria-busy", String(Boolean(controller)));
}

function grow() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = prompt.scrollHeight + "px";
}

// ---- asking ----

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: "Bearer " + key } : {};
}

async function failure(response) {
  let text = "";
  try { text = (await response.json()).error.message; } catch { /* not ours */ }
  if (response.status === 401) {
    $("settings").showModal();
    $("key").focus();
  }
  return text || `The server answered with status ${response.status}.`;
}

function body() {
  const system = $("system").value.trim();
  const messages = turns.map(({ role, content }) => ({ role, content }));
  const asked = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
  };
  for (const name of SAMPLING) {
    if ($(name).value !== "") asked[name] = Number($(name).value);
  }
  return asked;
}

// The data of server-sent events, as they come.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ")) yield block.slice(6);
    }
  }
}

async function ask() {
  const content = $("prompt").value.trim();
  if (!content || running) return;
  complain("");
  turns.push({ role: "user", content });
  add(turns.at(-1));
  $("prompt").value = "";
  grow();
  const controller = new AbortController();
  busy(controller);
  const turn = { role: "assistant", content: "" };
  const item = add(turn);
  item.classList.add("writing");
  follow(true);
  let error = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(body()),
      signal: controller.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    let whole = false;
    for await (const data of events(response)) {
      if (data === "[DONE]") { whole = true; break; }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const [choice] = chunk.choices;
      turn.content += choice?.delta.content ?? "";
      if (choice?.finish_reason === "length") turn.end = "The answer reached its longest length.";
      show(item, turn.content);
      follow(false);
    }
    if (!whole) throw new Error("The connection broke before the answer was whole.");
  } catch (problem) {
    if (controller.signal.aborted) turn.end = "Stopped.";
    else error = problem instanceof TypeError ? "The server cannot be reached." : problem.message;
  }
  item.classList.remove("writing");
  if (turn.content || turn.end) {
    turns.push(turn);
    if (turn.end) note(item, turn.end);
  } else {  // nothing came: the words go back to where they can be sent again
    item.remove();
    turns.pop();
    $("messages").lastElementChild.remove();
    $("welcome").hidden = turns.length > 0;
    $("prompt").value = content;
    grow();
  }
  complain(error);
  save(localStorage, "turns", turns);
  busy(null);
  follow(false);
  if (!$("settings").open) $("prompt").focus();
}

async function name() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) { complain(await failure(response)); return; }
    const { data: [model] } = await response.json();
    // of a folder's path the last words tell most
    $("model").textContent = model.id.split("/").slice(-2).join("/");
    $("model").title = model.id;
    document.title = $("model").textContent;
    complain("");
  } catch {
    complain("The server cannot be reached.");
  }
}

// ---- the page's own doings ----

$("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) running?.abort();
});
$("new").addEventListener("click", () => {
  running?.abort();
  turns = [];
  save(localStorage, "turns", turns);
  complain("");
  render();
  $("prompt").focus();
});
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("reset").addEventListener("click", () => {
  for (const id of ["system", ...SAMPLING]) $(id).value = "";
});
$("settings").addEventListener("close", () => {
  const values = Object.fromEntries(["system", ...SAMPLING].map((id) => [id, $(id).value]));
  save(localStorage, "settings", values);
  save(sessionStorage, "key", $("key").value.trim());
  name();
  $("prompt").focus();
});

for (const [id, value] of Object.entries(load(localStorage, "settings", {}))) {
  if ($(id)) $(id).value = value;
}
$("key").value = load(sessionStorage, "key", "");
turns = load(localStorage, "turns", []);
render();
name();
